"""Proximal operators: solutions, derivatives on the support, and where they are one-sided."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import iterdiff as itd
from iterdiff import prox
from iterdiff.accuracy.reasons import ONE_SIDED
from tests.helpers import compiled


def nearest(operator):
    """Return the problem whose solution is ``operator(theta, 1)``."""
    return itd.CompositeMinimization(
        lambda x, theta: jnp.sum((x - theta) ** 2) / 2,
        lambda x, step_size, theta: operator(x, step_size),
        residual_step=0.5,
    )


CASES = {
    # operator, theta, solution, derivative
    "lasso": (
        lambda x, s: prox.soft_threshold(x, s * 1.0),
        [3.0, -2.0, 0.5],
        [2.0, -1.0, 0.0],
        np.diag(np.array([1.0, 1.0, 0.0])),
    ),
    "elastic_net": (
        lambda x, s: prox.elastic_net(x, s * 1.0, s * 3.0),
        [3.0, -2.0, 0.5],
        [0.5, -0.25, 0.0],
        np.diag(np.array([0.25, 0.25, 0.0])),
    ),
    "nonnegative": (
        lambda x, s: prox.nonnegative(x),
        [3.0, -2.0, 0.5],
        [3.0, 0.0, 0.5],
        np.diag(np.array([1.0, 0.0, 1.0])),
    ),
    "box": (
        lambda x, s: prox.box(x, -1.0, jnp.array([1.0, 2.0, 3.0])),
        [3.0, -2.0, 0.5],
        [1.0, -1.0, 0.5],
        np.diag(np.array([0.0, 0.0, 1.0])),
    ),
    "simplex": (
        lambda x, s: prox.simplex(x),
        [0.8, 0.5, -0.3],
        [0.65, 0.35, 0.0],
        np.array([[0.5, -0.5, 0.0], [-0.5, 0.5, 0.0], [0.0, 0.0, 0.0]]),
    ),
}
# A theta at which one coordinate is about to enter or leave the support, and which it is.
WEAK = {
    "lasso": ([3.0, 1.0, 0.5], [False, True, False]),
    "elastic_net": ([3.0, -1.0, 0.5], [False, True, False]),
    "nonnegative": ([3.0, 0.0, 0.5], [False, True, False]),
    "box": ([1.0, -2.0, 0.5], [True, False, False]),
    "simplex": ([0.8, 0.5, 0.15], [True, True, True]),  # the others change with it
}


@pytest.mark.parametrize("name", CASES)
def test_solution_derivative_and_kinks(name):
    operator, theta, truth, derivative = CASES[name]
    problem, algorithm = nearest(operator), itd.ProximalGradient(0.7)

    @compiled
    def run(theta):
        def solution(theta, mode):
            stop = itd.Steps(60)
            answer = itd.solve(problem, algorithm, jnp.zeros(3), theta, stop=stop, mode=mode)
            return answer.x, answer

        implicit, answer = jax.jacrev(solution, has_aux=True)(theta, itd.Implicit())
        unrolled, _ = jax.jacfwd(solution, has_aux=True)(theta, itd.Unrolled())
        return answer.x, answer.weakly_active, implicit, unrolled

    x, kinks, implicit, unrolled = run(jnp.array(theta))
    assert np.max(np.abs(np.asarray(x) - truth)) < 1e-12
    assert np.max(np.abs(np.asarray(implicit) - derivative)) < 1e-12
    assert np.max(np.abs(np.asarray(unrolled) - derivative)) < 1e-12
    assert not np.any(kinks)
    weak_theta, weak = WEAK[name]
    assert run(jnp.array(weak_theta))[1].tolist() == weak


def test_checked_flags_a_one_sided_derivative():
    problem = nearest(CASES["lasso"][0])
    mode = itd.Checked(itd.Implicit(), on_failure="nan")
    stop = itd.Steps(60)

    @compiled
    def run(theta):
        def solution(theta):
            task = (problem, itd.ProximalGradient(0.7), jnp.zeros(3), theta)
            return itd.solve(*task, stop=stop, mode=mode).x

        x, pushed = jax.jvp(solution, (theta,), (jnp.ones(3),))
        either = jnp.array([1.0, 1.0, 0.0])
        return pushed, itd.derivative_error(problem, x, theta, either, tangent=jnp.ones(3))

    pushed, estimate = run(jnp.array([3.0, -2.0, 0.5]))
    assert np.max(np.abs(np.asarray(pushed) - [1.0, 1.0, 0.0])) < 1e-12
    assert estimate.reason_code != ONE_SIDED
    pushed, estimate = run(jnp.array([3.0, 1.0, 0.5]))
    assert np.all(np.isnan(pushed))
    assert not estimate.trusted
    assert estimate.reason_code == ONE_SIDED


def test_a_kink_counts_only_within_the_tolerance():
    problem = nearest(CASES["lasso"][0])
    theta = jnp.array([3.0, 1.001, 0.5])
    x = CASES["lasso"][0](theta, 1.0)
    kinks = jax.jit(lambda tol: itd.weakly_active(problem, x, theta, tol=tol))
    assert kinks(1e-2).tolist() == [False, True, False]
    assert not np.any(kinks(1e-4))


def test_kinks_of_other_problems():
    smooth = itd.Minimization(lambda x, theta: jnp.sum(jnp.cosh(x["a"] - theta)) + x["b"] ** 4)
    x = {"a": jnp.ones(2), "b": jnp.array(0.0)}
    found = jax.jit(lambda x: itd.weakly_active(smooth, x, jnp.array(1.0)))(x)
    assert jax.tree.map(jnp.shape, found) == {"a": (2,), "b": ()}
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(found))
    kinked = itd.FixedPoint(lambda x, theta: jnp.maximum(x / 2, theta))
    theta = jnp.array([0.0, 1.0])
    found = jax.jit(lambda x: itd.weakly_active(kinked, x, x))(theta)
    assert found.tolist() == [True, False]


@pytest.mark.parametrize("scale", [1e-9, 1e9])
def test_kinks_do_not_depend_on_the_scale_of_the_residual(scale):
    curved = itd.RootFinding(lambda x, theta: scale * (jnp.exp(x) - 1 + 0.5 * jnp.abs(x - theta)))
    found = jax.jit(lambda x, theta: itd.weakly_active(curved, x, theta))
    assert found(jnp.array([0.0, 1.0]), jnp.array([0.0, 0.0])).tolist() == [True, False]


def test_pytrees_and_precisions():
    x = {"a": jnp.array([2.0, -0.5], "float32"), "b": jnp.array(-3.0, "float32")}
    shrunk = prox.soft_threshold(x, {"a": 1.0, "b": jnp.array(2.0)})
    assert shrunk["a"].tolist() == [1.0, 0.0] and shrunk["b"] == -1.0
    for out in (shrunk, prox.nonnegative(x), prox.box(x, 0.0, 1.0), prox.elastic_net(x, 1.0, 0.5)):
        assert {leaf.dtype.name for leaf in jax.tree.leaves(out)} == {"float32"}
    assert prox.simplex(x["a"], 2.0).tolist() == [2.0, 0.0]


def test_projection_onto_the_simplex_from_random_points(getkey):
    points = 3 * jax.random.normal(getkey(), (20, 7))
    out = np.asarray(jax.jit(jax.vmap(prox.simplex))(points))
    points = np.asarray(points)
    assert np.all(out >= 0)
    assert np.max(np.abs(out.sum(1) - 1)) < 1e-12
    # the variational inequality that characterises a projection, at the vertices
    gap = np.einsum("ij,ij->i", points - out, out)[:, None] - (points - out)
    assert np.min(gap) > -1e-12


PROXES = {
    "soft threshold": lambda x, s, t: prox.soft_threshold(x, s * t),
    "elastic net": lambda x, s, t: prox.elastic_net(x, s * t, s),
    "nonnegative": lambda x, s, t: prox.nonnegative(x),
    "box": lambda x, s, t: prox.box(x, -1.0, 1.0),
    "simplex": lambda x, s, t: prox.simplex(x),
    "a comparison": lambda x, s, t: jnp.where(x > t, x, t * jnp.ones_like(x)),
}


BY_BOTH = [(name, itd.ProximalGradient(0.1)) for name in PROXES]
BY_BOTH += [("soft threshold", itd.FISTA(0.1))]  # the residual at the start is the problem's


@pytest.mark.parametrize(("name", "algorithm"), BY_BOTH, ids=str)
def test_a_gradient_that_is_not_a_number_is_no_convergence(name, algorithm):
    data = jnp.array([[1.0, 2.0], [3.0, jnp.nan], [0.0, 1.0]])
    problem = itd.CompositeMinimization(lambda x, t: jnp.sum((data @ x - t) ** 2), PROXES[name])

    def solve(theta):
        stop = itd.ResidualBelow(atol=1e-9, rtol=0.0, max_steps=20)
        run = problem, algorithm, jnp.array([0.5, 0.5]), theta
        solution = itd.solve(*run, stop=stop, throw=False)
        return jnp.sum(solution.x), solution

    slope, solution = jax.grad(solve, has_aux=True)(1.0)
    assert solution.status == itd.Status.NOT_FINITE_AT_START
    assert np.isnan(slope) and np.isnan(solution.residual_norm)


@pytest.mark.parametrize("scale", [1e-12, 1e-8, 1.0, 1e8])
def test_kinks_do_not_depend_on_the_scale_of_the_objective(scale):
    # Two coordinates of different scale: a kink only where theta is one.
    weights = jnp.array([scale, 1.0])
    problem = itd.CompositeMinimization(
        lambda x, theta: jnp.sum(weights * (x - theta) ** 2) / 2,
        lambda x, step, theta: prox.soft_threshold(x, step * weights),
        residual_step=0.5 / max(scale, 1.0),
    )
    found = jax.jit(lambda x, theta: itd.weakly_active(problem, x, theta))
    assert found(jnp.zeros(2), jnp.array([1.0, 0.7])).tolist() == [True, False]
    assert found(jnp.array([0.0, 2.0]), jnp.array([0.7, 3.0])).tolist() == [False, False]


@jax.numpy_dtype_promotion("standard")  # as users have it
def test_leaves_of_different_precision_are_no_kink():
    problem = itd.CompositeMinimization(
        lambda x, theta: sum(jnp.sum((leaf - theta) ** 2) for leaf in x) / 2,
        lambda x, step, theta: prox.soft_threshold(x, step),
        residual_step=0.5,
    )
    for theta, kinked in ((1.7, False), (1.0, True)):
        x = [jnp.full(2, theta - 1, "float32"), jnp.full(3, theta - 1)]
        found = itd.weakly_active(problem, x, jnp.array(theta))
        assert all(np.all(leaf == kinked) for leaf in found)
