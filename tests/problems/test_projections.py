"""Projections: optimality by independent conditions, derivatives by differences."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import iterdiff as itd
from iterdiff import prox
from tests.helpers import compiled

MATRIX = np.array([[1.0, 2.0, -1.0, 0.5, 0.0, 1.0], [0.0, 1.0, 1.0, -1.0, 2.0, 0.3]])
ROWS, COLUMNS = np.array([1.0, 2.0]), np.array([0.5, 1.5, 1.0])
POINT = np.array([1.3, -0.4, 0.75, 2.1, -1.7, 0.2])
GROUPS = POINT.reshape(3, 2)
NORMAL = np.array([1.0, -2.0, 0.5, 1.0, 0.3, -0.7])

OPERATORS = {
    "l1_ball": lambda x: prox.l1_ball(x, 2.0),
    "l2_ball": lambda x: prox.l2_ball(x, 2.0),
    "linf_ball": lambda x: prox.linf_ball(x, 1.0),
    "hyperplane": lambda x: prox.hyperplane(x, jnp.asarray(NORMAL), 0.5),
    "half_space": lambda x: prox.half_space(x, jnp.asarray(NORMAL), 0.5),
    "affine_set": lambda x: prox.affine_set(x, jnp.asarray(MATRIX), jnp.ones(2)),
    "second_order_cone": prox.second_order_cone,
    "transport_polytope": lambda x: prox.transport_polytope(
        x.reshape(2, 3), jnp.asarray(ROWS), jnp.asarray(COLUMNS)
    ).reshape(-1),
    "group_lasso": lambda x: prox.group_lasso(x.reshape(3, 2), 1.0).reshape(-1),
    "huber": lambda x: prox.huber(x, 0.5, 0.9),
    "fused_lasso": lambda x: prox.fused_lasso(x, 0.4),
    "nuclear_norm": lambda x: prox.nuclear_norm(x.reshape(3, 2), 0.8).reshape(-1),
}


@pytest.fixture(scope="module")
def values():
    """Return every operator's value, Jacobian and difference quotients, from one program."""

    def all_numbers(x):
        directions = 1e-6 * jnp.eye(x.size)
        found = {}
        for name, operator in OPERATORS.items():
            many = jax.vmap(operator)(jnp.concatenate([x + directions, x - directions]))
            ahead, behind = jnp.split(many, 2)
            found[name] = operator(x), jax.jacfwd(operator)(x), (ahead - behind).T / 2e-6
        return found

    with jax.numpy_rank_promotion("allow"):
        return compiled(all_numbers)(jnp.asarray(POINT))


@pytest.mark.parametrize("name", OPERATORS)
def test_the_derivative_is_that_of_the_active_set(values, name):
    _, jacobian, differences = values[name]
    np.testing.assert_allclose(jacobian, differences, atol=1e-7)
    np.testing.assert_allclose(jacobian, jacobian.T, atol=1e-12)  # of a gradient
    assert np.linalg.norm(jacobian) > 0.5


def test_values(values):
    """Check the conditions that determine each value, with p = x - value."""
    value = {name: np.asarray(v[0]) for name, v in values.items()}
    p = {name: POINT - v for name, v in value.items()}
    np.testing.assert_allclose(np.abs(value["l1_ball"]).sum(), 2)
    support = value["l1_ball"] != 0
    shift = np.max(np.abs(p["l1_ball"]))
    np.testing.assert_allclose(p["l1_ball"][support], shift * np.sign(POINT)[support])
    np.testing.assert_allclose(value["l2_ball"], 2 * POINT / np.linalg.norm(POINT))
    np.testing.assert_allclose(value["linf_ball"], np.clip(POINT, -1, 1))
    for name in ("hyperplane", "half_space"):
        np.testing.assert_allclose(value[name] @ NORMAL, 0.5)
        np.testing.assert_allclose(p[name], p[name][0] * NORMAL)
    np.testing.assert_allclose(MATRIX @ value["affine_set"], 1)
    weights = np.linalg.lstsq(MATRIX.T, p["affine_set"])[0]
    np.testing.assert_allclose(MATRIX.T @ weights, p["affine_set"])
    cone = value["second_order_cone"]
    np.testing.assert_allclose(cone[0], np.linalg.norm(cone[1:]))
    np.testing.assert_allclose(p["second_order_cone"] @ cone, 0, atol=1e-12)
    plan = value["transport_polytope"].reshape(2, 3)
    np.testing.assert_allclose(plan.sum(1), ROWS)
    np.testing.assert_allclose(plan.sum(0), COLUMNS)
    assert plan.min() >= 0 and (plan == 0).any()
    np.testing.assert_allclose(
        value["group_lasso"].reshape(3, 2),
        np.maximum(1 - 1 / np.linalg.norm(GROUPS, axis=1, keepdims=True), 0) * GROUPS,
    )
    slope = np.clip(value["huber"], -0.9, 0.9)
    np.testing.assert_allclose(p["huber"], 0.5 * slope)
    string = np.cumsum(p["fused_lasso"])  # within the tube, at its wall where the value jumps
    jumps = np.diff(value["fused_lasso"])
    assert np.all(np.abs(string) <= 0.4 + 1e-12)
    np.testing.assert_allclose(string[-1], 0, atol=1e-12)
    np.testing.assert_allclose(-string[:-1][jumps != 0], 0.4 * np.sign(jumps[jumps != 0]))
    sizes = np.linalg.svd(GROUPS, compute_uv=False)
    shrunk = np.linalg.svd(value["nuclear_norm"].reshape(3, 2), compute_uv=False)
    np.testing.assert_allclose(shrunk, np.maximum(sizes - 0.8, 0), atol=1e-12)


def test_equal_singular_values_have_a_derivative():
    jacobian = jax.jacfwd(lambda x: prox.nuclear_norm(x, 0.5))(jnp.eye(2)).reshape(4, 4)
    skew = np.array([0.0, 1, -1, 0])
    np.testing.assert_allclose(jacobian @ skew, 0.5 * skew, atol=1e-12)
    np.testing.assert_allclose(jacobian @ np.eye(2).ravel(), np.eye(2).ravel(), atol=1e-12)


def test_a_kink_is_weakly_active():
    problem = itd.CompositeMinimization(
        lambda x, theta: jnp.sum((x - theta) ** 2) / 2,
        lambda x, step_size, theta: prox.group_lasso(x, step_size),
    )
    theta = jnp.array([[3.0, 4.0], [0.6, 0.8], [0.1, 0.2]])
    x = jnp.array([[2.4, 3.2], [0.0, 0.0], [0.0, 0.0]])
    flags = itd.weakly_active(problem, x, theta)
    assert np.any(flags, axis=1).tolist() == [False, True, False]


def test_wrong_arguments_are_one_sentence():
    with pytest.raises(ValueError, match="`lower`"):
        prox.box(jnp.zeros(2), 1.0, jnp.array([0.0, 2.0]))
    with pytest.raises((ValueError, TypeError), match="x"):
        prox.fused_lasso(jnp.zeros((2, 2)), 1.0)
    with pytest.raises(TypeError, match="`radius`"):
        prox.l2_ball(jnp.zeros(2), "wide")


VECTOR = jnp.array([0.5, -2.0])
WRONG = {
    "l1 ball": lambda: prox.l1_ball(VECTOR, -1.0),
    "l2 ball": lambda: prox.l2_ball(VECTOR, -1.0),
    "simplex": lambda: prox.simplex(VECTOR, -1.0),
    "soft threshold": lambda: prox.soft_threshold(VECTOR, jnp.array([1.0, -1.0])),
    "elastic net": lambda: prox.elastic_net(VECTOR, 1.0, -1.0),
    "affine set": lambda: prox.affine_set(VECTOR, jnp.ones((1, 3)), jnp.ones(1)),
    "totals": lambda: prox.transport_polytope(jnp.eye(2), jnp.ones(2), 2 * jnp.ones(2)),
    "sums": lambda: prox.transport_polytope(jnp.eye(2), jnp.ones(3), jnp.ones(2)),
    "nuclear norm": lambda: prox.nuclear_norm(VECTOR, 1.0),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_argument_of_an_operator_is_one_sentence(name):
    with pytest.raises(ValueError, match="^`"):
        WRONG[name]()


def test_what_is_not_valid_is_nan_where_its_value_is_not_known():
    @jax.jit
    def answers(x, size):
        return [
            prox.l1_ball(x, size),
            prox.l2_ball(x, size),
            prox.simplex(x, size),
            prox.soft_threshold(x, size),
            prox.box(x, size + 1, size),
            prox.box(x, 0.0, jnp.sqrt(size)),
            prox.nuclear_norm(x[None], size),
        ]

    for answer in answers(VECTOR, -0.5):
        assert np.all(np.isnan(answer))
    for operator in (prox.nonnegative, prox.simplex, prox.second_order_cone, prox.l1_ball):
        assert np.isnan(operator(jnp.array([jnp.nan, 1.0]))[0])
