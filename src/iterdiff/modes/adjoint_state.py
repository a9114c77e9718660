"""What one derivative leaves to the next of a nearby problem: the adjoint state."""

import dataclasses
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from iterdiff.accuracy.sensitivity import Helpers
from iterdiff.jaxtools import manual_axes, tree
from iterdiff.jaxtools.arguments import check_bool, check_callable, check_count
from iterdiff.linalg.dense_or_krylov import Limits
from iterdiff.linalg.handed import HandedFactors


class AdjointState(eqx.Module):
    r"""What one derivative leaves to the next of a nearby problem: where its adjoint solve starts.

    Start with `AdjointState.start`, pass the state as ``Implicit(guess=state)``, and let
    `value_and_grad_with_state` return the next one. It is a pytree: carry it through ``scan``,
    ``jit`` and ``vmap``. Whatever it holds, the answer of each solve is checked.

    Attributes
    ----------
    solution : pytree
        Like the unknown `x`: the last adjoint, :math:`A^{-\top} w`.
    earlier : pytree, optional
        The adjoints before it, stacked along a first axis, newest first: the recycled space. A
        solve starts at the combination of all of them whose residual is smallest.
    factors : HandedFactors, optional
        The factors of an earlier matrix :math:`A`. They precondition, until the iteration takes
        more than a few products; then the solve factors anew.
    """

    solution: PyTree
    earlier: PyTree | None = None
    factors: HandedFactors | None = None

    @staticmethod
    def start(x0: PyTree, *, recycle: int = 0, factors: bool = False) -> "AdjointState":
        """Return a state that knows nothing, for unknowns like `x0`.

        Parameters
        ----------
        x0 : pytree of real floating arrays
            Gives structure, shapes and dtypes.
        recycle : int
            How many adjoints before the last one are kept. Each takes the memory of `x0`, and one
            product in every solve; two or three are worth it if the problems change smoothly.
        factors : bool
            Whether to keep factors: the memory of a matrix of the unknowns.

        Raises
        ------
        ValueError
            If `recycle` is negative, or the matrix is too large to be formed.
        TypeError
            If an argument has the wrong type.
        """
        check_count("recycle", recycle, least=0)
        check_bool(factors=factors)
        zero = tree.zeros_like(jax.tree.map(jnp.asarray, x0))
        earlier = tree.zero_rows(zero, recycle) if recycle else None
        if not factors:
            return AdjointState(zero, earlier)
        size, dtype = tree.size(zero), tree.result_dtype(zero)
        if size**2 * dtype.itemsize > Limits().dense_max_bytes:
            raise ValueError(
                f"`factors`: the matrix of {size} unknowns is too large to be formed. Leave them "
                "out, and use `recycle` or a preconditioner."
            )
        return AdjointState(zero, earlier, HandedFactors.unknown(size, dtype))

    def followed_by(self, found: "AdjointState") -> "AdjointState":
        """Return the next state, given the adjoint and the factors that a solve has found."""
        if self.earlier is None:
            return found

        def shift(new: Array, old: Array) -> Array:
            return jnp.concatenate([new[None], old[:-1]])

        earlier = jax.tree.map(shift, self.solution, self.earlier)
        return dataclasses.replace(found, earlier=earlier)


def solution_of(guess: Any) -> PyTree:
    """Return the adjoint in a guess or a state."""
    return guess.solution if isinstance(guess, AdjointState) else guess


def helpers_from(guess: Any, x: PyTree) -> Helpers:
    """Return what a guess, or a state, contributes to linear solves, in the dtypes of `x`.

    Raises
    ------
    ValueError
        If its structure or shapes are not those of `x`.
    """
    state = guess if isinstance(guess, AdjointState) else AdjointState(guess)
    _check_like(state.solution, x, 0)
    _check_like(state.earlier, x, 1)
    factors, size = state.factors, tree.size(x)
    if factors is not None and factors.packed.shape != (size, size):
        raise ValueError(
            f"`guess` has the factors of {factors.packed.shape[0]} unknowns, but x has {size}: a "
            "state belongs to one problem. Begin another with iterdiff.AdjointState.start(x0)."
        )

    def cast(leaf: Any, like: Array) -> Array:
        return jnp.asarray(leaf, like.dtype)

    earlier = state.earlier
    if earlier is not None:
        earlier = jax.tree.map(cast, earlier, x)
    if factors is not None:
        dtype = tree.result_dtype(x)
        factors = jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), factors)
    return Helpers(None, jax.tree.map(cast, state.solution, x), earlier, factors)


def _check_like(found: PyTree, x: PyTree, stacked: int) -> None:
    """Raise unless a part of a state, stacked along some first axes, is like `x`."""
    if found is None:
        return
    expected = jax.tree.map(jnp.shape, x)
    shapes = jax.tree.map(lambda leaf: jnp.shape(leaf)[stacked:], found)
    if jax.tree.structure(x) != jax.tree.structure(found) or expected != shapes:
        raise ValueError(
            f"`guess` must be like x, of shapes {expected}, but has shapes {shapes}: a state "
            "belongs to one problem. Begin another with iterdiff.AdjointState.start(x0)."
        )


def value_and_grad_with_state(
    loss: Callable[..., Float[Array, ""]],
) -> Callable[..., tuple[Float[Array, ""], PyTree, PyTree]]:
    """Return a function that computes value, gradient, and the state for the next gradient.

    For outer loops that differentiate a sequence of nearby problems: each adjoint solve starts
    where the previous one ended. The state returns as the cotangent of an input, so that it works
    under ``jit``, ``vmap`` and ``scan``.

    Parameters
    ----------
    loss : callable
        ``loss(theta, state, *args)`` returns a scalar. It passes `state` to one solve, as
        ``Implicit(guess=state)``. A loss with several solves takes a pytree of states.

    Returns
    -------
    callable
        ``(theta, state, *args) -> (value, gradient in theta, next state)``. If the loss does not
        pass a state on, the next one is zero: it knows nothing.

    Raises
    ------
    TypeError
        If `loss` is not callable.

    Examples
    --------
    >>> import jax
    >>> import jax.numpy as jnp
    >>> import iterdiff as itd
    >>> problem = itd.RootFinding(lambda x, theta: x**3 + x - theta)
    >>> def loss(theta, state):
    ...     stop = itd.ResidualBelow(rtol=1e-5, max_steps=50)
    ...     run = problem, itd.Newton(), jnp.zeros(2), theta
    ...     return jnp.sum(itd.solve(*run, stop=stop, mode=itd.Implicit(guess=state)).x)
    >>> step = jax.jit(itd.value_and_grad_with_state(loss))
    >>> theta, state = jnp.array([2.0, 10.0]), itd.AdjointState.start(jnp.zeros(2))
    >>> value, gradient, state = step(theta, state)
    >>> gradient.round(4).tolist() == state.solution.round(4).tolist()  # here r_theta = -1
    True
    """
    check_callable(loss=loss)

    def is_state(node: Any) -> bool:
        return isinstance(node, AdjointState)

    def follow(old: Any, found: Any) -> Any:
        return old.followed_by(found) if is_state(old) else found

    def with_state(theta: PyTree, state: PyTree, *args):
        state = manual_axes.aligned(state, (theta, args))
        graded = jax.value_and_grad(lambda theta, state: loss(theta, state, *args), (0, 1))
        value, (gradient, found) = graded(theta, state)
        return value, gradient, jax.tree.map(follow, state, found, is_leaf=is_state)

    return with_state
