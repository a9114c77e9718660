"""Outer methods: where the next theta is looked for.

A method proposes a displacement; `minimize` decides, by values with error bars, whether theta
moves.
Only differences that are certain to be no error of the gradients teach a method anything.
"""

import abc
from typing import Any, ClassVar, NamedTuple

import equinox as eqx
import jax
import numpy as np
from jaxtyping import PyTree

from iterdiff.bilevel.regions import Region, Vector
from iterdiff.jaxtools.arguments import check_count
from iterdiff.jaxtools.extras import import_extra

FIRST_LENGTH = 0.1
"""Length of the first trial step, relative to theta, or to 1 if theta is shorter."""

GROWTH = 4.0
"""A step that taught nothing about the curvature is followed by one that is longer by at most this
factor."""

MIN_COSINE = 1e-6
"""A quasi-Newton direction at less than this cosine to the negative gradient is not used."""


class Lesson(NamedTuple):
    """What an accepted step shows.

    Attributes
    ----------
    moved, change : vector
        Differences of theta, and of the gradient.
    noise : float
        Upper bound of the error of `change`.
    """

    moved: Vector
    change: Vector
    noise: float

    @property
    def curvature(self) -> float:
        """The inner product of both, less its error; positive if the curvature certainly is."""
        return float(self.moved @ self.change) - self.noise * float(np.linalg.norm(self.moved))


class Method(eqx.Module):
    """How the next theta is proposed.

    Attributes
    ----------
    searches : bool
        Whether a step is made only if the loss certainly decreases; otherwise every proposal whose
        gradient is accurate is taken.
    """

    searches: eqx.AbstractClassVar[bool]

    def check(self, region: Region) -> None:
        """Raise ValueError if the method cannot respect the region."""
        del region

    @abc.abstractmethod
    def init(self, vector: Vector, region: Region) -> PyTree:
        """Return the memory at the start."""

    @abc.abstractmethod
    def propose(
        self, memory: PyTree, vector: Vector, gradient: Vector, region: Region
    ) -> tuple[Vector, PyTree]:
        """Return a displacement of `vector`, before projection, and the new memory."""

    @abc.abstractmethod
    def learn(self, memory: PyTree, lesson: Lesson) -> PyTree:
        """Return the memory after an accepted step."""


def _first_scale(vector: Vector, gradient: Vector) -> float:
    """Return the step size of the first step."""
    length = FIRST_LENGTH * max(float(np.linalg.norm(vector)), 1.0)
    return length / max(float(np.linalg.norm(gradient)), np.finfo(float).tiny)


class Backtracking(Method):
    r"""Projected gradient steps with the step size of Barzilai and Borwein, and backtracking.

    The trial is :math:`P(\theta - t g)` with :math:`t = s^\top s / s^\top y`, from the last
    differences s of theta and y of the gradient. It has no parameters. If the curvature along s is
    not certainly positive, the step grows by the factor 4.

    References
    ----------
    J. Barzilai and J. Borwein, *Two-point step size gradient methods*, IMA J. Numer. Anal. 1988;
    E. Birgin, J. Martínez and M. Raydan, *Nonmonotone spectral projected gradient methods on convex
    sets*, SIAM J. Optim. 2000. Here every step decreases the loss.
    """

    searches: ClassVar[bool] = True

    def init(self, vector: Vector, region: Region) -> PyTree:
        """Return a step size of zero: unknown."""
        del vector, region
        return np.zeros(())

    def propose(
        self, memory: PyTree, vector: Vector, gradient: Vector, region: Region
    ) -> tuple[Vector, PyTree]:
        """Return a multiple of the negative gradient."""
        del region
        scale = float(memory) or _first_scale(vector, gradient)
        return -scale * gradient, np.asarray(scale)

    def learn(self, memory: PyTree, lesson: Lesson) -> PyTree:
        """Return the next step size."""
        square = float(lesson.moved @ lesson.moved)
        if lesson.curvature <= 0:
            return np.asarray(GROWTH * float(memory))
        return np.asarray(square / float(lesson.moved @ lesson.change))


class Pairs(NamedTuple):
    """The memory of `LBFGS`: the last differences of theta and of the gradient, newest last."""

    moved: np.ndarray
    change: np.ndarray
    count: np.ndarray


class LBFGS(Method):
    r"""Limited-memory BFGS, projected onto bounds, with backtracking.

    The quasi-Newton direction is that of the numbers that no bound holds. A pair of differences is
    kept only if its curvature is certainly positive in spite of the gradients' errors.

    Parameters
    ----------
    memory : int
        How many pairs are kept.

    Raises
    ------
    TypeError, ValueError
        If `memory` is no positive int.

    References
    ----------
    J. Nocedal, *Updating quasi-Newton matrices with limited storage*, Math. Comp. 1980;
    D. Bertsekas, *Projected Newton methods for optimization problems with simple constraints*,
    SIAM J. Control Optim. 1982.
    """

    memory: int = eqx.field(static=True, default=10)
    searches: ClassVar[bool] = True

    def __check_init__(self):
        """Check the number of pairs."""
        check_count("memory", self.memory)

    def check(self, region: Region) -> None:
        """Raise ValueError if a projection limits theta."""
        if not region.is_box:
            raise ValueError(
                "`method`: LBFGS works with `lower` and `upper` only. With `projection`, leave "
                "`method` out."
            )

    def init(self, vector: Vector, region: Region) -> Pairs:
        """Return no pairs."""
        del region
        empty = np.zeros((self.memory, vector.size))
        return Pairs(empty, empty, np.zeros((), int))

    def propose(
        self, memory: Pairs, vector: Vector, gradient: Vector, region: Region
    ) -> tuple[Vector, PyTree]:
        """Return the quasi-Newton direction, or a gradient step if it is no descent."""
        free = region.free(vector, gradient)
        reduced = np.where(free, gradient, 0.0)
        plain = -_first_scale(vector, reduced) * reduced
        if not memory.count:
            return plain, memory
        direction = -np.where(free, _two_loops(memory, reduced), 0.0)
        lengths = float(np.linalg.norm(direction) * np.linalg.norm(reduced))
        descends = -float(direction @ reduced) >= MIN_COSINE * lengths and lengths > 0
        return (direction if descends else plain), memory

    def learn(self, memory: Pairs, lesson: Lesson) -> Pairs:
        """Return the memory with one pair more, if its curvature is certain."""
        if lesson.curvature <= 0:
            return memory
        moved = np.roll(memory.moved, -1, axis=0)
        change = np.roll(memory.change, -1, axis=0)
        moved[-1], change[-1] = lesson.moved, lesson.change
        return Pairs(moved, change, np.minimum(memory.count + 1, self.memory))


def _two_loops(pairs: Pairs, gradient: Vector) -> Vector:
    """Return the product of the approximate inverse Hessian with `gradient`."""
    last = range(len(pairs.moved) - int(pairs.count), len(pairs.moved))
    inner = {k: float(pairs.moved[k] @ pairs.change[k]) for k in last}
    vector, factors = gradient.copy(), {}
    for k in reversed(last):
        factors[k] = float(pairs.moved[k] @ vector) / inner[k]
        vector = vector - factors[k] * pairs.change[k]
    vector = vector * (inner[last[-1]] / float(pairs.change[-1] @ pairs.change[-1]))
    for k in last:
        factor = float(pairs.change[k] @ vector) / inner[k]
        vector = vector + (factors[k] - factor) * pairs.moved[k]
    return vector


class Optax(Method):
    """Any optimiser of optax; a step is made only on an accurate gradient, without a line search.

    Parameters
    ----------
    transformation : optax.GradientTransformation
        Such as ``optax.adam(1e-2)``, with its own step size.

    Raises
    ------
    ImportError
        If optax is not installed.
    TypeError
        If `transformation` has no ``init`` and ``update``.
    """

    transformation: Any = eqx.field(static=True)
    searches: ClassVar[bool] = False

    def __check_init__(self):
        """Check the transformation."""
        import_extra("optax", "bilevel")
        if not (hasattr(self.transformation, "init") and hasattr(self.transformation, "update")):
            raise TypeError(
                "`transformation` must be an optax.GradientTransformation such as "
                f"optax.adam(1e-2), not {self.transformation!r}."
            )

    def init(self, vector: Vector, region: Region) -> PyTree:
        """Return the optimiser's state."""
        return self.transformation.init(region.layout.part(vector))

    def propose(
        self, memory: PyTree, vector: Vector, gradient: Vector, region: Region
    ) -> tuple[Vector, PyTree]:
        """Return the optimiser's update."""
        part = region.layout.part
        updates, memory = self.transformation.update(part(gradient), memory, part(vector))
        return region.layout.vector(updates), jax.tree.map(np.asarray, memory)

    def learn(self, memory: PyTree, lesson: Lesson) -> PyTree:
        """Return the memory: the optimiser has its own."""
        del lesson
        return memory
