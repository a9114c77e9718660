"""Solve a problem, with the derivative of the answer taken in the mode of your choice."""

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from iterdiff.algorithms.base import Algorithm, check_fits, traceable_step
from iterdiff.jaxtools import tree
from iterdiff.jaxtools.closures import nan_derivative_where
from iterdiff.jaxtools.raise_if import raise_if
from iterdiff.jaxtools.tree import floating_part
from iterdiff.loop.run import stop_gradient
from iterdiff.loop.status import Status
from iterdiff.loop.stopping import StoppingRule
from iterdiff.loop.task import Task
from iterdiff.modes.base import Mode
from iterdiff.modes.implicit import Implicit
from iterdiff.problems.checks import check_residual, check_theta, check_x0
from iterdiff.problems.problem import CompositeMinimization, Problem
from iterdiff.problems.prox import weakly_active
from iterdiff.solving.solution import Solution


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
    at_end = task.problem.residual(*stop_gradient((x, task.theta)))
    residual_norm = tree.norm(jax.lax.stop_gradient(at_end))
    at_start = (outcome.steps == 0) & ~jnp.isfinite(residual_norm)
    status = jnp.where(at_start, Status.NOT_FINITE_AT_START, outcome.status)
    if not throw:
        x = nan_derivative_where(at_start, x, floating_part(task.theta)[0])
    kinks = None
    if isinstance(task.problem, CompositeMinimization):
        kinks = weakly_active(task.problem, x, task.theta)
    return Solution(x, outcome.steps, status.astype(jnp.int32), residual_norm, kinks)


def _raise_on_failure(solution: Solution) -> Solution:
    failed = solution.status >= Status.MAX_STEPS_REACHED
    advice = [member.advice for member in Status]
    x = raise_if(solution.x, failed, advice, solution.status)
    return dataclasses.replace(solution, x=x)
