"""Solve a problem, and choose how its answer is differentiated."""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from iterdiff.algorithms.base import Algorithm, check_fits, traceable_step
from iterdiff.algorithms.status import Status
from iterdiff.jaxtools import tree
from iterdiff.jaxtools.arguments import check_bool
from iterdiff.jaxtools.closures import nan_derivative_where
from iterdiff.jaxtools.jit import compiled
from iterdiff.jaxtools.raise_if import Throw, raise_if
from iterdiff.jaxtools.tree import floating_part
from iterdiff.loop.reporting import Reporting, reporting
from iterdiff.loop.run import stop_gradient
from iterdiff.loop.stopping import StoppingRule
from iterdiff.loop.task import Task
from iterdiff.modes.base import Mode
from iterdiff.modes.implicit import Implicit
from iterdiff.problems.inputs import check_inputs
from iterdiff.problems.problem import CompositeMinimization, Problem
from iterdiff.problems.prox import weakly_active
from iterdiff.solving.failures import with_failures
from iterdiff.solving.solution import Solution

IN_FLOAT32 = (
    " The run is in float32, where a relative tolerance below about 1e-6 is out of reach: enable "
    "float64 by jax.config.update('jax_enable_x64', True)."
)
"""What a run that does not converge in float32 is told in addition."""


def solve(
    problem: Problem,
    algorithm: Algorithm,
    x0: PyTree,
    theta: PyTree,
    *,
    stop: StoppingRule,
    mode: Mode | None = None,
    args: PyTree = None,
    throw: bool = True,
    verbose: bool | int = False,
) -> Solution:
    """Solve `problem` with `algorithm`, and let JAX differentiate the answer with respect to theta.

    ``jax.grad``, ``jax.jvp``, ``jax.jacobian``, ``jit`` and ``vmap`` work on the answer, to any
    order. `mode` selects which derivative they compute:

    - `Implicit`, the default, differentiates the equation that the solution satisfies (implicit
      function theorem). One linear solve replaces the history of the run, so that memory does not
      grow with the number of steps. The result approximates the derivative of the exact solution,
      with an error proportional to the distance from it.
    - `Unrolled` differentiates the steps that ran (backpropagation through the loop). The result
      is the exact derivative of the last iterate, which converges to that of the solution, but
      may move away from it first. Reverse mode has to store or recompute iterates.

    Both are approximations before convergence. Wrap either in `Checked` to be warned when the
    derivative is not accurate enough. The gradient of an outer loss through the answer is often
    called a *hypergradient*.

    Parameters
    ----------
    problem : Problem
        What to solve.
    algorithm : Algorithm
        How to solve it. Its hyper-parameters (step sizes and the like) may be traced; `Unrolled`
        differentiates with respect to them, `Implicit` gives zero.
    x0 : pytree
        Start of the iteration; determines structure, shapes and dtypes of the answer. The floating
        leaves, real or complex, are the unknowns. Booleans, integer arrays, PRNG keys and objects
        that are no numbers reach the problem unchanged, and come back in the answer. Leaves of
        less than 32 bits are solved for in float32, and converted back.
    theta : pytree
        Parameters. Derivatives are taken with respect to the floating leaves, real or complex.
        Integer leaves are data, and leaves that are not numbers reach the problem unchanged.
    stop : StoppingRule
        When to stop: `Steps`, `ResidualBelow` or `DerivativeErrorBelow`.
    mode : Mode, optional
        How to differentiate; by default ``Implicit()``. The mode changes only the derivative, not
        the answer (except that ``Implicit(refine=...)`` corrects the answer by Newton steps).
    args : pytree, optional
        Data, which the problem's functions receive as their last argument: ``objective(x, theta,
        args)``. A function without room for one argument more is called without it. The data are
        never differentiated in; ``vmap`` batches them, for example over the folds of a
        cross-validation.
    throw : bool
        Whether to raise if the run fails. If False, the answer is the last finite iterate with
        its `Status`. The derivative is NaN if its linear solve failed or the run could not start
        (`Status.NOT_FINITE_AT_START`), the problem has no solution (`Status.INFEASIBLE`,
        `Status.UNBOUNDED`), or no feasible point was found (`Status.LOCALLY_INFEASIBLE`).
    verbose : bool or int
        Whether to print a line every 100 steps, or every so many: the step, the residual's norm,
        and the estimated factor by which a step changes it. A counted run then is differentiated as
        one with a stopping rule.

    Returns
    -------
    Solution
        The answer ``x``, with the number of steps, the status and the residual's norm.

    Raises
    ------
    TypeError, ValueError
        At once, if an argument is wrong; the message names it and says what to do.
    SolveError
        With ``throw=True``, if the run fails; the message is the advice of its `Status`.

    Examples
    --------
    The gradient of a loss through a minimisation, with the implicit derivative:

    >>> import jax
    >>> import jax.numpy as jnp
    >>> import iterdiff as itd
    >>> problem = itd.Minimization(lambda x, theta: jnp.sum((x - theta**2) ** 2))
    >>> def loss(theta, mode=None):
    ...     stop = itd.ResidualBelow(rtol=1e-6, max_steps=100)
    ...     descent = itd.GradientDescent(0.4)
    ...     return jnp.sum(itd.solve(problem, descent, jnp.zeros(2), theta, stop=stop, mode=mode).x)
    >>> theta = jnp.array([1.0, 3.0])
    >>> jax.grad(loss)(theta).round(3).tolist()
    [2.0, 6.0]

    The same gradient through the last three steps only:

    >>> jax.grad(loss)(theta, itd.Unrolled(last=3)).round(3).tolist()
    [1.984, 5.952]
    """
    mode = Implicit() if mode is None else mode
    check_fits(problem, algorithm)
    check_kinds(stop, mode)
    check_bool(throw=throw)
    problem, x0, theta = check_inputs(problem, x0, theta, args)
    mode.check(stop)
    task = Task(problem, algorithm, x0, theta, reporting(stop, verbose))

    def run(task: Task, throw: Throw) -> Solution:
        solution = _solve(task, mode, throw)
        return _raise_on_failure(solution, throw) if throw else solution

    with traceable_step(algorithm):
        task = task.with_snapshot()
        return _as_given(problem, with_failures(run, task, task.problem, throw))


def _as_given(problem: Problem, solution: Solution) -> Solution:
    """Return the solution with `x`, and what is like `x`, laid out as the caller's `x0`."""
    if problem.layout is None:
        return solution
    flags = solution.weakly_active
    if isinstance(problem, CompositeMinimization):
        flags = problem.layout.flags(flags)
    x = problem.layout.restored(solution.x)
    return dataclasses.replace(solution, x=x, weakly_active=flags)


def check_kinds(stop: StoppingRule, mode: Mode) -> None:
    """Raise TypeError unless `stop` is a StoppingRule and `mode` a Mode.

    Raises
    ------
    TypeError
        The message names the argument.
    """
    if not isinstance(stop, StoppingRule):
        raise TypeError(
            f"`stop` must be a stopping rule such as iterdiff.Steps(100), not {stop!r}."
        )
    if not isinstance(mode, Mode):
        raise TypeError(
            f"`mode` must be a mode instance such as iterdiff.Implicit(), not {mode!r}."
        )


@compiled
def _solve(task: Task, mode: Mode, throw: Throw) -> Solution:
    task = task.aligned()
    outcome = mode.solve(task, throw=throw)
    x = outcome.x
    residual = task.problem.residual(*stop_gradient((x, task.theta)))
    residual_norm = tree.norm(jax.lax.stop_gradient(residual))
    not_started = (outcome.steps == 0) & ~jnp.isfinite(residual_norm)
    status = jnp.where(not_started, Status.NOT_FINITE_AT_START, outcome.status)
    if isinstance(task.stop, Reporting) and not task.stop.rule.checks:
        status = jnp.where(status == Status.CONVERGED, Status.STEPS_DONE, status)
    if not throw:
        unsolvable = (status == Status.INFEASIBLE) | (status == Status.UNBOUNDED)
        unsolvable |= status == Status.LOCALLY_INFEASIBLE
        x = nan_derivative_where(not_started | unsolvable, x, floating_part(task.theta)[0])
    kinks = None
    if task.problem.marks_kinks:
        kinks = weakly_active(task.problem, x, task.theta)
    aux = task.problem.aux(x, task.theta)
    ended = outcome.steps, status.astype(jnp.int32), residual_norm, kinks, aux
    return Solution(task.problem.answer(x), *ended, task.problem.multipliers(x))


def _raise_on_failure(solution: Solution, throw: Throw) -> Solution:
    failed = solution.status >= Status.MAX_STEPS_REACHED
    advice = [member.advice for member in Status]
    if solution.residual_norm.dtype == jnp.float32:
        advice[Status.MAX_STEPS_REACHED] += IN_FLOAT32
    checked = solution.x, solution.multipliers
    x, multipliers = raise_if(checked, failed, advice, solution.status, throw)
    return dataclasses.replace(solution, x=x, multipliers=multipliers)
