"""`custom_root`: the derivatives that it gives, and the errors that it raises."""

import inspect
from typing import NamedTuple

import jax
import jax.numpy as jnp
import pytest

import iterdiff as itd
from tests.helpers import compiled


def test_custom_root_in_both_modes_with_aux_keywords_and_a_solver():
    matvecs = []

    def dense(matvec, b):
        matvecs.append(b.shape)
        return jnp.linalg.solve(jax.jacobian(matvec)(b), b)

    def optimality(x, scale, shift):
        return {"u": scale * x["u"] ** 3 - shift, "v": x["v"] - x["u"][0]}

    @itd.adapters.custom_root(optimality, has_aux=True, solve=dense)
    def solver(init, scale, shift):
        u = jnp.cbrt(shift / scale)
        return {"u": u, "v": u[0]}, {"calls": 1}

    def loss(scale, shift):
        x, aux = solver(None, shift=shift, scale=scale)
        assert aux == {"calls": 1}
        return jnp.sum(x["u"]) + x["v"]

    scale, shift = jnp.array(2.0), jnp.array([16.0, 54.0])
    by_scale, by_shift = jax.jit(jax.grad(loss, argnums=(0, 1)))(scale, shift)
    # u = (shift / scale)^(1/3) = (2, 3); du = u / 3 (dshift / shift - dscale / scale)
    assert jnp.abs(by_scale + (2 * 2 + 3) / 6) < 1e-12
    assert jnp.max(jnp.abs(by_shift - jnp.array([2 * 2 / 48, 3 / 162]))) < 1e-12
    forward = jax.jit(jax.jacfwd(loss))(scale, shift)
    assert jnp.abs(forward - by_scale) < 1e-12
    assert matvecs and set(matvecs) == {(3,)}


def test_a_failed_solve_and_a_misfit_signature_raise():
    lazy = itd.adapters.custom_root(lambda x, theta: 3 * x - theta, solve=lambda matvec, b: 0 * b)
    with pytest.raises(RuntimeError, match="custom_root.*`solve`"):
        jax.grad(lazy(lambda init, theta: theta / 3), argnums=1)(None, 1.0)
    misfit = itd.adapters.custom_root(lambda x, theta: x - theta)(lambda init, *, other: other)
    assert misfit(None, other=1.0) == 1.0
    with pytest.raises(TypeError, match="`optimality_fun`"):
        jax.grad(lambda theta: misfit(None, other=theta))(1.0)


@pytest.mark.parametrize("derivative", [jax.jacfwd, jax.jacrev])
def test_the_advice_names_arguments_of_custom_root(derivative):
    twice = itd.adapters.custom_root(
        lambda w, load: jnp.stack([w[0] + w[1] - load, w[0] + w[1] - 2 * load])
    )(lambda init, load: load * jnp.zeros(2))
    with pytest.raises(RuntimeError, match="`optimality_fun`.*`solve`") as found:
        jax.block_until_ready(jax.jit(derivative(lambda load: twice(None, load)))(1.0))
    assert not {"`linear_solver`", "`throw=False`"} & set(str(found.value).split())


def test_custom_root_where_the_unknowns_are_not_unique():
    # softmax(x) = softmax(theta): x up to a constant, of which the loss sees nothing
    softmax = itd.adapters.custom_root(
        lambda x, **kwargs: jax.nn.softmax(x) - jax.nn.softmax(kwargs["theta"])
    )(lambda init, **kwargs: kwargs["theta"] + 5.0)
    weights, theta = jnp.array([1.0, 2.0, -3.0]), jnp.array([0.3, 0.1, -0.5])
    gradient = compiled(jax.grad(lambda theta: weights @ softmax(None, theta=theta)))(theta)
    assert jnp.max(jnp.abs(gradient - weights)) < 1e-12


def test_reference_signature_and_named_tuples():
    class Answer(NamedTuple):
        x: jax.Array
        steps: int

    def solver(init, *parameters):
        return Answer(parameters[0] / parameters[1], 3)

    references = [lambda x, a, b: None, inspect.signature(lambda x, a, b: None)]

    def quotient(a, reference):
        divide = itd.adapters.custom_root(
            lambda x, *ab: ab[1] * x - ab[0], has_aux=True, reference_signature=reference
        )
        answer = divide(solver)(None, a, 4.0)
        assert isinstance(answer, Answer) and answer.steps == 3
        return answer.x

    for reference in references:
        assert jax.grad(quotient)(1.0, reference) == pytest.approx(0.25, rel=1e-12)
