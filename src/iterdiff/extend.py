"""Everything that a new algorithm, mode, stopping rule, problem or adapter needs.

Code that extends the package imports from here and from the package itself, and from nothing
deeper. The names below are as stable as the other public names. ``CONTRIBUTING.md`` has a
commented skeleton of each kind, and the tests run the skeletons.

====================  ==============================================================================
to write              use
====================  ==============================================================================
an algorithm          `Algorithm` or `StatelessAlgorithm`, `State`, `Iterate`, `scalar`,
                      `check_range`, `check_count`, `tree`
a mode                `Mode`, `Outcome`, `Task`, `Tangents`, `Run`, `run_loop`, `floating_part`,
                      `stop_gradient`, `attach_jvp`, `hoist`
a stopping rule       `StoppingRule`, `StopContext`, `check_tolerance`
a problem             `Problem`, `ConstraintLimits`
a linear solve        `DenseOrKrylov`, `Limits`
an adapter            `Algorithm`, `ForeignState`, `import_extra`
====================  ==============================================================================
"""

from iterdiff.adapters.common import ForeignState as ForeignState
from iterdiff.algorithms.base import Algorithm as Algorithm
from iterdiff.algorithms.base import Iterate as Iterate
from iterdiff.algorithms.base import State as State
from iterdiff.algorithms.base import StatelessAlgorithm as StatelessAlgorithm
from iterdiff.jaxtools import tree as tree
from iterdiff.jaxtools.arguments import Scalar as Scalar
from iterdiff.jaxtools.arguments import Tolerance as Tolerance
from iterdiff.jaxtools.arguments import check_count as check_count
from iterdiff.jaxtools.arguments import check_range as check_range
from iterdiff.jaxtools.arguments import check_tolerance as check_tolerance
from iterdiff.jaxtools.arguments import scalar as scalar
from iterdiff.jaxtools.closures import Perturbed as Perturbed
from iterdiff.jaxtools.closures import attach_jvp as attach_jvp
from iterdiff.jaxtools.closures import hoist as hoist
from iterdiff.jaxtools.extras import import_extra as import_extra
from iterdiff.jaxtools.tree import floating_part as floating_part
from iterdiff.linalg.dense_or_krylov import DenseOrKrylov as DenseOrKrylov
from iterdiff.linalg.dense_or_krylov import Limits as Limits
from iterdiff.loop.run import Loop as Loop
from iterdiff.loop.run import Run as Run
from iterdiff.loop.run import run_loop as run_loop
from iterdiff.loop.run import stop_gradient as stop_gradient
from iterdiff.loop.stopping import StopContext as StopContext
from iterdiff.loop.stopping import StoppingRule as StoppingRule
from iterdiff.loop.task import Tangents as Tangents
from iterdiff.loop.task import Task as Task
from iterdiff.modes.base import Mode as Mode
from iterdiff.modes.base import Outcome as Outcome
from iterdiff.problems.constrained import ConstraintLimits as ConstraintLimits
from iterdiff.problems.problem import Problem as Problem
