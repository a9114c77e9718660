r"""A point, its Newton correction, and the implicit derivative at both: one factorisation.

What is estimated of a derivative rests on two points, :math:`x` and
:math:`x^+ = x - A(x)^{-1} r(x)`. The matrix is formed and factored at the first alone. At the
second it has hardly changed: :math:`A(x^+) y = b` is solved by

.. math::

    y_{k+1} = y_k + A(x)^{-1} (b - A(x^+) y_k),

from the answer at `x`, in a round or two; where that does not converge (`x` is far away, or
a kink lies between the points), by a factorisation at :math:`x^+` after all. Without a
factorisation (see `iterdiff.linear`) the differences are solved for by Krylov methods, loosely.
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
    LOOSE,
    Residual,
    Sensitivity,
    _random,
    _unit,
    sensitivity,
)
from iterdiff.jaxtools import tree
from iterdiff.jaxtools.lax import only_if
from iterdiff.linalg.solve import inverse, solve_factored
from iterdiff.problems.problem import CompositeMinimization, Problem
from iterdiff.problems.prox import weakly_active

ROUNDS = 10
"""Rounds of refinement; where these do not do, the matrix is factored anew."""


class NewtonPoints(eqx.Module):
    """An iterate, its Newton correction, and what can be said of both.

    Attributes
    ----------
    x, corrected, twice : pytree
        The iterate, after one correction, and after about a second one.
    quotient : scalar
        The length of the second correction over that of the first.
    rounding : scalar
        The machine precision times an estimate of the condition number.
    distance : scalar
        The length of the first correction, relative to the solution (to 1 where that is shorter).
    away : bool
        Whether the iterate is not near a solution, though it should be.
    saddle : bool
        Whether what should be a minimum has directions of descent, while the iterate still moves.
    disagrees : bool
        Whether the algorithm is known not to come to rest where the residual vanishes.
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
    """A Newton correction of a point, what it says of the point, and the derivative there.

    Parameters
    ----------
    residual, moving
        As in `Sensitivity`.
    at : Sensitivity
        At the point.
    near : float
        As in `derivative_error`.
    """

    def __init__(self, residual: Residual, moving: PyTree, at: Sensitivity, near: float = math.inf):
        self.at, self._residual, self._moving = at, residual, moving
        x = at.x
        random = _random(x)
        first, inverse_random = _both(at.loosely, at.value, random)
        corrected = tree.sub(x, first)
        value, self._operator = jax.linearize(lambda y: residual(y, moving), corrected)
        direction = _unit(inverse_random)
        chord, inverse_direction = _both(at.loosely, value, direction)
        second = _newton_from_chord(chord, at.loosely(self._operator(chord)))
        condition = at.condition_from(random, inverse_direction)
        self.points = _points(at, corrected, (first, second, inverse_direction), condition, near)

    def exactly(self) -> Sensitivity:
        """Return the residual linearised at the corrected point, with a factorisation there."""
        at = self.at
        return Sensitivity(
            self._residual,
            self.points.corrected,
            self._moving,
            at.structure,
            solver=at._options["solver"],
        )

    def forward(self, v: PyTree, here: PyTree) -> tuple[PyTree, Float[Array, ""]]:
        """Return ``J v`` at the corrected point, and its error relative to the change.

        Parameters
        ----------
        v : pytree
            Like `moving`.
        here : pytree
            ``J v`` at the point itself.
        """
        b = jax.jvp(lambda m: self._residual(self.points.corrected, m), (self._moving,), (v,))[1]
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
        pull = jax.vjp(lambda m: self._residual(self.points.corrected, m), self._moving)[1]
        return tree.scale(-1.0, pull(better)[0]), slack

    def _refined(
        self, b: PyTree, start: PyTree, *, transpose: bool
    ) -> tuple[PyTree, Float[Array, ""]]:
        """Solve ``A(x^+) y = b`` from the answer at `x`."""
        operator = self._operator
        if transpose and not self.at.structure.hessian:
            back = jax.linear_transpose(operator, self.at.x)
            operator = lambda w: back(w)[0]  # noqa: E731
        factors = self.at.factors
        if factors is None:
            loose = inverse(operator, self.at.x, self.at.structure, rtol=LOOSE / 10)
            change = loose(tree.sub(b, operator(start)))
            return tree.add(start, change), jnp.asarray(LOOSE, tree.result_dtype(start))

        def correction(y):
            return solve_factored(factors, tree.sub(b, operator(y)), transpose=transpose)

        y, slack = _iterate(correction, start, self.points)

        def anew():
            return inverse(operator, self.at.x, self.at.structure)(b), jnp.zeros_like(slack)

        return only_if(~(slack <= LOOSE), anew, (y, slack))


def correct(
    problem: Problem,
    x: PyTree,
    theta: PyTree,
    linear_solver: lx.AbstractLinearSolver | None = None,
    *,
    near: float = math.inf,
) -> Correction:
    """Return the correction of `x`; derivatives are taken in theta's floating part."""
    at = sensitivity(problem, x, theta, linear_solver)
    correction = Correction(at.residual, at.moving, at, near)
    if isinstance(problem, CompositeMinimization):
        one_sided = at_kink(problem, correction.points.corrected, jax.lax.stop_gradient(theta))
        correction.points = dataclasses.replace(correction.points, one_sided=one_sided)
    return correction


def at_kink(problem: CompositeMinimization, x: PyTree, theta: PyTree) -> Bool[Array, ""]:
    """Return whether a coordinate of `x` is weakly active, to half the digits."""
    tol = float(jnp.finfo(tree.result_dtype(x)).eps) ** 0.5
    kinks = jax.tree.leaves(weakly_active(problem, x, theta, tol=tol))
    return jnp.any(jnp.stack([jnp.any(kink) for kink in kinks]))


def _both(solve: Callable[[PyTree], PyTree], a: PyTree, b: PyTree) -> tuple[PyTree, PyTree]:
    """Return ``solve(a), solve(b)``, with two columns at a time."""
    stacked = jax.vmap(solve)(jax.tree.map(lambda u, v: jnp.stack([u, v]), a, b))
    return jax.tree.map(lambda s: s[0], stacked), jax.tree.map(lambda s: s[1], stacked)


def _newton_from_chord(chord: PyTree, image: PyTree) -> PyTree:
    r"""Return about ``A(x^+)^{-1} r(x^+)``, from ``A(x)^{-1} r(x^+)``, the chord's step.

    Where the curvature differs between the points, the chord's step may be far too short. Its
    `image` under :math:`A(x)^{-1} A(x^+)` shows by which factor; the less of the image is in line
    with the chord, the longer the answer.
    """
    square, inner = tree.dot(chord, chord), tree.dot(image, chord)
    least = 1e-3 * square  # in line: a factor of 1000 is as good as any
    inner = jnp.where(jnp.abs(inner) > least, inner, least)
    return tree.scale(square / jnp.where(inner == 0, 1.0, inner), chord)


def _points(
    at: Sensitivity, corrected: PyTree, steps: tuple, condition: Float[Array, ""], near: float
) -> NewtonPoints:
    """Judge the corrections: `steps` are the first, the second and another likely direction."""
    first, second, _ = steps
    eps = jnp.finfo(tree.result_dtype(at.x)).eps
    rounding = eps * condition
    scale, length = tree.norm(corrected), tree.norm(first)
    noise = 10 * rounding * scale
    below_noise = tree.norm(second) <= noise
    quotient = tree.norm(second) / jnp.where(length > 0, length, 1.0)
    quotient = jnp.where(below_noise & (quotient > 0.1), 0.1, quotient)
    saddle = jnp.array(False)
    if at.structure.positive_definite:
        moving = (length > jnp.sqrt(eps) * scale) & (length > noise)
        saddle = moving & _indefinite(at, steps)
    # An iterate near zero has no scale of its own: lengths below 1 count as small there.
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

    With a factorisation that is certain; without, some likely `directions` are tried.
    """
    if at.factors is not None and at.factors.definite is not None:
        return ~at.factors.definite
    curvatures = jnp.stack([tree.dot(v, at.operator(v)) for v in directions])
    return jnp.any(curvatures < 0)


def _iterate(
    correction: Callable[[PyTree], PyTree], start: PyTree, points: NewtonPoints
) -> tuple[PyTree, Float[Array, ""]]:
    """Add corrections until those to come are below `LOOSE` of the change; return what is left.

    Convergence is linear, at a rate of about twice the quotient of the Newton steps to begin
    with; what is left is infinite where corrections do not shrink.
    """

    def going_on(carry):
        *_, slack, rate, count = carry
        return ~(slack <= LOOSE) & (rate < 1) & (count < ROUNDS)

    def refine(carry):
        y, before, _, rate, count = carry
        step = correction(y)
        y, length = tree.add(y, step), tree.norm(step)
        rate = jnp.where(count == 0, rate, length / before)
        change = tree.norm(tree.sub(y, start))
        left = jnp.where(rate < 1, rate / (1 - rate), jnp.inf) * length
        at_floor = length <= 10 * points.rounding * tree.norm(y)
        slack = jnp.where(at_floor, 0.0, left / jnp.where(change > 0, change, 1.0))
        return y, length, slack, rate, count + 1

    rate = jnp.minimum(10 * points.quotient, 0.9)
    begin = (start, jnp.zeros_like(rate), jnp.full_like(rate, jnp.inf), rate, jnp.array(0))
    y, _, slack, _, _ = jax.lax.while_loop(going_on, refine, begin)
    return y, slack
