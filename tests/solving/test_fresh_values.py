"""What a problem's functions read between two calls counts at each call."""

import gc
import weakref
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import iterdiff as itd

STOP = itd.ResidualBelow(rtol=1e-10, max_steps=100)
X0, ONES = jnp.zeros(2), jnp.ones(2)


class Box:
    """A scale and data that a problem's function reads."""

    def __init__(self):
        self.scale, self.data = 1.0, np.ones(2)
        self.problem = itd.Minimization(
            lambda x, theta: jnp.sum((x - self.scale * self.data * theta) ** 2)
        )

    def solved(self, theta=ONES, mode=None):
        """Return the solution, ``scale * data * theta``."""
        return itd.solve(self.problem, itd.GradientDescent(0.4), X0, theta, stop=STOP, mode=mode).x

    @property
    def factor(self):
        """The derivative."""
        return self.scale * self.data


@pytest.fixture
def box():
    """Return a problem with values that change."""
    return Box()


def changes(box):
    """Yield after each kind of change."""
    yield
    box.scale = 2.0
    yield
    box.data[:] = [5.0, 7.0]
    yield
    box.data = np.array([1.0, -1.0])
    yield


@pytest.mark.parametrize("mode", [itd.Implicit(), itd.Unrolled()], ids=["implicit", "unrolled"])
def test_value_and_gradient_are_of_the_present_function(box, mode):
    loss = jax.value_and_grad(lambda theta: jnp.sum(box.solved(theta, mode)))
    for _ in changes(box):
        value, gradient = loss(ONES)
        np.testing.assert_allclose(value, np.sum(box.factor), rtol=1e-8)
        np.testing.assert_allclose(gradient, box.factor, rtol=1e-8)


def test_two_programs_of_ones_own_each_see_the_value_at_their_trace(box):
    first = jax.jit(box.solved)
    first(ONES)
    box.scale = 3.0
    np.testing.assert_allclose(jax.jit(lambda theta: box.solved(theta))(ONES), 3.0, rtol=1e-8)


def test_a_wrapped_solver_and_its_derivative_agree(box):
    solver = itd.implicit(box.problem)(lambda x0, theta: box.factor * np.asarray(theta))
    loss = jax.value_and_grad(lambda theta: jnp.sum(solver(X0, theta)))
    for _ in changes(box):
        value, gradient = loss(ONES)
        np.testing.assert_allclose(value, np.sum(box.factor))
        np.testing.assert_allclose(gradient, box.factor, rtol=1e-12)


def test_diagnostics_are_of_the_present_function(box):
    run = (box.problem, itd.GradientDescent(0.4), X0, ONES)
    for _ in changes(box):
        data = itd.trace(*run, steps=2, modes={"implicit": itd.Implicit()})
        np.testing.assert_allclose(data.iterate_error[0], np.linalg.norm(box.factor))
        exact = jnp.diag(jnp.asarray(box.factor))
        error = itd.derivative_error(box.problem, jnp.asarray(box.factor), ONES, exact)
        assert error.absolute < 1e-12


def test_an_algorithm_of_ones_own_may_change_too(box):
    class Descent(itd.extend.StatelessAlgorithm):
        accepts: ClassVar = (itd.Minimization,)

        def step(self, problem, state, theta):
            gradient = problem.residual(state.x, theta)
            return itd.Iterate(state.x - box.scale * gradient)

    for rate in (0.25, 0.5):
        box.scale = rate
        problem = itd.Minimization(lambda x, theta: jnp.sum((x - theta) ** 2))
        x = itd.solve(problem, Descent(), X0, ONES, stop=itd.Steps(1)).x
        np.testing.assert_allclose(x, 2 * rate)


def test_a_schedule_of_optax_may_change_too(box):
    rates = [0.1]
    descent = itd.adapters.from_optax(optax.sgd(lambda count: rates[0]))

    def after_one_step():
        return itd.solve(box.problem, descent, X0, ONES, stop=itd.Steps(1)).x

    first = after_one_step()
    rates[0] = 0.2
    np.testing.assert_allclose(after_one_step(), 2 * first, rtol=1e-12)


def test_a_reference_of_ones_own_may_change_too(box):
    def formula(theta):
        return jnp.asarray(box.factor) * theta

    run = (box.problem, itd.GradientDescent(0.4), X0, ONES)
    for _ in changes(box):
        data = itd.trace(
            *run,
            steps=2,
            modes={"implicit": itd.Implicit()},
            reference=formula,
        )
        np.testing.assert_allclose(data.iterate_error[0], np.linalg.norm(box.factor))


def test_new_functions_leave_no_programs_and_no_data_behind():
    class Data:
        matrix = jnp.eye(2)

    collected = []
    for _ in range(2):
        data = Data()
        problem = itd.Minimization(lambda x, t, d=data: jnp.sum((d.matrix @ x - t) ** 2))
        itd.solve(problem, itd.GradientDescent(0.4), X0, ONES, stop=itd.Steps(2))
        collected.append(weakref.ref(data))
        del data, problem
        gc.collect()
    assert [reference() for reference in collected] == [None, None]
