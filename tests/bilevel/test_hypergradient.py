"""The gradient of an outer loss: accurate to rtol, with error bars that hold, without restarts."""

import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import pytest

import iterdiff as itd
from tests.bilevel.cases import DESCENT, PROBLEM, THETA, X0, loss, truth


def found_at(theta=THETA, **options):
    return itd.bilevel.hypergradient(loss, PROBLEM, DESCENT, X0, theta, **options)


@pytest.mark.parametrize("rtol", (3e-1, 1e-2, 1e-5, 1e-9))
def test_it_solves_on_until_the_gradient_is_accurate(rtol):
    found = found_at(rtol=rtol)
    (value,), (gradient,) = truth(THETA[None])
    error = jnp.linalg.norm(found.gradient - gradient)
    assert found.status == itd.Status.CONVERGED
    assert bool(found.trusted)
    assert error <= rtol * jnp.linalg.norm(gradient)
    assert 0.5 < found.error / error < 2
    assert jnp.abs(found.value - value) <= 2 * found.value_error
    if rtol > 1e-6:  # the bar of the value is not yet at rounding, and of second order
        assert 0.5 < found.value_error / jnp.abs(found.value - value) < 2
        assert found.value_error < 5 * rtol**2
    assert found.counts.gradients >= found.counts.steps > 0


def test_it_goes_on_and_never_restarts():
    rough = found_at(rtol=1e-2)
    fine = found_at(rtol=1e-7, state=rough.state)
    straight = found_at(rtol=1e-7)
    # The iterates are those of one run: as many steps, give or take what checks overshoot.
    total = int(rough.counts.steps + fine.counts.steps)
    run = itd.solve(PROBLEM, DESCENT, X0, THETA, stop=itd.Steps(total)).x
    np.testing.assert_allclose(fine.x, run, rtol=1e-13)
    assert abs(total - int(straight.counts.steps)) <= 0.5 * total
    again = found_at(rtol=1e-7, state=fine.state)
    assert int(again.counts.steps) == 0
    near = found_at(THETA + 1e-3, rtol=1e-2, state=fine.state)
    assert int(near.counts.steps) < int(rough.counts.steps) / 2


def test_a_memory_belongs_to_its_theta():
    """The residual that conjugate gradients carry is that of one theta.

    Nothing is factored: the adjoint solve starts at the last one.
    """
    diagonal = jnp.linspace(1.0, 9.0, 5)
    problem = itd.LinearSystem(
        lambda x, theta: diagonal * x + theta * x,
        lambda theta: jnp.ones(5),
        symmetric=True,
        positive_definite=True,
    )

    def at(theta, state=None):
        return itd.bilevel.hypergradient(
            lambda x, theta: jnp.sum(x**2),
            problem,
            itd.ConjugateGradient(),
            jnp.zeros(5),
            theta,
            rtol=1e-9,
            mode=itd.Implicit(linear_solver=lx.CG(1e-12, 1e-12)),
            state=state,
        )

    moved = at(jnp.array(2.0), at(jnp.array(0.5)).state)
    x = 1 / (diagonal + 2.0)
    np.testing.assert_allclose(moved.gradient, -2 * jnp.sum(x**3), rtol=1e-8)
    np.testing.assert_allclose(moved.value, jnp.sum(x**2), rtol=1e-10)
    assert jnp.isnan(moved.counts.products)  # which are not counted then


def test_a_batch_shares_theta():
    """Folds of a ridge regression, whose solutions have a closed form."""
    data = jax.random.normal(jax.random.key(0), (3, 8, 2))
    targets = jax.random.normal(jax.random.key(1), (3, 8))
    args = {"train": (data[:, :5], targets[:, :5]), "test": (data[:, 5:], targets[:, 5:])}

    def objective(x, theta, args):
        matrix, b = args["train"]
        return jnp.sum((matrix @ x - b) ** 2) / 2 + jnp.exp(theta) * jnp.sum(x**2) / 2

    def outer(x, theta, args):
        matrix, b = args["test"]
        return jnp.sum((matrix @ x - b) ** 2)

    def closed(theta):
        def of(args):
            matrix, b = args["train"]
            normal = matrix.T @ matrix + jnp.exp(theta) * jnp.eye(2)
            return outer(jnp.linalg.solve(normal, matrix.T @ b), theta, args)

        return jnp.mean(jax.vmap(of)(args))

    theta = jnp.array(0.3)
    problem = itd.Minimization(objective)
    options = {"rtol": 1e-6, "batched": True, "args": args}
    run = (outer, problem, itd.GradientDescent(0.03), jnp.zeros(2), theta)
    found = itd.bilevel.hypergradient(*run, **options)
    value, gradient = jax.value_and_grad(closed)(theta)
    np.testing.assert_allclose(found.value, value, rtol=1e-10)
    assert jnp.abs(found.gradient - gradient) <= 2 * found.error <= 1e-4 * jnp.abs(gradient)
    assert found.counts.steps.shape == (3,)
    assert len(set(found.counts.steps.tolist())) > 1  # each to its own accuracy
    ragged = {"train": args["train"], "test": (data[:2, 5:], targets[:2, 5:])}
    with pytest.raises(ValueError, match="`args`"):
        itd.bilevel.hypergradient(*run, batched=True, args=ragged)


def test_under_jit_and_refined():
    refined = itd.Implicit(refine=1)
    compiled = jax.jit(lambda theta: found_at(theta, mode=refined, rtol=1e-4))
    found = compiled(THETA)
    _, (gradient,) = truth(THETA[None])
    assert jnp.linalg.norm(found.gradient - gradient) < 1e-4 * jnp.linalg.norm(gradient)
    assert int(found.counts.steps) < int(found_at(rtol=1e-4).counts.steps)


def test_a_run_that_cannot_become_accurate_has_a_status():
    short = found_at(rtol=1e-9, max_steps=5)
    assert short.status == itd.Status.MAX_STEPS_REACHED
    assert int(short.counts.steps) == 5
    assert "max_steps" in short.message
    impossible = found_at(rtol=1e-17, max_steps=9000)
    assert impossible.status == itd.Status.MAX_STEPS_REACHED
    assert int(impossible.counts.steps) < 2000  # it stands still
    lost = itd.bilevel.hypergradient(loss, PROBLEM, itd.GradientDescent(1e3), X0, THETA)
    assert lost.status == itd.Status.DIVERGED
    assert not lost.trusted
    assert np.isinf(lost.error)
    assert "diverged" in lost.reason


def test_a_run_that_diverges_knows_nothing():
    """Where squares overflow, the gradients at iterate and correction are both zero, and agree."""

    def outer(x, theta):
        return jnp.sum(jnp.log1p((x - 0.5) ** 2))

    problem = itd.Minimization(
        lambda x, theta: jnp.sum(jnp.log1p((x - 1) ** 2)) + jnp.exp(theta) * jnp.sum(x**2) / 2
    )
    run = outer, problem, itd.GradientDescent(50.0), jnp.zeros(2), jnp.array(0.0)
    lost = itd.bilevel.hypergradient(*run)
    assert lost.status == itd.Status.DIVERGED
    assert not lost.trusted
    assert np.isinf([lost.error, lost.uncertainty, lost.value_error]).all()
    assert "diverged" in lost.reason


def test_wrong_arguments_are_named():
    with pytest.raises(TypeError, match="`loss`"):
        itd.bilevel.hypergradient(lambda x, theta: x, PROBLEM, DESCENT, X0, THETA)
    with pytest.raises(TypeError, match="`mode`"):
        found_at(mode=itd.Unrolled())
    with pytest.raises(ValueError, match="`mode`"):
        found_at(mode=itd.Implicit(singular="least_squares"))
    with pytest.raises(ValueError, match="`rtol`"):
        found_at(rtol=-1.0)
    state = found_at().state
    with pytest.raises(ValueError, match="`state`"):
        itd.bilevel.hypergradient(
            lambda x, theta: jnp.sum(x), PROBLEM, DESCENT, jnp.zeros(2), jnp.ones(2), state=state
        )
