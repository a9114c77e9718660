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
from functools import partial

import jax
import jax.numpy as jnp
import lineax as lx
from jaxtyping import Array, Float, PyTree

from iterdiff.accuracy.kinks import at_kink, at_marked_kink
from iterdiff.accuracy.points import (
    CHORD_MAX_FACTOR,
    NOISE_FACTOR,
    Corrections,
    Lengths,
    NewtonPoints,
    judge,
    value_and_violation,
)
from iterdiff.accuracy.preconditioners import Preconditioner, applied
from iterdiff.accuracy.sensitivity import (
    LOOSE_RTOL,
    Equation,
    Sensitivity,
    loose,
    random_vector,
    sensitivity,
    unit,
)
from iterdiff.jaxtools import manual_axes, tree
from iterdiff.jaxtools.lax import only_if
from iterdiff.jaxtools.linear_map import LinearMap
from iterdiff.linalg.factor import factor_by_qr, substitute
from iterdiff.linalg.solve import DEFAULT_METHOD, Inverse
from iterdiff.loop.run import stop_gradient
from iterdiff.problems.problem import Problem

MAX_REFINEMENTS = 10
"""Rounds of iterative refinement; if they do not suffice, the matrix is factored again."""


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
        first, inverse_random = _solve_all(at.loosely, at.value, random)
        corrected = tree.sub(at.x, first)

        def residual(y):
            return at.residual(y, at.theta)

        value, excess = value_and_violation(residual, corrected)
        self._operator = jax.linearize(residual, corrected)[1]
        systems = value, unit(inverse_random), self._operator(first)
        bounded = at.inverse.factors is None  # a bound replaces one iterative solve
        if not bounded:
            systems = *systems, excess
        chord, stretched, bent, *solved = _solve_all(at.loosely, *systems)
        predicted = tree.scale(0.5, tree.sub(first, bent))
        excess = excess if bounded else solved[0]
        vectors = corrected, first, chord, predicted, stretched, excess
        size, *lengths, inverse, noise = tree.norms(*vectors)
        condition = at.condition_from(random, inverse)
        rounding = NOISE_FACTOR * float(jnp.finfo(tree.result_dtype(at.x)).eps) * condition * size
        factor = self._newton_per_chord(chord, lengths[0], lengths[1], rounding)
        steps = Corrections(
            first=first,
            second=tree.scale(factor, chord),
            chord=chord,
            predicted=predicted,
            stretched=stretched,
            lengths=Lengths(size, lengths[0], jnp.abs(factor) * lengths[1], lengths[2]),
            noise=noise * inverse if bounded else noise,
            condition=condition,
            rounding=rounding,
        )
        self.points = judge(at, corrected, steps, near)

    def _newton_per_chord(
        self,
        chord: PyTree,
        first_length: Float[Array, ""],
        length: Float[Array, ""],
        rounding: Float[Array, ""],
    ) -> Float[Array, ""]:
        r"""Return how many times as long as the chord step the second Newton step is.

        The chord step is ``A(x)^{-1} r(x^+)``, and the Newton step ``A(x^+)^{-1} r(x^+)``.

        If the curvature differs between the points, the chord step may be far too short. Its
        `image` under :math:`A(x)^{-1} A(x^+)` shows the factor. The less of the image is in line
        with the chord, the longer the result. A chord stays as it is if it is noise, or too short
        for any factor to matter: a Krylov method then solves for zero, without a step.
        """
        matters = length > jnp.maximum(first_length / CHORD_MAX_FACTOR, rounding)
        image = self._operator(chord)
        image = self.at.loosely(tree.where(matters, image, tree.zeros_like(image)))
        square, inner = tree.dot(chord, chord), tree.dot(image, chord)
        least = square / CHORD_MAX_FACTOR
        inner = jnp.where(jnp.abs(inner) > least, inner, least)
        factor = square / jnp.where(inner == 0, 1.0, inner)
        return jnp.where(matters, factor, 1.0)

    def exactly(self) -> Sensitivity:
        """Return the residual linearised at the corrected point, with a factorisation there."""
        at, corrected = self.at, self.points.corrected
        equation = Equation(at.residual, corrected, at.theta, at.structure)
        return Sensitivity(equation, at.method)

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

    def reverse(
        self, w: PyTree, adjoint: PyTree
    ) -> tuple[PyTree, Float[Array, ""], Float[Array, ""]]:
        """Return ``J^T w`` at the corrected point, its error relative to the change, and its terms.

        The size of the terms is that of ``r_theta^T (signs * A^{-T} w)`` with fixed irregular
        signs. If the terms of ``J^T w`` cancel, those of this product do not.

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
        mixed = jax.tree.map(jnp.multiply, tree.irregular(better), better)
        both = jax.tree.map(lambda u, v: jnp.stack([u, v]), better, mixed)
        pulled = jax.vmap(lambda adjoint: pull(adjoint)[0])(both)
        of_better, of_mixed = (jax.tree.map(lambda v, k=k: v[k], pulled) for k in (0, 1))
        return tree.scale(-1.0, of_better), slack, tree.norm(of_mixed)

    def _refined(
        self, b: PyTree, start: PyTree, *, transpose: bool
    ) -> tuple[PyTree, Float[Array, ""]]:
        """Solve ``A(x^+) y = b`` from the solution at `x`."""
        operator, at = self._operator, self.at
        if transpose and not at.structure.hessian:
            back = jax.linear_transpose(operator, at.x)
            operator = lambda w: back(w)[0]  # noqa: E731
        if at.inverse.factors is None:
            method = loose(at.method) or loose(DEFAULT_METHOD)
            assert method is not None
            helper = method.preconditioner
            if transpose and helper is not None and not at.structure.hessian:
                back_helper = partial(manual_axes.linear_transpose, helper)
                method = method._replace(preconditioner=back_helper)
            solve = Inverse(operator, at.x, at.structure, method, unique=False)
            change = solve(tree.sub(b, operator(start)))
            return tree.add(start, change), jnp.asarray(LOOSE_RTOL, tree.result_dtype(start))

        def correction(y):
            return at.inverse.factored(tree.sub(b, operator(y)), transpose=transpose)

        y, slack = _refine(correction, start, self.points)

        def factor_again():
            operands = at.inverse.operands
            vector = operands.of(b)
            on_vectors = operands.operator(operator, at.structure.without_claims())
            matrix = LinearMap.of(on_vectors.mv, vector).matrix()
            found = substitute(factor_by_qr(matrix), vector)
            return operands.back(found), jnp.zeros_like(slack)

        return only_if(~(slack <= LOOSE_RTOL), factor_again, (y, slack))


def correct(
    problem: Problem,
    x: PyTree,
    theta: PyTree,
    linear_solver: lx.AbstractLinearSolver | None = None,
    *,
    near: float = math.inf,
    preconditioner: Preconditioner | None = None,
) -> Correction:
    """Return the correction of `x`, for derivatives in the floating leaves of theta."""
    helper = None
    if preconditioner is not None:
        helper = applied(preconditioner, *stop_gradient((problem, x, theta)))
    correction = Correction(sensitivity(problem, x, theta, linear_solver, helper), near)
    corrected = correction.points.corrected
    if problem.marks_kinks:
        one_sided = at_marked_kink(problem, corrected, jax.lax.stop_gradient(theta))
    else:
        one_sided = at_kink(correction.at, corrected)
    correction.points = dataclasses.replace(correction.points, one_sided=one_sided)
    return correction


def _solve_all(solve: Callable[[PyTree], PyTree], *systems: PyTree) -> list[PyTree]:
    """Return ``solve(b)`` for each `b`, with all right-hand sides at once."""
    stacked = jax.vmap(solve)(jax.tree.map(lambda *parts: jnp.stack(parts), *systems))
    return [jax.tree.map(lambda s, k=k: s[k], stacked) for k in range(len(systems))]


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
        y = tree.add(y, step)
        length, change, size = tree.norms(step, tree.sub(y, start), y)
        rate = jnp.where(count == 0, rate, length / before)
        remaining = jnp.where(rate < 1, rate / (1 - rate), jnp.inf) * length
        at_floor = length <= NOISE_FACTOR * points.rounding * size
        slack = jnp.where(at_floor, 0.0, remaining / jnp.where(change > 0, change, 1.0))
        return y, length, slack, rate, count + 1

    rate = jnp.minimum(10 * points.quotient, 0.9)
    begin = (start, jnp.zeros_like(rate), jnp.full_like(rate, jnp.inf), rate, jnp.array(0))
    y, _, slack, _, _ = manual_axes.while_loop(unfinished, refine, begin)
    return y, slack
