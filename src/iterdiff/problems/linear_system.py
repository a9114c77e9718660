"""Linear systems, with an operator of any kind."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import lineax as lx
import numpy as np
from jaxtyping import PyTree

from iterdiff.jaxtools import tree
from iterdiff.problems.problem import Problem, _check_callable


def _as_operand(matrix: Any) -> Any:
    """Bring a matrix into a form whose product JAX can batch and differentiate.

    Of its own sparse formats JAX batches BCOO and BCSR alone; the others, and SciPy's, become BCOO.
    """
    if isinstance(matrix, np.ndarray):
        return jnp.asarray(matrix)
    if hasattr(matrix, "tocoo"):
        matrix = matrix.tocoo()
    if hasattr(matrix, "row"):
        places = (matrix.row, matrix.col)
    elif hasattr(matrix, "indptr") and not hasattr(matrix, "n_batch"):
        counts = jnp.diff(matrix.indptr)
        line = jnp.repeat(jnp.arange(counts.size), counts, total_repeat_length=matrix.nse)
        by_columns = type(matrix).__name__ == "CSC"
        places = (matrix.indices, line) if by_columns else (line, matrix.indices)
    else:
        return matrix
    from jax.experimental import sparse  # here, since it takes a tenth of a second to import

    indices = jnp.stack([jnp.asarray(place, jnp.int32) for place in places], axis=1)
    return sparse.BCOO((jnp.asarray(matrix.data), indices), shape=matrix.shape)


class MatrixOperator(eqx.Module):
    """A matrix, dense, sparse or lineax's, as the function ``(x, theta) -> A(theta) x``.

    Parameters
    ----------
    matrix : array, sparse array, lineax operator, or callable
        What has a product with vectors: an array or a sparse array (of `jax.experimental.sparse`
        or SciPy) of shape (n, n), a `lineax.AbstractLinearOperator` with equal input and output
        structures, or a function of `theta` that returns one of these.

    Raises
    ------
    ValueError
        If an array is not square.

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

    matrix: Any = eqx.field(converter=_as_operand)

    def __check_init__(self):
        """Refuse what is no square matrix."""
        if not callable(self.matrix):
            self._check(self.matrix)

    @staticmethod
    def _check(matrix: Any) -> None:
        shape = getattr(matrix, "shape", None)
        if isinstance(matrix, lx.AbstractLinearOperator):
            if matrix.in_structure() != matrix.out_structure():
                raise ValueError(
                    "`operator` must map x to something like x; the lineax one does not."
                )
        elif shape is None or len(shape) != 2 or shape[0] != shape[1]:
            raise ValueError(
                "`operator` must be a square matrix (an array, a sparse array of jax.experimental."
                "sparse, a lineax operator), a function of theta that returns one wrapped in "
                f"iterdiff.MatrixOperator, or a function (x, theta) -> A(theta) x; not {matrix!r}."
            )

    def __call__(self, x: PyTree, theta: PyTree) -> PyTree:
        """Return ``A(theta) x``."""
        matrix = self.matrix
        if callable(matrix):
            matrix = _as_operand(matrix(theta))
            self._check(matrix)
        return matrix.mv(x) if isinstance(matrix, lx.AbstractLinearOperator) else matrix @ x


class LinearSystem(Problem):
    """Solve ``A(theta) x = b(theta)`` with a matrix-free operator.

    The residual is ``A(theta) x - b(theta)``.

    Parameters
    ----------
    operator : callable, array, sparse array or lineax operator
        ``operator(x, theta)`` returns ``A(theta) x``, linear in `x`, like `x`. A matrix that does
        not depend on `theta` may be given as it is; one that does, as `MatrixOperator`.
    rhs : callable
        ``rhs(theta)`` returns ``b(theta)``, like `x`.
    symmetric : bool
        Whether ``A(theta)`` is symmetric (a lineax operator's tags are believed too).
    positive_definite : bool
        Whether ``A(theta)`` is symmetric positive definite; implies `symmetric`.

    Raises
    ------
    ValueError
        If `operator` is neither callable nor a square matrix.
    """

    operator: Callable[[PyTree, PyTree], PyTree]
    rhs: Callable[[PyTree], PyTree]
    _symmetric: bool = eqx.field(static=True)
    _positive_definite: bool = eqx.field(static=True)

    def __init__(
        self,
        operator: Any,
        rhs: Callable[[PyTree], PyTree],
        *,
        symmetric: bool = False,
        positive_definite: bool = False,
    ):
        _check_callable(rhs=rhs)
        if isinstance(operator, lx.AbstractLinearOperator):
            symmetric = symmetric or lx.is_symmetric(operator)
            positive_definite = positive_definite or lx.is_positive_semidefinite(operator)
        self.operator = operator if callable(operator) else MatrixOperator(operator)
        self.rhs = rhs
        self._symmetric = symmetric or positive_definite
        self._positive_definite = positive_definite

    @property
    def symmetric(self) -> bool:
        """As given."""
        return self._symmetric

    @property
    def positive_definite(self) -> bool:
        """As given."""
        return self._positive_definite

    def residual(self, x: PyTree, theta: PyTree) -> PyTree:
        """Return ``A(theta) x - b(theta)``."""
        return tree.sub(self.operator(x, theta), self.rhs(theta))
