"""Solve a problem, with the derivative of the answer taken in the mode of your choice."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, PyTree

from iterdiff import host, tree
from iterdiff import loop as loops
from iterdiff.algorithms.base import Algorithm, check_fits, traceable_step
from iterdiff.checked import Checked
from iterdiff.checks import check_residual, check_theta, check_x0
from iterdiff.failure import raise_if
from iterdiff.modes.base import Mode, Task, floating_part
from iterdiff.modes.implicit import Implicit
from iterdiff.problems import CompositeMinimization, Problem
from iterdiff.prox import weakly_active
from iterdiff.solution import Solution, Status
from iterdiff.stopping import StoppingRule


def solve(
    problem: Problem,
    algorithm: Algorithm,
    x0: PyTree,
    theta: PyTree,
    *,
    stop: StoppingRule,
    mode: Mode | None = None,
    throw: bool = True,
) -> Solution:
    """Solve `problem` by `algorithm` from `x0`; ``jax.grad`` and the rest go through the answer.

    Parameters
    ----------
    problem : Problem
        What is solved.
    algorithm : Algorithm
        How.
    x0 : pytree of real floating arrays
        Where to start; gives structure, shapes and dtypes of the answer.
    theta : pytree
        The parameters. Its floating leaves are what one differentiates in; integer leaves are
        data, leaves that are no numbers pass through untouched.
    stop : StoppingRule
        When to stop.
    mode : Mode
        How the derivative is taken; by default `Implicit()`. Switching modes changes the
        derivative alone, never the answer (but for the corrections of `Implicit(refine=...)`).
    throw : bool
        Whether a run that fails raises. If not, the answer is the last finite iterate, with its
        `Status`; a derivative whose linear solve failed is NaN, and so is one where the run could
        not start (`Status.NOT_FINITE_AT_START`).

    Returns
    -------
    Solution
        The answer ``x`` and how the run ended.

    Raises
    ------
    TypeError, ValueError
        At once, if the arguments do not fit; the message names the argument and the way out.
    SolveError
        With ``throw=True``, if the run fails, with the advice of its `Status`.

    Examples
    --------
    >>> import jax
    >>> import jax.numpy as jnp
    >>> import iterdiff as itd
    >>> problem = itd.Minimization(lambda x, theta: jnp.sum((x - theta**2) ** 2))
    >>> def loss(theta):
    ...     stop = itd.ResidualBelow(rtol=1e-6, max_steps=100)
    ...     x = itd.solve(problem, itd.GradientDescent(0.4), jnp.zeros(2), theta, stop=stop).x
    ...     return jnp.sum(x)
    >>> jax.grad(loss)(jnp.array([1.0, 3.0])).round(3).tolist()
    [2.0, 6.0]
    """
    mode = Implicit() if mode is None else mode
    check_fits(problem, algorithm)
    check_kinds(stop, mode)
    x0, theta = check_x0(x0), check_theta(theta)
    check_residual(problem, x0, theta)
    mode.check(stop)
    task = Task(problem, algorithm, x0, theta, stop)
    with traceable_step(algorithm):
        solution = _solve(task, mode, throw)
    return _raise_on_failure(solution) if throw else solution


def check_kinds(stop: StoppingRule, mode: Mode) -> None:
    """Refuse a rule or a mode that is none.

    Raises
    ------
    TypeError
        Naming the argument.
    """
    if not isinstance(stop, StoppingRule):
        raise TypeError(
            f"`stop` must be a stopping rule such as iterdiff.Steps(100), not {stop!r}."
        )
    if not isinstance(mode, Mode):
        raise TypeError(
            f"`mode` must be a mode instance such as iterdiff.Implicit(), not {mode!r}."
        )


@eqx.filter_jit
def _solve(task: Task, mode: Mode, throw: bool) -> Solution:
    outcome = mode.solve(task, throw=throw)
    x = outcome.x
    at_end = task.problem.residual(*loops.stop_gradient((x, task.theta)))
    residual_norm = tree.norm(jax.lax.stop_gradient(at_end))
    at_start = (outcome.steps == 0) & ~jnp.isfinite(residual_norm)
    status = jnp.where(at_start, Status.NOT_FINITE_AT_START, outcome.status)
    if not throw:
        x = _no_derivative_where(at_start, x, floating_part(task.theta)[0])
    kinks = None
    if isinstance(task.problem, CompositeMinimization):
        kinks = weakly_active(task.problem, x, task.theta)
    return Solution(x, outcome.steps, status.astype(jnp.int32), residual_norm, kinks)


def _no_derivative_where(bad: Bool[Array, ""], x: PyTree, theta: PyTree) -> PyTree:
    """Return `x`; where `bad` holds, all derivatives through it and in `theta` are NaN.

    Nothing was solved there, whatever numbers a mode finds at the start.
    """

    @jax.custom_jvp
    def unchanged(x, theta, bad):
        del theta, bad
        return x

    def rule(primals, tangents):
        (*_, bad), (moved, dots, _) = primals, tangents
        # By products: the transposed rule of a selection would be zero, not NaN.
        through, besides = jnp.where(bad, jnp.nan, 1.0), jnp.where(bad, jnp.nan, 0.0)
        total = sum(jnp.sum(dot).astype(besides.dtype) for dot in jax.tree.leaves(dots))

        def leaf(dot):
            return through.astype(dot.dtype) * dot + (besides * total).astype(dot.dtype)

        return unchanged(*primals), jax.tree.map(leaf, moved)

    unchanged.defjvp(rule)
    return unchanged(x, theta, bad)


def _raise_on_failure(solution: Solution) -> Solution:
    failed = solution.status >= Status.MAX_STEPS_REACHED
    advice = [member.advice for member in Status]
    x = raise_if(solution.x, failed, advice, solution.status)
    return dataclasses.replace(solution, x=x)


def implicit(
    problem: Problem,
    *,
    mode: Mode | None = None,
    traceable: bool | None = None,
    throw: bool = True,
) -> Callable[[Callable[..., Any]], Callable[..., PyTree]]:
    """Give any solver at all the implicit derivative of `problem` (a decorator).

    The solver is left as it is: SciPy, a C library, a program that reads and writes files. The
    decorated function works eagerly and under ``jit``, ``vmap``, ``grad``, ``jvp``, to any order.
    While JAX traces, a solver that it cannot trace is called on the host, with NumPy arrays
    (`jax.pure_callback`; under ``vmap`` once for each member of the batch).

    Parameters
    ----------
    problem : Problem
        Its residual vanishes at what the solver returns.
    mode : Implicit or Checked, optional
        Sets the linear solver and Newton corrections; by default ``Implicit()``. With
        ``Checked(Implicit())`` every derivative estimates its error, and a solver whose answer is
        not near a solution of `problem` is told of too.
    traceable : bool, optional
        Whether JAX can trace the solver. By default that is tried: a solver that raises when it
        is given traced arrays is called on the host instead. Pass False for one with side
        effects (the attempt calls it), True to see at once why tracing fails.
    throw : bool
        Whether a failure raises: of the solver, where it returns an object that says so
        (``success`` or ``converged``, as SciPy's results do) or an answer that is not finite, and
        of the linear solve behind the derivative. If not, the answer is NaN (or as it was
        returned, if that is not finite), and so is the derivative.

    Returns
    -------
    callable
        A decorator of functions ``solver(x0, theta, *args, **kwargs)``, which return an answer
        like `x0`, or a SciPy result object with it. Differentiate in `theta`; the derivative in
        the other arguments is zero.

    Raises
    ------
    TypeError, ValueError
        At once, if `problem` is no problem or `mode` differentiates steps, which the solver does
        not offer; by the decorated function, if `x0` or `theta` is no such thing, or the answer
        does not look like `x0`.
    SolverFailed
        By the decorated function, if the solver reports failure, with its own message, or if its
        answer is not finite. What the solver itself raises is passed on. Under ``jit`` both are a
        RuntimeError that quotes the message or the traceback.

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
    mode = Implicit() if mode is None else mode
    answering = _answering(problem, mode)
    plain = answering.mode if isinstance(answering, Checked) else answering

    def decorate(solver: Callable[..., Any]) -> Callable[..., PyTree]:
        @functools.wraps(solver)
        def solved(x0: PyTree, theta: PyTree, *args, **kwargs) -> PyTree:
            x0, theta = check_x0(x0), check_theta(theta)
            start, given, args, kwargs = loops.stop_gradient((x0, theta, args, kwargs))
            call = host.Call(solver, start, given, args, kwargs, throw)
            x = host.run(call, traceable)
            if getattr(plain, "refine", 0) == 0 and not host.transforming():
                return x
            return _attach(problem, answering, x, theta, throw)

        return solved

    return decorate


def _answering(problem: Problem, mode: Mode) -> Implicit | Checked:
    """Return the mode; refuse one that needs more of a solver than its answer, and no problem."""
    if not isinstance(problem, Problem):
        raise TypeError(
            f"`problem` must be an iterdiff.Problem, not {problem!r}; write "
            "@iterdiff.implicit(problem) over the solver."
        )
    if not isinstance(mode, Mode):
        raise TypeError(f"`mode` must be a mode such as iterdiff.Implicit(), not {mode!r}.")
    inner = mode.mode if isinstance(mode, Checked) else mode
    if not isinstance(inner, Implicit) or not isinstance(mode, Implicit | Checked):
        raise ValueError(
            f"`mode`: {type(inner).__name__} differentiates steps, and a solver under "
            "@iterdiff.implicit offers its answer alone. Modes that work: iterdiff.Implicit(), "
            "iterdiff.Checked(iterdiff.Implicit())."
        )
    return mode


@eqx.filter_jit
def _attach(
    problem: Problem, mode: Implicit | Checked, x: PyTree, theta: PyTree, throw: bool
) -> PyTree:
    x = mode.attach(problem, x, theta, throw=throw)
    # A linear residual has a finite derivative at NaN, too; and one that does not depend on the
    # answer would let the compiler leave out the solver, with what it has to say.
    return _no_derivative_where(~tree.all_finite(x), x, floating_part(theta)[0])
