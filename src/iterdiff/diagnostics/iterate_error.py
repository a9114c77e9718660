"""The error of a derivative against the derivative of the iterate."""

from collections.abc import Callable

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from iterdiff.accuracy.estimate import ErrorEstimate
from iterdiff.accuracy.estimate_jvp import sizes
from iterdiff.accuracy.forms import Form, applied, as_caller_has_it, check_layout
from iterdiff.accuracy.reasons import OK, SINGULAR
from iterdiff.algorithms.base import Algorithm, check_fits
from iterdiff.jaxtools.tree import floating_part
from iterdiff.loop.stopping import StoppingRule
from iterdiff.modes.unrolled import Unrolled
from iterdiff.problems.inputs import check_inputs
from iterdiff.problems.problem import Problem
from iterdiff.solving.solve import solve


def iterate_derivative_error(
    problem: Problem,
    algorithm: Algorithm,
    x0: PyTree,
    theta: PyTree,
    derivative: PyTree,
    *,
    stop: StoppingRule,
    tangent: PyTree | None = None,
    cotangent: PyTree | None = None,
    loss: Callable[[PyTree, PyTree], Float[Array, ""]] | None = None,
    args: PyTree = None,
) -> ErrorEstimate:
    r"""Return the error of `derivative` as *iterate derivative*.

    The iterate derivative is the derivative of the map :math:`\theta \mapsto x_T` that ran. An
    outer optimiser that minimises :math:`f(x_T(\theta))` descends along it, not along the solution
    derivative of :math:`x^*`. The two differ until the run has converged. (`derivative_error`
    returns the error as *solution derivative*.)

    Parameters
    ----------
    problem, algorithm, x0, theta, stop, args
        As in `solve`.
    derivative, tangent, cotangent, loss
        As in `derivative_error`.

    Returns
    -------
    ErrorEstimate
        Exact to rounding, not estimated: `corrected` is the iterate derivative, and `uncertainty`
        is zero.

    Raises
    ------
    TypeError, ValueError
        If an argument does not fit.

    Notes
    -----
    Costs one unrolled derivative: about two to three runs in reverse mode, or one additional run
    per direction in forward mode.

    Examples
    --------
    >>> import jax
    >>> import jax.numpy as jnp
    >>> import iterdiff as itd
    >>> problem = itd.Minimization(lambda x, theta: (x - theta) ** 2)
    >>> run = (problem, itd.GradientDescent(0.25), jnp.array(0.0), jnp.array(1.0))
    >>> implicit = jnp.array(1.0)  # x* = theta, but after two steps x_T = 3 / 4 theta
    >>> error = itd.iterate_derivative_error(*run, implicit, stop=itd.Steps(2))
    >>> float(error.absolute), float(error.corrected)
    (0.25, 0.75)
    """
    check_fits(problem, algorithm)
    problem, x0, theta = check_inputs(problem, x0, theta, args)
    form = Form(derivative, tangent, cotangent, loss)
    form = form if problem.layout is None else form.seen(problem.layout)
    derivative, *form = form.arrays()
    apply = applied(x0, theta, *form)
    check_layout(apply, x0, theta, derivative)
    floating, static = floating_part(theta)

    def iterate(floating: PyTree) -> PyTree:
        theta = eqx.combine(floating, static)
        return solve(problem, algorithm, x0, theta, stop=stop, mode=Unrolled(), throw=False).x

    exact = apply(iterate, floating)
    absolute, relative = sizes(derivative, exact)
    finite = jnp.isfinite(absolute)
    return ErrorEstimate(
        absolute=absolute,
        relative=relative,
        uncertainty=jnp.zeros_like(absolute),
        trusted=finite,
        reason_code=jnp.where(finite, OK, SINGULAR),
        corrected=as_caller_has_it(problem.layout, exact, cotangent, loss),
    )
