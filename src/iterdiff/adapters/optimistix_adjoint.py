"""Our modes as adjoints of optimistix."""

import functools
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
from jaxtyping import PyTree

from iterdiff.adapters.from_optimistix import (
    keeps_the_best,
    lag_of,
    unwrapped,
    why_not_differentiable,
)
from iterdiff.adapters.optimistix_loop import Bounded, bounded_while, while_loop
from iterdiff.jaxtools.extras import import_extra
from iterdiff.modes.base import Mode
from iterdiff.modes.implicit import Implicit
from iterdiff.modes.unrolled import Unrolled
from iterdiff.problems.problem import Problem


class _Rewritten(Problem):
    """The equation by which optimistix characterises an answer, in real numbers.

    Complex leaves, of unknowns and parameters, are their real and imaginary parts stacked along a
    new first axis: so the derivative is right for functions that are not holomorphic too.
    """

    rewrite: Callable[..., PyTree]
    like: PyTree
    beside: PyTree
    rest: PyTree
    parameters: PyTree
    tags: frozenset[object] = eqx.field(static=True)

    @property
    def symmetric(self) -> bool:
        """As tagged."""
        return lx.symmetric_tag in self.tags or self.positive_definite

    @property
    def positive_definite(self) -> bool:
        """As tagged."""
        return lx.positive_semidefinite_tag in self.tags

    def residual(self, x: PyTree, theta: PyTree) -> PyTree:
        """Return the equation's left-hand side."""
        inputs = eqx.combine(_joined(theta, self.parameters), self.rest)
        return _split(self.rewrite(_joined(x, self.like), self.beside, inputs))


def _split(a: PyTree) -> PyTree:
    """Return complex leaves as stacks of their parts."""
    return jax.tree.map(
        lambda v: jnp.stack([v.real, v.imag]) if jnp.iscomplexobj(v) else jnp.asarray(v), a
    )


def _joined(a: PyTree, like: PyTree) -> PyTree:
    """Undo `_split`, for leaves whose counterpart in `like` is complex."""
    return jax.tree.map(
        lambda v, shape: jax.lax.complex(v[0], v[1]) if jnp.iscomplexobj(shape) else v, a, like
    )


def _shapes(a: PyTree) -> PyTree:
    return jax.tree.map(lambda v: jax.ShapeDtypeStruct(v.shape, v.dtype), a)


def _implicit(mode: Implicit, primal: Callable, rewrite: Callable, inputs: Any, tags: Any) -> Any:
    parameters, rest = eqx.partition(inputs, eqx.is_inexact_array)
    stopped = eqx.combine(jax.lax.stop_gradient(parameters), rest)
    root, beside = primal((*stopped, while_loop))
    root = jax.tree.map(jnp.asarray, root)
    problem = _Rewritten(rewrite, _shapes(root), beside, rest, _shapes(parameters), frozenset(tags))
    x = mode.attach(problem, _split(root), _split(parameters), throw=True)
    return _joined(x, root), beside


def _unrolled(mode: Unrolled, primal: Callable, inputs: Any) -> Any:
    solver = inputs[1]
    _check_unrollable(solver, mode)
    last = None if mode.last is None else int(mode.last) + lag_of(solver)

    def while_loop(going_on, body, init, *, max_steps=None):
        if max_steps is None:
            raise ValueError(
                "`max_steps` must be given to unroll; pass a number to optimistix, or use "
                "iterdiff.Implicit()."
            )
        loop = Bounded(going_on, body, max_steps)
        rounds = None if last is None else min(last, max_steps)
        return bounded_while(loop, init, mode.checkpoint, rounds)

    return primal((*inputs, while_loop))


def _check_unrollable(solver: Any, mode: Unrolled) -> None:
    """Refuse a solver whose answer the mode would give a derivative that is no approximation.

    Raises
    ------
    ValueError
        Naming the reason, and the modes that work.
    """
    name, reason = type(unwrapped(solver)).__name__, why_not_differentiable(solver)
    if reason:
        raise ValueError(
            f"`adjoint`: Unrolled (and OneStep) cannot differentiate {name}: {reason} "
            "Modes that work: iterdiff.Implicit()."
        )
    if mode.last is not None and keeps_the_best(solver):
        raise ValueError(
            f"`last` = {mode.last}: optimistix's BestSoFar answers with the best iterate of "
            f"{name}, which may be older than the last steps, so that their derivative would be "
            "zero. Modes that work: iterdiff.Unrolled(), iterdiff.Implicit()."
        )


def _check_taken(mode: Unrolled) -> None:
    """Refuse what needs iterdiff's own loop.

    Raises
    ------
    ValueError
        Naming the argument.
    """
    way_out = "needs iterdiff's own loop; use iterdiff.solve with iterdiff.adapters.from_optimistix"
    if isinstance(mode.last, str):
        raise ValueError(f"`last` = {mode.last!r} {way_out}, or give the adjoint a number.")
    if mode.accelerate is not None:
        raise ValueError(f"`accelerate` = {mode.accelerate} {way_out}, or leave it out.")


@functools.cache
def _adjoint_class() -> type:
    optimistix = import_extra("optimistix", "adapters")

    class ModeAdjoint(optimistix.AbstractAdjoint):
        """A mode of iterdiff as an adjoint of optimistix."""

        mode: Mode

        def apply(self, primal_fn, rewrite_fn, inputs, tags):
            """Run the solver such that JAX differentiates it in the mode's way."""
            if isinstance(self.mode, Unrolled):
                return _unrolled(self.mode, primal_fn, inputs)
            assert isinstance(self.mode, Implicit)
            return _implicit(self.mode, primal_fn, rewrite_fn, inputs, tags)

    return ModeAdjoint


def as_optimistix_adjoint(mode: Mode) -> Any:
    """Return a mode as an adjoint of optimistix, for ``optimistix.minimise(..., adjoint=...)``.

    With `Implicit` the linear solve behind the derivative is checked, as ever: one that fails
    raises. With `Unrolled` forward mode works too, which optimistix's own
    ``RecursiveCheckpointAdjoint`` refuses, and the last few steps alone can be differentiated;
    see `from_optimistix` for which steps these are, and for the solvers that are not unrolled.

    Parameters
    ----------
    mode : Implicit or Unrolled
        The mode.

    Returns
    -------
    optimistix.AbstractAdjoint
        The adjoint.

    Raises
    ------
    ImportError
        If optimistix is not installed.
    TypeError
        If `mode` is neither.
    ValueError
        If it is one that needs iterdiff's own loop (``last="auto"``, `accelerate`); when
        optimistix uses the adjoint, if the mode cannot differentiate the solver.

    Examples
    --------
    >>> import jax, jax.numpy as jnp, optimistix
    >>> import iterdiff as itd
    >>> adjoint = itd.adapters.as_optimistix_adjoint(itd.Implicit())
    >>> def root(theta):
    ...     newton = optimistix.Newton(rtol=1e-8, atol=1e-8)
    ...     function = lambda x, theta: x**2 - theta
    ...     return optimistix.root_find(function, newton, 1.0, theta, adjoint=adjoint).value
    >>> jax.grad(root)(4.0)
    Array(0.25, dtype=float...)
    """
    if not isinstance(mode, Implicit | Unrolled):
        raise TypeError(f"`mode` must be iterdiff.Implicit() or iterdiff.Unrolled(), not {mode!r}.")
    if isinstance(mode, Unrolled):
        _check_taken(mode)
    return _adjoint_class()(mode)
