"""A failure is one exception outside `jit`, and the reason comes with it under `jit`."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import iterdiff as itd

SINGULAR = itd.implicit(itd.RootFinding(lambda x, t: 0.0 * x + t))(lambda x0, t: t)
SQUARE_ROOT = itd.RootFinding(lambda x, t: x**2 - t)
KINKED = itd.Minimization(lambda x, t: jnp.cosh(x - t) + x**2)
ZERO, TWO = jnp.array(0.0), jnp.array(2.0)
WAYS = {
    "grad": lambda f, t: jax.grad(f)(t),
    "jvp": lambda f, t: jax.jvp(f, (t,), (jnp.ones_like(t),)),
    "linearize": lambda f, t: jax.linearize(f, t)[1](jnp.ones_like(t)),
    "hessian": lambda f, t: jax.hessian(f)(t),
    "vmap of grad": lambda f, t: jax.vmap(jax.grad(f))(jnp.stack([t, t])),
}


def singular(theta):
    """Return a solution whose derivative does not exist."""
    return SINGULAR(theta, theta)


def root(theta, start=1.0):
    """Return the square root of theta; the run fails where theta is negative."""
    stop = itd.ResidualBelow(1e-8, 1e-8, max_steps=20)
    return itd.solve(SQUARE_ROOT, itd.Newton(), jnp.array(start), theta, stop=stop).x


def unchecked(theta):
    """Return an answer that is too inexact for its derivative to pass the check."""
    mode = itd.Checked(itd.Implicit(), on_failure="raise")
    run = (KINKED, itd.GradientDescent(0.1), jnp.array(0.0), theta)
    return itd.solve(*run, stop=itd.Steps(2), mode=mode).x


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_a_derivative_that_fails_raises_our_exception(way):
    with pytest.raises(itd.SolveError, match="linear solve"):
        way(singular, ZERO)
    np.testing.assert_allclose(jax.grad(root)(TWO), 0.5 / jnp.sqrt(TWO))  # nothing is left over


def test_a_run_that_fails_raises_our_exception_in_every_transformation():
    for run in (root, jax.grad(root), lambda t: jax.vmap(root)(jnp.stack([TWO, t]))):
        with pytest.raises(itd.SolveError, match="stopping rule"):
            run(-TWO)


def test_a_check_that_fails_raises_our_exception():
    with pytest.raises(itd.SolveError, match="Checked"):
        jax.grad(unchecked)(TWO)


@pytest.mark.parametrize(
    "compiled",
    [
        lambda t: jax.jit(jax.grad(singular))(t),
        lambda t: jax.jit(jax.vjp(singular, t)[1])(jnp.ones(())),
    ],
    ids=["program", "pullback"],
)
def test_under_jit_the_error_contains_the_reason(compiled):
    with pytest.raises(RuntimeError, match="SolveError: The linear solve"):
        jax.block_until_ready(compiled(ZERO))


def test_a_traced_value_in_the_closure_raises_at_once():
    def solution(scale):
        problem = itd.RootFinding(lambda x, theta: 0.0 * x + scale * theta)
        return itd.implicit(problem)(lambda x0, theta: theta)(ZERO, TWO)

    with pytest.raises(RuntimeError, match="linear solve"):
        jax.block_until_ready(jax.grad(solution)(1.0))
