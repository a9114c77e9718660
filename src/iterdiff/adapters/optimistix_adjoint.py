"""Our modes as adjoints of optimistix: the derivative of its solvers, taken our way."""

import functools
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
from jaxtyping import PyTree

from iterdiff.adapters.from_optimistix import (
    caveat_of,
    innermost,
    lag_of,
    returns_best_iterate,
)
from iterdiff.adapters.optimistix_loop import (
    BoundedLoop,
    differentiable_while_loop,
    late_while_loop,
    while_loop,
)
from iterdiff.jaxtools.extras import import_extra
from iterdiff.modes.base import Mode
from iterdiff.modes.implicit import Implicit
from iterdiff.modes.unrolled import Unrolled
from iterdiff.problems.problem import Problem


class _RootEquation(Problem):
    """The equation whose root is the answer of an optimistix solver, in real numbers.

    A complex leaf of the unknowns or the parameters is replaced by its real and imaginary parts,
    stacked along a new first axis. The derivative is then right for functions that are not
    holomorphic, too.

    Attributes
    ----------
    rewrite : callable
        Optimistix's ``rewrite_fn(root, residual, inputs)``, which is zero at the root.
    root_shapes, parameter_shapes : pytree of jax.ShapeDtypeStruct
        Shapes and dtypes of the unknowns and of the parameters, before complex leaves are split.
    solver_outputs : pytree
        What the solver returns besides the root.
    static : pytree
        The inputs that are not differentiated.
    tags : frozenset
        What is known about the Jacobian, as tags of lineax.
    """

    rewrite: Callable[..., PyTree]
    root_shapes: PyTree
    parameter_shapes: PyTree
    solver_outputs: PyTree
    static: PyTree
    tags: frozenset[object] = eqx.field(static=True)

    @property
    def symmetric(self) -> bool:
        """Whether the tags declare the Jacobian symmetric."""
        return lx.symmetric_tag in self.tags or self.positive_definite

    @property
    def positive_definite(self) -> bool:
        """Whether the tags declare the Jacobian positive (semi-)definite."""
        return lx.positive_semidefinite_tag in self.tags

    def residual(self, x: PyTree, theta: PyTree) -> PyTree:
        """Return the left-hand side of the equation."""
        inputs = eqx.combine(_join_complex(theta, self.parameter_shapes), self.static)
        root = _join_complex(x, self.root_shapes)
        return _split_complex(self.rewrite(root, self.solver_outputs, inputs))


def _split_complex(a: PyTree) -> PyTree:
    """Return `a` with each complex leaf replaced by the stack of its two parts."""
    return jax.tree.map(
        lambda v: jnp.stack([v.real, v.imag]) if jnp.iscomplexobj(v) else jnp.asarray(v), a
    )


def _join_complex(a: PyTree, like: PyTree) -> PyTree:
    """Undo `_split_complex` for the leaves that are complex in `like`."""
    return jax.tree.map(
        lambda v, shape: jax.lax.complex(v[0], v[1]) if jnp.iscomplexobj(shape) else v, a, like
    )


def _shapes(a: PyTree) -> PyTree:
    return jax.tree.map(lambda v: jax.ShapeDtypeStruct(v.shape, v.dtype), a)


def _solve_implicitly(
    mode: Implicit, primal: Callable, rewrite: Callable, inputs: Any, tags: Any
) -> Any:
    """Run the solver without a derivative, and attach the implicit one."""
    parameters, static = eqx.partition(inputs, eqx.is_inexact_array)
    stopped = eqx.combine(jax.lax.stop_gradient(parameters), static)
    root, solver_outputs = primal((*stopped, while_loop))
    root = jax.tree.map(jnp.asarray, root)
    problem = _RootEquation(
        rewrite, _shapes(root), _shapes(parameters), solver_outputs, static, frozenset(tags)
    )
    x = mode.attach(problem, _split_complex(root), _split_complex(parameters), throw=True)
    return _join_complex(x, root), solver_outputs


def _solve_unrolled(mode: Unrolled, primal: Callable, solver: Any, inputs: Any) -> Any:
    """Run the solver in a loop whose steps JAX differentiates."""
    _check_unrollable(solver, mode)
    last = None if mode.last is None else int(mode.last) + lag_of(solver)

    def unrolled_while_loop(condition, body, init, *, max_steps=None):
        if max_steps is None:
            raise ValueError(
                "`max_steps` must be a number to differentiate the steps. Pass one to optimistix, "
                "or use iterdiff.Implicit()."
            )
        loop = BoundedLoop(condition, body, max_steps)
        if last is None:
            return differentiable_while_loop(loop, init, mode.checkpoint)
        return late_while_loop(loop, init, mode.checkpoint, last)

    return primal((*inputs, unrolled_while_loop))


def _check_unrollable(solver: Any, mode: Unrolled) -> None:
    """Raise ValueError if the derivative of the steps does not approximate the solution's."""
    name, caveat = type(innermost(solver)).__name__, caveat_of(solver)
    if caveat:
        raise ValueError(
            f"`adjoint`: Unrolled (and OneStep) cannot differentiate {name}: {caveat} "
            "Modes that work: iterdiff.Implicit()."
        )
    if mode.last is not None and returns_best_iterate(solver):
        raise ValueError(
            f"`last` = {mode.last}: optimistix returns the best iterate of {name}, which may be "
            "older than the last steps, so their derivative would be zero. Modes that work: "
            "iterdiff.Unrolled(), iterdiff.Implicit()."
        )


def _check_options(mode: Unrolled) -> None:
    """Raise ValueError if the mode has an option that needs iterdiff's own loop."""
    remedy = "needs iterdiff's own loop. Use iterdiff.solve with iterdiff.adapters.from_optimistix"
    if mode.last == "auto":
        raise ValueError(f"`last` = 'auto' {remedy}, or pass a number.")
    if mode.accelerate is not None:
        raise ValueError(f"`accelerate` = {mode.accelerate} {remedy}, or leave it out.")


@functools.cache
def _adjoint_class() -> type:
    """Return the class of the adjoints; optimistix is needed to define it."""
    optimistix = import_extra("optimistix", "adapters")

    class ModeAdjoint(optimistix.AbstractAdjoint):
        """A mode of iterdiff as an adjoint of optimistix."""

        mode: Implicit | Unrolled

        def apply(self, primal_fn, rewrite_fn, inputs, tags):
            """Run the solver so that JAX takes the mode's derivative of it."""
            if isinstance(self.mode, Implicit):
                return _solve_implicitly(self.mode, primal_fn, rewrite_fn, inputs, tags)
            _, solver, *_ = inputs
            return _solve_unrolled(self.mode, primal_fn, solver, inputs)

    return ModeAdjoint


def as_optimistix_adjoint(mode: Mode) -> Any:
    """Return a mode as an adjoint of optimistix, for ``optimistix.minimise(..., adjoint=...)``.

    With `Implicit` (implicit function theorem, IFT) the linear solve behind the derivative is
    checked, and one that fails raises. With `Unrolled`, forward mode works too, which
    optimistix's own ``RecursiveCheckpointAdjoint`` refuses. ``Unrolled(last=k)`` differentiates
    the last k steps only; ``OneStep()`` is one-step differentiation, also known as Jacobian-free
    backpropagation (JFB). `from_optimistix` explains which steps count as the last ones, and
    which solvers cannot be unrolled.

    Parameters
    ----------
    mode : Implicit or Unrolled
        How the derivative is taken.

    Returns
    -------
    optimistix.AbstractAdjoint
        The adjoint.

    Raises
    ------
    ImportError
        If optimistix is not installed.
    TypeError
        If `mode` is neither `Implicit` nor `Unrolled`.
    ValueError
        If `mode` needs iterdiff's own loop (``last="auto"``, `accelerate`). When optimistix runs
        the adjoint: if the mode cannot differentiate the solver, or if ``max_steps`` is None with
        `Unrolled`.

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
        _check_options(mode)
    return _adjoint_class()(mode)
