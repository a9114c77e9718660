"""What users hand to the linear solves of `Implicit`: preconditioners, and adjoint states."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from iterdiff.algorithms.base import Algorithm
from iterdiff.jaxtools import manual_axes, tree
from iterdiff.jaxtools.arguments import check_callable
from iterdiff.linalg.probing import inverse_by_probing
from iterdiff.problems.problem import Problem

Preconditioner = Callable[[Problem, PyTree, PyTree], Callable[[PyTree], PyTree]]
"""``preconditioner(problem, x, theta)`` returns ``v -> M v``, about the inverse of the Jacobian."""


class Probed(eqx.Module):
    """The inverse of the Jacobian's diagonal, or diagonal blocks, found by products.

    Parameters
    ----------
    by_blocks : bool
        Whether to use blocks, see `iterdiff.linalg.probing.inverse_by_probing`.
    """

    by_blocks: bool = eqx.field(static=True)

    def __call__(self, problem: Problem, x: PyTree, theta: PyTree) -> Callable[[PyTree], PyTree]:
        """Return the product with the inverse."""
        operator = jax.linearize(lambda y: problem.residual(y, theta), x)[1]
        return inverse_by_probing(operator, x, by_blocks=self.by_blocks)


class OfTheRun(eqx.Module):
    """What the algorithm that ran holds for the inverse of the Jacobian.

    References
    ----------
    Z. Ramzi et al., *SHINE: SHaring the INverse Estimate from the forward pass for bi-level
    optimization and implicit models*, ICLR 2022. There the estimate replaces the inverse; here it
    preconditions a solve whose answer is checked.
    """

    def __call__(self, problem: Problem, x: PyTree, theta: PyTree) -> Callable[[PyTree], PyTree]:
        """Raise ValueError: there was no run."""
        del problem, x, theta
        raise ValueError(
            "`preconditioner='algorithm'` needs the last state of a run, which only iterdiff.solve "
            "has; pass 'diagonal', 'block' or a function of your own."
        )

    @staticmethod
    def at(algorithm: Algorithm, state: Any) -> Preconditioner:
        """Return the preconditioner that the algorithm holds.

        Raises
        ------
        ValueError
            If it holds none.
        """
        apply = algorithm.inverse_jacobian(state)
        if apply is None:
            raise ValueError(
                f"`preconditioner='algorithm'`: {type(algorithm).__name__} holds no inverse of the "
                "Jacobian, as Broyden and Chord do; pass 'diagonal', 'block' or a function of your "
                "own."
            )
        return lambda *_: apply


BUILT_IN = {
    "diagonal": Probed(by_blocks=False),
    "block": Probed(by_blocks=True),
    "algorithm": OfTheRun(),
}
"""Preconditioners that have a name."""


def as_preconditioner(given: Any) -> Preconditioner | None:
    """Return a preconditioner, or None; a name is looked up in `BUILT_IN`.

    Raises
    ------
    ValueError
        If there is none of this name.
    TypeError
        If it is neither a name nor callable.
    """
    if isinstance(given, str):
        if given not in BUILT_IN:
            raise ValueError(
                f"`preconditioner` must be a function or one of {list(BUILT_IN)}, not {given!r}."
            )
        return BUILT_IN[given]
    if given is not None:
        check_callable(preconditioner=given)
    return given


def applied(
    preconditioner: Preconditioner, problem: Problem, x: PyTree, theta: PyTree
) -> Callable[[PyTree], PyTree]:
    """Return ``v -> M v`` at a point.

    Raises
    ------
    TypeError
        If the preconditioner does not return a function.
    """
    apply = preconditioner(problem, x, theta)
    if not callable(apply):
        raise TypeError(
            "`preconditioner` must return a function v -> M v that approximates A^-1 v, but "
            f"preconditioner(problem, x, theta) returned {apply!r}."
        )
    return apply


class AdjointState(eqx.Module):
    r"""What one derivative leaves to the next of a nearby problem: where its adjoint solve starts.

    Start with `AdjointState.start`, pass the state as ``Implicit(guess=state)``, and let
    `value_and_grad_with_state` return the next one. It is a pytree: carry it through ``scan``,
    ``jit`` and ``vmap``.

    Attributes
    ----------
    solution : pytree
        Like the unknown `x`: the last adjoint, :math:`A^{-\top} w`.
    """

    solution: PyTree

    @staticmethod
    def start(x0: PyTree) -> "AdjointState":
        """Return a state that knows nothing, for unknowns like `x0`."""
        return AdjointState(tree.zeros_like(jax.tree.map(jnp.asarray, x0)))


def guess_like(guess: Any, x: PyTree) -> PyTree:
    """Return a guess, or that of a state, in the dtypes of `x`.

    Raises
    ------
    ValueError
        If its structure or shapes are not those of `x`.
    """
    found = guess.solution if isinstance(guess, AdjointState) else guess
    shapes = [jax.tree.map(jnp.shape, a) for a in (x, found)]
    if jax.tree.structure(x) != jax.tree.structure(found) or shapes[0] != shapes[1]:
        raise ValueError(
            f"`guess` must be like x, of shapes {shapes[0]}, but has shapes {shapes[1]}: a state "
            "belongs to one problem. Begin another with iterdiff.AdjointState.start(x0)."
        )
    return jax.tree.map(lambda leaf, like: jnp.asarray(leaf, like.dtype), found, x)


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

    def with_state(theta: PyTree, state: PyTree, *args):
        state = manual_axes.aligned(state, (theta, args))
        graded = jax.value_and_grad(lambda theta, state: loss(theta, state, *args), (0, 1))
        value, (gradient, following) = graded(theta, state)
        return value, gradient, following

    return with_state
