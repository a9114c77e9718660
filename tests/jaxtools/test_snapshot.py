"""Snapshots: equal exactly where a function computes the same."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from iterdiff.jaxtools.snapshot import snapshot, traced

X = jnp.arange(3.0)


def taken(function, *args):
    """Return the snapshot of the function."""
    return snapshot(traced(function, *(args or (X,)))[0])


STATE = types.SimpleNamespace(number=2.0, array=np.ones(3), nested={"a": [1.0]}, power=2)


def set_nested():
    """Change a number in a list in a dict."""
    STATE.nested["a"][0] += 1.0


def set_array():
    """Change an array in place."""
    STATE.array[1] += 1.0


def set_number():
    """Change an attribute to a number that differs in the last bit."""
    STATE.number = float(np.nextafter(STATE.number, 9.0))


def set_power():
    """Change a parameter of an equation."""
    STATE.power += 1


READERS = [
    (set_nested, lambda x: STATE.nested["a"][0] * x),
    (set_array, lambda x: x @ STATE.array),
    (set_array, lambda x: jax.lax.fori_loop(0, 3, lambda _, y: y * STATE.array, x)),
    (set_number, lambda x: jnp.where(x > 0, x * STATE.number, 0.0)),
    (set_power, lambda x: x**STATE.power),
    (set_power, lambda x: jax.jit(lambda y: y**STATE.power)(x)),
    (set_number, lambda x: jax.nn.relu(x) * STATE.number),
]


@pytest.mark.parametrize("change, function", READERS)
def test_what_a_function_reads_is_part_of_its_snapshot(change, function):
    before = taken(function)
    assert taken(function) == before
    assert hash(taken(function)) == hash(before)
    change()
    assert taken(function) != before


def test_jax_arrays_are_compared_by_identity():
    held = [jnp.ones(3)]
    before = taken(lambda x: x @ held[0])
    assert taken(lambda x: x @ held[0]) == before
    held[0] = jnp.ones(3)
    assert taken(lambda x: x @ held[0]) != before


def test_large_arrays_are_compared_by_content():
    data = np.zeros(1000)
    before = taken(lambda x: x[0] * data)
    data[777] = 1e-300
    assert taken(lambda x: x[0] * data) != before


def test_nan_equals_itself():
    assert taken(lambda x: x * jnp.nan) == taken(lambda x: x * jnp.nan)


def test_types_count():
    assert taken(lambda x: x * 2, X) != taken(lambda x: x * 2, X.astype(jnp.float32))
    assert taken(lambda x: x) != 1


def test_a_traced_value_is_found():
    found = []

    def loss(scale):
        found.append(taken(lambda x: scale * x).traced)
        return scale

    jax.grad(loss)(1.0)
    assert found == [True]
    assert not taken(lambda x: x * jnp.ones(3)).traced
