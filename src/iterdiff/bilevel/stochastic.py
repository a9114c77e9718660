"""Outer optimisation with stochastic inner problems, and intervals for its hypergradient."""

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from iterdiff.bilevel.chains import (
    Chain,
    Measured,
    Plan,
    Sampled,
    Sizes,
    StochasticMethod,
    begin_compiled,
    measure_compiled,
    run_compiled,
)
from iterdiff.bilevel.endings import Budget, Ending, checked_budget, checked_rtol
from iterdiff.bilevel.history import STOCHASTIC_COLUMNS, Log
from iterdiff.bilevel.intervals import MESSAGES, Interval, StochasticMinimized, rounding, student
from iterdiff.bilevel.posing import snapshot_of_loss
from iterdiff.bilevel.regions import Region, region_of
from iterdiff.jaxtools import tree
from iterdiff.jaxtools.arguments import Tolerance, check_count
from iterdiff.loop.run import stop_gradient
from iterdiff.problems.checks import check_untraced
from iterdiff.problems.inputs import check_inputs, with_snapshot
from iterdiff.problems.problem import Minimization, Problem

MAX_WINDOWS = 8
"""Most windows of steps until two in a row agree, before an interval counts as not settled."""

GROWTH = 2
"""Factor of the batch where the interval covers zero."""


def minimize_stochastic(
    loss: Callable[..., Float[Array, ""]],
    problem: Problem,
    x0: PyTree,
    theta0: PyTree,
    *,
    samples: Any,
    method: Any,
    batch: int = 32,
    steps: int = 500,
    chains: int = 8,
    key: Array | int = 0,
    lower: PyTree = None,
    upper: PyTree = None,
    projection: Callable[[PyTree], PyTree] | None = None,
    max_rounds: int = 20,
    budget: Any = None,
    rtol: Tolerance = 1e-2,
) -> StochasticMinimized:
    r"""Minimise :math:`F(x^*(\theta), \theta)` over theta, where both sums are sampled.

    Here :math:`x^*` minimises :math:`\frac1n \sum_i G_i(x, \theta)`, and the loss is
    :math:`\frac1m \sum_j F_j(x, \theta)`. Independent chains of minibatches share theta, which
    moves along the mean of their directions. After each round theta stands still until the chains
    have settled; their means then give the hypergradient with a confidence interval. Where it
    covers zero, the noise hides the slope, and the batch doubles.

    Parameters
    ----------
    loss : callable
        ``loss(x, theta, indices)`` returns the mean of the outer loss over these samples.
    problem : Minimization
        Its objective ``objective(x, theta, indices)`` returns the mean over these samples.
    x0, theta0 : pytree
        Where to start.
    samples : pair of int
        The numbers n and m of inner and outer samples; indices are below them.
    method : StochasticMethod
        `SOBA`, `SABA` or `AmIGO`, with its step sizes.
    batch : int
        Samples in a minibatch, at first. From the number of samples on, all are taken, in order.
    steps : int
        Steps of a round, and of a window in which theta stands still.
    chains : int
        Independent chains, at least two.
    key : JAX key or int
        Of the random numbers, or its seed.
    lower, upper, projection
        As in `minimize`.
    max_rounds : int
        The most rounds; zero measures the hypergradient at `theta0`.
    budget : Budget or int, optional
        What may be spent; a number counts inner gradients of single samples.
    rtol : real scalar
        The run ends when projected gradient and interval are below this fraction of the gradient
        at the start.

    Returns
    -------
    StochasticMinimized
        With the last good theta. A run that fails returns, too: see `status` and `message`.

    Raises
    ------
    TypeError, ValueError
        If an argument is wrong; the message names it.

    Notes
    -----
    The means over a window are taken of x and of the adjoint, one of each for a chain; the
    hypergradient there uses all data. The interval is that of Student's t with ``chains - 1``
    degrees of freedom. It covers the noise of the samples. It does not cover the bias of constant
    steps, which is of the order of step size times variance where the inner gradient is not linear
    in x: a larger batch, or a smaller step, makes both smaller. `SABA` has neither in the limit.

    References
    ----------
    M. Dagréou et al., NeurIPS 2022; C. Geyer, *Practical Markov chain Monte Carlo*, Statist. Sci.
    1992, on intervals by means of batches.

    Examples
    --------
    >>> import jax
    >>> import jax.numpy as jnp
    >>> import iterdiff as itd
    >>> data = jax.random.normal(jax.random.key(0), (64, 2)) + 1
    >>> problem = itd.Minimization(
    ...     lambda x, theta, i: jnp.mean((x - data[i, 0]) ** 2) / 2 + theta * x**2 / 2
    ... )
    >>> def loss(x, theta, j):
    ...     return jnp.mean((2 * x - data[j, 1]) ** 2) / 2
    >>> result = itd.bilevel.minimize_stochastic(
    ...     loss, problem, 0.0, 0.0, samples=(64, 64), method=itd.bilevel.SOBA(0.1, 0.1),
    ...     lower=0.0, max_rounds=5,
    ... )
    >>> exact = 2 * data[:, 0].mean() / data[:, 1].mean() - 1
    >>> bool(jnp.abs(result.theta - exact) < 0.2)
    True
    """
    run = _posed(loss, problem, x0, theta0, samples, method)
    posed, x0, theta0 = run
    check_untraced("iterdiff.bilevel.minimize_stochastic", posed.problem, method, x0, theta0)
    rtol = checked_rtol(rtol)
    region = region_of(theta0, lower, upper, projection)
    n = posed.samples[0]
    search = _Search(
        posed,
        method,
        region,
        _Limits(
            check_count("steps", steps),
            check_count("max_rounds", max_rounds, least=0),
            checked_budget(budget),
            rtol,
        ),
        min(check_count("batch", batch), n),
    )
    if isinstance(key, int):
        key = jax.random.key(key)
    keys = jax.random.split(key, check_count("chains", chains, least=2))
    return search.run(begin_compiled(posed, method, x0, theta0, keys))


def _posed(
    loss: Any, problem: Any, x0: PyTree, theta0: PyTree, samples: Any, method: Any
) -> tuple[Sampled, PyTree, PyTree]:
    if not isinstance(problem, Minimization):
        raise TypeError(
            "`problem` must be an iterdiff.Minimization whose objective takes indices, not "
            f"{problem!r}."
        )
    if not isinstance(method, StochasticMethod):
        raise TypeError(
            f"`method` must be iterdiff.bilevel.SOBA(...), SABA(...) or AmIGO(...), not {method!r}."
        )
    if not isinstance(samples, tuple | list) or len(samples) != 2:
        raise TypeError(f"`samples` must be a pair of int, (inner, outer), not {samples!r}.")
    counts = check_count("samples[0]", samples[0]), check_count("samples[1]", samples[1])
    if not callable(loss):
        raise TypeError(f"`loss` must be a function (x, theta, indices) -> scalar, not {loss!r}.")
    one = jnp.zeros(1, jnp.arange(1).dtype)
    bound, x0, theta0 = check_inputs(problem, x0, theta0, one)
    x0, theta0 = stop_gradient((x0, theta0))
    taken = snapshot_of_loss(loss, x0, theta0, one)
    assert bound.snapshot is not None
    return Sampled(with_snapshot(problem, bound.snapshot), loss, counts, taken), x0, theta0


class _Limits(NamedTuple):
    steps: int
    max_rounds: int
    budget: Budget
    rtol: float


class _Search:
    """A run of `minimize_stochastic`."""

    def __init__(
        self,
        posed: Sampled,
        method: StochasticMethod,
        region: Region,
        limits: _Limits,
        batch: int,
    ):
        self.posed, self.method, self.region, self.limits = posed, method, region, limits
        self.batch, self.samples, self.count = batch, 0, 0
        self.begun = time.perf_counter()
        self.log = Log(columns=STOCHASTIC_COLUMNS)

    def run(self, chains: Chain) -> StochasticMinimized:
        """Run rounds until one ends the search."""
        layout, limits = self.region.layout, self.limits
        theta = layout.theta(self.region.project(layout.vector(layout.floating)))
        found, chains, x = self._interval(chains, theta)
        scale = self._length(theta, found)
        good, rounds = (theta, x, found), 0
        ending = self._judged(0, theta, found, scale)
        while ending is None:
            if rounds >= limits.max_rounds:
                ending = Ending.MAX_OUTER_REACHED
                break
            if rounds and limits.budget.spent(self.samples, self.seconds):
                ending = Ending.BUDGET_SPENT
                break
            rounds += 1
            moved = self._advance(chains, theta, moves=True)
            found, chains, x = self._interval(moved.chains, moved.theta)
            theta = moved.theta
            scale = scale if np.isfinite(scale) and scale > 0 else self._length(theta, found)
            ending = self._judged(rounds, theta, found, scale)
            if ending is not Ending.INNER_FAILED:
                good = theta, x, found
        return self._result(good, ending, rounds)

    @property
    def seconds(self) -> float:
        """Time since the start."""
        return time.perf_counter() - self.begun

    def _advance(self, chains: Chain, theta: PyTree, *, moves: bool) -> Any:
        region, part = self.region, self.region.layout.part
        plan = Plan(
            jnp.asarray(self.count),
            jnp.asarray(moves),
            part(region.lower),
            part(region.upper),
            region.projection,
        )
        sizes = Sizes(self.limits.steps, self.batch)
        result = run_compiled(self.posed, self.method, chains, theta, plan, sizes)
        members = jax.tree.leaves(chains.x)[0].shape[0]
        self.samples += members * self.limits.steps * self.method.batches * self.batch
        self.count += self.limits.steps if moves else 0
        return result

    def _interval(self, chains: Chain, theta: PyTree) -> tuple[Interval, Chain, PyTree]:
        """Let theta stand still until the chains have settled, and measure."""
        before: Measured | None = None
        vectors = jax.vmap(tree.to_vector)
        for window in range(MAX_WINDOWS):
            moved = self._advance(chains, theta, moves=False)
            chains = moved.chains
            found = measure_compiled(self.posed, moved.x, moved.adjoint, theta)
            members = len(found.values)
            self.samples += members * self.posed.samples[0]
            rows = np.asarray(vectors(found.gradients))
            gradient, half = student(rows)
            settled = False
            if before is not None:
                drift, noise = student(rows - np.asarray(vectors(before.gradients)))
                settled = bool(np.linalg.norm(drift) <= np.linalg.norm(noise) + rounding(rows))
            last = window == MAX_WINDOWS - 1 or not np.all(np.isfinite(gradient))
            if settled or last:
                value, spread = student(np.asarray(found.values)[:, None])
                interval = Interval(gradient, half, float(value[0]), float(spread[0]), settled)
                return interval, chains, jax.tree.map(lambda v: jnp.mean(v, axis=0), moved.x)
            before = found
        raise AssertionError("the last window returns")

    def _length(self, theta: PyTree, found: Interval) -> float:
        vector = self.region.layout.vector(eqx.filter(theta, eqx.is_inexact_array))
        if not np.all(np.isfinite(found.gradient)):
            return float("nan")
        return float(np.linalg.norm(self.region.stationarity(vector, found.gradient)))

    def _judged(self, row: int, theta: PyTree, found: Interval, scale: float) -> Ending | None:
        """Record a round, and decide how the run goes on."""
        length, ending = self._length(theta, found), None
        covers = length <= found.radius
        verdict, batch = "moved" if row else "start", self.batch
        tolerance = self.limits.rtol * scale
        if not (np.isfinite(length) and np.isfinite(found.value)):
            verdict, ending = "failed", Ending.INNER_FAILED
        elif length <= tolerance and found.radius <= tolerance:
            verdict, ending = "stationary", Ending.STATIONARY
        elif covers and self.batch >= self.posed.samples[0]:
            verdict, ending = "at the precision", Ending.AT_PRECISION
        elif covers:
            verdict = "the interval covers zero: the batch grows"
            self.batch = min(GROWTH * self.batch, self.posed.samples[0])
        vector = self.region.layout.vector(eqx.filter(theta, eqx.is_inexact_array))
        self.log.add(
            iteration=row,
            value=found.value,
            value_half_width=found.value_half_width,
            gradient_norm=length,
            radius=found.radius,
            settled=found.settled,
            batch=batch,
            samples=self.samples,
            seconds=self.seconds,
            theta=vector,
            gradient=found.gradient,
            half_width=found.half_width,
        )
        self.log.judge(-1, verdict, accepted=ending is not Ending.INNER_FAILED)
        return ending

    def _result(self, good: tuple, ending: Ending, rounds: int) -> StochasticMinimized:
        theta, x, found = good
        part = self.region.layout.part
        return StochasticMinimized(
            theta=theta,
            x=x,
            value=found.value,
            value_half_width=found.value_half_width,
            gradient=part(found.gradient),
            half_width=part(found.half_width),
            settled=found.settled,
            status=ending,
            message=MESSAGES.get(ending, ending.advice),
            rounds=rounds,
            samples=self.samples,
            batch=self.batch,
            seconds=self.seconds,
            log=self.log,
        )
