"""Outer optimisation around an inner solve, with gradients whose error is known.

`hypergradient` solves on until the gradient of an outer loss is accurate; `minimize` uses it, and
never steps on a doubtful gradient. The optional libraries (optax, xarray, matplotlib, rich) come
with ``pip install 'iterdiff[bilevel]'``. `iterdiff.bilevel.sklearn` has estimators for
scikit-learn, which comes with ``pip install 'iterdiff[sklearn]'``.
"""

import importlib
from types import ModuleType

from iterdiff.bilevel.drivers import Minimized as Minimized
from iterdiff.bilevel.drivers import minimize as minimize
from iterdiff.bilevel.endings import Budget as Budget
from iterdiff.bilevel.endings import Ending as Ending
from iterdiff.bilevel.gradients import Counts as Counts
from iterdiff.bilevel.gradients import Hypergradient as Hypergradient
from iterdiff.bilevel.gradients import HypergradientState as HypergradientState
from iterdiff.bilevel.gradients import hypergradient as hypergradient
from iterdiff.bilevel.intervals import StochasticMinimized as StochasticMinimized
from iterdiff.bilevel.methods import LBFGS as LBFGS
from iterdiff.bilevel.methods import Backtracking as Backtracking
from iterdiff.bilevel.methods import Method as Method
from iterdiff.bilevel.methods import Optax as Optax
from iterdiff.bilevel.pictures import plot as plot
from iterdiff.bilevel.stochastic import minimize_stochastic as minimize_stochastic
from iterdiff.bilevel.stochastic_methods import SABA as SABA
from iterdiff.bilevel.stochastic_methods import SOBA as SOBA
from iterdiff.bilevel.stochastic_methods import AmIGO as AmIGO
from iterdiff.bilevel.unrolled_sgd import UnrolledSGD as UnrolledSGD
from iterdiff.bilevel.unrolled_sgd import unrolled_sgd as unrolled_sgd


def __getattr__(name: str) -> ModuleType:
    if name == "sklearn":  # loaded when it is first used
        return importlib.import_module("iterdiff.bilevel.sklearn")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
