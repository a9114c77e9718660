r"""A point, its Newton correction, and the implicit derivative at both, from one factorisation.

An estimate of a derivative's error rests on two points, :math:`x` and
:math:`x^+ = x - A(x)^{-1} r(x)`. The matrix is formed and factored only at the first. At the
second it has hardly changed, so that :math:`A(x^+) y = b` is solved by iterative refinement,

.. math::

    y_{k+1} = y_k + A(x)^{-1} (b - A(x^+) y_k),

which takes a round or two from the solution at `x`. If it does not converge, because `x` is far
away or a kink lies between the points, the matrix at :math:`x^+` is factored after all. Without a
factorisation (see `iterdiff.linalg.solve`) a Krylov method solves for the change, loosely.
"""

import dataclasses
import math
from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
from jaxtyping import Array, Bool, Float, PyTree

from iterdiff.accuracy.sensitivity import (
    LOOSE_RTOL,
    Sensitivity,
    random_vector,
    sensitivity,
    unit,
)
from iterdiff.jaxtools import manual_axes, tree
from iterdiff.jaxtools.lax import only_if
from iterdiff.linalg.solve import Inverse
from iterdiff.problems.problem import CompositeMinimization, Problem
from iterdiff.problems.prox import weakly_active

MAX_REFINEMENTS = 10
"""Rounds of iterative refinement; if they do not suffice, the matrix is factored again."""

NOISE_FACTOR = 10
"""A Newton step is rounding noise below this many times eps, the condition number and ``|x|``."""


class NewtonPoints(eqx.Module):
    """An iterate, its Newton correction, and what the two reveal.

    Attributes
    ----------
    x, corrected, twice : pytree
        The iterate, the point after one correction, and the point after about a second one.
    quotient : scalar
        Length of the second correction over length of the first.
    rounding : scalar
        Machine precision times an estimate of the condition number.
    distance : scalar
        Length of the first correction, relative to the solution (absolute if that is below 1).
    away : bool
        Whether the iterate should be near a solution, but is not.
    saddle : bool
        Whether a point that should be near a minimum has directions of descent, while the iterate
        still moves.
    disagrees : bool
        Whether the algorithm is known to have fixed points that are no roots of the residual.
    one_sided : bool
        Whether the corrected point is at a kink of the equation.
    """

    x: PyTree
    corrected: PyTree
    twice: PyTree
    quotient: Float[Array, ""]
    rounding: Float[Array, ""]
    distance: Float[Array, ""]
    away: Bool[Array, ""]
    saddle: Bool[Array, ""]
    disagrees: Bool[Array, ""]
    one_sided: Bool[Array, ""]


class Correction:
    """The Newton correction of a point, and implicit derivatives at the corrected point.

    Parameters
    ----------
    at : Sensitivity
        The residual linearised at the point.
    near : float
        As in `derivative_error`.

    Attributes
    ----------
    points : NewtonPoints
    """

    def __init__(self, at: Sensitivity, near: float = math.inf):
        self.at = at
        random = random_vector(at.x)
        first, inverse_random = _solve_two(at.loosely, at.value, random)
        corrected = tree.sub(at.x, first)
        value, self._operator = jax.linearize(lambda y: at.residual(y, at.theta), corrected)
        direction = unit(inverse_random)
        chord, inverse_direction = _solve_two(at.loosely, value, direction)
        second = _newton_from_chord(chord, at.loosely(self._operator(chord)))
        condition = at.condition_from(random, inverse_direction)
        self.points = _points(at, corrected, (first, second, inverse_direction), condition, near)

    def exactly(self) -> Sensitivity:
        """Return the residual linearised at the corrected point, with a factorisation there."""
        at, corrected = self.at, self.points.corrected
        return Sensitivity(at.residual, corrected, at.theta, at.structure, solver=at.solver)

    def forward(self, v: PyTree, here: PyTree) -> tuple[PyTree, Float[Array, ""]]:
        """Return ``J v`` at the corrected point, and its error relative to the change.

        Parameters
        ----------
        v : pytree
            Like theta.
        here : pytree
            ``J v`` at the point itself.
        """
        in_theta = lambda theta: self.at.residual(self.points.corrected, theta)  # noqa: E731
        b = jax.jvp(in_theta, (self.at.theta,), (v,))[1]
        return self._refined(tree.scale(-1.0, b), here, transpose=False)

    def reverse(self, w: PyTree, adjoint: PyTree) -> tuple[PyTree, Float[Array, ""]]:
        """Return ``J^T w`` at the corrected point, and its error relative to the change.

        Parameters
        ----------
        w : pytree
            Like `x`.
        adjoint : pytree
            ``A^{-T} w`` at the point itself.
        """
        better, slack = self._refined(w, adjoint, transpose=True)
        in_theta = lambda theta: self.at.residual(self.points.corrected, theta)  # noqa: E731
        pull = jax.vjp(in_theta, self.at.theta)[1]
        return tree.scale(-1.0, pull(better)[0]), slack

    def _refined(
        self, b: PyTree, start: PyTree, *, transpose: bool
    ) -> tuple[PyTree, Float[Array, ""]]:
        """Solve ``A(x^+) y = b`` from the solution at `x`."""
        operator, at = self._operator, self.at
        if transpose and not at.structure.hessian:
            back = jax.linear_transpose(operator, at.x)
            operator = lambda w: back(w)[0]  # noqa: E731
        if at.inverse.factors is None:
            loose = Inverse(operator, at.x, at.structure, rtol=LOOSE_RTOL / 10)
            change = loose(tree.sub(b, operator(start)))
            return tree.add(start, change), jnp.asarray(LOOSE_RTOL, tree.result_dtype(start))

        def correction(y):
            return at.inverse.factored(tree.sub(b, operator(y)), transpose=transpose)

        y, slack = _refine(correction, start, self.points)

        def factor_again():
            return Inverse(operator, at.x, at.structure)(b), jnp.zeros_like(slack)

        return only_if(~(slack <= LOOSE_RTOL), factor_again, (y, slack))


def correct(
    problem: Problem,
    x: PyTree,
    theta: PyTree,
    linear_solver: lx.AbstractLinearSolver | None = None,
    *,
    near: float = math.inf,
) -> Correction:
    """Return the correction of `x`, for derivatives in the floating leaves of theta."""
    correction = Correction(sensitivity(problem, x, theta, linear_solver), near)
    if isinstance(problem, CompositeMinimization):
        one_sided = at_kink(problem, correction.points.corrected, jax.lax.stop_gradient(theta))
        correction.points = dataclasses.replace(correction.points, one_sided=one_sided)
    return correction


def at_kink(problem: CompositeMinimization, x: PyTree, theta: PyTree) -> Bool[Array, ""]:
    """Return whether a coordinate of `x` is weakly active, to half the digits."""
    tol = float(jnp.finfo(tree.result_dtype(x)).eps) ** 0.5
    kinks = jax.tree.leaves(weakly_active(problem, x, theta, tol=tol))
    return jnp.any(jnp.stack([jnp.any(kink) for kink in kinks]))


def _solve_two(solve: Callable[[PyTree], PyTree], a: PyTree, b: PyTree) -> tuple[PyTree, PyTree]:
    """Return ``solve(a), solve(b)``, with both right-hand sides at once."""
    stacked = jax.vmap(solve)(jax.tree.map(lambda u, v: jnp.stack([u, v]), a, b))
    return jax.tree.map(lambda s: s[0], stacked), jax.tree.map(lambda s: s[1], stacked)


def _newton_from_chord(chord: PyTree, image: PyTree) -> PyTree:
    r"""Return about ``A(x^+)^{-1} r(x^+)``, from the chord step ``A(x)^{-1} r(x^+)``.

    If the curvature differs between the points, the chord step may be far too short. Its `image`
    under :math:`A(x)^{-1} A(x^+)` shows the factor. The less of the image is in line with the
    chord, the longer the result.
    """
    length = tree.norm(chord)
    per_length = 1 / jnp.where(length > 0, length, 1.0)
    inner = tree.dot(tree.scale(per_length, image), tree.scale(per_length, chord))
    # A factor of 1000 is as good as any.
    return tree.scale(1 / jnp.where(jnp.abs(inner) > 1e-3, inner, 1e-3), chord)


def _points(
    at: Sensitivity, corrected: PyTree, steps: tuple, condition: Float[Array, ""], near: float
) -> NewtonPoints:
    """Judge the corrections; `steps` are the first, the second, and another likely direction."""
    first, second, _ = steps
    eps = jnp.finfo(tree.result_dtype(at.x)).eps
    rounding = eps * condition
    scale, length = tree.norm(corrected), tree.norm(first)
    noise = NOISE_FACTOR * rounding * scale
    below_noise = tree.norm(second) <= noise
    quotient = tree.norm(second) / jnp.where(length > 0, length, 1.0)
    quotient = jnp.where(below_noise & (quotient > 0.1), 0.1, quotient)
    saddle = jnp.array(False)
    if at.structure.positive_definite:
        moves = (length > jnp.sqrt(eps) * scale) & (length > noise)
        saddle = moves & _indefinite(at, steps)
    # A solution near zero has no scale of its own: lengths below 1 count as small there.
    distance = length / jnp.maximum(scale, 1.0)
    return NewtonPoints(
        x=at.x,
        corrected=corrected,
        twice=tree.sub(corrected, second),
        quotient=quotient,
        rounding=rounding,
        distance=distance,
        away=distance > near,
        saddle=saddle,
        disagrees=jnp.array(False),
        one_sided=jnp.array(False),
    )


def _indefinite(at: Sensitivity, directions: tuple) -> Bool[Array, ""]:
    """Return whether a symmetric operator has a direction of negative curvature.

    A factorisation answers with certainty. Without one, some likely `directions` are tried.
    """
    factors = at.inverse.factors
    if factors is not None and factors.definite is not None:
        return ~factors.definite
    curvatures = jnp.stack([tree.dot(v, at.operator(v)) for v in directions])
    return jnp.any(curvatures < 0)


def _refine(
    correction: Callable[[PyTree], PyTree], start: PyTree, points: NewtonPoints
) -> tuple[PyTree, Float[Array, ""]]:
    """Add corrections until those to come are below `LOOSE_RTOL` of the change.

    Convergence is linear. The rate is at first about twice the quotient of the Newton steps.

    Returns
    -------
    tuple
        The solution, and its error relative to the change: infinite if corrections do not shrink.
    """

    def unfinished(carry):
        *_, slack, rate, count = carry
        return ~(slack <= LOOSE_RTOL) & (rate < 1) & (count < MAX_REFINEMENTS)

    def refine(carry):
        y, before, _, rate, count = carry
        step = correction(y)
        y, length = tree.add(y, step), tree.norm(step)
        rate = jnp.where(count == 0, rate, length / before)
        change = tree.norm(tree.sub(y, start))
        remaining = jnp.where(rate < 1, rate / (1 - rate), jnp.inf) * length
        at_floor = length <= NOISE_FACTOR * points.rounding * tree.norm(y)
        slack = jnp.where(at_floor, 0.0, remaining / jnp.where(change > 0, change, 1.0))
        return y, length, slack, rate, count + 1

    rate = jnp.minimum(10 * points.quotient, 0.9)
    begin = (start, jnp.zeros_like(rate), jnp.full_like(rate, jnp.inf), rate, jnp.array(0))
    y, _, slack, _, _ = manual_axes.while_loop(unfinished, refine, begin)
    return y, slack
