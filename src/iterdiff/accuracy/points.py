r"""What a point and its Newton corrections reveal: convergence, noise and curvature.

Let :math:`\delta_1` be the first Newton correction of `x` and :math:`x^+` the corrected point. If
the second correction :math:`\delta_2` is much shorter, `x^+` is close to a root. Lengths alone do
not show that, for two reasons.

**Unknowns of different size.** A large unknown that converges hides a small one that does not. The
quotient of the corrections is therefore also taken unknown by unknown, and the largest one counts.

**Noise.** A residual may carry an error of its own: rounding, an inner tolerance, a part in
float32. At a point as close to the root as the noise allows, both corrections consist of noise and
have the same length. A smooth residual predicts the second one,

.. math::

    \delta_2 \approx \tfrac12 \bigl(\delta_1 - A(x)^{-1} A(x^+) \delta_1\bigr),

and it obeys the trapezoidal rule over a short displacement `d`,

.. math::

    r(x^+ + d) - r(x^+) \approx \tfrac12 \bigl(A(x^+) + A(x^+ + d)\bigr) d .

What violates the second equation is noise. A second correction that is longer than the prediction,
but not much longer than the noise, is itself noise.
"""

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PyTree

from iterdiff.accuracy.sensitivity import Sensitivity, random_vector
from iterdiff.jaxtools import manual_axes, tree

NOISE_FACTOR = 10
"""A Newton step is rounding noise below this many times eps, the condition number and ``|x|``."""

CONVERGES_MAX_QUOTIENT = 0.1
"""Newton's method converges quadratically if every step shrinks the error by this factor."""

CHORD_MAX_FACTOR = 1e3
"""A Newton step is taken to be at most this many times as long as a chord step."""

UNKNOWN_MAX_FACTOR = 3.0
"""The same for a single unknown. Newton's method for an exponential, far from its root, has the
factor e; larger ones are the work of other unknowns."""

MIN_UNKNOWN_SHARE = 0.1
"""A correction of an unknown by less than this fraction of it counts as converged, however short
the correction before was."""

SMALLER_UNKNOWNS = 3
"""A third of the unknowns may be smaller than what counts as the size of an unknown: among many
of one size, some are close to zero by chance."""

RANK_BISECTIONS = 21
"""Halvings of an interval of at most 2,200 binary exponents: the last is about 0.001 wide."""

COMPARED_MAX_UNKNOWNS = 500
"""Up to this many unknowns each is compared with each: a sort or a search compiles longer."""

NOISE_MAX_RATIO = 1e4
"""A second correction up to this many times the measured noise may be noise: one sample of noise,
over a short displacement, can be far smaller than the next."""


class NewtonPoints(eqx.Module):
    """An iterate, its Newton correction, and what the two reveal.

    Attributes
    ----------
    x, corrected, twice : pytree
        The iterate, the point after one correction, and the point after about a second one.
    quotient : scalar
        Length of the second correction over length of the first, without noise; or the same of a
        single unknown, if that is larger.
    remaining : scalar
        Distance of the corrected point from the root over that of the iterate from the corrected
        point, noise included.
    rounding : scalar
        Machine precision times an estimate of the condition number, or the measured noise of the
        residual if that is larger: the relative error of a solution.
    distance : scalar
        Length of the first correction, relative to the solution (absolute if that is below 1).
    away : bool
        Whether the iterate should be near a solution, but is not.
    saddle : bool
        Whether a point that should be near a minimum has directions of descent, while the iterate
        still moves.
    disagrees : bool
        Whether the algorithm is known to have fixed points that are no roots of the residual.
    repelled : bool
        Whether the algorithm is known to move away from the root that the corrections approach.
    one_sided : bool
        Whether the corrected point is at a kink of the equation.
    """

    x: PyTree
    corrected: PyTree
    twice: PyTree
    quotient: Float[Array, ""]
    remaining: Float[Array, ""]
    rounding: Float[Array, ""]
    distance: Float[Array, ""]
    away: Bool[Array, ""]
    saddle: Bool[Array, ""]
    disagrees: Bool[Array, ""]
    repelled: Bool[Array, ""]
    one_sided: Bool[Array, ""]


class Lengths(NamedTuple):
    """The Euclidean lengths of the corrected point and of the corrections."""

    corrected: Float[Array, ""]
    first: Float[Array, ""]
    second: Float[Array, ""]
    predicted: Float[Array, ""]


class Corrections(NamedTuple):
    """Newton corrections, all as solutions of systems with the matrix at `x`.

    Attributes
    ----------
    first, second : pytree
        The corrections.
    chord : pytree
        The second one with the matrix of the first.
    predicted : pytree
        The chord step, as a smooth residual predicts it.
    stretched : pytree
        The image under the inverse of a unit vector that the inverse stretches.
    lengths : Lengths
        Those of the corrections.
    noise : scalar
        The length of the correction that the residual's measured noise causes.
    condition : scalar
        An estimate of the condition number.
    rounding : scalar
        Below which length a correction consists of rounding errors.
    """

    first: PyTree
    second: PyTree
    chord: PyTree
    predicted: PyTree
    stretched: PyTree
    lengths: Lengths
    noise: Float[Array, ""]
    condition: Float[Array, ""]
    rounding: Float[Array, ""]


def judge(
    at: Sensitivity, corrected: PyTree, steps: Corrections, near: float = math.inf
) -> NewtonPoints:
    """Judge the corrections of a point.

    Parameters
    ----------
    at : Sensitivity
        The residual linearised at the point.
    corrected : pytree
        The point after the first correction.
    steps : Corrections
        The corrections.
    near : float
        As in `derivative_error`.
    """
    eps = jnp.finfo(tree.result_dtype(at.x)).eps
    scale, length, second, predicted = steps.lengths
    noise, condition, rounding = steps.noise, steps.condition, steps.rounding
    operands, together = at.inverse.operands, at.inverse.factors is not None
    first, x = operands.of(steps.first), operands.of(corrected)
    sizes = _sizes(first, x, rounding, together=together)
    bent, chord = (
        jax.tree.map(lambda v, size: jnp.abs(v) / size, operands.of(v), sizes)
        for v in (steps.predicted, steps.chord)
    )
    # The slope in an unknown changes by the factor 1 - 2 * bent from one point to the other.
    stretched = jax.tree.map(lambda v: jnp.maximum(1 - 2 * v, 1 / UNKNOWN_MAX_FACTOR), bent)
    single = tree.largest(jax.tree.map(jnp.divide, chord, stretched))
    quotient = jnp.maximum(_quotient(second, length, rounding), single)
    smooth = jnp.maximum(_quotient(predicted, length, rounding), tree.largest(bent))
    # Otherwise the corrections are predicted, and their quotient says everything.
    noisy = (smooth < CONVERGES_MAX_QUOTIENT) & (quotient > CONVERGES_MAX_QUOTIENT)
    noisy &= second <= NOISE_MAX_RATIO * noise
    ratio = second / jnp.where(length > 0, length, 1.0)
    bounded = jnp.minimum(quotient, 0.9)
    saddle = jnp.array(False)
    if at.structure.positive_definite:
        moves = (length > jnp.sqrt(eps) * scale) & (length > rounding)
        saddle = moves & _indefinite(at, steps)
    # A solution near zero has no scale of its own: lengths below 1 count as small there.
    distance = length / jnp.maximum(scale, 1.0)
    false = jnp.array(False)
    return NewtonPoints(
        x=at.x,
        corrected=corrected,
        twice=tree.sub(corrected, steps.second),
        quotient=jnp.where(noisy, smooth, quotient),
        remaining=jnp.where(noisy, ratio, bounded / (1 - bounded)),
        rounding=jnp.maximum(eps * condition, noise / jnp.where(scale > 0, scale, 1.0)),
        distance=distance,
        away=distance > near,
        saddle=saddle,
        disagrees=false,
        repelled=false,
        one_sided=false,
    )


def _quotient(length: Array, before: Array, noise: Float[Array, ""]) -> Float[Array, ""]:
    """Return the length of a correction over that of the one before."""
    quotient = length / jnp.where(before > 0, before, 1.0)
    hidden = (length <= noise) & (quotient > CONVERGES_MAX_QUOTIENT)
    return jnp.where(hidden, CONVERGES_MAX_QUOTIENT, quotient)


def _sizes(first: PyTree, x: PyTree, noise: Float[Array, ""], *, together: bool) -> PyTree:
    """Return for every unknown the length that its second correction is compared with.

    It is that of its first correction. An unknown which that happens to leave alone, or which is
    zero, takes the size of its value, or of the smaller unknowns. `together` is whether both are
    vectors, on one device.
    """

    def own(first: Array, x: Array) -> Array:
        least = jnp.maximum(MIN_UNKNOWN_SHARE * jnp.abs(x), noise / CONVERGES_MAX_QUOTIENT)
        return jnp.maximum(jnp.abs(first), least)

    sizes, count = jax.tree.map(own, first, x), tree.size(x)
    ranked = _ranked_at_once if together and count <= COMPARED_MAX_UNKNOWNS else _ranked
    smaller = ranked(sizes, (count - 1) // SMALLER_UNKNOWNS)

    def positive(own: Array) -> Array:
        size = jnp.maximum(own, smaller)
        return jnp.where(size > 0, size, 1.0)

    return jax.tree.map(positive, sizes)


def _ranked_at_once(sizes: Float[Array, " n"], rank: int) -> Float[Array, ""]:
    """Return the smallest of the sizes that more than `rank` of them do not exceed."""
    counts = jnp.sum(sizes[None] <= sizes[:, None], axis=1)
    return jnp.min(jnp.where(counts <= rank, jnp.inf, sizes), initial=jnp.inf)


def _ranked(sizes: PyTree, rank: int) -> Float[Array, ""]:
    """Return the number that at most `rank` of the sizes are below, to three digits.

    By bisection of its exponent: sorting would bring vectors together that are spread over devices.
    """
    tiny = jnp.finfo(tree.result_dtype(sizes)).tiny
    exponents = [jnp.log2(jnp.maximum(leaf, tiny)) for leaf in jax.tree.leaves(sizes)]

    def halve(_, interval):
        low, high = interval
        middle = (low + high) / 2
        above = sum(jnp.sum(leaf <= middle) for leaf in exponents) > rank
        return jnp.where(above, low, middle), jnp.where(above, middle, high)

    lowest, highest = ([pick(leaf) for leaf in exponents] for pick in (jnp.min, jnp.max))
    interval = functools.reduce(jnp.minimum, lowest), functools.reduce(jnp.maximum, highest)
    return jnp.exp2(manual_axes.fori_loop(0, RANK_BISECTIONS, halve, interval)[1])


def displacement(x: PyTree) -> PyTree:
    """Return a short vector, relative to each unknown, over which noise is measured.

    The trapezoidal rule has an error of third order. The cube root of the machine precision makes
    it as large as rounding errors.
    """
    size = float(jnp.finfo(tree.result_dtype(x)).eps) ** (1 / 3)
    signs = jax.tree.map(jnp.sign, random_vector(x))
    return jax.tree.map(
        lambda sign, leaf: (size * sign * jnp.abs(leaf)).astype(leaf.dtype), signs, x
    )


def value_and_violation(residual: Callable[[PyTree], PyTree], x: PyTree) -> tuple[PyTree, PyTree]:
    """Return ``residual(x)``, and by how much it violates the trapezoidal rule near `x`.

    Both ends of the rule are evaluated at once: two products with a matrix of the residual's become
    one, which takes less time to compile and to run.
    """
    d = displacement(x)
    ends = jax.tree.map(lambda here, d: jnp.stack([here, here + d]), x, d)
    values, slopes = jax.vmap(lambda y: jax.jvp(residual, (y,), (d,)))(ends)
    excess = jax.tree.map(lambda v, s: v[1] - v[0] - (s[0] + s[1]) / 2, values, slopes)
    return jax.tree.map(lambda v: v[0], values), excess


def _indefinite(at: Sensitivity, steps: Corrections) -> Bool[Array, ""]:
    """Return whether a symmetric operator has a direction of negative curvature.

    A factorisation answers with certainty. Without one, some likely directions are tried.
    """
    factors = at.inverse.factors
    if factors is not None and factors.definite is not None:
        return ~factors.definite
    directions = steps.first, steps.second, steps.stretched
    curvatures = jnp.stack([tree.dot(v, at.operator(v)) for v in directions])
    return jnp.any(curvatures < 0)
