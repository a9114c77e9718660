"""Runs on accelerators, as far as their programs tell: no loop of a counted run depends on data.

Programs are cached, by shape among others, so those for an accelerator have more unknowns.
"""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import iterdiff as itd
from iterdiff.jaxtools import placement

PROBLEM = itd.Minimization(lambda x, theta: jnp.sum(theta * x**2 / 2 - x))
THETA = np.linspace(0.5, 1.5, 5)
EXTENDED = np.append(THETA, 1.0)
MANY = 2000
"""So many steps that the gradient does not keep all they compute."""


@pytest.fixture
def accelerator(monkeypatch):
    """Programs are made as for an accelerator."""
    monkeypatch.setattr(placement, "on_accelerator", lambda: True)


def run(theta, mode, steps):
    given, stop = (
        (PROBLEM, itd.GradientDescent(0.5), jnp.zeros_like(theta), theta),
        itd.Steps(steps),
    )
    return itd.solve(*given, stop=stop, mode=mode, throw=False)


def programs():
    """Return functions of theta: a run without a derivative, and gradients."""
    yield lambda theta: run(theta, itd.Implicit(), MANY)
    for mode in (itd.Unrolled(), itd.Unrolled(last=5)):
        yield jax.grad(lambda theta, mode=mode: jnp.sum(run(theta, mode, MANY).x))


def loops(function, theta) -> tuple[int, int]:
    """Return how many loops the program for a GPU has, and in how many the end depends on data."""
    lowered = jax.jit(function).trace(theta).lower(lowering_platforms=("cuda",))
    conditions = re.findall(r"cond \{(.*?)\} do \{", lowered.as_text(), re.DOTALL)
    counted = r"\s*(?P<end>%\S+) = stablehlo.constant dense<\d+> .*\s*"
    counted += r"%\S+ = stablehlo.compare +LT, %iterArg\S*, (?P=end),.*\s*stablehlo.return .*\s*"
    return len(conditions), sum(not re.fullmatch(counted, one) for one in conditions)


def test_loops_on_a_processor_end_by_data():
    assert any(loops(program, THETA)[1] > 0 for program in programs())


def test_loops_on_an_accelerator_have_known_lengths(accelerator):
    for program in programs():
        count, by_data = loops(program, EXTENDED)
        assert count > 0
        assert by_data == 0


def test_the_results_are_the_same(accelerator, monkeypatch):
    def everything(theta):
        total = lambda theta: jnp.sum(run(theta, itd.Unrolled(), MANY).x)  # noqa: E731
        return run(theta, itd.Implicit(), MANY), jax.grad(total)(theta)

    diverging = THETA + np.array([0, 0, 0, 0, 9.0])
    batch = np.stack([EXTENDED, np.append(diverging, 1.0)])
    masked, gradients = jax.jit(jax.vmap(everything))(batch)
    monkeypatch.undo()
    usual, expected = jax.jit(jax.vmap(everything))(batch[:, :5])
    np.testing.assert_allclose(masked.x[:, :5], usual.x, rtol=1e-12)
    np.testing.assert_allclose(gradients[:, :5], expected, rtol=1e-12)
    assert masked.status.tolist() == [itd.Status.STEPS_DONE, itd.Status.DIVERGED]
    np.testing.assert_array_equal(masked.steps, usual.steps)


def ruled(theta, algorithm, stop):
    # A function of its own, so that no program of another test is used again.
    problem = itd.Minimization(lambda x, theta: jnp.sum(theta * x**2 / 2 - x))
    return itd.solve(problem, algorithm, jnp.zeros_like(theta), theta, stop=stop, throw=False)


def test_a_rule_is_looked_at_once_in_several_small_steps(accelerator):
    stop = itd.ResidualBelow(1e-6, max_steps=MANY)
    small = lambda theta: ruled(theta, itd.GradientDescent(0.5), stop)  # noqa: E731
    assert loops(small, THETA) == (2, 1)


def test_a_step_that_factors_a_matrix_is_not_taken_in_vain(accelerator, monkeypatch):
    def newton(theta):
        return ruled(theta, itd.Newton(), itd.ResidualBelow(1e-6, max_steps=MANY))

    there = loops(newton, THETA)
    monkeypatch.undo()
    assert there == loops(newton, THETA)


def test_a_rule_stops_at_the_same_step(accelerator, monkeypatch):
    rates = jnp.array([0.5, 0.9, 0.05, 9.0])

    def run_of(stop):
        end = lambda rate: ruled(jnp.asarray(THETA), itd.GradientDescent(rate), stop)  # noqa: E731
        return jax.jit(jax.vmap(end))(rates)

    rules = itd.ResidualBelow(1e-6, max_steps=37), itd.ResidualBelow(1e-6, max_steps=MANY)
    masked = [run_of(rule) for rule in rules]
    monkeypatch.undo()
    for found, rule in zip(masked, rules, strict=True):
        usual = run_of(rule)
        np.testing.assert_array_equal(found.steps, usual.steps)
        np.testing.assert_array_equal(found.status, usual.status)
        np.testing.assert_allclose(found.x, usual.x, rtol=1e-12)
        assert len(set(found.status.tolist())) > 1


def test_the_default_device_decides():
    assert not placement.on_accelerator()
    with jax.default_device(jax.devices("cpu")[0]):
        assert not placement.on_accelerator()
