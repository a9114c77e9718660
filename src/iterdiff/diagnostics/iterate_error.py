"""How far a derivative is from that of the iterations that ran."""

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from iterdiff.accuracy.estimate import OK, SINGULAR, ErrorEstimate, applied, check_layout
from iterdiff.algorithms.base import Algorithm, check_fits
from iterdiff.jaxtools import tree
from iterdiff.jaxtools.tree import floating_part
from iterdiff.loop.stopping import StoppingRule
from iterdiff.modes.unrolled import Unrolled
from iterdiff.problems.checks import check_residual, check_theta, check_x0
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
) -> ErrorEstimate:
    r"""Compare `derivative` with the *iterate derivative*, that of the map that ran.

    An outer optimiser that minimises :math:`f(x_T(\theta))`, with the iterate :math:`x_T` that
    its solver returns, descends along the derivative of :math:`\theta \mapsto x_T`, not along
    that of :math:`x^*`: the two differ as long as the run has not converged, and it may be
    consistency with the first that matters. (For the error as *solution derivative* see
    `derivative_error`.)

    Parameters
    ----------
    problem, algorithm, x0, theta, stop
        As in `solve`.
    derivative, tangent, cotangent, loss
        As in `derivative_error`.

    Returns
    -------
    ErrorEstimate
        Not estimated but measured, to rounding: `corrected` is the iterate derivative, and
        `uncertainty` zero.

    Raises
    ------
    TypeError, ValueError
        If the arguments do not fit together.

    Notes
    -----
    Costs the unrolled derivative: about two to three runs in reverse mode, one more than a run
    for each direction in forward mode.

    Examples
    --------
    >>> import jax
    >>> import jax.numpy as jnp
    >>> import iterdiff as itd
    >>> problem = itd.Minimization(lambda x, theta: (x - theta) ** 2)
    >>> run = (problem, itd.GradientDescent(0.25), jnp.array(0.0), jnp.array(1.0))
    >>> implicit = jnp.array(1.0)  # right for the solution; two steps have come to 3 / 4
    >>> error = itd.iterate_derivative_error(*run, implicit, stop=itd.Steps(2))
    >>> float(error.absolute), float(error.corrected)
    (0.25, 0.75)
    """
    check_fits(problem, algorithm)
    x0, theta = check_x0(x0), check_theta(theta)
    check_residual(problem, x0, theta)
    apply = applied(x0, theta, tangent, cotangent, loss)
    check_layout(apply, x0, theta, derivative)
    moving, rest = floating_part(theta)

    def ran(m: PyTree) -> PyTree:
        theta = eqx.combine(m, rest)
        return solve(problem, algorithm, x0, theta, stop=stop, mode=Unrolled(), throw=False).x

    truth = apply(ran, moving)
    given = jax.tree.unflatten(jax.tree.structure(truth), jax.tree.leaves(derivative))
    gap = tree.norm(tree.sub(truth, given))
    size = tree.norm(truth)
    relative = jnp.where(size > 0, gap / jnp.where(size > 0, size, 1.0), jnp.inf)
    finite = jnp.isfinite(gap)
    return ErrorEstimate(
        absolute=gap,
        relative=jnp.where(gap == 0, 0.0, relative),
        uncertainty=jnp.zeros_like(gap),
        trusted=finite,
        reason_code=jnp.where(finite, OK, SINGULAR),
        corrected=truth,
    )
