"""jaxopt's decorator ``custom_root``, on our engine."""

import functools
import inspect
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
from jaxtyping import Array, Float, PyTree

from iterdiff.jaxtools import tree
from iterdiff.jaxtools.lax import only_if
from iterdiff.jaxtools.raise_if import raise_if
from iterdiff.jaxtools.transformations import transforming
from iterdiff.linalg.solve import FALLBACK, Structure, inverse, tolerance
from iterdiff.loop.run import stop_gradient
from iterdiff.modes.implicit import Implicit
from iterdiff.problems.problem import Problem

THEIRS = 1e-2
"""The relative residual that a solver of the caller's own has to meet."""

ADVICE = (
    "The linear solve behind an implicit derivative (by custom_root) failed: its residual stayed "
    "too large or was not finite. The Jacobian of `optimality_fun` is singular or nearly so at the "
    "solver's answer, or that answer (or what is propagated through its derivative) is not finite. "
    "Give custom_root another `solve`, use float64, or an `optimality_fun` whose root is unique."
)


class _Optimality(Problem):
    """The problem whose residual is an optimality function of several arguments."""

    function: Callable[..., PyTree]

    def residual(self, x: PyTree, theta: PyTree) -> PyTree:
        """Return the function's value for positional and keyword arguments `theta`."""
        args, kwargs = theta
        return self.function(x, *args, **kwargs)


class MatvecSolver(lx.AbstractLinearSolver):
    """A function ``solve(matvec, b)`` as a linear solver of lineax.

    Its answer is checked: one whose relative residual (Euclidean norms) is above `accuracy` fails.
    By default that is what our own solves have to meet. A failure raises here, and is not left to
    the caller, who would advise what a user of `custom_root` cannot pass.
    """

    solve: Callable[[Callable, PyTree], PyTree]
    accuracy: float | None = None

    def init(self, operator: Any, options: dict[str, Any]) -> Any:
        """Return the operator: there is nothing to prepare."""
        del options
        return operator

    def compute(self, state: Any, vector: PyTree, options: dict[str, Any]) -> Any:
        """Return the function's answer.

        Raises
        ------
        SolveError
            If it does not solve the system.
        """
        del options
        x = self.solve(state.mv, vector)
        gap = tree.norm(tree.sub(state.mv(x), vector))
        size = tree.norm(vector)
        accuracy = self.accuracy
        if accuracy is None:
            accuracy = 100 * tolerance(tree.result_dtype(vector))
        x = raise_if(x, ~(gap <= accuracy * size), [ADVICE])
        return x, lx.RESULTS.successful, {}

    def transpose(self, state: Any, options: dict[str, Any]) -> Any:
        """Return the transposed operator."""
        return state.transpose(), options

    def conj(self, state: Any, options: dict[str, Any]) -> Any:
        """Return the operator: it is real."""
        return state, options

    def assume_full_rank(self) -> bool:
        """Return True."""
        return True


def least_norm(matvec: Callable, b: Float[Array, " n"]) -> Float[Array, " n"]:
    """Solve by our choice of method; a singular system, up to a size, by least squares.

    Where the unknowns are not unique (an intercept beside a softmax, say) there is an answer all
    the same, and a loss that does not see the difference has the gradient that it should.
    """
    x = inverse(matvec, b, Structure(False, False))(b)
    if b.size > FALLBACK:
        return x

    def by_singular_values() -> Float[Array, " n"]:
        matrix = jax.vmap(matvec, out_axes=1)(jnp.eye(b.size, dtype=b.dtype))
        return jnp.linalg.lstsq(matrix, b, rcond=tolerance(b.dtype))[0]

    return only_if(~tree.all_finite(x), by_singular_values, x)


def custom_root(
    optimality_fun: Callable[..., PyTree],
    has_aux: bool = False,
    solve: Callable[[Callable, PyTree], PyTree] | None = None,
    reference_signature: Callable | inspect.Signature | None = None,
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Give a solver the implicit derivative of a root; a drop-in for jaxopt's decorator.

    Unlike jaxopt's it differentiates in forward mode too (and to any order), and a linear solve
    that fails raises instead of giving a wrong derivative.

    Parameters
    ----------
    optimality_fun : callable
        ``optimality_fun(sol, *args)``, which vanishes at the solution.
    has_aux : bool
        Whether the solver returns ``(sol, aux)``. What is beside `sol` carries no derivative.
    solve : callable, optional
        A linear solver ``solve(matvec, b)`` such as jaxopt's, called with vectors of shape (n,);
        for reverse mode with the transposed ``matvec``. By default our own choice of method;
        where the Jacobian is singular and the system has solutions, the one of least norm.
    reference_signature : callable or inspect.Signature, optional
        Its parameters tell which arguments of the solver are which of `optimality_fun`'s; by
        default those have the same names, or places.

    Returns
    -------
    callable
        A decorator of functions ``solver(init, *args, **kwargs)``. Differentiate in all arguments
        but `init`, in which the derivative is zero.

    Raises
    ------
    TypeError
        When the solver is differentiated, if an argument has no place in the signature.

    Examples
    --------
    >>> import jax, jax.numpy as jnp
    >>> import iterdiff as itd
    >>> @itd.adapters.custom_root(lambda x, theta: x**2 - theta)
    ... def square_root(init, theta):
    ...     return jnp.sqrt(theta)
    >>> jax.jacfwd(square_root, argnums=1)(None, 4.0)
    Array(0.25, dtype=float...)
    """
    chosen = MatvecSolver(least_norm) if solve is None else MatvecSolver(solve, THEIRS)
    mode = Implicit(linear_solver=chosen)
    problem = _Optimality(optimality_fun)

    def decorate(solver: Callable[..., Any]) -> Callable[..., Any]:
        signature = inspect.signature(solver)
        reference = _signature(reference_signature, optimality_fun)

        @functools.wraps(solver)
        def solved(*args: Any, **kwargs: Any) -> Any:
            bound = signature.bind(*args, **kwargs)
            bound.apply_defaults()
            inputs = stop_gradient((bound.args, bound.kwargs))
            result = stop_gradient(solver(*inputs[0], **inputs[1]))
            x = _arrays(result[0] if has_aux else result)
            if transforming():
                theta = _parameters(reference, bound)
                x = _attach(problem, mode, x, _arrays(theta))
            return _first_replaced(result, x) if has_aux else x

        return solved

    return decorate


@eqx.filter_jit
def _attach(problem: Problem, mode: Implicit, x: PyTree, theta: PyTree) -> PyTree:
    return mode.attach(problem, x, theta, throw=True)


def _signature(reference: Any, optimality_fun: Callable) -> inspect.Signature:
    if isinstance(reference, inspect.Signature):
        return reference
    if reference is None:
        return inspect.signature(optimality_fun)
    return inspect.signature(getattr(reference, "subfun", reference))


def _parameters(reference: inspect.Signature, given: inspect.BoundArguments) -> PyTree:
    """Return the solver's arguments but the first as `reference` takes them."""
    try:
        bound = reference.bind(*given.args, **given.kwargs)
    except TypeError as error:
        raise TypeError(
            f"the solver's arguments do not fit the signature {reference} of `optimality_fun` (or "
            f"`reference_signature`): {error}."
        ) from error
    return bound.args[1:], bound.kwargs


def _arrays(a: PyTree) -> PyTree:
    number = np.ndarray | np.generic | float
    return jax.tree.map(lambda leaf: jnp.asarray(leaf) if isinstance(leaf, number) else leaf, a)


def _first_replaced(result: Any, x: PyTree) -> Any:
    items = [x, *result[1:]]
    return type(result)(*items) if hasattr(result, "_fields") else type(result)(items)
