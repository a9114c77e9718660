"""The value of a minimum, with its gradient by the envelope theorem."""

import math
from collections.abc import Callable

import equinox as eqx
import jax
from jaxtyping import Array, Float, PyTree

from iterdiff.accuracy.estimate import derivative_error
from iterdiff.accuracy.report import carrying_report, check_report, to_vector
from iterdiff.accuracy.sensitivity import sensitivity
from iterdiff.algorithms.base import Algorithm
from iterdiff.jaxtools import tree
from iterdiff.jaxtools.arguments import Tolerance, check_bool, check_tolerance
from iterdiff.jaxtools.jit import compiled
from iterdiff.jaxtools.tree import floating_part
from iterdiff.loop.run import stop_gradient
from iterdiff.loop.stopping import StoppingRule
from iterdiff.problems.constrained import ConstrainedProblem
from iterdiff.problems.inputs import check_inputs
from iterdiff.problems.problem import Problem
from iterdiff.solving.solve import solve


def optimal_value(
    problem: Problem,
    algorithm: Algorithm,
    x0: PyTree,
    theta: PyTree,
    *,
    stop: StoppingRule,
    corrected: bool = True,
    report: Float[Array, " 6"] | None = None,
    rtol: Tolerance = 1e-2,
    args: PyTree = None,
    throw: bool = True,
) -> Float[Array, ""]:
    r"""Return the minimum's value :math:`\min_x f(x, \theta)`; JAX differentiates it in theta.

    By the envelope theorem the gradient of the value is :math:`f_\theta(x^*, \theta)`, without a
    derivative of :math:`x^*`. At the point `x` where the run stopped, with distance
    :math:`e = \|x - x^*\|` from the minimiser, there are two choices:

    - With ``corrected=False``, the value is :math:`f(x)` and its gradient :math:`f_\theta(x)`.
      Their errors are of second and of first order in `e`. No linear system is solved.
    - By default, the value is :math:`f - \tfrac12 f_x^\top A^{-1} r` and its gradient
      :math:`f_\theta - f_x^\top A^{-1} r_\theta`, at `x`. Their errors are of third and of second
      order. Each costs one linear solve.

    Here r is the residual, and :math:`A = r_x`.

    Parameters
    ----------
    problem : Problem
        A `Minimization`, or a `CompositeMinimization` with `penalty`.
    algorithm, x0, theta, stop, args, throw
        As in `solve`.
    corrected : bool
        Whether to correct value and gradient for the distance from the minimiser.
    report : array, optional
        The second argument that `value_and_grad_with_report` passes to the loss. The report is the
        error of the whole gradient. With it, only first derivatives in reverse mode work.
    rtol : real scalar
        The relative error above which the report is flagged, positive.

    Returns
    -------
    scalar
        The value, with derivatives of any order, under ``jit`` and ``vmap``.

    Raises
    ------
    TypeError, ValueError
        If an argument is wrong, or the problem is no minimisation of a known objective.
    SolveError
        As in `solve`.

    Notes
    -----
    Assumes that f is twice differentiable near the minimiser. The correction is the adjoint
    correction of the value, which for a minimum needs no adjoint solve: :math:`f_x = r`.

    Examples
    --------
    >>> import jax
    >>> import jax.numpy as jnp
    >>> import iterdiff as itd
    >>> problem = itd.Minimization(lambda x, theta: jnp.sum(jnp.cosh(x - theta) + x**2))
    >>> def value(theta, report=None, corrected=True):
    ...     return itd.optimal_value(
    ...         problem, itd.GradientDescent(0.1), jnp.zeros(()), theta,
    ...         stop=itd.Steps(5), corrected=corrected, report=report,
    ...     )
    >>> theta = jnp.array(1.0)
    >>> jax.grad(value)(theta).round(4).item()  # the truth is 0.6980
    0.6975
    >>> jax.grad(value)(theta, corrected=False).round(4).item()
    0.7566
    >>> _, _, found = itd.value_and_grad_with_report(value)(theta)
    >>> bool(found.trusted), bool(found.flagged)
    (True, False)
    """
    check_bool(corrected=corrected)
    check_report(report)
    check_tolerance("rtol", rtol)
    problem, x0, theta = check_inputs(problem, x0, theta, args)
    if isinstance(problem, ConstrainedProblem):
        raise ValueError(
            "`problem`: the value is corrected without constraints only. For a "
            f"{type(problem).__name__}, solve it and differentiate its objective at `solution.x`."
        )
    value = eqx.filter_eval_shape(lambda *at: problem.value(*at), x0, theta)
    if value is None:
        raise ValueError(
            f"`problem`: a {type(problem).__name__} without a known objective has no optimal "
            "value. Use a Minimization, or give the CompositeMinimization its `penalty`."
        )
    x = solve(problem, algorithm, x0, theta, stop=stop, throw=throw).x
    if report is None:
        return _value(problem, x, theta, corrected)
    still, fixed, parameters = stop_gradient((problem, x, theta))
    found = _reported(still, fixed, parameters, corrected, rtol)
    return carrying_report(_value(problem, x, theta, corrected), report, found)


def _objective_of(problem: Problem) -> Callable[[PyTree, PyTree], Float[Array, ""]]:
    """Return the objective of a problem that has one."""

    def objective(x: PyTree, theta: PyTree) -> Float[Array, ""]:
        value = problem.value(x, theta)
        assert value is not None
        return value

    return objective


@compiled
def _value(problem: Problem, x: PyTree, theta: PyTree, corrected: bool) -> Float[Array, ""]:
    objective = _objective_of(problem)
    fixed, still = stop_gradient((x, theta))
    if not corrected:
        return objective(fixed, theta)
    at = sensitivity(problem, fixed, still)
    slope = jax.grad(objective)(fixed, still)
    change = tree.dot(slope, at.inverse(at.value)) / 2
    return objective(x, theta) - jax.lax.stop_gradient(change)


@compiled
def _reported(
    problem: Problem, x: PyTree, theta: PyTree, corrected: bool, rtol: Tolerance
) -> Float[Array, " 6"]:
    """Return the encoded report of the gradient of `_value`."""
    objective = _objective_of(problem)
    floating, rest = floating_part(theta)
    at = sensitivity(problem, x, theta)
    slope, partial = jax.grad(
        lambda x, floating: objective(x, eqx.combine(floating, rest)), argnums=(0, 1)
    )(x, floating)
    if corrected:
        partial = tree.add(partial, at.pulled(at.inverse.transposed(slope)))
    estimate = derivative_error(problem, x, theta, partial, loss=objective, near=math.inf)
    return to_vector(estimate, estimate.exceeds(rtol))
