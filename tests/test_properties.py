"""Properties that hold for every input, on inputs drawn by hypothesis: the same in every run.

Each property is one compiled program, which all of its examples share.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

import iterdiff as itd

few = settings(max_examples=12, derandomize=True, deadline=None, database=None)

N = 3
COUPLING = jnp.asarray([[2.0, 0.5, 0.0], [0.5, 3.0, -0.4], [0.0, -0.4, 1.5]])
MODES = {"implicit": itd.Implicit(), "unrolled": itd.Unrolled()}

numbers = st.floats(-2.0, 2.0).map(lambda v: round(v, 6))
vectors = st.lists(numbers, min_size=N, max_size=N).map(jnp.asarray)
scales = st.floats(-6.0, 6.0).map(lambda exponent: 10.0**exponent)
positive = st.lists(scales, min_size=N, max_size=N).map(jnp.asarray)


def residual(x, theta):
    """Return a smooth map whose Jacobian in `x` is symmetric positive definite."""
    return COUPLING @ x + jnp.tanh(x - theta) + theta**2 - 1


def by_newton(theta, x_scale=1.0, rows=1.0, theta_scale=1.0, mode=None):
    """Return the root in other units: of `x`, of the residual's rows, and of `theta`."""

    def scaled(y, tau):
        return rows * residual(x_scale * y, theta_scale * tau)

    start, stop = jnp.zeros(N), itd.Steps(12)
    problem = itd.RootFinding(scaled)
    return itd.solve(problem, itd.Newton(), start, theta, stop=stop, mode=mode).x


def by_descent(theta, mode):
    """Return the same root, by gradient descent on its potential."""
    problem = itd.FixedPoint(lambda x, t: x - 0.2 * residual(x, t))
    return itd.solve(problem, itd.Picard(), jnp.zeros(N), theta, stop=itd.Steps(150), mode=mode).x


def assert_close(a, b, rtol=1e-9):
    scale = float(jnp.max(jnp.abs(b)))
    np.testing.assert_allclose(a, b, rtol=rtol, atol=rtol * scale)


@jax.jit
def products(theta, u, v, w):
    """Return products with the Jacobian of each mode: J u, J v, J (2 u - 3 v), J^T w."""
    found = {}
    for name, mode in MODES.items():
        solution = functools.partial(by_descent, mode=mode)
        pushed = jax.vmap(lambda d: jax.jvp(solution, (theta,), (d,))[1])  # noqa: B023
        found[name] = pushed(jnp.stack([u, v, 2 * u - 3 * v])), jax.vjp(solution, theta)[1](w)[0]
    return found


@few
@given(vectors, vectors, vectors, vectors)
def test_derivatives_are_linear_and_transposes_of_each_other(theta, u, v, w):
    for (of_u, of_v, of_both), back in products(theta, u, v, w).values():
        assert_close(of_both, 2 * of_u - 3 * of_v, rtol=1e-10)
        size = jnp.linalg.norm(w) * jnp.linalg.norm(of_u) + 1e-300
        assert abs(float(w @ of_u - back @ u)) <= 1e-10 * float(size)


@few
@given(vectors)
def test_unrolled_derivatives_converge_to_the_implicit_ones(theta):
    basis = jnp.eye(N)
    found = products(theta, basis[0], basis[1], basis[2])
    assert_close(found["unrolled"][0], found["implicit"][0])
    assert_close(found["unrolled"][1], found["implicit"][1])


in_units = jax.jit(lambda *args: (by_newton(*args), jax.jacobian(by_newton)(*args)))


@few
@given(vectors, scales, positive, scales)
def test_units_do_not_matter(theta, x_scale, rows, theta_scale):
    x, jacobian = in_units(theta, 1.0, jnp.ones(N), 1.0)
    for s, d, c in ((x_scale, jnp.ones(N), 1.0), (1.0, rows, 1.0), (1.0, jnp.ones(N), theta_scale)):
        y, scaled = in_units(theta / c, s, d, c)
        assert_close(y * s, x, rtol=1e-8)
        assert_close(scaled * s / c, jacobian, rtol=1e-6)


loss_gradient = jax.grad(lambda theta: jnp.sum(jnp.cos(by_newton(theta))))
one_by_one, at_once = jax.jit(loss_gradient), jax.jit(jax.vmap(loss_gradient))


@few
@given(st.lists(vectors, min_size=4, max_size=4))
def test_a_batch_is_a_loop(thetas):
    assert_close(at_once(jnp.stack(thetas)), jnp.stack([one_by_one(t) for t in thetas]))


@settings(few, max_examples=3)
@given(vectors)
def test_compiled_is_eager(theta):
    assert_close(one_by_one(theta), loss_gradient(theta))


@jax.jit
def estimated(theta, shift, factor):
    """Return the estimated and the true error of a wrong derivative at a point that is off."""
    x, exact = by_newton(theta), jax.jacobian(by_newton)(theta)
    wrong = exact * factor
    problem = itd.RootFinding(residual)
    estimate = itd.derivative_error(problem, x + shift, theta, wrong, near=jnp.inf)
    return estimate, jnp.linalg.norm(wrong - exact), jnp.linalg.norm(exact)


@few
@given(vectors, vectors, st.floats(-9.0, -1.0), st.floats(-5.0, 0.5))
def test_a_trusted_estimate_is_within_a_factor_of_two(theta, direction, distance, error):
    shift = 10.0**distance * direction
    estimate, truth, size = estimated(theta, shift, 1 + 10.0**error)
    if bool(estimate.trusted):
        assert truth / 2 <= estimate.absolute <= 2 * truth
    if float(truth) > 2e-2 * float(size):
        assert bool(estimate.exceeds(1e-2))


def test_such_an_estimate_is_trusted_near_the_solution():
    estimate, truth, size = estimated(jnp.ones(N), jnp.full(N, 1e-6), 1.1)
    assert bool(estimate.trusted)
    np.testing.assert_allclose([estimate.relative, truth / size], 0.1, rtol=1e-4)
