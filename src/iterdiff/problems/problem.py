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
from jaxtyping import Array, Float, PyTree

from iterdiff.jaxtools import tree
from iterdiff.linalg.solve import Structure


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


def structure_of(problem: Problem) -> Structure:
    """Return what the problem knows of ``d residual / dx``."""
    hessian = isinstance(problem, Minimization)
    return Structure(problem.symmetric, problem.positive_definite, hessian)
