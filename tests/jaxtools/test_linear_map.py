"""The matrix of a traced linear map: equal to ``vmap`` over unit vectors, with fewer operations."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from iterdiff.jaxtools import linear_map as module
from iterdiff.jaxtools.linear_map import LinearMap
from tests.helpers import compiled

SIZE, ROWS = 8, 40
RNG = np.random.default_rng(5)
X = jnp.asarray(RNG.normal(size=(ROWS, SIZE)))
D = jnp.asarray(RNG.normal(size=ROWS))
E = jnp.asarray(RNG.normal(size=SIZE))
SQUARE = jnp.asarray(RNG.normal(size=(SIZE, SIZE)))
TENSOR = jnp.asarray(RNG.normal(size=(4, 2, 4, 2)))
KERNEL = jnp.asarray(RNG.normal(size=3))


@jax.custom_jvp
def _softplus(t):
    return jnp.logaddexp(t, 0.0)


_softplus.defjvp(lambda t, dt: (_softplus(*t), jax.nn.sigmoid(t[0]) * dt[0]))


def _hessian(objective):
    return jax.linearize(jax.grad(objective), 0.1 * E)[1]


def _of_pytree(v):
    # x is {"bias": (2,), "weights": (2, 3)}
    bias, weights = v[:2], v[2:].reshape(2, 3)
    out = X[:10, :3] @ weights.T + bias[None]
    return jnp.concatenate([jnp.sum(out, 0), (out.T @ X[:10, :3]).reshape(-1)])


def _by_scan(v):
    return jax.lax.scan(lambda c, row: (0.5 * c + (row @ v) * E, None), v, X)[0]


def _narrow(v):
    narrow = X.astype(jnp.float32)
    return (narrow.T @ (narrow @ v.astype(jnp.float32))).astype(jnp.float64)


# JAX 0.12 traces one product less.
OF_LAYERS = 3 if jax.__version_info__ < (0, 11) else 2

# Each map, and the number of intermediate values whose columns are found without a product. Each is
# marked by one optimization barrier in the program.
MAPS = {
    "product": (lambda v: SQUARE @ v, 1),
    "gram": (lambda v: X.T @ (D * (X @ v)) + E * v, 1),
    "scaled before": (lambda v: X.T @ (X @ (E * -v)), 1),
    "layer, transposed": (lambda v: v - SQUARE.T @ (E * v), 1),
    "used twice": (lambda v: X.T @ (X @ v + D * (X @ v)), 2),
    "chosen": (lambda v: X.T @ jnp.where(D > 0, D * (X @ v), 0.0), 1),
    "affine on the way": (lambda v: X.T @ ((D * (X @ v) + D) / 2) - X.T @ D / 2, 1),
    "quotient": (lambda v: X.T @ ((X @ v) / D), 1),
    "slices": (lambda v: jnp.concatenate([X[:3, :4] @ v[:4], X[:5, :2] @ v[1:8:4]]), 2),
    "rearranged": (lambda v: jnp.einsum("ijkl,lk->ij", TENSOR, v.reshape(2, 4)).reshape(-1), 1),
    "one entry": (lambda v: jnp.tensordot(E, v[2], 0) + jnp.tensordot(v[1:3], SQUARE[:2], 1), 2),
    "jit inside": (lambda v: jax.jit(lambda u: X.T @ jax.jit(lambda w: X @ w)(u))(v), 1),
    "logistic": (_hessian(lambda x: jnp.sum(jnp.logaddexp(0.0, X @ x)) + jnp.exp(E) @ x**2), 1),
    "custom_jvp": (_hessian(lambda x: jnp.sum(_softplus(X @ x))), 1),
    "layers": (_hessian(lambda x: jnp.sum(jnp.tanh(SQUARE @ jnp.tanh(X[:SIZE] @ x)))), OF_LAYERS),
    "pytree": (_of_pytree, 0),
    "convolution": (lambda v: jnp.convolve(v, KERNEL, mode="same"), 0),
    "scan": (_by_scan, 0),
    "scatter": (lambda v: jnp.zeros(SIZE).at[::2].add(v[:4]) + v[::-1], 0),
    "diagonal": (lambda v: E * v, 0),
    "zero": (lambda v: jnp.zeros(SIZE) * v, 0),
    "narrow inside": (_narrow, 1),
}


def count(name, jaxpr):
    """Return how often a primitive occurs, at any depth."""
    total = 0
    for equation in jaxpr.eqns:
        total += equation.primitive.name == name
        parts = [v if isinstance(v, tuple | list) else (v,) for v in equation.params.values()]
        inner = [getattr(v, "jaxpr", v) for part in parts for v in part]
        total += sum(count(name, j) for j in inner if hasattr(j, "eqns"))
    return total


def matrices(function):
    """Return the map of a function, and a program of its matrix, the same by ``vmap``, and ``A E``.

    One program, since compiling takes nearly all the time.
    """
    linear_map = LinearMap.of(function, E)

    def both():
        by_columns = jax.vmap(function, out_axes=1)(jnp.eye(SIZE))
        return linear_map.matrix(), by_columns, linear_map(E), function(E)

    return linear_map, compiled(both)


@pytest.mark.parametrize("name", MAPS)
def test_the_matrix_equals_the_products_with_unit_vectors(name):
    function, found = MAPS[name]
    linear_map, both = matrices(function)
    matrix, expected, product, expected_product = both()
    tolerance = 1e-5 if name == "narrow inside" else 1e-13
    scale = max(np.max(np.abs(expected)), 1e-300)
    assert matrix.dtype == E.dtype
    np.testing.assert_allclose(matrix / scale, expected / scale, atol=tolerance)
    np.testing.assert_allclose(product, expected_product, rtol=1e-13)
    assert count("optimization_barrier", jax.make_jaxpr(linear_map.matrix)().jaxpr) == found


def _renamed(equation, index):
    return index if equation.params["a parameter of another release"] else None


@pytest.mark.parametrize("change", ["parameter", "call"])
def test_primitives_that_jax_has_changed_cost_time_but_are_not_wrong(monkeypatch, change):
    if change == "parameter":
        monkeypatch.setattr(module, "_moved", _renamed)
    else:
        monkeypatch.setattr(module._Analysis, "opened", {})
        monkeypatch.setattr(module._Evaluation, "opened", {})
    left, right = X.T, X[:, :4]
    inner = jax.jit(lambda v: right @ v[:4])
    linear_map, both = matrices(lambda v: left @ (D * inner(v)))
    matrix, expected, _, _ = both()
    np.testing.assert_allclose(matrix, expected, atol=1e-12)
    # Nothing is saved: every operation counts for every column.
    assert linear_map.matrix_flops == SIZE * linear_map.product_flops


def test_matrices_of_batches_of_maps():
    weights = jnp.asarray(RNG.normal(size=(3, ROWS)))

    def matrix(d):
        return LinearMap.of(lambda v: X.T @ (d * (X @ v)), E).matrix()

    for found, d in zip(compiled(jax.vmap(matrix))(weights), weights, strict=True):
        np.testing.assert_allclose(found, (X.T * d[None]) @ X, atol=1e-12)


def flops(function, *inputs) -> float:
    """Return the operations of the compiled program, as XLA counts them."""
    return jax.jit(function).lower(*inputs).compile().cost_analysis()["flops"]


def test_the_hessian_of_a_generalised_linear_model_takes_half_the_operations():
    # X and D are inputs, so that nothing is computed at compile time.
    def by_columns(x, d):
        return jax.vmap(lambda v: x.T @ (d * (x @ v)), out_axes=1)(jnp.eye(SIZE))

    def by_linear_map(x, d):
        return LinearMap.of(lambda v: x.T @ (d * (x @ v)), E).matrix()

    product = 2 * ROWS * SIZE**2
    assert flops(by_columns, X, D) >= 2 * product
    assert flops(by_linear_map, X, D) <= product + 2 * ROWS * SIZE + SIZE**2


def test_operations_are_counted_before_anything_runs():
    transposed = X.T
    linear_map = LinearMap.of(lambda v: transposed @ (D * (X @ v)), E)
    assert linear_map.product_flops == 4 * ROWS * SIZE + ROWS
    assert linear_map.matrix_flops == SIZE * 2 * ROWS * SIZE  # neither X v nor its multiples by D
