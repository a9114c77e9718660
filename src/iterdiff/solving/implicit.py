"""The decorator `implicit`: an implicit derivative for any solver."""

import functools
from collections.abc import Callable
from typing import Any

from jaxtyping import PyTree

from iterdiff.jaxtools import tree
from iterdiff.jaxtools.arguments import check_bool, check_callable
from iterdiff.jaxtools.closures import nan_derivative_where
from iterdiff.jaxtools.jit import compiled
from iterdiff.jaxtools.manual_axes import aligned
from iterdiff.jaxtools.raise_if import Throw
from iterdiff.jaxtools.transformations import transforming
from iterdiff.jaxtools.tree import floating_part
from iterdiff.loop.run import stop_gradient
from iterdiff.modes.base import Mode
from iterdiff.modes.checked import Checked
from iterdiff.modes.implicit import Implicit
from iterdiff.problems.active_set import completed
from iterdiff.problems.checks import check_residual
from iterdiff.problems.functions import DATA_NAME, IMPLICIT
from iterdiff.problems.inputs import takes_data, with_data, with_snapshot
from iterdiff.problems.layout import layout_of, paired
from iterdiff.problems.leaf_checks import check_theta, check_x0
from iterdiff.problems.problem import Problem
from iterdiff.problems.seen_problem import seen_problem
from iterdiff.solving.failures import with_failures
from iterdiff.solving.host import SolverCall, run_solver


def implicit(
    problem: Problem,
    *,
    mode: Mode | None = None,
    traceable: bool | None = None,
    throw: bool = True,
) -> Callable[[Callable[..., Any]], Callable[..., PyTree]]:
    r"""Make any solver differentiable: decorate it with the equation that its answer satisfies.

    The solver stays as it is: SciPy, a C library, a program that reads and writes files. We never
    differentiate its steps. The implicit function theorem gives the derivative of the solution
    from the residual :math:`r` of `problem` at the answer :math:`x^*`:

    .. math::

        \frac{d x^*}{d \theta} = -A^{-1} \frac{\partial r}{\partial \theta}, \qquad
        A = \frac{\partial r}{\partial x}.

    Each derivative costs one linear solve with :math:`A`. It is only as accurate as the answer:
    the error is proportional to the distance between the answer and the solution. Wrap the mode
    in `Checked` to be warned.

    The decorated function works eagerly and under ``jit``, ``vmap``, ``grad`` and ``jvp``, to any
    order. If JAX cannot trace the solver, it runs on the host with NumPy arrays
    (`jax.pure_callback`); under ``vmap`` once for each member of the batch.

    Parameters
    ----------
    problem : Problem
        Its residual must vanish at the answer of the solver.
    mode : Implicit or Checked, optional
        Sets the linear solver and the number of Newton corrections; by default ``Implicit()``.
        ``Checked(Implicit())`` estimates the error of every derivative, and also detects an
        answer that is not near a solution of `problem`.
    traceable : bool, optional
        Whether JAX can trace the solver. By default we try: if the solver raises when it receives
        traced arrays, it runs on the host instead. Pass False for a solver with side effects,
        because the attempt calls it; pass True to see the error that tracing raises.
    throw : bool
        Whether to raise if the solver fails (its result object reports failure in ``success`` or
        ``converged``, as SciPy's do, or its answer is not finite) or the linear solve of the
        derivative fails. If False, the derivative is then NaN; so is the answer, unless the solver
        returned one, which is passed on.

    Returns
    -------
    callable
        A decorator for functions ``solver(x0, theta, *args, **kwargs)`` that return an answer like
        `x0` or a SciPy result object. The derivative with respect to `theta` is the implicit one;
        with respect to all other arguments it is zero. If the call has a keyword argument ``args``,
        the problem's functions receive it as their last argument, as in `solve`.

    Raises
    ------
    TypeError, ValueError
        At once, if `problem` is not a `Problem` or `mode` differentiates steps. From the decorated
        function, if `x0` or `theta` is not valid or the answer is not like `x0`.
    SolverFailed
        From the decorated function, if the solver solves an integer program or reports failure
        (with its message), or its answer is not finite. Exceptions of the solver itself pass
        through. Under ``jit`` both become a RuntimeError that quotes the message or the traceback.

    Notes
    -----
    For a problem with constraints, the solver returns `x` alone. The multipliers that the KKT
    system needs come from `multipliers`, by least squares. A solver of integer programs, such as
    `scipy.optimize.milp`, is refused: its answer jumps as theta moves, and has no derivative that
    would say anything about it.

    Assumes that the residual is continuously differentiable near the solution and that
    :math:`A` is nonsingular there.

    References
    ----------
    M. Blondel et al., *Efficient and modular implicit differentiation*, NeurIPS 2022.

    Examples
    --------
    >>> import jax
    >>> import numpy as np
    >>> import iterdiff as itd
    >>> @itd.implicit(itd.RootFinding(lambda x, theta: x**3 - theta))
    ... def cube_root(x0, theta):
    ...     return np.cbrt(np.asarray(theta))  # NumPy: JAX cannot trace it
    >>> jax.jit(jax.value_and_grad(lambda theta: cube_root(1.0, theta)))(8.0)
    (Array(2., dtype=float...), Array(0.08333333, dtype=float...))
    """
    mode = _check_mode(problem, Implicit() if mode is None else mode)
    check_bool(throw=throw)
    if traceable is not None:
        check_bool(traceable=traceable)

    def decorate(solver: Callable[..., Any]) -> Callable[..., PyTree]:
        check_callable(solver=solver)

        def differentiable(x0: PyTree, theta: PyTree, *args, **kwargs) -> PyTree:
            x0 = check_x0(x0)
            theta = check_theta(theta, x0)
            data = kwargs.get(DATA_NAME) if takes_data(problem) else None
            x0, theta = aligned((x0, theta), (args, kwargs))
            layout = layout_of(x0, theta)
            start, constant, args, kwargs = stop_gradient((x0, theta, args, kwargs))
            call = SolverCall(solver, start, constant, args, kwargs, throw)
            x = run_solver(call, traceable)
            if not mode.corrects_answer and not transforming():
                return x
            current = seen_problem(with_data(problem, data), layout)
            if layout is not None:
                x, theta = layout.split(x), paired(theta)
            current = with_snapshot(current, check_residual(current, x, theta))

            def run(inputs: tuple[Problem, PyTree, PyTree], throw: Throw) -> PyTree:
                return _with_derivative(*inputs, mode, throw)

            x = with_failures(run, (current, x, theta), current, throw)
            return x if layout is None else layout.restored(x)

        @functools.wraps(solver)
        def solved(*args, **kwargs) -> PyTree:
            _check_called(solver, args, kwargs)
            return differentiable(*args, **kwargs)

        setattr(solved, IMPLICIT, True)
        return solved

    return decorate


def _check_called(solver: Callable, args: tuple, kwargs: dict) -> None:
    """Raise TypeError unless `x0` and `theta` are given: the solver's names for them differ."""
    named = [name for name in ("x0", "theta") if name in kwargs]
    if len(args) + len(named) < 2:
        name = getattr(solver, "__name__", type(solver).__name__)
        raise TypeError(
            f"the decorated `{name}` is called as {name}(x0, theta, ...), whatever the names of "
            "its parameters, and one of the two is missing; pass both by position."
        )


def _check_mode(problem: Problem, mode: Mode) -> Implicit | Checked:
    """Return the mode; raise unless it needs only the solver's answer.

    Raises
    ------
    TypeError
        If `problem` is not a `Problem` or `mode` not a `Mode`.
    ValueError
        If `mode` differentiates steps.
    """
    if not isinstance(problem, Problem):
        raise TypeError(
            f"`problem` must be an iterdiff.Problem, not {problem!r}; write "
            "@iterdiff.implicit(problem) above the solver."
        )
    if not isinstance(mode, Mode):
        raise TypeError(f"`mode` must be a mode such as iterdiff.Implicit(), not {mode!r}.")
    inner = mode.mode if isinstance(mode, Checked) else mode
    if not isinstance(inner, Implicit) or not isinstance(mode, Implicit | Checked):
        raise ValueError(
            f"`mode`: {type(inner).__name__} differentiates through steps, but a solver wrapped by "
            "@iterdiff.implicit exposes only its result. Modes that work: iterdiff.Implicit() and "
            "iterdiff.Checked(iterdiff.Implicit())."
        )
    return mode


@compiled
def _with_derivative(
    problem: Problem, x: PyTree, theta: PyTree, mode: Implicit | Checked, throw: Throw
) -> PyTree:
    unknowns = mode.attach(problem, completed(problem, x, theta), theta, throw=throw)
    x = problem.answer(unknowns)
    # The derivative may not depend on the answer. This makes it NaN where the answer is not
    # finite, and keeps the compiler from dropping the solver, whose failure must still raise.
    return nan_derivative_where(~tree.all_finite(x), x, floating_part(theta)[0])
