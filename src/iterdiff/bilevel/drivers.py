"""The public call that minimises an outer loss, and what it returns."""

import contextlib
import dataclasses
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from iterdiff.accuracy.reasons import REASONS
from iterdiff.algorithms.base import traceable_step
from iterdiff.bilevel.endings import Ending, checked_budget, checked_rtol
from iterdiff.bilevel.gradients import HypergradientState
from iterdiff.bilevel.history import Log, to_dataset
from iterdiff.bilevel.inner_run import ENDED_ACCURATE
from iterdiff.bilevel.methods import Backtracking, Method
from iterdiff.bilevel.nudged import RunState
from iterdiff.bilevel.outer_run import FIRST_ACCURACY, Outer
from iterdiff.bilevel.outer_state import Point, Progress
from iterdiff.bilevel.posing import How, posed_of
from iterdiff.bilevel.regions import Vector, region_of
from iterdiff.bilevel.snapshots import fingerprint, read, write
from iterdiff.jaxtools.arguments import (
    MAX_COUNT,
    Tolerance,
    check_bool,
    check_count,
)
from iterdiff.jaxtools.extras import import_extra
from iterdiff.modes.base import Mode
from iterdiff.problems.checks import check_untraced
from iterdiff.problems.problem import Problem

if TYPE_CHECKING:
    import xarray


@dataclasses.dataclass(frozen=True)
class Minimized:
    """What `minimize` returns: the last good theta, whatever happened.

    Attributes
    ----------
    theta : pytree
        The last theta whose value is known to be lower than those before (with `Optax`: whose
        gradient is accurate).
    x : pytree
        The inner iterate there, after a Newton correction; of a batch, stacked.
    value, value_error : float
        The outer loss, and its error bar. The values of accepted thetas decrease.
    gradient : pytree
        Like the floating part of theta: at the inner iterate, before its Newton correction.
    gradient_error : float
        Its estimated error: absolute, in Euclidean norm.
    trusted : bool
        Whether `gradient_error` is trusted.
    status : Ending
        How the run ended.
    message : str
        The same in words, with the reason why a gradient is not trusted.
    iterations, gradients : int
        Outer iterations, and evaluations of the inner residual.
    seconds : float
        Time, that before a resumption included.
    state : HypergradientState
        For `hypergradient` at `theta`.
    log : Log
        The rows of `history`.
    """

    theta: PyTree
    x: PyTree
    value: float
    value_error: float
    gradient: PyTree
    gradient_error: float
    trusted: bool
    status: Ending
    message: str
    iterations: int
    gradients: int
    seconds: float
    state: HypergradientState
    log: Log

    @property
    def history(self) -> "xarray.Dataset":
        """One row for each inner run, over ``evaluation``: needs xarray, of the extra ``bilevel``.

        Value and gradient with their error bars, the inner work, the step, whether theta moved
        there, and if not, why not. Up to 1000 parameters, ``theta`` and ``gradient`` too.
        """
        attributes = {"status": self.status.name, "message": self.message}
        return to_dataset(self.log, attributes)

    def __repr__(self) -> str:
        """Return the numbers and the status on one line."""
        return (
            f"Minimized(value={self.value:.4g} ± {self.value_error:.2g}, status={self.status.name},"
            f" iterations={self.iterations}, gradients={self.gradients})"
        )


def minimize(
    loss: Callable[..., Float[Array, ""]],
    problem: Problem,
    algorithm: Any,
    x0: PyTree,
    theta0: PyTree,
    *,
    method: Method | None = None,
    lower: PyTree = None,
    upper: PyTree = None,
    projection: Callable[[PyTree], PyTree] | None = None,
    max_outer: int = 100,
    budget: Any = None,
    rtol: Tolerance = 1e-4,
    resume: str | os.PathLike | None = None,
    progress: bool = False,
    mode: Mode | None = None,
    max_steps: int = 10_000,
    batched: bool = False,
    hessian_free: str | None = None,
    args: PyTree = None,
) -> Minimized:
    r"""Minimise :math:`L(x^*(\theta), \theta)` over theta, never stepping on a doubtful gradient.

    A step is made only along a gradient whose error is certainly at most half its length, and only
    if the loss certainly decreases, error bars included. Where that is in doubt, the same inner run
    goes on. No tolerance of the inner problem has to be chosen.

    Parameters
    ----------
    loss : callable
        ``loss(x, theta)`` or ``loss(x, theta, args)`` returns a scalar.
    problem, algorithm, x0
        The inner problem, as in `hypergradient`.
    theta0 : pytree
        Where to start; its floating leaves are minimised over.
    method : Method, optional
        `Backtracking()` by default, without parameters; `LBFGS()` where theta has bounds or none;
        ``Optax(transformation)`` for an optimiser of optax, without a line search.
    lower, upper : number or pytree like theta, optional
        Bounds.
    projection : callable, optional
        ``projection(theta)`` returns the nearest point of a convex set, such as a simplex.
    max_outer : int
        The most outer iterations.
    budget : Budget or int, optional
        What may be spent; a number counts evaluations of the inner residual.
    rtol : real scalar
        The run ends when the projected gradient, :math:`\theta - P(\theta - g)`, is below this
        fraction of its length at the start.
    resume : path, optional
        A snapshot (an ``.npz`` file): read if it exists, and written after every iteration. A run
        that was killed at any moment continues on the same trajectory.
    progress : bool
        Whether to show a progress bar.
    mode, max_steps, batched, hessian_free, args
        As in `hypergradient`; `max_steps` for one evaluation.

    Returns
    -------
    Minimized
        With the last good theta. A run that fails returns, too: see `status` and `message`.

    Raises
    ------
    TypeError, ValueError
        If an argument is wrong, bounds cross, `theta0` is outside them, the loss is no scalar, or
        the snapshot belongs to another problem; the message names the argument.

    Notes
    -----
    An accepted step satisfies :math:`V_+ + 2 e_+ \le V - 2 e - 10^{-4} g^\top (\theta - \theta_+)`.
    Decisions rest on the value V and the gradient g at the Newton correction of the inner iterate,
    which every check computes anyway, and on the error bar e of that value. This gradient is more
    accurate by one order than the one at the iterate, which is returned with its error. Nothing
    needs a Lipschitz or convexity constant. The accuracy that is asked for relaxes
    after a step that was decided at once, and tightens after one that was not.

    An inner run that is not accurate enough goes on from its Newton correction, if that is certain
    to be better: if Newton's method converges there, or decreases a convex inner objective.
    A trial step may cost as many inner steps as the whole run before it; then a shorter one is
    tried.

    At a kink of the inner solution, where only one-sided derivatives exist, a step is made if it
    decreases the loss, and otherwise refused.

    References
    ----------
    F. Pedregosa, *Hyperparameter optimization with approximate gradient*, ICML 2016; M. Salehi et
    al., *An adaptively inexact first-order method for bilevel optimization*, arXiv 2308.10098.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> import iterdiff as itd
    >>> problem = itd.Minimization(lambda x, theta: jnp.sum(jnp.cosh(x - theta) + x**2 / 2))
    >>> result = itd.bilevel.minimize(
    ...     lambda x, theta: jnp.sum((x - 1) ** 2), problem, itd.GradientDescent(0.3),
    ...     jnp.zeros(2), jnp.array([1.0, 3.0]),
    ... )
    >>> result.status.name
    'STATIONARY'
    >>> result.theta.round(2).tolist()  # arcsinh(1) + 1
    [1.88, 1.88]
    """
    how = How(mode, batched, hessian_free)
    posed, x0, theta0 = posed_of(loss, problem, algorithm, x0, theta0, args, how)
    check_untraced("iterdiff.bilevel.minimize", posed.problem, (algorithm, args), x0, theta0)
    outer = Outer(
        posed,
        region_of(theta0, lower, upper, projection),
        _checked_method(method),
        checked_rtol(rtol),
        check_count("max_steps", max_steps),
        checked_budget(budget),
        check_count("max_outer", max_outer, least=0),
        Log(),
    )
    outer.method.check(outer.region)
    check_bool(progress=progress)
    with traceable_step(algorithm), _bar(progress, outer.max_outer) as show:
        return _run(outer, x0, theta0, None if resume is None else Path(resume), show)


def _run(
    outer: Outer, x0: PyTree, theta0: PyTree, path: Path | None, show: Callable[[Progress], None]
) -> Minimized:
    inner = outer.posed.start(x0, theta0)
    layout = outer.region.layout
    start = outer.region.project(layout.vector(layout.floating))
    memory = outer.method.init(start, outer.region)
    template = Progress(_blank(start, inner), memory, FIRST_ACCURACY, 0.0, np.inf, 0, 0, 0.0)
    mark = ""
    if path is not None:
        settings = (outer.rtol, outer.max_steps, *outer.region[1:], outer.method)
        mark = fingerprint(outer.posed, x0, theta0, settings)
    if path is not None and path.exists():
        begin, columns = read(path, template, mark)
        outer.log = Log.of(columns)
    else:
        begin = template._replace(point=outer.evaluate(start, inner, FIRST_ACCURACY))
        outer.log.judge(-1, "start", accepted=not begin.point.failed)
        begin = begin._replace(gradients=outer.gradients, seconds=outer.seconds)

    def after(progress: Progress) -> None:
        show(progress)
        if path is not None:
            write(path, progress, outer.log.arrays(), mark)

    return _result(outer, *outer.run(begin, after))


def _blank(vector: Vector, inner: RunState) -> Point:
    """Return a point without numbers, as a template of a snapshot."""
    x = jax.tree.map(lambda v: jnp.zeros(v.shape, v.dtype), inner.adjoint)
    nan = float("nan")
    return Point(
        vector=vector,
        gradient=np.zeros_like(vector),
        value=nan,
        value_error=nan,
        error=nan,
        direction=np.zeros_like(vector),
        uncertainty=nan,
        trusted=False,
        reason=0,
        ended=ENDED_ACCURATE,
        accuracy=1.0,
        x=x,
        inner=inner,
    )


def _result(outer: Outer, progress: Progress, ending: Ending) -> Minimized:
    point, layout = progress.point, outer.region.layout
    theta = layout.theta(point.vector)
    message = ending.advice
    if REASONS[point.reason] and ending is not Ending.INNER_FAILED:  # which gives its own reason
        message += f" At the last theta: {REASONS[point.reason]}"
    return Minimized(
        theta=theta,
        x=outer.posed.problem.answer(point.x),
        value=point.value,
        value_error=point.value_error,
        gradient=layout.part(point.gradient),
        gradient_error=point.error,
        trusted=point.trusted,
        status=ending,
        message=message,
        iterations=progress.iteration,
        gradients=progress.gradients,
        seconds=progress.seconds,
        state=HypergradientState(theta, outer.posed.args, point.inner),
        log=outer.log,
    )


def _checked_method(method: Any) -> Method:
    method = Backtracking() if method is None else method
    if not isinstance(method, Method):
        raise TypeError(
            "`method` must be iterdiff.bilevel.Backtracking(), LBFGS() or Optax(transformation), "
            f"not {method!r}."
        )
    return method


@contextlib.contextmanager
def _bar(shown: bool, max_outer: int) -> Iterator[Callable[[Progress], None]]:
    """Yield a function that updates the progress bar, if it is shown."""
    if not shown:
        yield lambda _: None
        return
    rich = import_extra("rich.progress", "bilevel")
    columns = (rich.TextColumn("{task.description}"), rich.BarColumn(), rich.MofNCompleteColumn())
    with rich.Progress(*columns) as bar:
        task = bar.add_task("outer", total=min(max_outer, MAX_COUNT))

        def update(progress: Progress) -> None:
            text = f"loss {progress.point.value:.6g} ± {progress.point.value_error:.1g}"
            bar.update(task, completed=progress.iteration, description=text)

        yield update
