r"""Hypergradients without Hessians: differences of nudged inner problems.

With the inner objective G and the outer loss F, let :math:`x_\beta` minimise
:math:`G + \beta F`, and :math:`V(\beta)` be the minimum. Then

.. math::

    F(x^*) = V'(0), \qquad
    \frac{d F(x^*)}{d\theta} = \frac{d}{d\beta}
    \frac{\partial (G + \beta F)}{\partial \theta}(x_\beta) \Big|_{\beta = 0},

so that central differences in :math:`\beta` need first derivatives only. Three of them, with
nudges :math:`\beta, 2\beta, 4\beta`, extrapolate to the fourth order and show how wrong that is.
What the inner solver leaves is estimated by solving on.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, PyTree

from iterdiff.accuracy.reasons import FLOOR, NO_VALUE, NOT_SECOND_ORDER, OK
from iterdiff.algorithms.base import Algorithm
from iterdiff.bilevel.examine import Examined
from iterdiff.bilevel.inner_run import (
    ENDED_ACCURATE,
    ENDED_EXHAUSTED,
    ENDED_FAILED,
    ENDED_REJECTED,
    ENDED_STANDSTILL,
    Accuracy,
    Found,
    InnerState,
)
from iterdiff.bilevel.nudges import NUDGES, Levels, Objective, called, descended, levels_of
from iterdiff.jaxtools import tree
from iterdiff.jaxtools.snapshot import Snapshot
from iterdiff.jaxtools.tree import floating_part
from iterdiff.modes.implicit import Implicit
from iterdiff.problems.functions import bind
from iterdiff.problems.problem import Minimization

FIRST_NUDGE = 0.02
"""The first smallest nudge: the weight of the outer loss beside the inner objective."""

LEAST_NUDGE = 1e-9
"""A run that fails with shorter nudges than this has failed for another reason."""

FIRST_PRECISION = 0.03
"""The first tolerance of an inner gradient, relative to what the smallest nudge adds to it."""

SHORTER, TIGHTER = 0.25, 0.1
"""Factors of the nudge, and of the tolerance, where one of them limits the accuracy."""

LEAST_ORDER_RATIO, GREATEST_ORDER_RATIO = 2.5, 6.0
"""Differences of second order shrink by a factor in this range when the nudge is halved; 4 in the
limit. Elsewhere the nudges are too long to extrapolate, or noise dominates."""

EXTRAPOLATED = 1 / 8
"""The extrapolated difference is wrong by at most this part of its last change; 1/15 in the
limit."""

MAX_ROUNDS = 24
"""Most times that nudge or tolerance change in one evaluation."""


class NudgedState(NamedTuple):
    """Where a nudged run stands.

    Attributes
    ----------
    xs : pytree
        The minimisers, one for each of `NUDGES` along a leading axis.
    nudge, precision : scalar
        As `FIRST_NUDGE` and `FIRST_PRECISION`.
    adjoint : pytree
        The difference quotient of the minimisers.
    """

    xs: PyTree
    nudge: Float[Array, ""]
    precision: Float[Array, ""]
    adjoint: PyTree


RunState = InnerState | NudgedState
"""Where an inner run stands, of either kind."""


class Nudged(eqx.Module):
    """What is solved inside and minimised outside, by first derivatives.

    Attributes
    ----------
    problem : Minimization
    algorithm : Algorithm or callable
        A callable ``solver(fun, x0, tol)`` returns the minimiser, or a SciPy result.
    loss, args, mode, taken
        As in `Posed`; the mode is not used.
    """

    problem: Minimization
    algorithm: Any
    loss: Callable
    args: PyTree
    mode: Implicit
    taken: Snapshot

    @property
    def batched(self) -> bool:
        """False: a batch has no nudges of its own."""
        return False

    @property
    def members(self) -> int:
        """How many inner problems are nudged."""
        return len(NUDGES)

    def first(self) -> "Nudged":
        """Return itself: there is no batch."""
        return self

    def bound(self) -> tuple[Minimization, Callable]:
        """Return the problem and the loss with their data."""
        if self.args is None:
            return self.problem, self.loss
        problem = Minimization(bind(self.problem.objective, 2, self.args))
        return problem, bind(self.loss, 2, self.args)

    def objective(self, nudge: Any) -> Objective:
        """Return the nudged objective."""
        problem, loss = self.bound()
        return Objective(problem.objective, loss, nudge)

    def start(self, x0: PyTree, theta: PyTree) -> NudgedState:
        """Return the state of a run that has not begun."""
        del theta
        dtype = tree.result_dtype(x0)
        xs = jax.tree.map(lambda v: jnp.broadcast_to(v, (len(NUDGES), *v.shape)), x0)
        nudge, precision = (jnp.asarray(v, dtype) for v in (FIRST_NUDGE, FIRST_PRECISION))
        return NudgedState(xs, nudge, precision, tree.zeros_like(x0))

    def go_on(self, theta: PyTree, state: Any, same: Bool[Array, ""], accuracy: Accuracy) -> Found:
        """Solve on, and shorten the nudges, until the hypergradient is accurate."""
        del same  # minimisers carry no memory that belongs to one theta
        return _Evaluation(self, theta, state, accuracy).found()


class _Numbers(NamedTuple):
    """Gradient and value by extrapolation, with their errors."""

    gradient: np.ndarray
    corrected: np.ndarray
    bias: float
    ratio: float
    value: float
    value_change: float
    value_bias: float

    @classmethod
    def of(cls, levels: Levels) -> "_Numbers":
        rows, values = np.asarray(levels.gradients), np.asarray(levels.values)
        fine, coarse = (4 * rows[:-1] - rows[1:]) / 3
        fine_value, coarse_value = (4 * values[:-1] - values[1:]) / 3
        small = float(np.linalg.norm(rows[0] - rows[1]))
        large = float(np.linalg.norm(rows[1] - rows[2]))
        return cls(
            rows[0],
            fine,
            EXTRAPOLATED * float(np.linalg.norm(fine - coarse)),
            large / small if small else np.inf,
            float(values[0]),
            float(fine_value - values[0]),
            EXTRAPOLATED * float(abs(fine_value - coarse_value)),
        )

    @property
    def finite(self) -> bool:
        """Whether gradient, value and their errors are."""
        return bool(np.isfinite(self.bias + self.value + self.value_bias))

    @property
    def second_order(self) -> bool:
        """Whether the differences shrink as they should."""
        return LEAST_ORDER_RATIO <= self.ratio <= GREATEST_ORDER_RATIO


class _Evaluation:
    """One evaluation of a hypergradient, on the host."""

    def __init__(self, posed: Nudged, theta: PyTree, state: NudgedState, accuracy: Accuracy):
        self.posed, self.theta, self.accuracy = posed, theta, accuracy
        self.xs, self.adjoint = state.xs, state.adjoint
        self.nudge, self.precision = float(state.nudge), float(state.precision)
        self.steps = self.checks = 0
        self.dtype = tree.result_dtype(self.xs)
        self.still = False

    def found(self) -> Found:
        """Go on until the hypergradient is accurate, or cannot become so."""
        limit = int(self.accuracy.max_steps)
        before = change = spread = None
        ended = ENDED_EXHAUSTED
        for _ in range(MAX_ROUNDS):
            numbers = self._solved(self.precision)
            if not numbers.finite:
                if not self._restarted():
                    ended = ENDED_FAILED
                    break
                before = None
                continue
            if before is None:
                before = numbers
                self.precision *= TIGHTER
                continue
            change = float(np.linalg.norm(numbers.corrected - before.corrected))
            spread = abs(numbers.value + numbers.value_change - before.value - before.value_change)
            uncertainty = numbers.bias + change
            size = float(np.linalg.norm(numbers.corrected))
            target = float(self.accuracy.rtol) * max(size - uncertainty, 0.0)
            target += float(self.accuracy.atol)
            own = 0.0 if bool(self.accuracy.of_corrected) else self._error(numbers)
            slack = numbers.value_bias + spread
            above = numbers.value + numbers.value_change - 2 * slack
            if uncertainty + own <= target:
                ended = ENDED_ACCURATE
                break
            if above > float(self.accuracy.reject_above):
                ended = ENDED_REJECTED
                break
            if self.still and change >= numbers.bias:
                ended = ENDED_STANDSTILL
                break
            if self.steps >= limit:
                break
            if change < numbers.bias + own:
                self._shorten()
                before = None
            else:
                before = numbers
                self.precision *= TIGHTER
        self.precision /= TIGHTER
        return self._summary(numbers, change, spread, ended)

    def _solved(self, precision: float) -> _Numbers:
        posed, dtype = self.posed, self.dtype
        nudge = jnp.asarray(self.nudge, dtype)
        levels = levels_of(posed, self.xs, self.theta, nudge)
        tolerance = precision * self.nudge * float(levels.outer)
        if isinstance(posed.algorithm, Algorithm):
            limit = max(int(self.accuracy.max_steps) - self.steps, 1)
            solved = descended(
                posed,
                self.xs,
                self.theta,
                nudge,
                jnp.asarray(tolerance, dtype),
                jnp.asarray(limit, jnp.int32),
            )
        else:
            solved = called(posed, self.xs, self.theta, nudge, tolerance)
        self.xs, self.still = solved.xs, bool(solved.still)
        self.steps += int(solved.steps)
        self.checks += 1
        levels = levels_of(posed, self.xs, self.theta, nudge)
        self.adjoint = levels.adjoint
        with np.errstate(over="ignore", invalid="ignore"):  # of a run that diverges
            return _Numbers.of(levels)

    @staticmethod
    def _error(numbers: _Numbers) -> float:
        return float(np.linalg.norm(numbers.corrected - numbers.gradient))

    def _shorten(self) -> None:
        """Shorten the nudges; the minimisers move towards the middle by as much."""
        middle = len(NUDGES) // 2
        self.nudge *= SHORTER
        self.xs = jax.tree.map(lambda v: v[middle][None] + SHORTER * (v - v[middle][None]), self.xs)

    def _restarted(self) -> bool:
        """Shorten the nudges and start from the middle; False if that failed, too."""
        middle = len(NUDGES) // 2
        self.nudge *= SHORTER
        self.xs = jax.tree.map(lambda v: jnp.broadcast_to(v[middle], v.shape), self.xs)
        return bool(tree.all_finite(self.xs)) and self.nudge > LEAST_NUDGE

    def _summary(self, numbers: _Numbers, change: Any, spread: Any, ended: int) -> Found:
        part, _ = floating_part(self.theta)
        dtype = self.dtype
        change = np.inf if change is None else change
        uncertainty = numbers.bias + change
        trusted = numbers.second_order and uncertainty <= self._error(numbers) / 2
        reason = OK if trusted else (FLOOR if numbers.second_order else NOT_SECOND_ORDER)
        if ended == ENDED_FAILED:
            trusted, reason, uncertainty = False, NO_VALUE, np.inf
        centre = jax.tree.map(lambda v: v[len(NUDGES) // 2], self.xs)

        def number(value, kind=dtype):
            return jnp.asarray(value, kind)

        examined = Examined(
            x=centre,
            nearest=centre,
            improves=jnp.array(False),
            value=number(numbers.value),
            value_change=number(numbers.value_change),
            value_slack=number(numbers.value_bias + (np.inf if spread is None else spread)),
            gradient=tree.from_vector(jnp.asarray(numbers.gradient), part),
            corrected=tree.from_vector(jnp.asarray(numbers.corrected), part),
            uncertainty=number(uncertainty),
            trusted=jnp.asarray(bool(trusted)),
            reason_code=number(reason, jnp.int32),
            adjoint=self.adjoint,
            products=number(0.0),
        )
        state = NudgedState(self.xs, number(self.nudge), number(self.precision), self.adjoint)
        counts = number(self.steps, jnp.int32), number(self.checks, jnp.int32)
        return Found(examined, state, *counts, number(0.0), number(ended, jnp.int32))
