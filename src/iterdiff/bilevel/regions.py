"""Where theta may be: everywhere, in a box, or where a projection leads."""

from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from iterdiff.jaxtools import tree
from iterdiff.jaxtools.arguments import check_callable, is_real
from iterdiff.jaxtools.tree import floating_part

Vector = np.ndarray
"""A NumPy vector of all floating numbers of theta."""

OUTSIDE_MAX_DISTANCE = 1e-6
"""A start farther from its projection than this, relative to its length or to 1, is outside."""


class Layout(NamedTuple):
    """How theta is laid out as a vector.

    Attributes
    ----------
    floating, rest : pytree
        Its floating leaves, and all others.
    """

    floating: PyTree
    rest: PyTree

    @classmethod
    def of(cls, theta: PyTree) -> "Layout":
        """Return the layout of `theta`."""
        return cls(*floating_part(theta))

    def vector(self, floating: PyTree) -> Vector:
        """Return the floating leaves as a vector."""
        return np.asarray(tree.to_vector(floating))

    def part(self, vector: Vector) -> PyTree:
        """Return a vector as the floating leaves."""
        return tree.from_vector(jnp.asarray(vector), self.floating)

    def theta(self, vector: Vector) -> PyTree:
        """Return a vector as theta."""
        return eqx.combine(self.part(vector), self.rest)


class Region(NamedTuple):
    """A closed set of thetas.

    Attributes
    ----------
    layout : Layout
    lower, upper : vector
        Bounds, which may be infinite.
    projection : callable, optional
        ``projection(theta)`` returns the nearest point of a convex set, like theta.
    """

    layout: Layout
    lower: Vector
    upper: Vector
    projection: Callable[[PyTree], PyTree] | None = None

    @property
    def is_box(self) -> bool:
        """Whether only bounds limit theta."""
        return self.projection is None

    def project(self, vector: Vector) -> Vector:
        """Return the nearest point of the region."""
        if self.projection is None:
            return np.clip(vector, self.lower, self.upper)
        projected = floating_part(self.projection(self.layout.theta(vector)))[0]
        return self.layout.vector(projected)

    def stationarity(self, vector: Vector, gradient: Vector) -> Vector:
        """Return the projected gradient, ``theta - P(theta - gradient)``; zero if stationary."""
        return vector - self.project(vector - gradient)

    def free(self, vector: Vector, gradient: Vector) -> Vector:
        """Return which numbers a bound does not hold: True where descent may move them."""
        held = (vector <= self.lower) & (gradient > 0)
        return ~(held | ((vector >= self.upper) & (gradient < 0)))


def region_of(
    theta: PyTree, lower: Any, upper: Any, projection: Callable[[PyTree], PyTree] | None
) -> Region:
    """Return the region, after checks that `theta` is in it.

    Raises
    ------
    TypeError, ValueError
        If an argument is wrong, or `theta` is outside; the message names the argument.
    """
    layout = Layout.of(theta)
    vector = layout.vector(layout.floating)
    if projection is not None:
        if lower is not None or upper is not None:
            raise ValueError(
                "`projection` and bounds exclude each other; let the projection clip as well."
            )
        check_callable(projection=projection)
    low = _bound("lower", lower, layout, -np.inf)
    high = _bound("upper", upper, layout, np.inf)
    if np.any(low > high):
        raise ValueError(
            f"`lower` exceeds `upper` in {int(np.sum(low > high))} places; exchange them."
        )
    region = Region(layout, low, high, projection)
    nearest = region.project(vector)
    if nearest.shape != vector.shape:
        raise ValueError("`projection` must return a pytree like theta, with the same shapes.")
    away = float(np.linalg.norm(nearest - vector))
    if not away <= OUTSIDE_MAX_DISTANCE * max(float(np.linalg.norm(vector)), 1.0):
        raise ValueError(
            f"`theta0` is outside of the bounds or the projection's set, by {away:.3g}; pass its "
            "projection."
        )
    return region


def _bound(name: str, bound: Any, layout: Layout, default: float) -> Vector:
    size = tree.size(layout.floating)
    if bound is None:
        return np.full(size, default)
    if is_real(bound) and np.ndim(bound) == 0:
        bound = jax.tree.map(lambda leaf: jnp.full_like(leaf, bound), layout.floating)
    try:
        full = jax.tree.map(
            lambda leaf, given: np.broadcast_to(np.asarray(given, leaf.dtype), leaf.shape),
            layout.floating,
            bound,
        )
    except (ValueError, TypeError) as error:
        raise ValueError(
            f"`{name}` must be a number or a pytree like theta, whose arrays broadcast: {error}"
        ) from error
    vector = np.concatenate([leaf.reshape(-1) for leaf in jax.tree.leaves(full)])
    if np.any(np.isnan(vector)):
        raise ValueError(f"`{name}` contains NaN; use infinity where there is no bound.")
    return vector
