"""Cross-check a problem, its solver and their derivatives, and name the part that is wrong."""

from collections.abc import Callable

import jax.numpy as jnp
from jaxtyping import PyTree

from iterdiff.algorithms.base import Algorithm, check_fits
from iterdiff.diagnostics.checked_run import CheckedRun
from iterdiff.diagnostics.checkup import Checkup as Checkup
from iterdiff.diagnostics.map_checks import check_objective, check_residual_map, check_symmetry
from iterdiff.diagnostics.solve_checks import check_end, check_solve
from iterdiff.jaxtools import tree
from iterdiff.jaxtools.arguments import Tolerance, check_tolerance
from iterdiff.jaxtools.jit import quickly_compiled
from iterdiff.loop.stopping import StoppingRule
from iterdiff.problems.functions import bind
from iterdiff.problems.inputs import check_inputs
from iterdiff.problems.layout import Seen
from iterdiff.problems.problem import Problem

DEFAULT_TOL_FLOAT64 = 1e-4
"""Relative discrepancy up to which a check passes."""

DEFAULT_TOL_FLOAT32 = 2e-2
"""The same in float32, and in every shorter precision."""


@quickly_compiled()
def check_derivative(
    problem: Problem,
    algorithm: Algorithm | Callable[[PyTree, PyTree], PyTree],
    x0: PyTree,
    theta: PyTree,
    *,
    stop: StoppingRule | None = None,
    tol: Tolerance | None = None,
    args: PyTree = None,
) -> Checkup:
    r"""Cross-check every part of a derivative before you rely on it.

    The checks run at the solver's answer, each in a random direction, causes before their
    consequences:

    - the derivatives of the residual in `x` and `theta` agree with finite differences and with
      their own transposes;
    - ``d residual / dx`` is as symmetric as the problem declares;
    - the residual vanishes at the answer;
    - the solution is not at a kink, where it has only one-sided derivatives;
    - the derivatives of the step pass the same checks as those of the residual;
    - the derivative of the solve, by each mode, agrees with finite differences of the solve.

    Parameters
    ----------
    problem, algorithm, x0, theta, stop, args
        As in `solve`. Let the run converge: an unconverged run fails a check. Instead of an
        algorithm, `algorithm` may be a function ``solver(x0, theta)`` as in `iterdiff.implicit`,
        or ``solver(x0, theta, args)``; leave `stop` out then.
    tol : scalar, optional
        Relative discrepancy up to which a check passes, positive. By default 1e-4 in float64 and
        2e-2 in float32.

    Returns
    -------
    Checkup
        ``checkup.ok`` is whether all checks passed; ``print(checkup)`` explains the first failure.

    Raises
    ------
    TypeError, ValueError
        If an argument does not fit.

    Notes
    -----
    The residual counts as vanishing where the Newton step from the answer is short relative to the
    corrected point. If the corrected point is zero, the step is compared with the distance
    travelled from `x0`, or with 1 if that is smaller (1e-8 of it in float64, 1e-4 in float32), or
    with the rounding error: the machine precision times the condition number.

    Each derivative is compared at several increments, and passes if one agrees. A kink is where
    forward and backward differences disagree by the same amount at all increments.

    A function that is locally constant, for example in a rounded parameter, has the derivative
    zero and passes.

    Examples
    --------
    >>> import jax
    >>> import jax.numpy as jnp
    >>> import iterdiff as itd
    >>> problem = itd.RootFinding(lambda x, theta: x**3 - jax.lax.stop_gradient(theta))
    >>> run = (problem, itd.Newton(), jnp.array(1.0), jnp.array(8.0))
    >>> checkup = itd.check_derivative(*run, stop=itd.Steps(20))
    >>> checkup.ok, checkup.culprit.name
    (False, 'residual: derivative in theta = finite difference')
    >>> isinstance(checkup, itd.Checkup)
    True
    """
    if isinstance(algorithm, Algorithm) or not callable(algorithm):
        check_fits(problem, algorithm)
        if stop is None:
            raise ValueError("`stop` is missing: pass a stopping rule, such as Steps(1000).")
    elif stop is not None:
        raise ValueError("`stop` does not apply to a solver function; leave it out.")
    elif args is not None:
        algorithm = bind(algorithm, 2, args)
    if tol is not None:
        check_tolerance("tol", tol)
    problem, x0, theta = check_inputs(problem, x0, theta, args)
    if problem.layout is not None and not isinstance(algorithm, Algorithm):
        algorithm = Seen(algorithm, problem.layout, like_x=True)
    wide = jnp.finfo(tree.result_dtype(x0)).bits >= 64
    default = DEFAULT_TOL_FLOAT64 if wide else DEFAULT_TOL_FLOAT32
    return _checkup(
        CheckedRun(problem, algorithm, x0, theta, stop),
        default if tol is None else float(jnp.asarray(tol)),
    )


def _checkup(run: CheckedRun, tol: float) -> Checkup:
    """Run the checks that apply."""
    findings = []
    if run.starts:
        findings += check_objective(run, tol)
    if run.starts or run.ends:
        findings += check_residual_map(run, tol)
        findings += check_symmetry(run, tol)
    findings.append(check_end(run))
    if run.ends:
        findings += check_solve(run, tol)
    return Checkup(tuple(findings))
