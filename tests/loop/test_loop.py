"""The loop: how runs end, what they cost, and what the reverse sweep keeps."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import iterdiff as itd
from tests.helpers import AS_SHIPPED, compiled

MODES = {
    "unrolled": itd.Unrolled(),
    "sqrt": itd.Unrolled(checkpoint="sqrt"),
    "last": itd.Unrolled(last=2),
    "implicit": itd.Implicit(),
}
each_mode = pytest.mark.parametrize("mode", MODES.values(), ids=MODES)

HALVING = itd.FixedPoint(lambda x, theta: x / 2 + theta)  # the residual halves with every step
SQUARING = itd.FixedPoint(lambda x, theta: theta * x**2)  # 2, 4, 16, 256, ...: overflows


def halve(stop, mode=None, throw=True, theta=1.0):
    return itd.solve(HALVING, itd.Picard(), 0.0, theta, stop=stop, mode=mode, throw=throw)


# How a run ends


@each_mode
def test_converged(mode):
    # the residual at x_t is 2^-t theta: 2^-10 < 1e-3 < 2^-9
    solution = halve(itd.ResidualBelow(rtol=1e-3, max_steps=40), mode)
    assert solution.status == itd.Status.CONVERGED
    assert solution.steps == 10
    assert solution.residual_norm == 2.0**-10
    assert solution.x == 2 - 2.0**-9
    assert solution.message == itd.Status.CONVERGED.advice


@each_mode
def test_steps_done(mode):
    solution = halve(itd.Steps(5), mode)
    assert solution.status == itd.Status.STEPS_DONE
    assert solution.steps == 5
    assert solution.x == 2 - 2.0**-4


@each_mode
def test_the_last_step_may_satisfy_the_rule(mode):
    assert halve(itd.ResidualBelow(1e-3, max_steps=10), mode).status == itd.Status.CONVERGED


@each_mode
def test_max_steps(mode):
    stop = itd.ResidualBelow(1e-3, max_steps=9)
    solution = halve(stop, mode, throw=False)
    assert solution.status == itd.Status.MAX_STEPS_REACHED
    assert solution.steps == 9
    assert solution.x == 2 - 2.0**-8
    with pytest.raises(RuntimeError, match="`max_steps`"):
        halve(stop, mode)


@each_mode
def test_a_start_that_will_do_takes_no_step(mode):
    stop = itd.ResidualBelow(rtol=0.0, atol=1.0, max_steps=5)
    solution = itd.solve(HALVING, itd.Picard(), 2.0, 1.0, stop=stop, mode=mode)
    assert solution.steps == 0
    assert solution.status == itd.Status.CONVERGED
    assert solution.x == 2.0


@pytest.mark.parametrize("stop", [itd.Steps(20), itd.ResidualBelow(1e-9, max_steps=20)])
@each_mode
def test_divergence_ends_where_it_happens(mode, stop):
    # x_t = 2^(2^t) is finite up to t = 9 in float64
    solution = itd.solve(SQUARING, itd.Picard(), 2.0, 1.0, stop=stop, mode=mode, throw=False)
    assert solution.status == itd.Status.DIVERGED
    assert solution.steps == 9
    assert solution.x == 2.0**512
    with pytest.raises(RuntimeError, match="not finite"):
        itd.solve(SQUARING, itd.Picard(), 2.0, 1.0, stop=stop, mode=mode)


@pytest.mark.parametrize("stop", [itd.Steps(20), itd.ResidualBelow(1e-9, max_steps=20)])
def test_the_derivative_of_a_diverged_run_is_right_or_nan(stop):
    # x_t = theta^(2^t - 1) 2^(2^t), so that dx_9/dtheta = 511 * 2^512 at theta = 1
    def final(theta):
        task = (SQUARING, itd.Picard(), 2.0, theta)
        return itd.solve(*task, stop=stop, mode=itd.Unrolled(), throw=False).x

    found = np.array(compiled(lambda t: (jax.jacfwd(final)(t), jax.grad(final)(t)))(1.0))
    right = np.abs(found / (511 * 2.0**512) - 1) < 1e-13
    assert np.all(right | np.isnan(found))


@pytest.mark.parametrize("where", ["data", "theta"])
@each_mode
def test_not_finite_at_the_start(mode, where):
    offset = jnp.nan if where == "data" else 0.0
    problem = itd.FixedPoint(lambda x, theta: x / 2 + jnp.log(theta) + offset)
    theta = 1.0 if where == "data" else -1.0
    task, stop = (problem, itd.Picard(), 1.0, theta), itd.Steps(5)
    solution = itd.solve(*task, stop=stop, mode=mode, throw=False)
    assert solution.status == itd.Status.NOT_FINITE_AT_START
    assert solution.steps == 0
    assert solution.x == 1.0
    with pytest.raises(RuntimeError, match="`x0`"):
        itd.solve(*task, stop=stop, mode=mode)


def test_statuses_are_sentences_that_say_what_to_do():
    good = {itd.Status.CONVERGED, itd.Status.STEPS_DONE}
    assert all(status.failed == (status not in good) for status in itd.Status)
    for status in itd.Status:
        assert itd.Status(int(status)).advice.endswith(".")


def test_a_batch_keeps_a_status_for_each_member():
    @compiled
    @jax.vmap
    def run(x0):
        stop = itd.ResidualBelow(1e-9, max_steps=20)
        solution = itd.solve(SQUARING, itd.Picard(), x0, 1.0, stop=stop, throw=False)
        return solution.status, solution.steps

    # 2^-(2^5) < 1e-9 / 4; overflow after 9 steps; too slow a start
    status, steps = run(jnp.array([0.5, 2.0, 1 - 1e-8]))
    expected = [itd.Status.CONVERGED, itd.Status.DIVERGED, itd.Status.MAX_STEPS_REACHED]
    assert status.tolist() == expected
    assert steps.tolist() == [5, 9, 20]


# What a run costs


@each_mode
def test_no_second_trace_for_other_numbers(mode):
    traced = []

    def update(x, theta):
        traced.append(1)
        return theta * jnp.cos(x)

    problem, stop = itd.FixedPoint(update), itd.Steps(7)

    def slope(x0, theta, damping):
        def final(theta):
            return itd.solve(problem, itd.Picard(damping), x0, theta, stop=stop, mode=mode).x

        return final(theta), jax.grad(final)(theta)

    slope(jnp.array(0.2), jnp.array(0.5), 1.0)
    first = len(traced)
    assert first > 0
    slope(jnp.array(0.3), jnp.array(0.6), 0.9)
    # what is left are the checks of the arguments: one abstract call for each of two solves
    assert len(traced) - first <= 2


def count_updates(stop, mode, differentiate=False) -> int:
    """Return how often the update is really computed."""
    calls = []

    def update(x, theta):
        jax.debug.callback(lambda: calls.append(1))
        return x / 2 + theta

    def final(theta):
        return itd.solve(itd.FixedPoint(update), itd.Picard(), 0.0, theta, stop=stop, mode=mode).x

    jax.block_until_ready((jax.grad(final) if differentiate else final)(1.0))
    jax.effects_barrier()
    return len(calls)


def test_a_run_evaluates_each_step_once():
    # one update a step, and one residual at the end
    assert count_updates(itd.Steps(7), itd.Implicit()) == 8
    assert count_updates(itd.Steps(7), itd.Unrolled()) == 8


def test_an_adaptive_run_stops_evaluating():
    # 2^-10 < 1e-3: eleven rounds of one look and one step (the last is discarded), a look at the
    # start, one at the end, and the residual that is reported; not 400 of them
    stop = itd.ResidualBelow(1e-3, max_steps=400)
    assert 10 <= count_updates(stop, itd.Implicit()) <= 2 * 11 + 3
    # the differentiable loop works in blocks of 32
    assert 10 <= count_updates(stop, itd.Unrolled()) <= 2 * 32 + 3


# What the reverse sweep keeps

SIZE = 2000


def reverse_memory(steps: int, checkpoint: str = "iterates", work: int = 10, stop=None) -> int:
    """Return the temporary memory of a gradient, in iterates."""

    def update(x, theta):
        y = x
        for _ in range(work):
            y = jnp.sin(y) * theta + jnp.cos(y)
        return 0.1 * y

    def loss(theta):
        task = (itd.FixedPoint(update), itd.Picard(), jnp.zeros(SIZE), theta)
        rule = stop or itd.Steps(steps)
        mode = itd.Unrolled(checkpoint=checkpoint)
        return jnp.sum(itd.solve(*task, stop=rule, mode=mode, throw=False).x)

    program = jax.jit(jax.grad(loss)).lower(jnp.array(0.5)).compile(AS_SHIPPED)
    return program.memory_analysis().temp_size_in_bytes / (8 * SIZE)


def test_memory_is_the_iterates_whatever_a_step_computes():
    light, heavy, longer = (
        reverse_memory(64, work=2),
        reverse_memory(64, work=12),
        reverse_memory(128, work=12),
    )
    assert 64 <= light <= heavy  # the iterates, else nothing is measured
    assert longer - heavy <= 64 + 2  # one iterate a step
    # what one step computes is kept once, whatever the number of steps
    assert heavy - light <= 4 * 12
    assert heavy <= 64 + 4 * 12


def test_without_checkpoints_all_is_kept():
    # what the policies are measured against: it grows by what a step computes
    grown = reverse_memory(64, "none") - reverse_memory(32, "none")
    assert grown >= 32 * 10


def test_sqrt_keeps_the_starts_of_blocks_and_one_block():
    # T / 32 starts: 8 and 32; and 32 steps' intermediate values once
    few, many = reverse_memory(256, "sqrt"), reverse_memory(1024, "sqrt")
    assert many - few <= 1.2 * (32 - 8)
    one_block = reverse_memory(32, "none")
    assert few <= 1.2 * one_block + 8


def test_sqrt_grows_like_the_square_root_of_very_many_steps():
    # above 1024 blocks of 32 they are grouped once more: 16 times the steps, 4 times the starts
    many, more = (reverse_memory(32 * 1024 * k, "sqrt", work=1) for k in (4, 64))
    assert more - many <= 1.2 * (2 * 256 - 2 * 64)


def test_a_rule_costs_what_sqrt_costs():
    kept = reverse_memory(0, stop=itd.ResidualBelow(1e-9, max_steps=1024))
    assert kept <= 1.1 * reverse_memory(1024, "sqrt") + 4


def test_log_needs_less_than_sqrt():
    many = 22**3
    assert reverse_memory(many, "log") < 0.6 * reverse_memory(many, "sqrt")
    assert reverse_memory(many, "log") <= 3 * 22 + 4 * 10
