"""Values that reach a solve by closure, not by `theta`: differentiated rightly, or refused."""

import gc

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import iterdiff as itd
from tests.helpers import compiled, relative_error


def through_closure(mode, stop):
    """Return ``x*(p) = p[0] / (1 + p[1]^2)``, where `p[1]` reaches the problem by closure alone."""

    def solution(p):
        hidden = jnp.sin(jnp.arcsin(p[1]))  # an intermediate value, not an input

        def objective(x, theta):
            return (1 + hidden**2) * x**2 / 2 - theta * x

        problem = itd.Minimization(objective)
        return itd.solve(problem, itd.GradientDescent(0.7), 0.0, p[0], stop=stop, mode=mode).x

    return solution


def closed_form(p):
    return p[0] / (1 + p[1] ** 2)


@pytest.mark.parametrize(
    ("mode", "stop"),
    [
        (itd.Implicit(), itd.Steps(60)),
        (itd.Implicit(refine=1), itd.ResidualBelow(1e-6)),
        (itd.Unrolled(), itd.Steps(60)),
        (itd.Unrolled(), itd.ResidualBelow(1e-14)),
        (itd.Unrolled(last=40), itd.ResidualBelow(1e-14, max_steps=90)),
        (itd.Checked(itd.Implicit()), itd.Steps(60)),
        (itd.Checked(itd.Unrolled(), on_failure="raise"), itd.Steps(60)),
    ],
    ids=repr,
)
def test_values_that_are_closed_over_are_differentiated(mode, stop):
    p = jnp.array([0.9, 0.4])

    kinds = ["batched", "reverse_over_reverse"]
    if isinstance(mode, itd.Implicit):  # the others take long to compile
        kinds += ["forward", "forward_over_reverse"]

    def everything(f):
        def g(p):
            return f(p) ** 2

        makers = {
            "forward": lambda: jax.jacfwd(f)(p),
            "batched": lambda: jax.vmap(jax.grad(f))(jnp.stack([p, p / 2])),
            "reverse_over_reverse": lambda: jax.jacrev(jax.grad(g))(p),
            "forward_over_reverse": lambda: jax.jacfwd(jax.grad(g))(p),
        }
        return {kind: makers[kind]() for kind in kinds}

    found = compiled(lambda: everything(through_closure(mode, stop)))()
    expected = everything(closed_form)
    for kind in expected:
        assert relative_error(found[kind], expected[kind]) < 1e-8, kind


def test_a_closure_without_jit():
    # outside of jit the closed-over value belongs to grad's own trace
    for mode in (itd.Implicit(), itd.Unrolled()):
        f = through_closure(mode, itd.Steps(60))
        slope = jax.grad(f)(jnp.array([0.9, 0.4]))
        np.testing.assert_allclose(slope, jax.grad(closed_form)(jnp.array([0.9, 0.4])), rtol=1e-9)


MEASURES = {
    "trace": lambda problem: itd.trace(
        problem, itd.GradientDescent(0.1), 0.0, 1.0, steps=2, modes={}
    ).iterate_error.values[-1],
    "diagnose": lambda problem: (
        itd.diagnose(
            problem, itd.GradientDescent(0.1), 0.0, 1.0, rtol=0.1, budget=3
        ).contraction_rate
    ),
}


@pytest.mark.parametrize("transform", [jax.grad, jax.jit], ids=["grad", "jit"])
@pytest.mark.parametrize("name", MEASURES)
def test_what_returns_data_refuses_a_closure(name, transform):
    def measured(p):
        problem = itd.Minimization(lambda x, theta: (1 + p**2) * x**2 / 2 - theta * x)
        return MEASURES[name](problem)

    with pytest.raises(TypeError, match=f"`{name}`.*jit"):
        transform(measured)(0.4)


@pytest.mark.parametrize("read", [np.asarray, float])
def test_a_solver_on_the_host_refuses_a_closure(read):
    def solved(p):
        problem = itd.Minimization(lambda x, theta: p * x**2 / 2 - theta * x)
        return itd.implicit(problem)(lambda x0, theta: np.asarray(theta) / read(p))(0.0, 1.0)

    with pytest.raises(TypeError, match="`theta`"):
        jax.grad(solved)(0.4)


def test_an_estimate_is_differentiated():
    # x* = theta / (1 + p^2): the error of d is |1 / (1 + p^2) - d|, whatever x
    def error(p, x, theta, derivative):
        problem = itd.Minimization(lambda x, theta: (1 + p**2) * x**2 / 2 - theta * x)
        estimate = itd.derivative_error(problem, x, theta, derivative)
        return estimate.absolute, estimate.uncertainty

    at = (0.4, 0.8, 1.0, 0.5)
    p = at[0]
    expected = [-2 * p / (1 + p**2) ** 2, 0.0, 0.0, -1.0]

    @compiled
    def slopes(*at):
        reverse = jax.jacrev(error, (0, 1, 2, 3))(*at)
        forward = jax.jacfwd(error, (0, 1, 2, 3))(*at)
        return reverse, forward, jax.grad(jax.jit(lambda *a: error(*a)[0]))(*at)

    reverse, forward, again = slopes(*at)
    for absolute, uncertainty in (reverse, forward):
        np.testing.assert_allclose(absolute, expected, rtol=1e-12, atol=1e-14)
        assert np.isnan(uncertainty[:3]).all() and uncertainty[3] == 0
    np.testing.assert_allclose(again, expected[0], rtol=1e-12)


@pytest.mark.parametrize("form", ["tangent", "cotangent", "loss"])  # a Jacobian is tangents
def test_every_form_of_an_estimate_is_differentiated(form):
    # a curved tree of unknowns; p reaches the problem, and the loss, by closure
    theta, x = jnp.array([0.3, -0.4, 0.2]), {"a": jnp.array([0.5, 0.1]), "b": jnp.array(0.7)}
    w = {"a": jnp.array([1.0, -2.0]), "b": jnp.array(0.5)}
    options = {
        "tangent": lambda p: {"tangent": p * theta},
        "cotangent": lambda p: {"cotangent": jax.tree.map(lambda v: p * v, w)},
        "loss": lambda p: {"loss": lambda x, t: p * jnp.sum(x["a"] * t[:2]) + x["b"] ** 2},
    }
    shapes = {
        "tangent": x,
        "cotangent": theta,
        "loss": theta,
    }

    def measures(p, x, theta, derivative):
        def objective(x, theta):
            quartic = jnp.sum(x["a"] ** 4) / 4 + p * jnp.sum(x["a"] ** 2) + jnp.cosh(x["b"])
            return quartic - jnp.sum(x["a"] * theta[:2]) - x["b"] * theta[2] * (1 + x["a"][0])

        estimate = itd.derivative_error(
            itd.Minimization(objective), x, theta, derivative, **options[form](p)
        )
        corrected = sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(estimate.corrected))
        return jnp.stack([estimate.absolute, estimate.relative, corrected]), estimate.uncertainty

    at = (1.3, x, theta, shapes[form])
    moves = jax.tree.map(
        lambda v: jnp.cos(3 * jnp.arange(v.size, dtype=float) + 1).reshape(v.shape), at[1:]
    )

    def along(s):
        moved = jax.tree.map(lambda v, m: v + s * m, at[1:], moves)
        return measures(at[0] + s, *moved)

    value, h = compiled(along), 1e-5
    quotient = (value(h)[0] - value(-h)[0]) / (2 * h)
    # Forward mode: in the test before.
    slope, unknown = compiled(jax.jacrev(along))(0.0)
    np.testing.assert_allclose(slope, quotient, rtol=1e-7)
    assert np.isnan(unknown)


def test_an_algorithm_and_a_start_that_are_traced():
    # the unrolled mode differentiates in both; the implicit one answers zero
    def final(x0, step, mode):
        problem = itd.Minimization(lambda x, theta: theta * x**2 / 2)
        task = (problem, itd.GradientDescent(step), x0, 2.0)
        return itd.solve(*task, stop=itd.Steps(4), mode=mode).x

    @compiled
    def slopes():
        return [
            jax.grad(final, (0, 1))(3.0, 0.1, mode) for mode in (itd.Unrolled(), itd.Implicit())
        ]

    # x_4 = (1 - 2 h)^4 x_0
    unrolled, implicit = slopes()
    np.testing.assert_allclose(unrolled, [0.8**4, -8 * 0.8**3 * 3], rtol=1e-14)
    assert implicit == (0.0, 0.0)


def test_no_traced_value_outlives_its_trace():
    problem = itd.Minimization(lambda x, theta: jnp.sum((x - theta) ** 2))

    def final(theta):
        run = problem, itd.GradientDescent(0.25), jnp.zeros(2), theta
        return jnp.sum(itd.solve(*run, stop=itd.Steps(3), mode=itd.Unrolled()).x)

    gc.collect()
    gc.freeze()  # each search for leaks collects; what is there already takes most of the time
    with jax.checking_leaks():
        np.testing.assert_allclose(jax.grad(final)(jnp.ones(2)), 1 - 0.5**3, rtol=1e-12)
