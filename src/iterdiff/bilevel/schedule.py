"""How many inner steps to take before the next check, from what a run has learned."""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from iterdiff.jaxtools.arguments import MAX_COUNT

FIRST_STEPS = 10
"""Steps before the first check of a run of which nothing is known."""

AIM = 0.5
"""A run aims at this fraction of the tolerance, so that a check rarely misses it."""

MAX_PREDICTED_FACTOR = 8
"""By a known rate, a run takes at most this many times as many steps as it has taken: early rates
are faster than those to come, so that predictions are too short rather than too long."""

MIN_PREDICTED_PART = 2
"""And at least this part of them, so that there are few checks, whatever is predicted."""


class Schedule(NamedTuple):
    """What a run has learned about its convergence.

    Attributes
    ----------
    log_rate : scalar
        Change of the error's logarithm in a step; zero if it is not known.
    start : scalar
        Logarithm of the relative error at the start of the last run, extrapolated backwards: what
        to expect at another theta.
    relative : scalar
        Upper bound of the gradient's error over its size, where the run stands; infinite if
        nothing is known.
    """

    log_rate: Float[Array, "*b"]
    start: Float[Array, "*b"]
    relative: Float[Array, "*b"]


def needed(schedule: Schedule, rtol: Float[Array, ""], steps: Int[Array, ""]) -> Int[Array, ""]:
    """Return how many steps to take before the next check, by the observed rate if there is one."""
    longest = jnp.maximum(steps, FIRST_STEPS)
    known = (schedule.log_rate < 0) & jnp.isfinite(schedule.relative)
    rate = jnp.where(known, schedule.log_rate, -1.0)
    change = jnp.log(AIM * rtol) - jnp.log(schedule.relative)
    predicted = jnp.clip(jnp.ceil(jnp.where(known, change / rate, 0.0)), 1, MAX_COUNT // 2)
    predicted = jnp.maximum(predicted.astype(jnp.int32), steps // MIN_PREDICTED_PART)
    limit = jnp.where(known, MAX_PREDICTED_FACTOR, 1) * longest
    return jnp.clip(jnp.where(known, predicted, longest), 1, limit)
