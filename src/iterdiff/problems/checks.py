"""Checks of what users pass in: a wrong call raises one error that names the argument."""

import numbers
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from iterdiff.jaxtools import placement, tree
from iterdiff.jaxtools.arguments import as_array, is_known, is_number
from iterdiff.jaxtools.snapshot import Snapshot, snapshot, traced
from iterdiff.problems.constrained import ConstrainedProblem
from iterdiff.problems.layout import is_narrow, is_unknown, paired
from iterdiff.problems.least_squares import LeastSquares
from iterdiff.problems.linear_system import LinearSystem
from iterdiff.problems.problem import CompositeMinimization, FixedPoint, Minimization, Problem


def check_problem(problem: object) -> None:
    """Raise TypeError unless `problem` is a Problem.

    Raises
    ------
    TypeError
        The message shows how to wrap a function.
    """
    if not isinstance(problem, Problem):
        raise TypeError(
            f"`problem` must be an iterdiff.Problem, not {type(problem).__name__}. Wrap a function "
            "in one, for example iterdiff.Minimization(function)."
        )


def check_x0(x0: PyTree, name: str = "x0") -> PyTree:
    """Return `x0` with its leaves converted to arrays.

    Parameters
    ----------
    x0 : pytree
        The point to check. Its floating leaves, real or complex, are the unknowns; booleans,
        integer arrays, PRNG keys and objects that are no numbers may stand beside them.
    name : str
        The argument's name in error messages.

    Returns
    -------
    pytree
        Its arrays are not weakly typed.

    Raises
    ------
    TypeError
        If a leaf is a Python number that is not floating, JAX has no arrays of its kind, or it only
        resembles an array.
    ValueError
        If there are no floating numbers, or a known leaf contains NaN or infinity.
    """
    checked = _each_leaf(f"`{name}`", _unknown, x0)
    if not any(np.size(leaf) for leaf in jax.tree.leaves(checked) if is_unknown(leaf)):
        raise ValueError(
            f"`{name}` contains no floating numbers, so there is nothing to solve for; pass a "
            "floating array or a pytree of some."
        )
    return checked


def _each_leaf(name: str, function: Callable[[str, Any], Any], given: PyTree) -> PyTree:
    """Return ``function(where, leaf)`` of every leaf; ``where`` is its name in messages."""
    try:
        leaves, structure = jax.tree_util.tree_flatten_with_path(given)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"{name} is no pytree: {str(error).rstrip('.')}. In a dict, use keys of one type."
        ) from error
    made = [function(f"{name}{jax.tree_util.keystr(path)}", leaf) for path, leaf in leaves]
    return jax.tree.unflatten(structure, made)


def _unknown(where: str, leaf: Any) -> Any:
    """Return a leaf of `x0`, as an array if it is a number; `where` is its name in messages."""
    if isinstance(leaf, numbers.Number) and not isinstance(
        leaf, bool | float | complex | np.generic
    ):
        raise TypeError(
            f"{where} is {leaf!r}, which is no floating number. Write it as a float if it is an "
            "unknown, and as an integer array, such as jnp.asarray(3), if it is a constant."
        )
    if not is_number(leaf):
        return _no_array(where, leaf)
    array = as_array(where, leaf)
    if is_unknown(array) and is_known(array) and not placement.all_finite(array):
        raise ValueError(f"{where} contains NaN or infinity; pass finite numbers.")
    return array


def _no_array(where: str, leaf: Any) -> Any:
    """Return a leaf that is no number.

    Raises
    ------
    TypeError
        If it resembles an array, as a pandas Series does.
    """
    if hasattr(leaf, "dtype"):
        raise TypeError(
            f"{where} is a {type(leaf).__name__}, which has a dtype but is no array; convert it "
            "with numpy.asarray."
        )
    return leaf


def check_theta(theta: PyTree, x0: PyTree = None) -> PyTree:
    """Return `theta` with its numbers converted to arrays.

    Parameters
    ----------
    theta : pytree
        The parameters to check.
    x0 : pytree, optional
        The unknowns. A Python number in `theta`, or what JAX traces in place of one, takes their
        dtype, as it does in arithmetic.

    Returns
    -------
    pytree
        Its arrays are not weakly typed.

    Raises
    ------
    TypeError
        If JAX has no arrays of a leaf's kind, or it only resembles an array.
    ValueError
        If no leaf is floating, a known leaf contains NaN, or a number does not fit its dtype.
    """
    weak = None if x0 is None else tree.result_dtype(paired(eqx.filter(x0, is_unknown)))
    checked = _each_leaf("`theta`", lambda where, leaf: _parameter(where, leaf, weak), theta)
    if not any(map(is_unknown, jax.tree.leaves(checked))):
        raise ValueError(
            "`theta` has no floating leaf, so there is nothing to differentiate with respect to. "
            "Pass parameters as floating arrays; integer leaves are data."
        )
    return checked


def _parameter(where: str, leaf: Any, weak: np.dtype | None) -> Any:
    """Return a leaf of `theta`, as an array if it is a number; `where` is its name in messages."""
    if not is_number(leaf):
        return _no_array(where, leaf)
    array = as_array(where, leaf, weak)
    if is_unknown(array) and is_known(array) and placement.has_nan(array):
        raise ValueError(f"{where} contains NaN; pass numbers.")
    return array


class _Part(NamedTuple):
    """One of a problem's functions, and the check of what it returns.

    Attributes
    ----------
    name : str
        The function's name in error messages.
    evaluate : callable
        ``evaluate(x, theta)`` calls the function.
    check : callable
        ``check(name, result, x0)`` raises unless the result is right.
    """

    name: str
    evaluate: Callable[[PyTree, PyTree], Any]
    check: Callable[[str, Any, PyTree], None]


def _parts(problem: Problem) -> list[_Part]:
    """Return the functions of `problem` to check, in the order of their checks.

    We check the terms of a residual one by one: their difference would broadcast silently, or
    fail with an error from NumPy that does not name the function.
    """
    match problem:
        case LeastSquares():
            return [_Part("residuals", problem.residuals, _check_numbers)]
        case Minimization():  # its gradient is like `x0` by construction
            return [_Part("objective", problem.objective, _check_scalar)]
        case CompositeMinimization():
            step = jnp.asarray(problem.residual_step)
            return [
                _Part("smooth part", problem.smooth, _check_scalar),
                _Part("prox", lambda x, t: problem.forward_backward(x, step, t), _check_like_x0),
            ]
        case LinearSystem():  # the right-hand side first: it does not depend on `x0`
            return [
                _Part("right-hand side", lambda _, theta: problem.rhs(theta), _check_like_x0),
                _Part("operator", problem.operator, _check_like_x0),
            ]
        case FixedPoint():
            return [_Part("update", problem.update, _check_like_x0)]
        case ConstrainedProblem():
            return _constrained_parts(problem)
    return [_Part("residual", problem.residual, _check_like_x0)]


def _constrained_parts(problem: ConstrainedProblem) -> list[_Part]:
    """Return the objective and the constraints, as functions of the answer or of all unknowns."""

    def at_answer(function):
        return lambda x, theta: function(problem.answer(x), theta)

    parts = [_Part("objective", at_answer(problem.cost), _check_scalar)]
    constraints = {"equality": problem.equality, "inequality": problem.inequality}
    return parts + [
        _Part(f"{name} constraint", at_answer(function), _check_constraint)
        for name, function in constraints.items()
        if function is not None
    ]


def check_residual(problem: Problem, x0: PyTree, theta: PyTree) -> Snapshot:
    """Raise unless the functions of `problem` accept `x0` and return what they should.

    The functions are traced, not run.

    Returns
    -------
    Snapshot
        What the functions compute at this moment.

    Raises
    ------
    TypeError
        If an objective does not return one real floating number.
    ValueError
        If a function cannot be evaluated at `x0`, or its result is not like `x0`.
    """
    arrays, static = eqx.partition(problem, eqx.is_array)  # the arrays may differ in every call
    jaxprs = []
    for place, part in enumerate(_parts(problem)):

        def evaluate(x, theta, arrays, place=place):
            return _parts(eqx.combine(arrays, static))[place].evaluate(x, theta)

        name = f"the {part.name} of {type(problem).__name__}"
        jaxpr, result = _traced(name, evaluate, x0, theta, arrays)
        part.check(name, result, x0)
        jaxprs.append(jaxpr)
    return snapshot(*jaxprs)


def _traced(
    name: str, function: Callable, x0: PyTree, theta: PyTree, arrays: PyTree
) -> tuple[Any, Any]:
    """Return the jaxpr of `function`, and its result as shapes and dtypes.

    Raises
    ------
    ValueError
        If the function raises TypeError or ValueError. JAX's own tracing errors pass through,
        since they explain the cause better.
    """
    try:
        return traced(function, x0, theta, arrays)
    except jax.errors.JAXTypeError:
        raise
    except (TypeError, ValueError) as error:
        shapes, reason = jax.tree.map(jnp.shape, x0), str(error).rstrip(".")
        raise ValueError(
            f"`problem`: {name} cannot be evaluated at `theta` and an `x0` of shape {shapes}: "
            f"{reason}. If sizes do not match, pass an `x0` of the solution's shape."
        ) from error


def _check_scalar(name: str, result: Any, x0: PyTree) -> None:
    """Raise TypeError unless `result` is one real floating number."""
    del x0
    if not isinstance(result, jax.ShapeDtypeStruct):
        raise TypeError(
            f"`problem`: {name} must return one real floating number, not {result!r}; return a "
            "scalar array."
        )
    if result.shape or not jnp.issubdtype(result.dtype, jnp.floating):
        raise TypeError(
            f"`problem`: {name} must return one real floating number, but it returns dtype "
            f"{result.dtype} and shape {result.shape}; reduce a vector, for example with jnp.sum."
        )
    _check_wide(name, result)


def _check_wide(name: str, result: Any) -> None:
    """Raise TypeError if a result has too few digits to be differentiated."""
    if is_narrow(result.dtype):
        raise TypeError(
            f"`problem`: {name} returns {result.dtype}, in which no solution is accurate enough to "
            "differentiate. Compute in float32: `x` arrives in it, whatever the dtype of `x0`."
        )


def _check_constraint(name: str, result: Any, x0: PyTree) -> None:
    """Raise TypeError unless `result` consists of real floating arrays in the dtype of `x0`."""
    dtype = tree.result_dtype(x0)
    leaves = jax.tree.leaves(result, is_leaf=lambda v: v is None)
    if not leaves:
        raise TypeError(
            f"`problem`: {name} returns {result!r}, without an array; leave the constraint out."
        )
    for leaf in leaves:
        if not hasattr(leaf, "dtype") or leaf.dtype != dtype:
            raise TypeError(
                f"`problem`: {name} must return real floating arrays of the dtype of `x0`, "
                f"{dtype}, not {leaf!r}; use one precision for `x0`, `theta` and the data."
            )


def _check_numbers(name: str, result: Any, x0: PyTree) -> None:
    """Raise TypeError unless `result` consists of real floating arrays, of one number at least."""
    del x0
    leaves = jax.tree.leaves(result, is_leaf=lambda v: v is None)
    for leaf in leaves:
        if not tree.is_floating(leaf):
            raise TypeError(
                f"`problem`: {name} must be real floating arrays, not {leaf!r}; convert them."
            )
        _check_wide(name, leaf)
    if not tree.size(leaves):
        raise TypeError(f"`problem`: {name} are empty; return at least one number.")


def _check_like_x0(name: str, result: Any, x0: PyTree) -> None:
    """Raise ValueError unless `result` has the structure, shapes and dtypes of `x0`."""
    expected, found = jax.tree.structure(x0), jax.tree.structure(result)
    if found != expected:
        raise ValueError(
            f"`problem`: {name} must have the structure of `x0`, {expected}, but it has {found}. "
            "Change the function or `x0`."
        )
    pairs = zip(jax.tree_util.tree_leaves_with_path(x0), jax.tree.leaves(result), strict=True)
    for (path, leaf), out in pairs:
        where = f"x0{jax.tree_util.keystr(path)}"
        if jnp.shape(leaf) != jnp.shape(out):
            raise ValueError(
                f"`problem`: {name} must have the shapes of `x0`, but {where} has shape "
                f"{jnp.shape(leaf)} and the result {jnp.shape(out)}. Pass an `x0` of the "
                "solution's shape, or correct the function."
            )
        weak = isinstance(out, int | float) or getattr(out, "weak_type", False)
        if not weak and jnp.result_type(leaf) != jnp.result_type(out):
            raise ValueError(
                f"`problem`: {name} must have the dtypes of `x0`, but {where} has dtype "
                f"{jnp.result_type(leaf)} and the result {jnp.result_type(out)}. Use one precision "
                "for `x0`, `theta` and the data."
            )


def checked_loss(loss: Any, x: PyTree, theta: PyTree) -> Callable:
    """Return `loss`, which must be a function ``(x, theta) -> scalar``.

    Raises
    ------
    TypeError
        If it is not.
    """
    wanted = "`loss` must be a function (x, theta) -> scalar"
    if not callable(loss):
        raise TypeError(f"{wanted}, not {loss!r}.")
    try:
        found = eqx.filter_eval_shape(loss, x, theta)
    except TypeError as error:
        raise TypeError(f"{wanted}, but calling it fails: {error}") from error
    if getattr(found, "shape", None) != ():
        raise TypeError(f"{wanted}, but it returns {found!r}.")
    return loss


def check_untraced(
    caller: str, problem: Problem, algorithm: PyTree, x0: PyTree, theta: PyTree
) -> None:
    """Raise TypeError if an argument, or a value that `problem` closes over, is being traced.

    For functions that return data and therefore cannot run inside a JAX transformation.

    Parameters
    ----------
    caller : str
        The calling function's name in the error message.
    problem, algorithm, x0, theta
        As `check_inputs` returns them.

    Raises
    ------
    TypeError
        If a value is being traced.
    """
    taken = check_residual(problem, x0, theta) if problem.snapshot is None else problem.snapshot
    known = all(is_known(leaf) for leaf in jax.tree.leaves((problem, algorithm, x0, theta)))
    if taken.traced or not known:
        raise TypeError(
            f"`{caller}` returns data; call it outside jit, vmap and grad. JAX is tracing a value "
            "in `problem`, `algorithm`, `x0` or `theta`."
        )
