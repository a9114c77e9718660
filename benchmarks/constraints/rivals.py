"""Quadratic programs by other libraries, as functions of the linear term and the program.

optimistix is not among them: it has no solver for problems with constraints.
"""

from collections.abc import Callable
from importlib.util import find_spec
from typing import Any, NamedTuple

import numpy as np


class Program(NamedTuple):
    """The arrays of a quadratic program; in a batch, only `c` and `h` have one more axis."""

    Q: Any
    c: Any
    A: Any
    b: Any
    G: Any
    h: Any


def by_jaxopt(tol: float) -> Callable:
    """Return jaxopt's solution by OSQP, differentiated implicitly."""
    from jaxopt import OSQP

    def solution(c, program):
        solver = OSQP(tol=tol, maxiter=4000, check_primal_dual_infeasability=False)
        equalities = (program.A, program.b) if len(program.b) else None
        found = solver.run(
            params_obj=(program.Q, c), params_eq=equalities, params_ineq=(program.G, program.h)
        )
        return found.params.primal

    return solution


def has_cvxpylayers() -> bool:
    """Return whether cvxpylayers and the solver that it differentiates through are installed."""
    return all(find_spec(name) is not None for name in ("cvxpylayers", "diffcp"))


CVXPYLAYERS_MISSING = "cvxpylayers is not installed and was skipped: pip install cvxpylayers diffcp"


def by_cvxpylayers(program: Program) -> Callable:
    """Return the solution by cvxpylayers, for `c` and `h` of one program or of a batch.

    The layer is built here, for the program's other arrays. It is its own batch, since JAX can
    neither compile nor batch its solves.
    """
    import cvxpy
    from cvxpylayers.jax import CvxpyLayer

    x = cvxpy.Variable(program.Q.shape[0])
    c, h = cvxpy.Parameter(x.size), cvxpy.Parameter(program.G.shape[0])
    Q, A, b, G = (np.asarray(v) for v in (program.Q, program.A, program.b, program.G))
    curved = cvxpy.quad_form(x, cvxpy.psd_wrap(Q)) / 2 if np.any(Q) else 0
    rules = [G @ x <= h] + ([A @ x == b] if len(b) else [])
    problem = cvxpy.Problem(cvxpy.Minimize(curved + c @ x), rules)
    layer = CvxpyLayer(problem, parameters=[c, h], variables=[x])
    return lambda c, program: layer(c, program.h)[0]
