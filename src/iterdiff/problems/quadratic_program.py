"""Quadratic and linear programs, with matrices or matrix-free operators."""

import math
from collections.abc import Callable
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
from jaxtyping import Array, Float, PyTree

from iterdiff.jaxtools import tree
from iterdiff.jaxtools.arguments import as_array, is_known, is_number
from iterdiff.problems.constrained import ConstrainedProblem, ConstraintLimits, Multipliers
from iterdiff.problems.linear_system import as_operand

MAX_ASYMMETRY = 1e-6
"""Largest entry of ``Q - Q.T`` that counts as rounding, relative to the largest of ``Q``."""

SYMMETRY_MAX_NUMBERS = 2**22
"""A sparse `Q` with more entries, zeros included, is not checked for symmetry."""


def _as_vector(given: Any) -> Any:
    """Return numbers as arrays; functions and pytrees of arrays as they are (a field converter)."""
    return as_array("a vector of `QuadraticProgram`", given) if is_number(given) else given


MATRICES = ("Q", "A", "G")
"""The fields that hold matrices; the others hold vectors."""


class QuadraticProgram(ConstrainedProblem):
    r"""Minimise :math:`\tfrac12 x^\top Q x + c^\top x` where :math:`A x = b` and :math:`G x \le h`.

    With :math:`Q = 0` this is a linear program. Everything that depends on theta is a function of
    it. `ADMM` solves it for a convex objective; see `ConstrainedMinimization` for
    ``solution.multipliers``, for the derivative and for its edges.

    Parameters
    ----------
    Q : matrix of shape (n, n), operator, or callable
        Symmetric; of one that is only known when it is traced, the symmetric part counts. An
        array, a sparse array (`jax.experimental.sparse` or SciPy), a
        `lineax.AbstractLinearOperator`, or a function of theta that returns one of these.
    c : array of shape (n,), pytree, or callable
        The linear term, or a function of theta that returns it. It is like `x`.
    A, G : matrix of shape (m, n), operator, or callable, optional
        The equality and inequality constraints; as `Q`, but not square.
    b, h : array of shape (m,), pytree, or callable, optional
        Their right-hand sides; as `c`. An entry of `h` that is infinite bounds nothing.

    Raises
    ------
    TypeError
        If an array is complex or not numeric.
    ValueError
        If `A` is given without `b` or `G` without `h` (or the reverse), a shape does not fit, a
        known `Q` is not symmetric, or a known array contains NaN or infinity (`h`: minus infinity).
        When it is solved: if a shape does not fit that was not known.

    Notes
    -----
    The solution of a linear program at a vertex does not move with `c`: n active constraints
    determine it, and the derivative in the objective is zero. It moves with `b` and `h`. On a face
    of equally good points the solution is not unique, and the derivative is refused.

    Examples
    --------
    >>> import jax
    >>> import jax.numpy as jnp
    >>> import iterdiff as itd
    >>> problem = itd.QuadraticProgram(
    ...     jnp.eye(2), lambda theta: -theta, A=jnp.ones((1, 2)), b=jnp.ones(1),
    ...     G=-jnp.eye(2), h=jnp.zeros(2),
    ... )
    >>> stop = itd.ResidualBelow(atol=1e-4)
    >>> def nearest(theta):  # in the probability simplex
    ...     return itd.solve(problem, itd.ADMM(), jnp.zeros(2), theta, stop=stop).x
    >>> theta = jnp.array([0.9, 0.3])
    >>> nearest(theta).round(2).tolist(), jax.jacobian(nearest)(theta).round(2).tolist()
    ([0.8..., 0.2...], [[0.5, -0.5], [-0.5, 0.5]])
    """

    Q: Any = eqx.field(converter=as_operand)
    c: Any = eqx.field(converter=_as_vector)
    A: Any = eqx.field(converter=as_operand, default=None)
    b: Any = eqx.field(converter=_as_vector, default=None)
    G: Any = eqx.field(converter=as_operand, default=None)
    h: Any = eqx.field(converter=_as_vector, default=None)
    pinned: Multipliers | None = eqx.field(kw_only=True, default=None, repr=False)
    limits: ConstraintLimits = eqx.field(
        static=True, kw_only=True, default=ConstraintLimits(), repr=False
    )
    functions: ClassVar[dict[str, int]] = {"Q": 1, "c": 1, "A": 1, "b": 1, "G": 1, "h": 1}

    def __check_init__(self):
        """Check the shapes and values that are known already."""
        for matrix, side in (("A", "b"), ("G", "h")):
            given = [getattr(self, name) is not None for name in (matrix, side)]
            if given[0] != given[1]:
                missing, other = (side, matrix) if given[0] else (matrix, side)
                raise ValueError(f"`{missing}` is missing, but `{other}` is given; pass both.")
        for name in ("Q", "c", "A", "b", "G", "h"):
            given = getattr(self, name)
            if isinstance(given, str) or (given is None and name in ("Q", "c")):
                raise TypeError(
                    f"`{name}` must be an array, an operator or a function of theta, not {given!r}."
                )
            _check_finite(name, given)
        columns = _shape(self.c)
        for matrix, side in (("Q", "c"), ("A", "b"), ("G", "h")):
            _check_shape(matrix, getattr(self, matrix), side, _shape(getattr(self, side)), columns)
        _check_symmetric(self.Q)

    @property
    def equality(self) -> Callable[[PyTree, PyTree], PyTree] | None:
        """``A x - b`` as a function of `x` and theta; None without `A`."""
        return None if self.A is None else self._equality

    @property
    def inequality(self) -> Callable[[PyTree, PyTree], PyTree] | None:
        """``G x - h`` as a function of `x` and theta; None without `G`."""
        return None if self.G is None else self._inequality

    def _equality(self, x: PyTree, theta: PyTree) -> PyTree:
        return self._gap("A", "b", x, theta)

    def _inequality(self, x: PyTree, theta: PyTree) -> PyTree:
        return self._gap("G", "h", x, theta)

    def _gap(self, matrix: str, side: str, x: PyTree, theta: PyTree) -> PyTree:
        values, given = apply(self.at(matrix, theta), x), self.at(side, theta)
        _check_like(side, given, f"`{matrix}` times `x`", values)
        return tree.sub(values, given)

    def cost(self, x: PyTree, theta: PyTree) -> Float[Array, ""]:
        """Return the objective at `x`."""
        c, image = self.at("c", theta), apply(self.at("Q", theta), x)
        _check_like("c", c, "`x`", x)
        _check_like("Q", image, "`x`", x)
        return tree.dot(c, x) + tree.dot(x, image) / 2

    def at(self, name: str, theta: PyTree) -> Any:
        """Return the matrix or vector of this name at theta."""
        value = getattr(self, name)
        if callable(value) and not isinstance(value, lx.AbstractLinearOperator):
            made = value(theta)
            value = as_operand(made) if name in MATRICES else _as_vector(made)
        return value

    def matrix(self, name: str, theta: PyTree, size: int) -> Float[Array, "m n"]:
        """Return the matrix of this name as a dense array with `size` columns."""
        matrix = self.at(name, theta)
        if isinstance(matrix, lx.AbstractLinearOperator):
            return matrix.as_matrix()
        if hasattr(matrix, "todense"):
            return matrix.todense()
        return jnp.zeros((0, size)) if matrix is None else matrix


def apply(matrix: Any, x: PyTree) -> PyTree:
    """Return the product of a matrix or operator with `x`."""
    return matrix.mv(x) if isinstance(matrix, lx.AbstractLinearOperator) else matrix @ x


def _shape(value: Any) -> tuple[int, ...] | None:
    """Return the shape of a known array, dense or sparse; None for functions and pytrees."""
    return tuple(value.shape) if hasattr(value, "shape") else None


def _check_like(name: str, given: PyTree, other: str, wanted: PyTree) -> None:
    """Raise ValueError unless a value has the structure and shapes of another one."""
    found, shapes = (jax.tree.map(jnp.shape, value) for value in (given, wanted))
    if found != shapes:
        what = f"`{name}` times `x`" if name in MATRICES else f"`{name}`"
        raise ValueError(f"{what} has the shape {found}, but {other} has {shapes}.")


def _check_finite(name: str, value: Any) -> None:
    """Raise unless the numbers of a known array are real and finite."""
    numbers = getattr(value, "data", value) if hasattr(value, "nse") else value
    unbounded, what = (np.inf, "minus infinity") if name == "h" else (0.0, "infinity")
    if not eqx.is_array(numbers) or not is_known(numbers):
        return
    if jnp.issubdtype(numbers.dtype, jnp.complexfloating):
        raise TypeError(f"`{name}` must be real, but its dtype is {numbers.dtype}; split it.")
    numbers = np.asarray(numbers)
    if not np.all(np.isfinite(numbers) | (numbers == unbounded)):
        raise ValueError(f"`{name}` contains NaN or {what}; pass finite numbers.")


def _check_shape(
    name: str, matrix: Any, side: str, rows: tuple | None, columns: tuple | None
) -> None:
    """Raise ValueError unless a matrix fits its vectors, as far as shapes are known."""
    shape = _shape(matrix)
    if shape is None:
        return
    if len(shape) != 2:
        raise ValueError(f"`{name}` must be a matrix, but its shape is {shape}; reshape it.")
    for axis, other, wanted in ((0, side, rows), (1, "c", columns)):
        if wanted is not None and wanted != shape[axis : axis + 1]:
            raise ValueError(
                f"`{name}` has shape {shape}, but `{other}` has shape {wanted}; `{name}` needs one "
                f"{'row' if axis == 0 else 'column'} for each number in `{other}`."
            )


def _check_symmetric(matrix: Any) -> None:
    """Raise ValueError unless a known matrix, dense or sparse, is symmetric."""
    if isinstance(matrix, lx.MatrixLinearOperator):
        matrix = matrix.matrix
    if not all(map(is_known, jax.tree.leaves(matrix))):
        return
    if hasattr(matrix, "todense") and math.prod(matrix.shape) <= SYMMETRY_MAX_NUMBERS:
        matrix = matrix.todense()
    if not eqx.is_array(matrix):
        return
    entries = np.asarray(matrix)
    gap = np.max(np.abs(entries - entries.T), initial=0.0)
    if gap > MAX_ASYMMETRY * np.max(np.abs(entries), initial=0.0):
        raise ValueError(
            "`Q` is not symmetric; pass (Q + Q.T) / 2, which gives the same objective."
        )
