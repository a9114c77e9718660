"""Functions compiled such that the data in their closures are inputs."""

import jax
import jax.numpy as jnp
import numpy as np

from iterdiff.jaxtools.jit import compiled, program_of

DATA = jnp.arange(6.0).reshape(2, 3)


def counted(function):
    """Return the compiled function, and how often it was traced."""
    traces = []

    @compiled
    def call(*args):
        traces.append(args)
        return function(*args)

    return call, traces


def test_a_second_call_with_the_same_shapes_traces_nothing():
    call, traces = counted(lambda x: DATA @ x)
    for x in (jnp.ones(3), jnp.arange(3.0)):
        np.testing.assert_array_equal(call(x), DATA @ x)
    assert len(traces) == 1
    call(jnp.ones(3, jnp.float64)[:, None])
    assert len(traces) == 2


def test_what_is_closed_over_is_an_input():
    @compiled
    def product(x):
        return DATA @ x

    product(jnp.ones(3))
    program = program_of(product.__wrapped__, jnp.ones(3))
    assert any(v is DATA for v in jax.tree.leaves(program.closed_over))
    text = program.run.lower(program.closed_over, (jnp.ones(3),)).as_text()
    assert "dense<[[0.0" not in text.replace("0.000000e+00", "0.0")


def test_static_arguments_that_are_equal_but_of_other_types_are_told_apart():
    call, traces = counted(lambda x, how: x * (2.0 if how is True else 3.0))
    assert call(jnp.ones(()), True) == 2.0
    assert call(jnp.ones(()), 1) == 3.0
    assert len(traces) == 2


def test_static_values_and_pytrees_come_back():
    call, _ = counted(lambda x, name: {name: x["a"] + x["b"], "name": name})
    found = call({"a": jnp.ones(2), "b": np.ones(2)}, "sum")
    assert found["name"] == "sum"
    np.testing.assert_array_equal(found["sum"], 2 * np.ones(2))


def test_constants_come_back_as_arrays():
    call, _ = counted(lambda x: (x, jnp.asarray(jnp.inf), jnp.zeros(2)))
    assert all(isinstance(v, jax.Array) for v in call(jnp.ones(3)))


def test_under_a_transformation_it_is_the_function_itself():
    call, traces = counted(lambda x: jnp.sum(DATA @ x) ** 2)
    np.testing.assert_allclose(jax.grad(call)(jnp.ones(3)), 30 * jnp.array([3.0, 5.0, 7.0]))
    assert jax.jit(jax.vmap(call))(jnp.ones((2, 3))).shape == (2,)
    assert len(traces) == 2
