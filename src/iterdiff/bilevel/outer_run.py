"""Minimise an outer loss, and never step on a doubtful gradient.

A gradient counts if its error is certainly at most half its length, so that the step descends. A
step counts if the loss certainly decreases: the values' error bars are part of the test. Where
either is doubtful, the same inner run goes on. Errors are asked to be small only as far as a
decision needs it.
"""

import dataclasses
import time
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np

from iterdiff.bilevel.endings import Budget, Ending
from iterdiff.bilevel.gradients import accuracy_of
from iterdiff.bilevel.history import MAX_RECORDED_PARAMETERS, Log
from iterdiff.bilevel.inner_run import (
    ENDED_EXHAUSTED,
    ENDED_STANDSTILL,
    Posed,
)
from iterdiff.bilevel.methods import Lesson, Method
from iterdiff.bilevel.nudged import Nudged, RunState
from iterdiff.bilevel.outer_state import Point, Progress, Verdict
from iterdiff.bilevel.regions import Region, Vector

MAX_ERROR_SHARE = 0.5
"""A step needs a gradient whose error is at most this fraction of its length: the angle to the true
gradient is then at most 30 degrees."""

DECREASE_SHARE = 1e-4
"""Least decrease of a step, as a fraction of the decrease that the gradient predicts."""

FIRST_ACCURACY, MAX_ACCURACY = 0.1, 0.3
"""Relative accuracy of the gradient that is asked for at the start, and after many successes."""

RELAXED, TIGHTENED = 2.0, 0.25
"""Factors of the accuracy after a step that was decided at once, and when a decision is open."""

MAX_ROUNDS = 30
"""Most trial steps of an iteration, and most times that an inner run goes on for one decision."""

MIN_SHRINK, MAX_SHRINK = 0.1, 0.5
"""Range of the factor between two trial steps."""

TRIAL_LEAST_STEPS = 1000
"""A trial step may cost as many inner steps as the whole run before it, and at least this many:
where the inner problem is so much harder, a shorter step is tried first."""

GROWTH_AFTER_REFUSAL = 2.0
"""After an iteration that refused a step, the next one tries at most this many times the step that
was accepted."""

AT_ONE_POINT_ROUNDINGS = 4
"""A step shorter than this many roundings of theta is no step."""


@dataclasses.dataclass
class Outer:
    """An outer run.

    Attributes
    ----------
    posed, region, method
        What is minimised, where, and how.
    rtol : float
        The tolerance of the projected gradient, relative to the start.
    max_steps : int
        The most inner steps for one evaluation.
    budget : Budget
    max_outer : int
    log : Log
    """

    posed: Posed | Nudged
    region: Region
    method: Method
    rtol: float
    max_steps: int
    budget: Budget
    max_outer: int
    log: Log
    gradients: int = 0
    iteration: int = 0
    begun: float = dataclasses.field(default_factory=time.perf_counter)

    def run(self, progress: Progress, after: Callable[[Progress], None]) -> tuple[Progress, Ending]:
        """Iterate until the run ends; `after` is called after each iteration."""
        self.gradients = progress.gradients
        self.begun = time.perf_counter() - progress.seconds
        if progress.ended >= 0:
            return progress, Ending(progress.ended)
        while True:
            self.iteration = progress.iteration
            if progress.iteration and self.budget.spent(self.gradients, self.seconds):
                return progress, Ending.BUDGET_SPENT
            progress, ending = self._iterate(progress)
            progress = progress._replace(gradients=self.gradients, seconds=self.seconds)
            if ending not in (None, Ending.MAX_OUTER_REACHED, Ending.BUDGET_SPENT):
                progress = progress._replace(ended=int(ending))
            after(progress)
            if ending is not None:
                return progress, ending

    @property
    def seconds(self) -> float:
        """Time since the start, runs before a resumption included."""
        return time.perf_counter() - self.begun

    def evaluate(
        self,
        vector: Vector,
        inner: RunState,
        accuracy: float,
        *,
        same: bool = False,
        reject_above: float = np.inf,
        step: float = 0.0,
        max_steps: int | None = None,
    ) -> Point:
        """Let the inner run go on at `vector`, and record what it finds."""
        if self.posed.batched:  # a member's value tells nothing about their mean
            reject_above = np.inf
        asked = accuracy_of(
            inner.adjoint,
            accuracy,
            max_steps or self.max_steps,
            of_corrected=True,
            reject_above=reject_above,
        )
        theta = self.region.layout.theta(vector)
        found = self.posed.go_on(theta, inner, jnp.array(same), asked)
        point = Point.of(found, vector, accuracy, self.region.layout)
        gradients = int(np.sum(np.asarray(found.gradients)))
        self.gradients += gradients
        self.log.add(
            iteration=self.iteration,
            value=point.value,
            value_error=point.value_error,
            gradient_norm=self.stationarity(point),
            gradient_error=point.error,
            gradient_uncertainty=point.uncertainty,
            trusted=point.trusted,
            accuracy=accuracy,
            step=step,
            steps=int(jnp.sum(found.steps)),
            checks=int(jnp.sum(found.checks)),
            gradients=gradients,
            products=float(jnp.sum(found.products)),
            seconds=self.seconds,
            **self._vectors(point),
        )
        return point

    def _vectors(self, point: Point) -> dict[str, Vector]:
        if point.vector.size > MAX_RECORDED_PARAMETERS:
            return {}
        return {"theta": point.vector, "gradient": point.gradient}

    def stationarity(self, point: Point) -> float:
        """Return the length of the projected gradient."""
        if not np.all(np.isfinite(point.direction)):
            return float("nan")
        return float(np.linalg.norm(self.region.stationarity(point.vector, point.direction)))

    def refine(self, point: Point, factor: float) -> Point:
        """Let the inner run of a point go on, to an error smaller by `factor`."""
        length = max(float(np.linalg.norm(point.direction)), np.finfo(float).tiny)
        reached = min(point.accuracy, point.uncertainty / length)
        better = self.evaluate(point.vector, point.inner, reached * factor, same=True)
        self.log.judge(-1, "inner run went on")
        return better

    def _iterate(self, progress: Progress) -> tuple[Progress, Ending | None]:
        progress, ending = self._gate(progress)
        if ending is None and progress.iteration >= self.max_outer:
            ending = Ending.MAX_OUTER_REACHED
        if ending is not None:
            return progress, ending
        progress, ending = self._search(progress) if self.method.searches else self._take(progress)
        return progress._replace(iteration=progress.iteration + 1), ending

    def _gate(self, progress: Progress) -> tuple[Progress, Ending | None]:
        """Make the gradient accurate enough for a step, or tell why the run ends."""
        for _ in range(MAX_ROUNDS):
            point = progress.point
            if point.failed:
                return progress, Ending.INNER_FAILED
            length = self.stationarity(point)
            reliable = point.noise <= MAX_ERROR_SHARE * length
            if not progress.scale and reliable:
                progress = progress._replace(scale=length)
            tolerance = self.rtol * progress.scale
            if length <= tolerance and point.noise <= tolerance:
                return progress, Ending.AT_KINK if point.one_sided else Ending.STATIONARY
            if reliable:
                return progress, None
            if point.ended == ENDED_EXHAUSTED:
                return progress, Ending.INNER_INACCURATE
            if point.ended == ENDED_STANDSTILL:
                known = np.isfinite(point.uncertainty)
                return progress, Ending.AT_PRECISION if known else Ending.INNER_INACCURATE
            wanted = max(MAX_ERROR_SHARE * length, tolerance) / 2
            known = np.isfinite(point.uncertainty) and point.uncertainty > 0
            factor = wanted / point.uncertainty if known else MIN_SHRINK
            progress = progress._replace(point=self.refine(point, min(factor, MAX_SHRINK)))
        return progress, Ending.INNER_INACCURATE

    def _search(self, progress: Progress) -> tuple[Progress, Ending | None]:
        """Make a step that certainly decreases the loss, or tell why there is none."""
        point = progress.point
        displacement, memory = self.method.propose(
            progress.memory, point.vector, point.direction, self.region
        )
        progress = progress._replace(memory=memory)
        displacement = _limited(displacement, progress.longest)
        refused = False
        for _ in range(MAX_ROUNDS):
            candidate = self.region.project(point.vector + displacement)
            moved = candidate - point.vector
            length, predicted = float(np.linalg.norm(moved)), -float(point.direction @ moved)
            if length <= _shortest(point.vector):
                break
            if predicted <= 0:  # the projection of a quasi-Newton step may ascend
                displacement = MAX_SHRINK * displacement
                continue
            above = point.value + point.bar - DECREASE_SHARE * predicted
            limit = max(TRIAL_LEAST_STEPS, self.gradients // self.posed.members)
            limit = min(limit, self.max_steps)
            trial = self.evaluate(
                candidate,
                point.inner,
                progress.accuracy,
                reject_above=above,
                step=length,
                max_steps=limit,
            )
            trial, point, verdict = self._decide(trial, point, predicted)
            progress = progress._replace(point=point)
            if verdict.accepted:
                longest = GROWTH_AFTER_REFUSAL * length if refused else np.inf
                progress = progress._replace(longest=longest)
                return self._moved(progress, trial, verdict), None
            if point.failed:
                return progress, Ending.INNER_FAILED
            exhausted = ENDED_EXHAUSTED in (trial.ended, point.ended)
            if verdict.open and not (exhausted and limit < self.max_steps):
                return progress, Ending.INNER_INACCURATE if exhausted else Ending.AT_PRECISION
            refused = True
            displacement = _shrink(predicted, trial.value - point.value) * moved
        return progress, Ending.AT_KINK if point.one_sided else Ending.NO_DECREASE

    def _decide(self, trial: Point, point: Point, predicted: float) -> tuple[Point, Point, Verdict]:
        """Let inner runs go on until it is certain whether the loss decreases."""
        row, least = len(self.log.rows) - 1, DECREASE_SHARE * predicted
        rounds = 0
        while True:
            bars = trial.bar + point.bar
            rise = trial.value - point.value + least
            if point.failed:  # which it was not before its run went on
                verdict = Verdict(
                    "refused: the inner run failed at the last theta", rounds, open=True
                )
            elif trial.failed:
                verdict = Verdict("refused: the inner run failed", rounds)
            elif rise + bars <= 0:
                text = "accepted: one-sided" if point.one_sided else "accepted"
                verdict = Verdict(text, rounds, accepted=True)
            elif rise - bars > 0:
                verdict = Verdict("refused: no decrease", rounds)
            elif rounds >= MAX_ROUNDS or any(
                one.final and one.bar >= abs(rise) for one in (trial, point)
            ):  # a smaller bar of the other would not decide
                verdict = Verdict("refused: the error bars overlap", rounds, open=True)
            else:
                rounds += 1  # the bars are of second order in the gradient's error
                factor = float(np.clip(np.sqrt(abs(rise) / (2 * bars)), TIGHTENED / 8, TIGHTENED))
                if not trial.final and (point.final or trial.bar >= point.bar):
                    trial = self.refine(trial, factor)
                else:
                    point = self.refine(point, factor)
                continue
            self.log.judge(row, verdict.text, accepted=verdict.accepted)
            return trial, point, verdict

    def _moved(self, progress: Progress, trial: Point, verdict: Verdict) -> Progress:
        """Return the progress after an accepted step."""
        point = progress.point
        lesson = Lesson(
            trial.vector - point.vector,
            trial.direction - point.direction,
            trial.noise + point.noise,
        )
        known = np.isfinite(lesson.noise)
        factor = TIGHTENED if verdict.rounds else RELAXED
        return progress._replace(
            point=trial,
            memory=self.method.learn(progress.memory, lesson) if known else progress.memory,
            accuracy=min(factor * progress.accuracy, MAX_ACCURACY),
        )

    def _take(self, progress: Progress) -> tuple[Progress, Ending | None]:
        """Take the method's step, on a gradient that is accurate enough."""
        point = progress.point
        displacement, memory = self.method.propose(
            progress.memory, point.vector, point.direction, self.region
        )
        candidate = self.region.project(point.vector + displacement)
        length = float(np.linalg.norm(candidate - point.vector))
        trial = self.evaluate(candidate, point.inner, progress.accuracy, step=length)
        row = len(self.log.rows) - 1
        after, ending = self._gate(progress._replace(point=trial, memory=memory))
        if ending is not None and ending.failed:
            self.log.judge(row, "refused: the inner run failed, or is not accurate")
            return progress, ending
        self.log.judge(row, "accepted", accepted=True)
        return after, None


def _shortest(vector: Vector) -> float:
    """Return the length of a step that rounding swallows."""
    eps = float(np.finfo(vector.dtype).eps)
    return AT_ONE_POINT_ROUNDINGS * eps * float(np.linalg.norm(vector))


def _limited(displacement: Vector, longest: float) -> Vector:
    """Return the displacement, shortened to `longest` if it is longer."""
    length = float(np.linalg.norm(displacement))
    return displacement * (longest / length) if length > longest else displacement


def _shrink(predicted: float, rise: Any) -> float:
    """Return the factor of the next trial step: to the minimum of a parabola, within limits."""
    if not np.isfinite(rise) or predicted + rise <= 0:
        return MIN_SHRINK
    return float(np.clip(predicted / (2 * (predicted + rise)), MIN_SHRINK, MAX_SHRINK))
