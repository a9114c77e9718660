"""Problems: what is solved, apart from how.

A problem owns ``residual(x, theta)``, which vanishes at the solution ``x*(theta)``. That
equation is what implicit differentiation differentiates, and the yardstick of convergence.
Whatever a user's functions close over is data; what is to be differentiated in belongs in
`theta` (a traced value that is closed over all the same is noticed and differentiated).
"""

import abc
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
from jaxtyping import Array, Float, PyTree

from iterdiff import tree


class Problem(eqx.Module):
    """What is solved: an equation ``residual(x, theta) = 0`` in ``x`` for given ``theta``.

    Subclass it to state a problem of a kind that the built-in classes do not cover; only
    `residual` is needed.

    Attributes
    ----------
    symmetric : bool
        Whether ``d residual / dx`` is symmetric at the solution.
    positive_definite : bool
        Whether, being symmetric, it is positive definite there too. The implicit mode
        starts from this and verifies it: a problem that turns out to be indefinite costs a
        second factorisation, not a wrong derivative.
    """

    @property
    def symmetric(self) -> bool:
        """Whether ``d residual / dx`` is symmetric at the solution."""
        return False

    @property
    def positive_definite(self) -> bool:
        """Whether ``d residual / dx`` is symmetric and positive definite at the solution."""
        return False

    @abc.abstractmethod
    def residual(self, x: PyTree, theta: PyTree) -> PyTree:
        """Return what vanishes at the solution, in the structure of `x`.

        Parameters
        ----------
        x : pytree of real floating arrays
            A point.
        theta : pytree
            The parameters; their floating leaves are what one differentiates in.

        Returns
        -------
        pytree
            In the structure, shapes and dtypes of `x`.
        """


def _check_callable(**functions: Any) -> None:
    """Refuse a function that is none.

    Raises
    ------
    TypeError
        Naming the argument.
    """
    for name, function in functions.items():
        if not callable(function):
            raise TypeError(f"`{name}` must be a function, not {function!r}.")


class Minimization(Problem):
    r"""Minimise ``objective(x, theta)`` over `x`, without constraints.

    The residual is the gradient, :math:`\nabla_x f(x, \theta)`, and its Jacobian the Hessian:
    symmetric, and positive definite at a strict minimiser (verified, not trusted: a saddle
    point is differentiated rightly too).

    Parameters
    ----------
    objective : callable
        ``objective(x, theta)`` returns a real floating scalar, twice differentiable near
        the solution. (Three times for error estimates and `Implicit(refine=1)`.)

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> import iterdiff as itd
    >>> problem = itd.Minimization(lambda x, theta: jnp.sum((x - theta) ** 2))
    >>> problem.residual(jnp.array([1.0, 2.0]), jnp.array([0.0, 2.0])).tolist()
    [2.0, 0.0]
    """

    objective: Callable[[PyTree, PyTree], Float[Array, ""]]

    def __check_init__(self):
        """Refuse what is no function."""
        _check_callable(objective=self.objective)

    @property
    def symmetric(self) -> bool:
        """True: a Hessian is symmetric."""
        return True

    @property
    def positive_definite(self) -> bool:
        """True: so it is at a strict minimiser (second-order condition)."""
        return True

    def residual(self, x: PyTree, theta: PyTree) -> PyTree:
        """Return the gradient of the objective in `x`."""
        return jax.grad(self.objective)(x, theta)


class RootFinding(Problem):
    """Find `x` with ``function(x, theta) = 0``.

    Parameters
    ----------
    function : callable
        ``function(x, theta)`` returns a pytree like `x`, differentiable near the solution,
        with a nonsingular Jacobian in `x` there.
    """

    function: Callable[[PyTree, PyTree], PyTree]

    def __check_init__(self):
        """Refuse what is no function."""
        _check_callable(function=self.function)

    def residual(self, x: PyTree, theta: PyTree) -> PyTree:
        """Return ``function(x, theta)``."""
        return self.function(x, theta)


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


class FixedPoint(Problem):
    """Find `x` with ``x = update(x, theta)``.

    The residual is ``x - update(x, theta)``, with Jacobian ``I - dupdate/dx``.

    Parameters
    ----------
    update : callable
        ``update(x, theta)`` returns a pytree like `x`, differentiable near the fixed point;
        1 is no eigenvalue of its Jacobian there.
    """

    update: Callable[[PyTree, PyTree], PyTree]

    def __check_init__(self):
        """Refuse what is no function."""
        _check_callable(update=self.update)

    def residual(self, x: PyTree, theta: PyTree) -> PyTree:
        """Return ``x - update(x, theta)``."""
        return tree.sub(x, self.update(x, theta))


class CompositeMinimization(Problem):
    r"""Minimise ``smooth(x, theta)`` plus a term that is known by its proximal operator.

    The residual is the natural map
    :math:`x - \mathrm{prox}_{s g}(x - s \nabla_x f(x, \theta), s, \theta)`, which vanishes at
    the solution for every :math:`s > 0`. Its Jacobian is the identity on the coordinates that
    the proximal operator holds fixed, and the scaled Hessian on the support, so that implicit
    differentiation restricts itself to the support.

    Parameters
    ----------
    smooth : callable
        ``smooth(x, theta)`` returns a real floating scalar.
    prox : callable
        ``prox(x, step_size, theta)`` returns
        ``argmin_z  step_size * g(z, theta) + ||z - x||^2 / 2``, like `x`.
    penalty : callable, optional
        ``penalty(x, theta)`` returns ``g(x, theta)``. It serves objective values alone.
    residual_step : float
        The ``s`` of the residual, positive. Something near the inverse of the largest
        eigenvalue of the Hessian of `smooth` conditions the implicit system best.

    Raises
    ------
    ValueError
        If `residual_step` is not positive.
    """

    smooth: Callable[[PyTree, PyTree], Float[Array, ""]]
    prox: Callable[[PyTree, Float[Array, ""], PyTree], PyTree]
    penalty: Callable[[PyTree, PyTree], Float[Array, ""]] | None = None
    residual_step: float = eqx.field(static=True, default=1.0)

    def __check_init__(self):
        """Refuse what are no functions, and a `residual_step` for which the residual is nothing."""
        _check_callable(smooth=self.smooth, prox=self.prox)
        if not self.residual_step > 0:
            raise ValueError(f"`residual_step` must be positive, not {self.residual_step}.")

    def forward_backward(self, x: PyTree, step_size: Float[Array, ""], theta: PyTree) -> PyTree:
        """Return one proximal gradient step, ``prox(x - s grad smooth(x), s, theta)``.

        Parameters
        ----------
        x : pytree of real floating arrays
            Where to start.
        step_size : scalar
            The step ``s``, positive.
        theta : pytree
            The parameters.
        """
        gradient = jax.grad(self.smooth)(x, theta)
        step_size = jnp.asarray(step_size, tree.result_dtype(x))
        return self.prox(tree.axpy(-step_size, gradient, x), step_size, theta)

    def residual(self, x: PyTree, theta: PyTree) -> PyTree:
        """Return ``x`` minus one proximal gradient step of length `residual_step`."""
        step = jnp.asarray(self.residual_step, tree.result_dtype(x))
        return tree.sub(x, self.forward_backward(x, step, theta))


def objective_of(problem: Problem) -> Callable[[PyTree, PyTree], Float[Array, ""]] | None:
    """Return the scalar that `problem` minimises, or None where it minimises none.

    For a `CompositeMinimization` this needs its `penalty`.
    """
    if isinstance(problem, Minimization):
        return problem.objective
    if isinstance(problem, CompositeMinimization) and problem.penalty is not None:
        penalty = problem.penalty
        return lambda x, theta: problem.smooth(x, theta) + penalty(x, theta)
    return None
