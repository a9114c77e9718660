"""Checks of the functions that users pass in: a wrong one raises one error that names it."""

from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from iterdiff.jaxtools import tree
from iterdiff.jaxtools.arguments import is_known
from iterdiff.jaxtools.complex_pairs import is_pair
from iterdiff.jaxtools.snapshot import Snapshot, snapshot, traced
from iterdiff.problems.constrained import ConstrainedProblem
from iterdiff.problems.explanations import described, dtype_of, failure, is_complex, list_advice
from iterdiff.problems.layout import is_narrow
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
    inputs : str
        The names of its inputs without data, for error messages.
    """

    name: str
    evaluate: Callable[[PyTree, PyTree], Any]
    check: Callable[[str, Any, PyTree], None]
    inputs: str = "x, theta"


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

            def prox(x, theta):
                return problem.forward_backward(x, step, theta)

            return [
                _Part("smooth part", problem.smooth, _check_scalar),
                _Part("prox", prox, _check_like_x0, "x, step, theta"),
            ]
        case LinearSystem():  # the right-hand side first: it does not depend on `x0`

            def rhs(_, theta):
                return problem.rhs(theta)

            return [
                _Part("right-hand side", rhs, _check_like_x0, "theta"),
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

        part = part._replace(name=f"the {part.name} of {type(problem).__name__}", evaluate=evaluate)
        jaxpr, result = _traced(part, x0, theta, arrays)
        part.check(part.name, result, x0)
        jaxprs.append(jaxpr)
    return snapshot(*jaxprs)


def _traced(part: _Part, x0: PyTree, theta: PyTree, arrays: PyTree) -> tuple[Any, Any]:
    """Return the jaxpr of ``part.evaluate``, and its result as shapes and dtypes.

    Raises
    ------
    ValueError
        If the function raises TypeError, ValueError, KeyError or IndexError. JAX's own tracing
        errors pass through, since they explain the cause better.
    """
    try:
        return traced(part.evaluate, x0, theta, arrays)
    except (jax.errors.JAXTypeError, jax.errors.JAXIndexError):
        raise
    except (TypeError, ValueError, LookupError) as error:
        raise ValueError(failure(part.name, error, part.inputs, x0, theta)) from error


def _check_scalar(name: str, result: Any, x0: PyTree) -> None:
    """Raise TypeError unless `result` is one real floating number."""
    del x0
    if not isinstance(result, jax.ShapeDtypeStruct):
        raise TypeError(
            f"`problem`: {name} must return one real floating number, not {described(result)}; "
            "return a scalar array."
        )
    if result.shape or not jnp.issubdtype(result.dtype, jnp.floating):
        advice = "reduce a vector, for example with jnp.sum"
        if is_complex(result):
            advice = "sum squares of jnp.abs, or take the real part"
        raise TypeError(
            f"`problem`: {name} must return one real floating number, but it returns "
            f"{described(result)}; {advice}."
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
        found = getattr(leaf, "dtype", None)
        if found is not None and jnp.issubdtype(found, jnp.bool_):
            raise TypeError(
                f"`problem`: {name} must be real, but it returns {described(leaf)}; return the "
                "number that the comparison tests, x and not x > 0."
            )
        if found is not None and jnp.issubdtype(found, jnp.complexfloating):
            raise TypeError(
                f"`problem`: {name} must be real, but it returns {described(leaf)}; return its "
                "real and imaginary parts."
            )
        if found is None or found != dtype:
            raise TypeError(
                f"`problem`: {name} must return real floating arrays of the dtype of `x0`, "
                f"{dtype}, not {described(leaf)}; use one precision for `x0`, `theta` and the data."
            )


def _check_numbers(name: str, result: Any, x0: PyTree) -> None:
    """Raise TypeError unless `result` consists of real floating arrays, of one number at least."""
    del x0
    leaves = jax.tree.leaves(result, is_leaf=lambda v: v is None)
    for leaf in leaves:
        if not tree.is_floating(leaf):
            raise TypeError(
                f"`problem`: {name} must be real floating arrays, not {described(leaf)}; convert "
                "them."
            )
        _check_wide(name, leaf)
    if not tree.size(leaves):
        raise TypeError(f"`problem`: {name} are empty; return at least one number.")


def _check_like_x0(name: str, result: Any, x0: PyTree) -> None:
    """Raise ValueError unless `result` has the structure, shapes and dtypes of `x0`."""
    _check_as_real(name, result, x0)
    expected, found = jax.tree.structure(x0), jax.tree.structure(result)
    if found != expected:
        advice = list_advice(x0) or "Change the function or `x0`"
        raise ValueError(
            f"`problem`: {name} must have the structure of `x0`, {expected}, but it has {found}. "
            f"{advice}."
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


def _check_as_real(name: str, result: Any, x0: PyTree) -> None:
    """Raise ValueError if `result` is complex where `x0` is real."""
    pairs = jax.tree_util.tree_leaves_with_path(x0, is_leaf=is_pair)
    leaves, structure = jax.tree.flatten(result, is_leaf=is_pair)
    if structure != jax.tree.structure(x0, is_leaf=is_pair):
        return
    for (path, leaf), out in zip(pairs, leaves, strict=True):
        if is_complex(out) and not is_complex(leaf):
            where = f"x0{jax.tree_util.keystr(path)}"
            raise ValueError(
                f"`problem`: {name} is {dtype_of(out)}, but `{where}` is {dtype_of(leaf)}. Pass "
                f"a complex `x0`, for example jnp.asarray({where}, complex)."
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
        raise TypeError(f"{wanted}, but it returns {described(found)}.")
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
