"""What is computed twice is computed once."""

import jax
import jax.numpy as jnp
import numpy as np

from iterdiff.jaxtools import tree
from iterdiff.jaxtools.jaxpr import shared

MATRIX = jnp.arange(12.0).reshape(4, 3)


def count(function, *args, name="dot_general"):
    """Return how often a primitive occurs in a function."""
    return str(jax.make_jaxpr(function)(*args)).count(f" {name}[")


def test_equal_work_is_done_once():
    def objective(x):
        return jnp.sum(jnp.logaddexp(0.0, MATRIX @ x))

    def twice(x):
        return jax.grad(objective)(x), x - 0.1 * jax.grad(objective)(x)

    x = jnp.ones(3)
    assert count(twice, x) == 4 and count(shared(twice), x) == 2
    for a, b in zip(shared(twice)(x), twice(x), strict=True):
        np.testing.assert_array_equal(a, b)


def test_different_work_is_told_apart():
    def several(x, y):
        return (
            MATRIX @ x,
            MATRIX @ y,
            x * 2.0,
            x * 3.0,
            jnp.sum(MATRIX, axis=0),
            jnp.sum(MATRIX, axis=1),
            x.astype(jnp.float32) * 2.0,
            jnp.zeros(3) + 1.0,
            jnp.zeros(3) + 1,
        )

    x, y = jnp.ones(3), jnp.arange(3.0)
    for a, b in zip(shared(several)(x, y), several(x, y), strict=True):
        assert a.dtype == b.dtype and a.weak_type == b.weak_type
        np.testing.assert_array_equal(a, b)


def test_pytrees_loops_and_branches():
    def function(a):
        once = jax.lax.fori_loop(0, 3, lambda _, v: v @ MATRIX[:3], a["x"])
        again = jax.lax.fori_loop(0, 3, lambda _, v: v @ MATRIX[:3], a["x"])
        chosen = jax.lax.cond(a["yes"], lambda: once, lambda: -again)
        return {"sum": once + again, "chosen": chosen}

    given = {"x": jnp.ones(3), "yes": jnp.array(True)}
    found, wanted = shared(function)(given), function(given)
    assert jax.tree.structure(found) == jax.tree.structure(wanted)
    assert tree.norm(tree.sub(found, wanted)) == 0


def test_effects_happen_as_often_as_asked_for():
    said = []

    def function(x):
        jax.debug.callback(said.append, x)
        jax.debug.callback(said.append, x)
        return x

    jax.block_until_ready(jax.jit(shared(function))(jnp.ones(())))
    jax.effects_barrier()
    assert len(said) == 2
