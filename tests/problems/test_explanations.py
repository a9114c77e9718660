"""Functions of the user's that fail: the message tells the cause, and its advice works."""

import re

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest

import iterdiff as itd

STOP = itd.ResidualBelow(1e-9, max_steps=30)


@pytest.fixture(autouse=True)
def as_users_run(monkeypatch):
    """Let wrong arguments reach the library, and dtypes promote, as they do for its users."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    with jax.numpy_dtype_promotion("standard"):
        yield


def solve(problem, x0=None, theta=None, algorithm=None, **options):
    x0 = jnp.zeros(2) if x0 is None else x0
    theta = jnp.ones(2) if theta is None else theta
    return itd.solve(problem, algorithm or itd.Newton(), x0, theta, stop=STOP, **options).x


def message(kind, *args, **options):
    with pytest.raises(kind) as info:
        solve(*args, **options)
    text = str(info.value)
    assert len(re.findall(r"[.?!] +[A-Z]", text)) <= 1, text
    return text


def misfit(x, theta, *data):
    return jnp.sum((x - theta) ** 2)


def test_a_wrong_number_of_arguments():
    text = message(ValueError, itd.Minimization(lambda x: jnp.sum(x**2)))
    assert "(x, theta)" in text and "`args` arrives as one argument" in text
    unpacked = itd.Minimization(lambda x, theta, A, b: jnp.sum((A @ x - b) ** 2 + theta * x**2))
    data = jnp.eye(2), jnp.ones(2)
    text = message(ValueError, unpacked, args=data)
    assert "(x, theta, args)" in text and "shapes" not in text
    packed = itd.Minimization(lambda x, theta, args: unpacked.objective(x, theta, *args))
    np.testing.assert_allclose(solve(packed, args=data), 0.5, rtol=1e-9)
    composite = itd.CompositeMinimization(misfit, lambda x, step: itd.prox.nonnegative(x))
    text = message(ValueError, composite, algorithm=itd.ProximalGradient(0.3))
    assert "(x, step, theta)" in text

    def own(x, theta):  # the user's own call fails, not ours
        return misfit(x)

    text = message(ValueError, itd.Minimization(own))
    assert "cannot be evaluated" in text and "`args`" not in text


def test_shapes_and_entries_that_do_not_match():
    problem = itd.Minimization(lambda x, t: jnp.sum((t["a"] * x) ** 2 + t["b"]))
    text = message(ValueError, problem, theta={"a": jnp.ones(3), "b": jnp.ones(2)})
    assert "`x0` and `theta`: (2,) and {'a': (3,), 'b': (2,)}" in text
    text = message(ValueError, problem, theta={"a": jnp.ones(2)})
    assert "KeyError: 'b'" in text and "{'a': (2,)}" in text
    many = {str(k): jnp.ones(2) for k in range(200)}
    assert len(message(ValueError, problem, theta=many)) < 600


def test_a_list_of_numbers():
    numbers = [0.0, 0.0]
    stacked = itd.Minimization(lambda x, theta: jnp.sum((jnp.diff(x) - theta) ** 2 + x[0] ** 2))
    for problem in (stacked, itd.RootFinding(lambda x, theta: jnp.asarray(x) - theta)):
        assert "pass jnp.asarray(x0)" in message(ValueError, problem, numbers)
    np.testing.assert_allclose(solve(problem, jnp.asarray(numbers)), 1, rtol=1e-9)


def test_a_complex_residual_of_a_real_x0():
    problem = itd.RootFinding(lambda x, theta: {"a": (1 + 1j) * x["a"] - theta})
    x0 = {"a": jnp.zeros(2)}
    for theta in (jnp.ones(2), jnp.ones(2, complex)):
        text = message(ValueError, problem, x0, theta)
        assert "complex128" in text and "`x0['a']` is float64" in text and "Pair" not in text
        assert "jnp.asarray(x0['a'], complex)" in text
        x = solve(problem, {"a": jnp.asarray(x0["a"], complex)}, theta)
        np.testing.assert_allclose(x["a"], 1 / (1 + 1j), rtol=1e-9)


def test_constraints_and_losses_that_are_not_real_numbers():
    def constrained(**constraints):
        square = lambda x, theta: jnp.sum(jnp.abs(x - theta) ** 2)  # noqa: E731
        problem = itd.ConstrainedMinimization(square, **constraints)
        return problem, jnp.zeros(2, complex), None, itd.AugmentedLagrangian(itd.Newton())

    text = message(TypeError, *constrained(equality=lambda x, theta: jnp.sum(x)))
    assert "complex128 of shape ()" in text and "real and imaginary parts" in text
    parts = constrained(equality=lambda x, theta: [f(jnp.sum(x)) for f in (jnp.real, jnp.imag)])
    np.testing.assert_allclose(solve(*parts), 0, atol=1e-7)
    text = message(TypeError, *constrained(inequality=lambda x, theta: x.real > 0))
    assert "bool of shape (2,)" in text and "x and not x > 0" in text
    squared = itd.Minimization(lambda x, theta: jnp.sum((x - theta) ** 2))
    text = message(TypeError, squared, jnp.zeros(2, complex))
    assert "complex128 of shape ()" in text and "jnp.abs" in text
    truth = jnp.eye(2)
    root = itd.RootFinding(lambda x, theta: x - theta)
    with pytest.raises(TypeError, match=r"`loss`.*float64 of shape \(2,\)"):
        itd.derivative_error(root, jnp.ones(2), jnp.ones(2), truth[0], loss=lambda x, theta: x)
