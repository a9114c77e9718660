"""Run a user's solver, on the host where JAX cannot trace it."""

from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from iterdiff.jaxtools import tree
from iterdiff.jaxtools.raise_if import raise_if
from iterdiff.loop.run import stop_gradient
from iterdiff.problems.layout import is_unknown, paired
from iterdiff.solving.solution import SolverFailed

NOT_FINITE = (
    "`{name}` returned an answer that is not finite. Check its inputs for NaN or infinity, `x0` "
    "for a point outside the problem's domain, and the solver for a failure that it does not "
    "report; `throw=False` returns the answer with NaN as its derivative."
)

INTEGER = (
    "`{name}` solves an integer program, whose answer jumps as `theta` moves and has no derivative "
    "in between. Fix the integers at its answer, and differentiate the program of the rest."
)


class SolverCall(NamedTuple):
    """A user's solver with its inputs.

    Attributes
    ----------
    solver : callable
        ``solver(x0, theta, *args, **kwargs)``.
    x0, theta, args, kwargs
        Its arguments.
    throw : bool
        Whether to raise if the solver reports failure or its answer is not finite.
    """

    solver: Callable[..., Any]
    x0: PyTree
    theta: PyTree
    args: tuple
    kwargs: dict[str, Any]
    throw: bool

    @property
    def inputs(self) -> tuple:
        """All arguments of the solver."""
        return self.x0, self.theta, self.args, self.kwargs

    @property
    def name(self) -> str:
        """The solver's name in error messages."""
        return getattr(self.solver, "__name__", type(self.solver).__name__)

    def run(self, inputs: tuple, asarray: Callable = jnp.asarray) -> PyTree:
        """Return the solver's answer for `inputs`, in the structure and dtypes of `x0`."""
        x0, theta, args, kwargs = inputs
        x = self.unpack(self.solver(x0, theta, *args, **kwargs))
        self.check_like_x0(x)
        x = jax.tree.map(
            lambda like, leaf: asarray(leaf, like.dtype) if is_unknown(like) else like, self.x0, x
        )
        return self.check_finite(x) if self.throw else x

    def run_untraced(self, inputs: tuple, asarray: Callable = jnp.asarray) -> PyTree:
        """Return the solver's answer for inputs with known values.

        Raises
        ------
        TypeError
            If the solver closes over a traced value.
        """
        try:
            return self.run(inputs, asarray)
        except (jax.errors.TracerArrayConversionError, jax.errors.ConcretizationTypeError) as error:
            raise TypeError(
                f"`{self.name}` closes over a value that JAX is tracing; pass it in `theta`, or "
                "as a further argument."
            ) from error

    def unpack(self, result: Any) -> PyTree:
        """Return the answer from a SciPy result object; return any other result unchanged.

        Raises
        ------
        SolverFailed
            If the object reports failure and `throw` is set; quotes the object's message.
        """
        if isinstance(result, tuple) and len(result) == 2 and hasattr(result[1], "converged"):
            result = result[1]  # SciPy's root finders of one unknown with full_output=True
        if _of_integers(result):
            raise SolverFailed(INTEGER.format(name=self.name))
        success = getattr(result, "success", getattr(result, "converged", None))
        if success is None or not (hasattr(result, "x") or hasattr(result, "root")):
            return result
        if np.all(success):  # one flag for each unknown in scipy.optimize.newton
            return getattr(result, "x", getattr(result, "root", None))
        if not self.throw:
            return jax.tree.map(
                lambda leaf: np.full(leaf.shape, np.nan) if is_unknown(leaf) else leaf, self.x0
            )
        count = f"{np.sum(np.logical_not(success))} of {np.size(success)} not converged"
        message = str(getattr(result, "message", getattr(result, "flag", count)))
        raise SolverFailed(f"`{self.name}` reported failure: {message}", message)

    def check_finite(self, x: PyTree) -> PyTree:
        """Return `x`, which must be finite.

        Raises
        ------
        SolverFailed
            If `x` is known and not finite.
        SolveError
            If `x` is traced and not finite, when the compiled program runs.
        """
        leaves = [leaf for leaf in jax.tree.leaves(x) if is_unknown(leaf)]
        message = NOT_FINITE.format(name=self.name)
        if any(tree.is_traced(leaf) for leaf in leaves):
            unknowns, rest = eqx.partition(x, is_unknown)
            failed = ~tree.all_finite(paired(unknowns))
            return eqx.combine(raise_if(stop_gradient(unknowns), failed, [message]), rest)
        if not all(np.all(np.isfinite(np.asarray(leaf))) for leaf in leaves):
            raise SolverFailed(message)
        return x

    def check_like_x0(self, x: PyTree) -> None:
        """Raise unless `x` is like `x0`.

        Raises
        ------
        ValueError
            If structures or shapes differ.
        TypeError
            If a leaf is complex, and that of `x0` is not.
        """
        if x is None and self.x0 is not None:
            raise ValueError(
                f"`{self.name}` must return an answer like `x0`, but it returned None; is a "
                "`return` missing?"
            )
        expected, found = jax.tree.structure(self.x0), jax.tree.structure(x)
        if expected != found:
            raise ValueError(
                f"`{self.name}` must return a pytree of the structure of `x0`, {expected}, or a "
                f"SciPy result object, but it returned {found}."
            )
        pairs = zip(jax.tree_util.tree_leaves_with_path(self.x0), jax.tree.leaves(x), strict=True)
        for (path, like), leaf in pairs:
            if not is_unknown(like):
                continue
            if np.shape(like) != np.shape(leaf):
                raise ValueError(
                    f"`{self.name}` must return arrays of the shapes of `x0`, but "
                    f"x0{jax.tree_util.keystr(path)} has shape {np.shape(like)} and the answer "
                    f"{np.shape(leaf)}."
                )
            if jnp.iscomplexobj(leaf) and not jnp.iscomplexobj(like):
                raise TypeError(
                    f"`{self.name}` must return real numbers, but it returned complex ones; pass a "
                    "complex `x0`, or return the real part."
                )


def _of_integers(result: Any) -> bool:
    """Whether a SciPy result is that of an integer program.

    `linprog` reports a bound of zero for a program without integers; `milp` has no marginals.
    """
    if getattr(result, "mip_node_count", None) is None:
        return False
    return not hasattr(result, "ineqlin") or getattr(result, "mip_dual_bound", 0.0) != 0


def run_solver(call: SolverCall, traceable: bool | None) -> PyTree:
    """Return a solver's answer; call the solver on the host if JAX cannot trace it.

    Parameters
    ----------
    call : SolverCall
        The solver and its inputs. Known inputs reach the solver unchanged, in every case.
    traceable : bool or None
        Whether JAX can trace the solver. None tries: any exception means that JAX cannot, and
        the host calls the solver. (If the exception was the solver's own, it is raised again
        there.)
    """
    if traceable:
        return call.run(call.inputs)
    if not any(tree.is_traced(leaf) for leaf in jax.tree.leaves(call.inputs)):
        return call.run_untraced(call.inputs)
    if traceable is None:
        try:
            return call.run(call.inputs)
        except Exception:
            pass  # a C library may raise anything when it receives a tracer
    return _run_on_host(call)


def _run_on_host(call: SolverCall) -> PyTree:
    arrays, static = eqx.partition(call.inputs, eqx.is_array)
    unknowns, rest = eqx.partition(call.x0, is_unknown)
    shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), unknowns)

    def run_on_host(arrays: PyTree) -> PyTree:
        # Convert to NumPy first: a jax.Array's methods would dispatch to the device, which is
        # blocked waiting for this callback.
        inputs = eqx.combine(jax.tree.map(np.asarray, arrays), static)
        x = call._replace(x0=inputs[0]).run_untraced(inputs, np.asarray)
        return eqx.filter(x, is_unknown)

    x = jax.pure_callback(run_on_host, shapes, arrays, vmap_method="sequential")
    return eqx.combine(x, rest)
