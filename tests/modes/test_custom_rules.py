"""What JAX differentiates in one direction only: rules of the user's, and steps with a search."""

from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import iterdiff as itd
from tests.helpers import compiled

MATRIX = jnp.array([[2.0, 1.0], [0.0, 1.0]])
RHS = jnp.array([1.0, 2.0])


@jax.custom_vjp
def cube(x):
    return x**3


cube.defvjp(lambda x: (x**3, x), lambda x, g: (3 * x**2 * g,))


def on_host(function, *args):
    return jax.pure_callback(
        lambda *values: function(*map(np.asarray, values)),
        jax.typeof(args[0]),
        *args,
        vmap_method="sequential",
    )


@jax.custom_vjp
def host_cube(x):
    return on_host(lambda x: x**3, x)


host_cube.defvjp(
    lambda x: (host_cube(x), x), lambda x, g: (on_host(lambda x, g: 3 * x**2 * g, x, g),)
)


def test_newton_solves_a_residual_with_a_reverse_rule_only():
    problem = itd.RootFinding(lambda x, theta: MATRIX @ cube(x) - theta)

    def solution(theta):
        return itd.solve(problem, itd.Newton(), jnp.ones(2), theta, stop=itd.Steps(12)).x

    x, slope = compiled(lambda theta: (solution(theta), jax.jacrev(solution)(theta)))(RHS)
    truth = lambda theta: jnp.cbrt(jnp.linalg.solve(MATRIX, theta))  # noqa: E731
    np.testing.assert_allclose(x, truth(RHS), rtol=1e-12)
    np.testing.assert_allclose(slope, jax.jacrev(truth)(RHS), rtol=1e-10, atol=1e-15)


@pytest.mark.parametrize("function", [cube, host_cube], ids=["jax", "host"])
def test_reverse_mode_of_a_residual_with_a_reverse_rule_only(function):
    problem = itd.RootFinding(lambda x, theta: MATRIX @ function(x) - theta)
    answer = itd.implicit(problem)(lambda x0, theta: jnp.cbrt(jnp.linalg.solve(MATRIX, theta)))

    def loss(theta):
        return answer(jnp.ones(2), theta) @ jnp.array([1.0, 3.0])

    def truth(theta):
        return jnp.cbrt(jnp.linalg.solve(MATRIX, theta)) @ jnp.array([1.0, 3.0])

    several = jnp.stack([RHS, 2 * RHS])
    one, each, total = compiled(
        lambda theta, several: (
            jax.grad(loss)(theta),
            jax.vmap(jax.grad(loss))(several),
            jax.grad(lambda several: jnp.sum(jax.vmap(loss)(several)))(several),
        )
    )(RHS, several)
    np.testing.assert_allclose(one, jax.grad(truth)(RHS), rtol=1e-12)
    np.testing.assert_allclose(each, jax.vmap(jax.grad(truth))(several), rtol=1e-12)
    np.testing.assert_allclose(total, each, rtol=1e-12)
    with pytest.raises(TypeError, match="`jax.custom_vjp`"):
        jax.jvp(loss, (RHS,), (RHS,))
    with pytest.raises(RuntimeError, match="`jax.custom_vjp`"):
        jax.grad(lambda theta: jnp.sum(jax.grad(loss)(theta)))(RHS)


def test_the_advice_a_forward_rule():
    @jax.custom_jvp
    def with_forward_rule(x):
        return x**3

    with_forward_rule.defjvp(lambda x, v: (x[0] ** 3, 3 * x[0] ** 2 * v[0]))
    problem = itd.RootFinding(lambda x, theta: with_forward_rule(x) - theta)
    root = itd.implicit(problem)(lambda x0, theta: jnp.cbrt(theta))
    assert jax.jvp(lambda theta: root(1.0, theta), (8.0,), (1.0,))[1] == pytest.approx(1 / 12)


def value(x, theta):
    return x @ x / 2 - theta @ x


def overridden(kind, matrix):
    """Return an objective whose gradient is ``matrix @ x - theta``, without symmetry."""
    if kind == "custom_vjp":
        objective = jax.custom_vjp(value)
        objective.defvjp(
            lambda x, theta: (value(x, theta), (x, theta)),
            lambda saved, g: (g * (matrix @ saved[0] - saved[1]), -g * saved[0]),
        )
        return objective
    objective = jax.custom_jvp(value)
    objective.defjvp(lambda at, v: (value(*at), (matrix @ at[0] - at[1]) @ v[0] - at[0] @ v[1]))
    return objective


@pytest.mark.parametrize("kind", ["custom_vjp", "custom_jvp"])
@pytest.mark.parametrize("size", [2, 210])  # LU, and where Cholesky would be used
def test_an_overridden_gradient_has_no_symmetric_hessian(kind, size):
    noise = np.random.default_rng(0).normal(size=(size, size))
    matrix = jnp.asarray(np.eye(size) + noise / (3 * np.sqrt(size)))
    answer = itd.implicit(itd.Minimization(overridden(kind, matrix)))(
        lambda x0, theta: jnp.linalg.solve(matrix, theta)
    )
    theta, w = jnp.ones(size), jnp.linspace(-1.0, 1.0, size)

    @compiled
    def both(theta):
        of_theta = lambda theta: answer(theta, theta)  # noqa: E731
        return jax.vjp(of_theta, theta)[1](w)[0], jax.jvp(of_theta, (theta,), (w,))[1]

    reverse, forward = both(theta)
    np.testing.assert_allclose(reverse, np.linalg.solve(matrix.T, w), atol=1e-10)
    np.testing.assert_allclose(forward, np.linalg.solve(matrix, w), atol=1e-10)


def test_what_is_known_of_a_hessian():
    plain = itd.Minimization(value)
    assert plain.structure_at(RHS, RHS) == plain.structure
    claimed = itd.Minimization(overridden("custom_jvp", MATRIX)).structure_at(RHS, RHS)
    assert claimed.positive_definite and not claimed.hessian
    unknown = itd.Minimization(overridden("custom_vjp", MATRIX)).structure_at(RHS, RHS)
    assert not (unknown.symmetric or unknown.positive_definite or unknown.hessian)


class Searching(itd.extend.StatelessAlgorithm):
    """Gradient descent whose step is halved until the objective falls."""

    accepts: ClassVar = (itd.Minimization,)
    consistent: ClassVar[bool] = True

    def step(self, problem, state, theta):
        """Return the state after one step."""
        start = problem.objective(state.x, theta)

        def too_long(move):
            return problem.objective(state.x - move, theta) > start

        move = problem.residual(state.x, theta)
        move = jax.lax.while_loop(too_long, lambda move: move / 2, move)
        return itd.extend.Iterate(state.x - move)


def test_steps_with_a_search_are_checked_in_forward_mode():
    problem = itd.Minimization(lambda x, theta: 1.5 * jnp.sum((x - theta) ** 2))

    def final(theta, inner=None):
        mode = itd.Checked(inner or itd.Unrolled(), on_failure="nan")
        run = (problem, Searching(), jnp.zeros(2), theta)
        return itd.solve(*run, stop=itd.Steps(30), mode=mode).x

    slope = jax.jvp(final, (jnp.ones(2),), (jnp.ones(2),))[1]
    np.testing.assert_allclose(slope, 1.0, rtol=1e-8)  # half the way a step
    with pytest.raises(RuntimeError, match="`mode`"):
        jax.grad(lambda theta: jnp.sum(final(theta)))(jnp.ones(2))
    # The advice of the message
    by_implicit = jax.grad(lambda theta: jnp.sum(final(theta, itd.Implicit())))(jnp.ones(2))
    np.testing.assert_allclose(by_implicit, 1.0, rtol=1e-12)
