"""Solvers that JAX cannot trace: run them on the host, and pass on what they say."""

import functools
import threading
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import get_opaque_trace_state
from jaxtyping import PyTree

from iterdiff.jaxtools import tree
from iterdiff.jaxtools.raise_if import raise_if
from iterdiff.loop.run import stop_gradient
from iterdiff.solving.solution import SolverFailed

NOT_FINITE = (
    "`{name}` returned an answer that is not finite. Look for NaN or infinity in what it is given, "
    "for an `x0` outside the problem's domain, and for a failure that it does not report; with "
    "`throw=False` the answer is returned, and its derivative is NaN."
)


@functools.cache
def _untransformed() -> Any:
    """Return JAX's state outside of all transformations: that of a thread that begins.

    The present thread may be tracing a function when this is first asked.
    """
    states = []
    thread = threading.Thread(target=lambda: states.append(get_opaque_trace_state()))
    thread.start()
    thread.join()
    return states[0]


def transforming() -> bool:
    """Return whether JAX is tracing, differentiating or batching; if not, nothing is traced."""
    return get_opaque_trace_state() != _untransformed()


class Call(NamedTuple):
    """A call of a user's solver.

    Attributes
    ----------
    solver : callable
        ``solver(x0, theta, *args, **kwargs)``.
    x0, theta, args, kwargs
        What it is called with.
    throw : bool
        Whether a solver that reports failure, or whose answer is not finite, raises.
    """

    solver: Callable[..., Any]
    x0: PyTree
    theta: PyTree
    args: tuple
    kwargs: dict[str, Any]
    throw: bool

    @property
    def inputs(self) -> tuple:
        """All that the solver is given."""
        return self.x0, self.theta, self.args, self.kwargs

    @property
    def name(self) -> str:
        """How to name the solver in messages."""
        return getattr(self.solver, "__name__", type(self.solver).__name__)

    def run(self, inputs: tuple, asarray: Callable = jnp.asarray) -> PyTree:
        """Return the solver's answer to these inputs, in the structure and dtypes of `x0`."""
        x0, theta, args, kwargs = inputs
        x = self.unpacked(self.solver(x0, theta, *args, **kwargs))
        self.check(x)
        x = jax.tree.map(lambda a, b: asarray(b, a.dtype), self.x0, x)
        return self.finite(x) if self.throw else x

    def finite(self, x: PyTree) -> PyTree:
        """Return `x`, which must be finite.

        Raises
        ------
        SolverFailed
            If it is not; a `SolveError` of the same words where its values come later.
        """
        leaves = jax.tree.leaves(x)
        words = NOT_FINITE.format(name=self.name)
        if any(tree.is_traced(leaf) for leaf in leaves):
            return raise_if(stop_gradient(x), ~tree.all_finite(x), [words])
        if all(np.all(np.isfinite(np.asarray(leaf))) for leaf in leaves):
            return x
        failure = SolverFailed(self.name, "")
        failure.args = (words,)  # it did not say that it failed: no words of its own to quote
        raise failure

    def run_on_values(self, inputs: tuple, asarray: Callable = jnp.asarray) -> PyTree:
        """Do the same with inputs that are known.

        Raises
        ------
        TypeError
            If the solver meets a traced value nevertheless.
        """
        try:
            return self.run(inputs, asarray)
        except (jax.errors.TracerArrayConversionError, jax.errors.ConcretizationTypeError) as error:
            raise TypeError(
                f"`{self.name}` closes over a value that JAX is tracing; hand it over in `theta`, "
                "or as a further argument."
            ) from error

    def unpacked(self, result: Any) -> PyTree:
        """Return the answer in a SciPy result object; any other result is the answer itself.

        Raises
        ------
        SolverFailed
            If the object says so, with its message.
        """
        success = getattr(result, "success", getattr(result, "converged", None))
        x = getattr(result, "x", getattr(result, "root", None))
        if success is None or x is None:
            return result
        if bool(success):
            return x
        if not self.throw:
            return jax.tree.map(lambda leaf: np.full(leaf.shape, np.nan), self.x0)
        message = getattr(result, "message", getattr(result, "flag", "no message"))
        raise SolverFailed(self.name, str(message))

    def check(self, x: PyTree) -> None:
        """Refuse an answer that does not look like `x0`.

        Raises
        ------
        ValueError, TypeError
            If it has not the structure or shapes of `x0`, or is complex.
        """
        expected, found = jax.tree.structure(self.x0), jax.tree.structure(x)
        if expected != found:
            raise ValueError(
                f"`{self.name}` must return something of the structure of `x0`, {expected}, or a "
                f"SciPy result object; it returned {found}."
            )
        for (path, a), b in zip(
            jax.tree_util.tree_leaves_with_path(self.x0), jax.tree.leaves(x), strict=True
        ):
            if np.shape(a) != np.shape(b):
                raise ValueError(
                    f"`{self.name}` must return something of the shapes of `x0`, but at "
                    f"x0{jax.tree_util.keystr(path)} of shape {np.shape(a)} it returned shape "
                    f"{np.shape(b)}."
                )
            if jnp.iscomplexobj(b):
                raise TypeError(
                    f"`{self.name}` must return real numbers; return real and imaginary parts as "
                    "two leaves of a pytree."
                )


def run(call: Call, traceable: bool | None) -> PyTree:
    """Run a solver, on the host where JAX cannot trace it.

    Parameters
    ----------
    call : Call
        The solver and its inputs.
    traceable : bool or None
        Whether JAX can trace the solver; None: try, and on any exception take it for one that
        JAX cannot trace. (If it was an error of the solver's own, the host will meet it again.)
        Concrete inputs are handed to the solver as they are, in every case.
    """
    traced = any(tree.is_traced(leaf) for leaf in jax.tree.leaves(call.inputs))
    if traceable:
        return call.run(call.inputs)
    if not traced:
        return call.run_on_values(call.inputs)
    if traceable is None:
        try:
            return call.run(call.inputs)
        except Exception:
            pass  # whatever a C library makes of a tracer
    return _on_host(call)


def _on_host(call: Call) -> PyTree:
    arrays, rest = eqx.partition(call.inputs, eqx.is_array)
    shapes = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), call.x0)

    def host(arrays: PyTree) -> PyTree:
        # JAX hands over arrays of its own, whose methods would compute on the device that waits.
        inputs = eqx.combine(jax.tree.map(np.asarray, arrays), rest)
        return call._replace(x0=inputs[0]).run_on_values(inputs, np.asarray)

    return jax.pure_callback(host, shapes, arrays, vmap_method="sequential")
