"""Derivatives along a direction, held against finite differences forwards and backwards.

No one increment suits every function: too long a one sees curvature, or a kink that is near, too
short a one sees rounding. A derivative that is right agrees at one of a few; one that is wrong
agrees at none. Where the two sides keep the same distance however short the increment is, there
is a kink: no derivative exists, and what lies between the sides is as good as can be.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from iterdiff.jaxtools import tree

TINY = 1e-300
"""So small a size is zero; see `underflow` for that of each dtype."""

OPPOSITE = 5e-2
"""A ratio of -1 to within this is a wrong sign."""


class Trial(NamedTuple):
    """Where to look: a direction, and the multiple of it by which to move."""

    direction: PyTree
    increment: float


def trials(key: jax.Array, at: PyTree, least: float = 0.0) -> tuple[Trial, ...]:
    """Return what to try: moves relative to 1 plus the size of each leaf, then to each number.

    All but the last have one direction. The longest increment is not below `least` (up to 0.02).
    """
    wide = jnp.finfo(tree.result_dtype(at)).bits >= 64
    increments = (1e-5, 1e-6, 1e-7) if wide else (1e-2, 1e-3)
    longer = max(1.0, min(least, 0.02) / increments[0])
    increments = tuple(longer * h for h in increments)
    sample = jax.tree.map(lambda v: v[0], tree.random_directions(key, at, 1))
    drawn = tree.scale(1 / tree.norm(sample), sample)
    moderate = jax.tree.map(lambda v, leaf: v * (1 + tree.norm(leaf)), drawn, at)

    def proportional(v, leaf):
        largest = jnp.max(jnp.abs(leaf), initial=0)
        largest = jnp.where(largest > 0, largest, 1)
        return v * jnp.where(leaf != 0, jnp.abs(leaf), largest)

    relative = jax.tree.map(proportional, sample, at)
    return (*(Trial(moderate, h) for h in increments), Trial(relative, increments[0]))


class Slopes(NamedTuple):
    """Differences over a trial's increment, forwards and backwards, and their likely error."""

    ahead: PyTree
    behind: PyTree
    noise: float

    @property
    def central(self) -> PyTree:
        """The mean of both."""
        return tree.scale(0.5, tree.add(self.ahead, self.behind))

    @property
    def size(self) -> float:
        """The norm of the larger one."""
        return max(norm(self.ahead), norm(self.behind))

    @property
    def jump(self) -> float:
        """The norm of their difference."""
        return norm(tree.sub(self.ahead, self.behind))


class Differences:
    """Finite differences of a function at a point, computed as they are asked for.

    Parameters
    ----------
    function : callable
        Of one pytree of floating arrays.
    at : pytree
        The point.
    where : tuple of Trial
        What to try.
    blur : float
        How inexact values are, in absolute terms, besides the rounding of their own digits.
    """

    def __init__(self, function: Callable, at: PyTree, where: tuple[Trial, ...], blur: float = 0.0):
        self.function, self.at, self.trials, self.blur = function, at, where, blur
        self._slopes: dict[int, Slopes] = {}
        self._middle: PyTree | None = None

    @property
    def middle(self) -> PyTree:
        """The value at the point."""
        if self._middle is None:
            self._middle = self.function(self.at)
        return self._middle

    def slopes(self, k: int) -> Slopes:
        """Return the differences of the k-th trial."""
        if k not in self._slopes:
            direction, h = self.trials[k]
            up = self.function(tree.axpy(h, direction, self.at))
            down = self.function(tree.axpy(-h, direction, self.at))
            eps = float(jnp.finfo(tree.result_dtype(up)).eps)
            error = 8 * eps * max(norm(up), norm(down)) + 2 * self.blur
            ahead = tree.scale(1 / h, tree.sub(up, self.middle))
            behind = tree.scale(1 / h, tree.sub(self.middle, down))
            self._slopes[k] = Slopes(ahead, behind, error / h)
        return self._slopes[k]

    def kink(self, tol: float) -> float:
        """Return the distance of the two sides, relative to the larger; 0 if there is no kink.

        A kink's stays what it is over shorter increments. That of a curve falls with them, that of
        a step (a rounding) grows.
        """
        jumps = []
        for k in range(len(self.trials) - 1):
            slopes = self.slopes(k)
            if not slopes.jump > tol * slopes.size + slopes.noise:
                return 0.0
            jumps.append(slopes.jump)
        steady = max(jumps) <= 3 * min(jumps)
        return jumps[0] / self.slopes(0).size if steady else 0.0


class Verdict(NamedTuple):
    """How a derivative compares with finite differences.

    Attributes
    ----------
    gap : float
        Their distance, relative to the larger.
    found, expected : pytree
        The derivative, and the central difference.
    direction : pytree
        Along which.
    kink : bool
        Whether there is none: `gap` is the distance to what lies between the two sides.
    """

    gap: float
    found: PyTree
    expected: PyTree
    direction: PyTree
    kink: bool

    def opposite(self, through: PyTree | None = None) -> bool:
        """Return whether it is minus the difference, after `through` is taken off both."""
        found, expected = self.found, self.expected
        if through is not None:
            found, expected = tree.sub(found, through), tree.sub(expected, through)
        size = norm(expected)
        return TINY < size < np.inf and norm(tree.add(found, expected)) <= OPPOSITE * size


def compare(
    push: Callable[[PyTree], PyTree], differences: Differences, tol: float, least: float = 0.0
) -> Verdict:
    """Hold a derivative against finite differences, until one of the increments agrees.

    Parameters
    ----------
    push : callable
        ``push(direction)``, the derivative along a direction.
    differences : Differences
        Of the function.
    tol : float
        The gap that passes.
    least : float
        The least size that gaps are relative to, in lengths of the direction.
    """
    verdicts = []
    for k, trial in enumerate(differences.trials):
        found, slopes = push(trial.direction), differences.slopes(k)
        floor = max(slopes.noise / tol, least * norm(trial.direction))
        verdict = Verdict(
            gap(found, slopes.central, floor), found, slopes.central, trial.direction, False
        )
        if verdict.gap <= tol:
            return verdict
        verdicts.append(verdict)
    if differences.kink(tol):
        first, slopes = verdicts[0], differences.slopes(0)
        between = jax.tree.map(
            lambda v, a, b: jnp.clip(v, jnp.minimum(a, b), jnp.maximum(a, b)),
            first.found, slopes.ahead, slopes.behind,
        )  # fmt: skip
        return first._replace(gap=gap(first.found, between, slopes.size), kink=True)
    return min(verdicts, key=lambda v: v.gap if np.isfinite(v.gap) else np.inf)


def gap(a: PyTree, b: PyTree, floor: float = TINY) -> float:
    """Return ``||a - b||`` relative to the larger of the two, or to `floor` if that is larger."""
    return norm(tree.sub(a, b)) / max(norm(a), norm(b), floor, TINY)


def norm(a: PyTree) -> float:
    """Return the norm as a number; 0 where squares lose their digits to underflow."""
    size = float(tree.norm(a))
    return 0.0 if size < underflow(a) else size


def underflow(like: PyTree) -> float:
    """Return below which norm the squares of numbers of this dtype lose digits to underflow."""
    return 1e3 * float(jnp.finfo(tree.result_dtype(like)).tiny) ** 0.5
