"""A drop-in for jaxopt's decorator ``custom_root``, with our implicit derivative."""

import functools
import inspect
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from iterdiff.jaxtools.arguments import check_bool, check_callable
from iterdiff.jaxtools.jit import compiled
from iterdiff.jaxtools.snapshot import snapshot, traced
from iterdiff.jaxtools.transformations import transforming
from iterdiff.linalg.any_solver import Advised, AnySolver, MatvecSolver
from iterdiff.linalg.dense_or_krylov import DenseOrKrylov
from iterdiff.loop.run import stop_gradient
from iterdiff.modes.implicit import Implicit
from iterdiff.problems.inputs import with_snapshot
from iterdiff.problems.problem import Problem

USER_SOLVE_RTOL = 1e-4
"""The relative residual that the caller's own `solve` is taken to aim at: `RESIDUAL_SLACK` times as
much, one percent, is accepted."""

ADVICE = (
    "The linear solve behind the derivative of custom_root failed: the Jacobian of "
    "`optimality_fun` is singular or nearly so at the answer, or `solve` was not accurate. "
    "Use float64, another `solve`, or an `optimality_fun` with a unique root."
)


class _Optimality(Problem):
    """The problem whose residual is an optimality function with several arguments."""

    function: Callable[..., PyTree]

    def residual(self, x: PyTree, theta: PyTree) -> PyTree:
        """Return the function's value; `theta` holds its positional and keyword arguments."""
        args, kwargs = theta
        return self.function(x, *args, **kwargs)


def custom_root(
    optimality_fun: Callable[..., PyTree],
    has_aux: bool = False,
    solve: Callable[[Callable, PyTree], PyTree] | None = None,
    reference_signature: Callable | inspect.Signature | None = None,
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Give a solver the implicit derivative (IFT) of a root; a drop-in for jaxopt's decorator.

    In contrast to jaxopt's, it also works in forward mode and to any order, and a linear solve
    that fails raises instead of returning a wrong derivative.

    Parameters
    ----------
    optimality_fun : callable
        ``optimality_fun(sol, *args)``, which is zero at the solution.
    has_aux : bool
        Whether the solver returns ``(sol, aux)``; `aux` carries no derivative.
    solve : callable, optional
        A linear solver ``solve(matvec, b)`` such as jaxopt's, called with vectors of shape (n,),
        and in reverse mode with the transposed ``matvec``. By default we choose the method. If the
        Jacobian is singular, reverse mode gives the gradient of a loss that does not depend on
        what the root leaves open (an intercept beside a softmax); forward mode raises.
    reference_signature : callable or inspect.Signature, optional
        Its parameters match the solver's arguments to those of `optimality_fun`. By default
        arguments match by name, or by position.

    Returns
    -------
    callable
        A decorator of functions ``solver(init, *args, **kwargs)``. The result is differentiable
        in all arguments; the derivative in `init` is zero.

    Raises
    ------
    TypeError
        At once, if an argument has the wrong type. When the solver runs, if it should return
        ``(sol, aux)`` and does not. When it is differentiated, if an argument does not fit the
        signature.
    SolveError
        When the derivative is computed, if its linear solve fails.

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
    check_callable(optimality_fun=optimality_fun)
    check_bool(has_aux=has_aux)
    if solve is not None:
        check_callable(solve=solve)
    chosen = DenseOrKrylov() if solve is None else AnySolver(MatvecSolver(solve, USER_SOLVE_RTOL))
    mode = Implicit(linear_solver=Advised(chosen, ADVICE))
    problem = _Optimality(optimality_fun)

    if not isinstance(reference_signature, inspect.Signature | None):
        check_callable(reference_signature=reference_signature)

    def decorate(solver: Callable[..., Any]) -> Callable[..., Any]:
        check_callable(solver=solver)
        signature = inspect.signature(solver)
        reference = _signature(reference_signature, optimality_fun)

        @functools.wraps(solver)
        def solved(*args: Any, **kwargs: Any) -> Any:
            bound = signature.bind(*args, **kwargs)
            bound.apply_defaults()
            inputs = stop_gradient((bound.args, bound.kwargs))
            result = stop_gradient(solver(*inputs[0], **inputs[1]))
            if has_aux and not isinstance(result, tuple):
                raise TypeError(
                    f"`has_aux` is True, so the solver must return (solution, aux), not {result!r}."
                )
            x = _arrays(result[0] if has_aux else result)
            if transforming():
                theta = _parameters(reference, bound)
                x = _attached(problem, mode, x, _arrays(theta))
            return _first_replaced(result, x) if has_aux else x

        return solved

    return decorate


def _attached(problem: Problem, mode: Implicit, x: PyTree, theta: PyTree) -> PyTree:
    """Return `x` with the derivative in `theta` that the optimality function now implies."""
    taken = snapshot(traced(problem.residual, x, theta)[0])
    return _attach(with_snapshot(problem, taken), mode, x, theta)


@compiled
def _attach(problem: Problem, mode: Implicit, x: PyTree, theta: PyTree) -> PyTree:
    return mode.attach(problem, x, theta, throw=True)


def _signature(reference: Any, optimality_fun: Callable) -> inspect.Signature:
    """Return the signature to which the solver's arguments are bound."""
    if isinstance(reference, inspect.Signature):
        return reference
    if reference is None:
        return inspect.signature(optimality_fun)
    # jaxopt's composite functions keep the function with the signature in `subfun`.
    return inspect.signature(getattr(reference, "subfun", reference))


def _parameters(reference: inspect.Signature, given: inspect.BoundArguments) -> PyTree:
    """Return the solver's arguments except the first, bound to the signature `reference`."""
    try:
        bound = reference.bind(*given.args, **given.kwargs)
    except TypeError as error:
        raise TypeError(
            f"`optimality_fun` (or `reference_signature`) has the signature {reference}, which the "
            f"solver's arguments do not fit: {error}."
        ) from error
    return bound.args[1:], bound.kwargs


def _arrays(a: PyTree) -> PyTree:
    """Return `a` with its numbers and NumPy arrays converted to JAX arrays."""
    number = np.ndarray | np.generic | float
    return jax.tree.map(lambda leaf: jnp.asarray(leaf) if isinstance(leaf, number) else leaf, a)


def _first_replaced(result: Any, x: PyTree) -> Any:
    """Return the tuple `result`, which may be a named tuple, with `x` as its first item."""
    items = [x, *result[1:]]
    return type(result)(*items) if hasattr(result, "_fields") else type(result)(items)
