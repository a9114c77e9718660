"""Checks of what users pass in: a wrong call is one error that names the argument."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from iterdiff.jaxtools import tree
from iterdiff.jaxtools.arguments import is_known, is_number
from iterdiff.problems.linear_system import LinearSystem
from iterdiff.problems.problem import CompositeMinimization, FixedPoint, Minimization, Problem


def check_problem(problem: object) -> None:
    """Refuse what is no problem.

    Raises
    ------
    TypeError
        Naming the argument, and the way out.
    """
    if not isinstance(problem, Problem):
        raise TypeError(
            f"`problem` must be an iterdiff.Problem, not {type(problem).__name__}; wrap a bare "
            "function, for example as iterdiff.Minimization(function)."
        )


def check_x0(x0: PyTree, name: str = "x0") -> PyTree:
    """Return `x0` with its leaves as arrays; the messages call it `name`.

    Raises
    ------
    TypeError
        If a leaf is no real floating number or array.
    ValueError
        If there is no leaf, or one holds NaN or infinity.
    """
    leaves = jax.tree_util.tree_leaves_with_path(x0)
    if not leaves or tree.size([leaf for _, leaf in leaves if np.ndim(leaf) >= 0]) == 0:
        raise ValueError(f"`{name}` has no numbers in it; pass an array, or a pytree of arrays.")
    for path, leaf in leaves:
        where = f"`{name}`{jax.tree_util.keystr(path)}"
        if not is_number(leaf):
            raise TypeError(f"{where} must be a real floating array, not {leaf!r}.")
        dtype = jnp.result_type(leaf)
        if not jnp.issubdtype(dtype, jnp.floating):
            raise TypeError(
                f"{where} has dtype {dtype}, but iterates are real floating arrays; convert it, "
                f"for example by jnp.asarray({name}, float) (a complex unknown as its two parts)."
            )
        if is_known(leaf) and not np.all(np.isfinite(np.asarray(leaf))):
            raise ValueError(f"{where} holds NaN or infinity.")
    return jax.tree.map(jnp.asarray, x0)


def check_theta(theta: PyTree) -> PyTree:
    """Return `theta` with its numbers as arrays.

    Raises
    ------
    TypeError
        If a leaf is complex.
    ValueError
        If no leaf is floating, or one holds NaN.
    """
    floating = False
    for path, leaf in jax.tree_util.tree_leaves_with_path(theta):
        if not is_number(leaf):
            continue
        where = f"`theta`{jax.tree_util.keystr(path)}"
        dtype = jnp.result_type(leaf)
        if jnp.issubdtype(dtype, jnp.complexfloating):
            raise TypeError(
                f"{where} is complex ({dtype}); pass its real and imaginary parts as two leaves."
            )
        if jnp.issubdtype(dtype, jnp.floating):
            floating = True
            if is_known(leaf) and np.any(np.isnan(np.asarray(leaf))):
                raise ValueError(f"{where} holds NaN.")
    if not floating:
        raise ValueError(
            "`theta` has no floating leaf, so there is nothing to differentiate in (integer "
            "leaves are data); pass parameters as floating arrays."
        )
    return jax.tree.map(lambda leaf: jnp.asarray(leaf) if is_number(leaf) else leaf, theta)


def check_residual(problem: Problem, x0: PyTree, theta: PyTree) -> None:
    """Refuse a problem whose functions do not go with `x0`.

    Raises
    ------
    TypeError
        If what is to be a scalar objective is none.
    ValueError
        Naming what differs from `x0`.
    """
    if isinstance(problem, Minimization):
        _check_scalar("the objective of Minimization", problem.objective, x0, theta)
    if isinstance(problem, CompositeMinimization):
        _check_scalar("the smooth part of CompositeMinimization", problem.smooth, x0, theta)
    for part, function in _alike(problem).items():
        _check_like(f"the {part} of {type(problem).__name__}", function, x0, theta)


def _alike(problem: Problem) -> dict[str, Callable[[PyTree, PyTree], PyTree]]:
    """Return what has to look like `x0`: the parts of a residual, else itself.

    Differences of these parts would broadcast, or fail with a message of NumPy's. A gradient is
    like `x0` by itself.
    """
    if isinstance(problem, Minimization):
        return {}
    if isinstance(problem, LinearSystem):
        rhs = problem.rhs
        # The right-hand side first: it can be looked at whatever `x0` is.
        return {"right-hand side": lambda _, theta: rhs(theta), "operator": problem.operator}
    if isinstance(problem, FixedPoint):
        return {"update": problem.update}
    if isinstance(problem, CompositeMinimization):
        step = jnp.asarray(problem.residual_step)
        return {"prox": lambda x, theta: problem.forward_backward(x, step, theta)}
    return {"residual": problem.residual}


def _shapes_of(name: str, function: Any, x0: PyTree, theta: PyTree) -> Any:
    """Return what `function` returns, as shapes.

    Raises
    ------
    ValueError
        If it raises; not where the cause is that JAX cannot trace it, which JAX explains well.
    """
    try:
        return eqx.filter_eval_shape(function, x0, theta)
    except jax.errors.JAXTypeError:
        raise
    except (TypeError, ValueError) as error:
        shapes, reason = jax.tree.map(jnp.shape, x0), str(error).rstrip(".")
        raise ValueError(
            f"`problem`: {name} cannot be evaluated at `x0`, of shape {shapes}, and `theta`: "
            f"{reason}. If that is about sizes, start at an `x0` of the solution's shape."
        ) from error


def _check_scalar(name: str, objective: Any, x0: PyTree, theta: PyTree) -> None:
    result = _shapes_of(name, objective, x0, theta)
    if not isinstance(result, jax.ShapeDtypeStruct):
        raise TypeError(f"`problem`: {name} must return one real number, not {result!r}.")
    if result.shape or not jnp.issubdtype(result.dtype, jnp.floating):
        raise TypeError(
            f"`problem`: {name} must return one real floating number, but it returns dtype "
            f"{result.dtype} and shape {result.shape}; sum over what is a vector."
        )


def _check_like(name: str, function: Any, x0: PyTree, theta: PyTree) -> None:
    result = _shapes_of(name, function, x0, theta)
    expected = jax.tree.structure(x0)
    if jax.tree.structure(result) != expected:
        raise ValueError(
            f"`problem`: {name} must have the structure of `x0`, {expected}, but it has "
            f"{jax.tree.structure(result)}."
        )
    pairs = zip(jax.tree_util.tree_leaves_with_path(x0), jax.tree.leaves(result), strict=True)
    for (path, leaf), out in pairs:
        where = f"x0{jax.tree_util.keystr(path)}"
        if jnp.shape(leaf) != jnp.shape(out):
            raise ValueError(
                f"`problem`: {name} must have the shapes of `x0`, but at {where} of shape "
                f"{jnp.shape(leaf)} it has shape {jnp.shape(out)}. Start at an `x0` of the "
                "solution's shape, or correct the function."
            )
        weak = isinstance(out, int | float) or getattr(out, "weak_type", False)
        if not weak and jnp.result_type(leaf) != jnp.result_type(out):
            raise ValueError(
                f"`problem`: {name} must have the dtypes of `x0`, but at {where} of dtype "
                f"{jnp.result_type(leaf)} it has {jnp.result_type(out)}; give `x0`, `theta` and "
                "the data one precision."
            )


def check_untraced(
    caller: str, problem: Problem, algorithm: PyTree, x0: PyTree, theta: PyTree
) -> None:
    """Refuse traced values, also those that `problem` closes over, where data is returned.

    Raises
    ------
    TypeError
        If there is one.
    """
    closed_over = eqx.filter_make_jaxpr(problem.residual)(x0, theta)[0].consts
    leaves = jax.tree.leaves((problem, algorithm, x0, theta, closed_over))
    if any(tree.is_traced(leaf) for leaf in leaves):
        raise TypeError(
            f"`{caller}` measures and returns data; call it outside jit, vmap and grad. (A value "
            "that is being traced is in `x0` or `theta`, or `problem` or `algorithm` holds it.)"
        )
