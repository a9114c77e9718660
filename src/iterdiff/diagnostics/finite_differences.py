"""Directional derivatives, compared with forward and backward finite differences.

No increment suits every function: a long one sees curvature or a nearby kink, a short one sees
rounding. A derivative is therefore compared at several increments. A correct one agrees with the
central difference at one of them, a wrong one at none. At a kink, the gap between the forward and
the backward difference does not shrink with the increment. No derivative exists there, and every
value between the two differences is accepted.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from iterdiff.jaxtools import tree

INCREMENTS_FLOAT64 = (1e-5, 1e-6, 1e-7)
"""Relative increments in float64, in the order in which they are tried."""

INCREMENTS_FLOAT32 = (1e-2, 1e-3)
"""The same in float32, and in every shorter precision."""

MAX_INCREMENT = 0.02
"""Upper limit of an increment that is lengthened because values are inexact (relative)."""

MAX_JUMP_RATIO = 3.0
"""At a kink, the jumps at all increments agree to within this factor."""

MAX_OPPOSITE_GAP = 5e-2
"""Upper limit of ``||a + b|| / ||b||`` for `a` to count as `b` with the opposite sign."""

MIN_NORM = 1e-300
"""A smaller norm counts as zero; `smallest_norm` gives the limit for each dtype."""


class Increment(NamedTuple):
    """A finite displacement: `size` times `direction`."""

    direction: PyTree
    size: float


def increments(seed: int, point: PyTree, least: float = 0.0) -> tuple[Increment, ...]:
    """Return the increments at which a derivative at `point` is compared, in order.

    All but the last share one random direction, scaled in each leaf by one plus the leaf's norm.
    The last one scales every number by its own size.

    Parameters
    ----------
    seed : int
        Draws the direction.
    point : pytree of real floating arrays
        Where the derivative is taken.
    least : float
        Lower limit of the longest increment, up to `MAX_INCREMENT`. Dimensionless.
    """
    wide = jnp.finfo(tree.result_dtype(point)).bits >= 64
    sizes = INCREMENTS_FLOAT64 if wide else INCREMENTS_FLOAT32
    factor = max(1.0, min(least, MAX_INCREMENT) / sizes[0])
    random = np.random.default_rng(seed)
    sample = jax.tree.map(lambda leaf: random.standard_normal(np.shape(leaf)), point)
    length = norm(sample)

    def by_leaf(v, leaf):
        return np.asarray(v / length * (1 + norm(leaf)), leaf.dtype)

    def by_number(v, leaf):
        scale = np.abs(np.asarray(leaf, float))
        largest = np.max(scale, initial=0)
        scale = np.where(scale > 0, scale, largest if largest > 0 else 1.0)
        return np.asarray(v * scale, leaf.dtype)

    shared = jax.tree.map(by_leaf, sample, point)
    relative = jax.tree.map(by_number, sample, point)
    return (
        *(Increment(shared, factor * size) for size in sizes),
        Increment(relative, factor * sizes[0]),
    )


class Quotients(NamedTuple):
    """Forward and backward difference quotients over one increment.

    Attributes
    ----------
    forward, backward : pytree
        The quotients.
    noise : float
        Estimate of the error that inexact values cause in them (absolute, Euclidean).
    """

    forward: PyTree
    backward: PyTree
    noise: float

    @property
    def central(self) -> PyTree:
        """The mean of the two."""
        return tree.scale(0.5, tree.add(self.forward, self.backward))

    @property
    def size(self) -> float:
        """The larger of the two norms."""
        return max(norm(self.forward), norm(self.backward))

    @property
    def jump(self) -> float:
        """The norm of the difference between the two."""
        return norm(tree.sub(self.forward, self.backward))


class Differences:
    """Finite differences of a function at a point, each computed at its first use.

    Parameters
    ----------
    function : callable
        Maps one pytree of floating arrays to another.
    point : pytree
        Where differences are taken.
    increments : tuple of Increment
        What the point is displaced by.
    value_error : float
        Absolute error of the function's values beyond the rounding of their own digits.
    """

    def __init__(
        self,
        function: Callable[[PyTree], PyTree],
        point: PyTree,
        increments: tuple[Increment, ...],
        value_error: float = 0.0,
    ):
        self.function, self.point, self.increments = function, point, increments
        self.value_error = value_error
        self._value: PyTree = None
        self._quotients: dict[int, Quotients] = {}

    @property
    def value(self) -> PyTree:
        """The function's value at the point."""
        if self._value is None:
            self._value = self.function(self.point)
        return self._value

    def quotients(self, k: int) -> Quotients:
        """Return the difference quotients over the k-th increment."""
        if k not in self._quotients:
            direction, size = self.increments[k]
            above = self.function(tree.axpy(size, direction, self.point))
            below = self.function(tree.axpy(-size, direction, self.point))
            eps = float(jnp.finfo(tree.result_dtype(above)).eps)
            error = 8 * eps * max(norm(above), norm(below)) + 2 * self.value_error
            forward = tree.scale(1 / size, tree.sub(above, self.value))
            backward = tree.scale(1 / size, tree.sub(self.value, below))
            self._quotients[k] = Quotients(forward, backward, error / size)
        return self._quotients[k]

    def kink(self, tol: float) -> float:
        """Return the jump of the slope at a kink, relative to the larger slope; 0 without a kink.

        The jump at a kink is the same over all increments. The difference that curvature causes
        shrinks with the increment, and the one that a discontinuity causes grows.
        """
        jumps = []
        for k in range(len(self.increments) - 1):
            quotients = self.quotients(k)
            if not quotients.jump > tol * quotients.size + quotients.noise:
                return 0.0
            jumps.append(quotients.jump)
        steady = max(jumps) <= MAX_JUMP_RATIO * min(jumps)
        return jumps[0] / self.quotients(0).size if steady else 0.0


class Comparison(NamedTuple):
    """A directional derivative beside the finite difference.

    Attributes
    ----------
    gap : float
        The norm of their difference, relative to the larger of the two. At a kink: the distance to
        the interval between the forward and the backward difference.
    derivative, difference : pytree
        The derivative, and the central difference.
    direction : pytree
        The direction of both.
    kink : bool
        Whether the function has a kink at the point.
    """

    gap: float
    derivative: PyTree
    difference: PyTree
    direction: PyTree
    kink: bool = False

    def opposite(self, offset: PyTree | None = None) -> bool:
        """Whether the derivative is minus the difference, after `offset` is taken off both."""
        derivative, difference = self.derivative, self.difference
        if offset is not None:
            derivative, difference = tree.sub(derivative, offset), tree.sub(difference, offset)
        size = norm(difference)
        if not MIN_NORM < size < np.inf:
            return False
        return norm(tree.add(derivative, difference)) <= MAX_OPPOSITE_GAP * size


def compare(
    derivative: Callable[[PyTree], PyTree],
    differences: Differences,
    tol: float,
    least: float = 0.0,
) -> Comparison:
    """Compare a derivative with finite differences until they agree at one increment.

    Parameters
    ----------
    derivative : callable
        ``derivative(direction)`` returns the directional derivative.
    differences : Differences
        Finite differences of the same function.
    tol : float
        Relative gap up to which the two agree.
    least : float
        Lower limit of the size that gaps are relative to, as a multiple of the direction's norm.

    Returns
    -------
    Comparison
        At the first increment that agrees, else at a kink, else at the increment of the smallest
        gap.
    """
    comparisons = []
    for k, increment in enumerate(differences.increments):
        found, quotients = derivative(increment.direction), differences.quotients(k)
        central = quotients.central
        floor = max(quotients.noise / tol, least * norm(increment.direction))
        gap = relative_gap(found, central, floor)
        comparison = Comparison(gap, found, central, increment.direction)
        if gap <= tol:
            return comparison
        comparisons.append(comparison)
    if differences.kink(tol):
        return _at_kink(comparisons[0], differences.quotients(0))
    return min(comparisons, key=lambda c: c.gap if np.isfinite(c.gap) else np.inf)


def _at_kink(comparison: Comparison, quotients: Quotients) -> Comparison:
    """Return the comparison with the interval between the two one-sided differences."""
    nearest = jax.tree.map(
        lambda v, a, b: jnp.clip(v, jnp.minimum(a, b), jnp.maximum(a, b)),
        comparison.derivative,
        quotients.forward,
        quotients.backward,
    )
    gap = relative_gap(comparison.derivative, nearest, quotients.size)
    return comparison._replace(gap=gap, kink=True)


def relative_gap(a: PyTree, b: PyTree, floor: float = MIN_NORM) -> float:
    """Return ``||a - b||`` relative to the larger of the two norms, or to `floor` if larger."""
    return norm(tree.sub(a, b)) / max(norm(a), norm(b), floor, MIN_NORM)


def norm(a: PyTree) -> float:
    """Return the Euclidean norm as a Python float; 0 below `smallest_norm`."""
    entries = np.concatenate([np.ravel(leaf).astype(float) for leaf in jax.tree.leaves(a)])
    with np.errstate(over="ignore", invalid="ignore"):
        size = float(np.linalg.norm(entries))
    return 0.0 if size < smallest_norm(a) else size


def smallest_norm(like: PyTree) -> float:
    """Return the norm below which squares in the dtype of `like` lose digits to underflow."""
    return 1e3 * float(jnp.finfo(tree.result_dtype(like)).tiny) ** 0.5
