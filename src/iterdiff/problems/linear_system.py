"""Linear systems, with a matrix or a matrix-free operator."""

from collections.abc import Callable
from typing import Any, ClassVar

import equinox as eqx
import jax.numpy as jnp
import lineax as lx
import numpy as np
from jaxtyping import PyTree

from iterdiff.jaxtools import tree
from iterdiff.jaxtools.arguments import check_bool, check_callable
from iterdiff.problems.functions import has_room
from iterdiff.problems.problem import Problem


def as_operand(matrix: Any) -> Any:
    """Convert a matrix to a form whose product with a vector JAX can batch and differentiate.

    JAX batches only two of its own sparse formats, BCOO and BCSR. The others, and SciPy's,
    become BCOO.
    """
    if isinstance(matrix, np.ndarray):
        return jnp.asarray(matrix)
    if not hasattr(matrix, "tocoo") and not hasattr(matrix, "nse"):
        return matrix  # dense, a lineax operator, or a function of theta
    from jax.experimental import sparse  # imported here because it takes 0.1 s

    if hasattr(matrix, "tocoo"):  # SciPy
        matrix = matrix.tocoo()
        rows, columns = matrix.row, matrix.col
    elif isinstance(matrix, sparse.COO):
        rows, columns = matrix.row, matrix.col
    elif isinstance(matrix, sparse.CSR | sparse.CSC):
        counts = jnp.diff(matrix.indptr)
        expanded = jnp.repeat(jnp.arange(counts.size), counts, total_repeat_length=matrix.nse)
        by_rows = isinstance(matrix, sparse.CSR)
        rows, columns = (expanded, matrix.indices) if by_rows else (matrix.indices, expanded)
    else:
        return matrix
    indices = jnp.stack([jnp.asarray(rows, jnp.int32), jnp.asarray(columns, jnp.int32)], axis=1)
    return sparse.BCOO((jnp.asarray(matrix.data), indices), shape=matrix.shape)


class MatrixOperator(eqx.Module):
    """A matrix or lineax operator as the function ``(x, theta) -> A(theta) x``.

    Parameters
    ----------
    matrix : array, sparse array, lineax operator, or callable
        One of: an array of shape (n, n), dense or sparse (`jax.experimental.sparse` or SciPy); a
        `lineax.AbstractLinearOperator` with equal input and output structures; a function of
        `theta` that returns one of these.

    Raises
    ------
    ValueError
        If the matrix is not square; for a function of `theta`, when it is called.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from jax.experimental import sparse
    >>> import iterdiff as itd
    >>> def diagonal(theta):
    ...     where = jnp.stack([jnp.arange(2), jnp.arange(2)], axis=1)
    ...     return sparse.BCOO((theta, where), shape=(2, 2))
    >>> problem = itd.LinearSystem(itd.MatrixOperator(diagonal), lambda theta: jnp.ones(2))
    >>> problem.residual(jnp.array([0.5, 0.0]), jnp.array([2.0, 4.0])).tolist()
    [0.0, -1.0]
    """

    matrix: Any = eqx.field(converter=as_operand)

    def __check_init__(self):
        """Check that the matrix is square, if it is known already."""
        if not callable(self.matrix):
            _check_square(self.matrix)

    def __call__(self, x: PyTree, theta: PyTree, *args: PyTree) -> PyTree:
        """Return ``A(theta) x``; a function of theta receives `args`, too, if it has room."""
        matrix = self.matrix
        if callable(matrix):
            matrix = as_operand(matrix(theta, *args) if has_room(matrix, 1) else matrix(theta))
            _check_square(matrix)
        return matrix.mv(x) if isinstance(matrix, lx.AbstractLinearOperator) else matrix @ x


def _check_square(matrix: Any) -> None:
    """Raise ValueError unless `matrix` maps vectors to vectors of the same structure."""
    if isinstance(matrix, lx.AbstractLinearOperator):
        if matrix.in_structure() != matrix.out_structure():
            raise ValueError(
                "`operator`: the lineax operator has different input and output structures; give "
                "one that maps x to a vector like x."
            )
        return
    shape = getattr(matrix, "shape", ())
    if len(shape) != 2 or shape[0] != shape[1]:
        raise ValueError(
            "`operator` must be a square matrix, a lineax operator or a function "
            f"(x, theta) -> A(theta) x, not {matrix!r}. If the matrix depends on theta, wrap the "
            "function that returns it in iterdiff.MatrixOperator."
        )


class LinearSystem(Problem):
    """Solve ``A(theta) x = b(theta)``, with a matrix or a matrix-free operator.

    The residual is ``A(theta) x - b(theta)``.

    Parameters
    ----------
    operator : callable, array, sparse array or lineax operator
        ``operator(x, theta)`` returns ``A(theta) x``, linear in `x` and like `x`. Pass a matrix
        directly if it does not depend on `theta`, and in a `MatrixOperator` if it does.
    rhs : callable
        ``rhs(theta)`` returns ``b(theta)``, like `x`.
    symmetric : bool
        Whether ``A(theta)`` is symmetric. The tags of a lineax operator count too.
    positive_definite : bool
        Whether ``A(theta)`` is symmetric positive definite; implies `symmetric`.

    Raises
    ------
    TypeError
        If `rhs` is not callable, or a flag not True or False.
    ValueError
        If `operator` is neither callable nor a square matrix.
    """

    operator: Callable[[PyTree, PyTree], PyTree]
    rhs: Callable[[PyTree], PyTree]
    _symmetric: bool = eqx.field(static=True)
    _positive_definite: bool = eqx.field(static=True)
    functions: ClassVar[dict[str, int]] = {"operator": 2, "rhs": 1}
    like_x: ClassVar[tuple[str, ...] | None] = ("operator", "rhs")

    def __init__(
        self,
        operator: Any,
        rhs: Callable[[PyTree], PyTree],
        *,
        symmetric: bool = False,
        positive_definite: bool = False,
    ):
        check_callable(rhs=rhs)
        check_bool(symmetric=symmetric, positive_definite=positive_definite)
        if isinstance(operator, lx.AbstractLinearOperator):
            symmetric = symmetric or lx.is_symmetric(operator)
            positive_definite = positive_definite or lx.is_positive_semidefinite(operator)
        self.operator = operator if callable(operator) else MatrixOperator(operator)
        self.rhs = rhs
        self._symmetric = symmetric or positive_definite
        self._positive_definite = positive_definite

    @property
    def symmetric(self) -> bool:
        """Whether ``A(theta)`` was declared symmetric."""
        return self._symmetric

    @property
    def positive_definite(self) -> bool:
        """Whether ``A(theta)`` was declared symmetric positive definite."""
        return self._positive_definite

    def residual(self, x: PyTree, theta: PyTree) -> PyTree:
        """Return ``A(theta) x - b(theta)``."""
        return tree.sub(self.operator(x, theta), self.rhs(theta))
