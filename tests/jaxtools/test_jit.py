"""Functions compiled such that the data in their closures are inputs."""

import gc
import weakref

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from iterdiff.jaxtools.by_content import ByContent
from iterdiff.jaxtools.jit import (
    MAX_CACHED_PROGRAMS,
    QUICK_MAX_READS,
    QUICK_OPTIONS,
    _programs,
    compiled,
    program_of,
    quickly_compiled,
)

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


def test_transformations_use_the_same_program():
    call, traces = counted(lambda x: jnp.sum(DATA @ x) ** 2)
    np.testing.assert_allclose(jax.grad(call)(jnp.ones(3)), 30 * jnp.array([3.0, 5.0, 7.0]))
    assert jax.jit(jax.vmap(call))(jnp.ones((2, 3))).shape == (2,)
    assert len(traces) == 1


def test_a_program_that_closes_over_a_traced_value_is_not_kept():
    scales = []
    call, traces = counted(lambda x: scales[-1] * x)

    def scaled(scale):
        scales.append(scale)
        return call(jnp.ones(()))

    assert jax.grad(scaled)(2.0) == 1.0
    assert jax.jit(scaled)(3.0) == 3.0
    assert len(traces) == 2


def test_options_of_the_trace_are_part_of_the_program():
    call, traces = counted(lambda x: x @ x)
    for precision in ("float32", "bfloat16"):
        with jax.default_matmul_precision(precision):
            call(jnp.ones(3))
    assert len(traces) == 2


def test_a_program_is_dropped_with_the_function_that_it_came_from():
    @compiled
    def apply(function, x):
        return function(x)

    data = [jnp.ones(3)]
    function = lambda x, data=data: data[0] @ x  # noqa: E731
    assert apply(function, jnp.ones(3)) == 3.0
    collected = weakref.ref(function)
    held = [program.closed_over for program in _programs.kept()]
    assert any(v is data[0] for v in jax.tree.leaves(held))
    del function, held
    gc.collect()
    assert collected() is None
    held = [program.closed_over for program in _programs.kept()]
    assert not any(v is data[0] for v in jax.tree.leaves(held))


def test_the_number_of_programs_is_bounded():
    call, _ = counted(lambda x, k: x + k)
    for k in range(MAX_CACHED_PROGRAMS + 2):
        call(jnp.ones(()), k)
    assert len(_programs.kept()) == MAX_CACHED_PROGRAMS


def test_static_arguments_without_a_hash_are_compared_by_identity():
    call, traces = counted(lambda x, names: x * len(names))
    first, second = {"a"}, {"a"}
    for names in (first, first, second):
        assert call(jnp.ones(()), names) == 1.0
    assert len(traces) == 2


@pytest.fixture
def options_of_programs(monkeypatch):
    """The compiler's options of each program that is made, in their order."""
    found, jit = [], jax.jit

    def spy(function, **settings):
        found.append(settings.get("compiler_options"))
        return jit(function, **settings)

    monkeypatch.setattr(jax, "jit", spy)
    return found


def test_programs_of_tools_are_compiled_quickly_if_they_are_small(options_of_programs):
    @compiled
    def product(x):
        return jnp.sum(x * x)

    for evaluations, quick in ((QUICK_MAX_READS // 3, True), (QUICK_MAX_READS // 2, False)):
        with quickly_compiled(evaluations):
            assert product(jnp.ones(3)) == 3
            assert ByContent(lambda x: 2 * jnp.sum(x))(jnp.ones(3)) == 6
        assert options_of_programs[-2:] == [QUICK_OPTIONS if quick else None] * 2
    assert len(options_of_programs) == 4
    with quickly_compiled(QUICK_MAX_READS // 4):  # fewer evaluations need no other program
        assert product(jnp.ones(3)) == 3
    assert product(jnp.ones(3)) == 3  # outside, it is that of many evaluations
    assert len(options_of_programs) == 4


def test_a_part_of_another_program_is_compiled_with_it():
    @compiled
    def square(x):
        return x**2

    @quickly_compiled()
    def tool(x):
        return square(x)

    x = jnp.array(3.0)
    for call in (tool, jax.jit(tool), jax.vmap(tool), jax.jit(lambda _: tool(jnp.array(3.0)))):
        np.testing.assert_array_equal(call(x[None]).squeeze(), 9.0)
    assert jax.grad(tool)(x) == 6.0
