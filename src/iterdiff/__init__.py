"""Differentiate through any iterative algorithm, and know how wrong the derivative is.

In reading order: problems, algorithms, modes, stopping rules, solve. The subpackages `adapters`
and `theory` are loaded when they are first asked for.
"""

import importlib
import typing

from iterdiff import prox as prox
from iterdiff.algorithms.base import Algorithm as Algorithm
from iterdiff.algorithms.base import Iterate as Iterate
from iterdiff.algorithms.base import State as State
from iterdiff.algorithms.bracketing import Bisection as Bisection
from iterdiff.algorithms.fixed_point import Anderson as Anderson
from iterdiff.algorithms.fixed_point import Picard as Picard
from iterdiff.algorithms.gradient import GradientDescent as GradientDescent
from iterdiff.algorithms.gradient import HeavyBall as HeavyBall
from iterdiff.algorithms.gradient import Nesterov as Nesterov
from iterdiff.algorithms.krylov import GMRES as GMRES
from iterdiff.algorithms.krylov import ConjugateGradient as ConjugateGradient
from iterdiff.algorithms.newton import Newton as Newton
from iterdiff.algorithms.polynomial import Chebyshev as Chebyshev
from iterdiff.algorithms.polynomial import Sobolev as Sobolev
from iterdiff.algorithms.proximal import FISTA as FISTA
from iterdiff.algorithms.proximal import ProximalGradient as ProximalGradient
from iterdiff.algorithms.quasi_newton import Broyden as Broyden
from iterdiff.algorithms.quasi_newton import Chord as Chord
from iterdiff.algorithms.stationary import SOR as SOR
from iterdiff.algorithms.stationary import GaussSeidel as GaussSeidel
from iterdiff.algorithms.stationary import Jacobi as Jacobi
from iterdiff.algorithms.stationary import Richardson as Richardson
from iterdiff.checked import Checked as Checked
from iterdiff.checked import DerivativeWarning as DerivativeWarning
from iterdiff.checkup import Checkup as Checkup
from iterdiff.checkup import check_derivative as check_derivative
from iterdiff.derivative_report import DerivativeReport as DerivativeReport
from iterdiff.derivative_report import value_and_grad_with_report as value_and_grad_with_report
from iterdiff.derivative_stop import DerivativeErrorBelow as DerivativeErrorBelow
from iterdiff.diagnose import diagnose as diagnose
from iterdiff.diagnosis import Diagnosis as Diagnosis
from iterdiff.error import ErrorEstimate as ErrorEstimate
from iterdiff.error import derivative_error as derivative_error
from iterdiff.failure import SolveError as SolveError
from iterdiff.iterate_error import iterate_derivative_error as iterate_derivative_error
from iterdiff.modes.base import Mode as Mode
from iterdiff.modes.implicit import Implicit as Implicit
from iterdiff.modes.unrolled import OneStep as OneStep
from iterdiff.modes.unrolled import Unrolled as Unrolled
from iterdiff.problems import CompositeMinimization as CompositeMinimization
from iterdiff.problems import FixedPoint as FixedPoint
from iterdiff.problems import LinearSystem as LinearSystem
from iterdiff.problems import MatrixOperator as MatrixOperator
from iterdiff.problems import Minimization as Minimization
from iterdiff.problems import Problem as Problem
from iterdiff.problems import RootFinding as RootFinding
from iterdiff.prox import weakly_active as weakly_active
from iterdiff.solution import Solution as Solution
from iterdiff.solution import SolverFailed as SolverFailed
from iterdiff.solution import Status as Status
from iterdiff.solve import implicit as implicit
from iterdiff.solve import solve as solve
from iterdiff.stopping import ResidualBelow as ResidualBelow
from iterdiff.stopping import Steps as Steps
from iterdiff.stopping import StoppingRule as StoppingRule
from iterdiff.trace import trace as trace
from iterdiff.version import __version__ as __version__

if typing.TYPE_CHECKING:
    from iterdiff import adapters as adapters
    from iterdiff import theory as theory

_LOADED_WHEN_ASKED_FOR = ("adapters", "theory")


def __getattr__(name: str):
    if name in _LOADED_WHEN_ASKED_FOR:
        return importlib.import_module(f"iterdiff.{name}")
    raise AttributeError(f"module 'iterdiff' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_LOADED_WHEN_ASKED_FOR])
