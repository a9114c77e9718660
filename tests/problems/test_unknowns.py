"""Unknowns and parameters as users have them: networks, counters, keys, complex, half precision."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import iterdiff as itd

MATRIX = jnp.array([[3.0, 0.5 + 1j, 0.2], [0.5 - 1j, 2.0, 1j], [0.2, -1j, 2.5]])  # Hermitian
THETA = jnp.array([1.0 + 2j, -0.5j, 0.3])
START = jnp.zeros(3, complex)
STOP = itd.ResidualBelow(rtol=1e-10, max_steps=500)


def _energy(x, theta):
    return jnp.real(jnp.conj(x) @ MATRIX @ x) / 2 - jnp.real(jnp.conj(theta) @ x)


COMPLEX = {
    "minimum": (itd.Minimization(_energy), itd.GradientDescent(0.3)),
    "root": (itd.RootFinding(lambda x, t: MATRIX @ x - t), itd.Newton()),
}


def _loss(x):
    return jnp.sum(jnp.abs(x) ** 2) + jnp.real(x[0] * (2 - 1j))


@pytest.mark.parametrize("name", COMPLEX)
def test_complex_numbers_have_the_derivative_of_jax(name):
    problem, algorithm = COMPLEX[name]
    exact = jnp.linalg.solve(MATRIX, THETA)
    wanted = jax.grad(lambda t: _loss(jnp.linalg.solve(MATRIX, t)))(THETA)

    def value(theta, mode):
        x = itd.solve(problem, algorithm, START, theta, stop=STOP, mode=mode).x
        return _loss(x), x

    @jax.jit
    def gradients(theta):
        modes = itd.Implicit(), itd.Unrolled()
        return [jax.grad(value, has_aux=True)(theta, mode) for mode in modes]

    for gradient, x in gradients(THETA):
        assert x.dtype == START.dtype
        np.testing.assert_allclose(x, exact, atol=1e-8)
        np.testing.assert_allclose(gradient, wanted, atol=1e-7)


def test_complex_unknowns_are_pairs_of_real_ones():
    """An equation that is not holomorphic, in both forms: the derivatives are the same numbers."""
    matrix = 1.1 * MATRIX

    def residual(x, t):
        return matrix @ x + 0.1 * jnp.conj(x) * x - t

    def in_pairs(x, t):
        value = residual(jax.lax.complex(*x), jax.lax.complex(*t))
        return jnp.stack([value.real, value.imag])

    @jax.jit
    def both(theta, tangent):
        def of_complex(t):
            return itd.solve(itd.RootFinding(residual), itd.Newton(), START, t, stop=itd.Steps(8)).x

        def of_pairs(t):
            start = jnp.zeros((2, 3))
            return itd.solve(itd.RootFinding(in_pairs), itd.Newton(), start, t, stop=itd.Steps(8)).x

        pairs = [jnp.stack([v.real, v.imag]) for v in (theta, tangent)]
        return (
            jax.jvp(of_complex, (theta,), (tangent,)),
            jax.jvp(of_pairs, pairs[:1], pairs[1:]),
            jax.vjp(of_complex, theta)[1](tangent)[0],
            jax.vjp(of_pairs, pairs[0])[1](pairs[1] * jnp.array([[1.0], [-1.0]]))[0],
        )

    pushed, pairs_pushed, pulled, pairs_pulled = both(THETA, THETA[::-1])
    for ours, real in zip(pushed, pairs_pushed, strict=True):
        np.testing.assert_allclose(ours, np.asarray(real[0]) + 1j * np.asarray(real[1]), atol=1e-9)
    wanted = np.asarray(pairs_pulled[0]) - 1j * np.asarray(pairs_pulled[1])
    np.testing.assert_allclose(pulled, wanted, atol=1e-9)


def test_the_error_of_a_complex_derivative():
    problem, exact = COMPLEX["root"][0], jnp.linalg.solve(MATRIX, THETA)
    v = THETA[::-1]
    right = jnp.linalg.solve(MATRIX.T, v)
    found = itd.derivative_error(problem, exact, THETA, 1.1 * right, cotangent=v)
    np.testing.assert_allclose(found.relative, 0.1, rtol=1e-6)
    np.testing.assert_allclose(found.corrected, right, atol=1e-9)
    with pytest.raises(ValueError, match="`derivative`"):
        itd.derivative_error(problem, exact, THETA, jnp.linalg.inv(MATRIX))


@pytest.mark.parametrize("under_jit", [False, True])
def test_a_complex_solver_on_the_host(under_jit):
    class Equation(itd.Problem):
        def residual(self, x, theta):
            return {**x, "z": MATRIX @ x["z"] - theta["b"]}

    @itd.implicit(Equation())
    def solver(x0, theta):
        return {**x0, "z": np.linalg.solve(np.asarray(MATRIX), np.asarray(theta["b"]))}

    start = {"z": START, "n": np.array(2), "name": "z"}

    def value(b):
        return _loss(solver(start, {"b": b, "key": jax.random.key(0), "f": jnp.sin})["z"])

    gradient = jax.grad(value)
    found = (jax.jit(gradient) if under_jit else gradient)(THETA)
    wanted = jax.grad(lambda t: _loss(jnp.linalg.solve(MATRIX, t)))(THETA)
    np.testing.assert_allclose(found, wanted, atol=1e-12)
    same = solver(start, {"b": THETA})
    assert same["n"] == 2 and same["name"] == "z"


@pytest.mark.parametrize("mode", [itd.Unrolled(), itd.Checked(itd.Implicit(), on_failure="raise")])
def test_what_is_no_unknown_passes_through(mode):
    key = jax.random.key(3)
    start = {"x": jnp.zeros(2), "n": jnp.array(3), "key": key, "none": None, "f": jnp.sin}
    shift = jax.random.normal(key, (2,))

    def objective(x, theta):
        drawn = jax.random.normal(x["key"], (2,))
        mean = theta["f"](theta["t"]) * x["n"].astype(float)
        return jnp.sum((x["x"] - mean - drawn) ** 2)

    def solve(t):
        theta = {"t": t, "f": jnp.sin, "key": key, "n": 1, "none": None}
        problem = itd.Minimization(objective)
        return itd.solve(problem, itd.GradientDescent(0.5), start, theta, stop=STOP, mode=mode).x

    found = solve(0.4)
    np.testing.assert_allclose(found["x"], 3 * np.sin(0.4) + shift, atol=1e-9)
    assert found["n"] == 3 and found["f"] is jnp.sin and found["none"] is None
    assert jnp.all(jax.random.key_data(found["key"]) == jax.random.key_data(key))
    slope = jax.vmap(jax.grad(lambda t: solve(t)["x"][0]))(jnp.array([0.4, 1.0]))
    np.testing.assert_allclose(slope, 3 * np.cos([0.4, 1.0]), atol=1e-9)


def test_a_network_is_an_unknown():
    """The last layer of a network, fitted by ridge regression, has a closed form."""
    network = eqx.nn.Linear(2, 1, use_bias=False, key=jax.random.key(0))
    inputs = jnp.array([[1.0, 2.0], [0.5, -1.0], [2.0, 0.3]])

    def objective(net, theta):
        errors = jax.vmap(net)(inputs)[:, 0] - theta["targets"]
        return jnp.sum(errors**2) / 2 + theta["penalty"] * jnp.sum(net.weight**2) / 2

    problem, targets = itd.Minimization(objective), jnp.array([1.0, 0.0, 2.0])

    def exact(penalty):
        return jnp.linalg.solve(inputs.T @ inputs + penalty * jnp.eye(2), inputs.T @ targets)

    def fitted(penalty):
        theta = {"penalty": penalty, "targets": targets, "name": "ridge"}
        return itd.solve(problem, itd.Newton(), network, theta, stop=itd.Steps(2)).x

    answer = fitted(0.5)
    assert isinstance(answer, eqx.nn.Linear)
    slope = jax.jacobian(lambda p: fitted(p).weight[0])(0.5)
    np.testing.assert_allclose(slope, jax.jacobian(exact)(0.5), atol=1e-12)
    theta = {"penalty": 0.5, "targets": targets, "name": "ridge"}
    data = itd.trace(
        problem, itd.Newton(), network, theta, steps=1, modes={"i": itd.Implicit()},
        reference=answer,
    )  # fmt: skip
    assert data.jacobian_error.values[0, 1] < 1e-12


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_half_precision_is_solved_in_single(dtype):
    theta = jnp.array([1.0, 2.0, 3.0], dtype)

    def solve(t):
        problem = itd.Minimization(lambda x, t: jnp.sum((x - t) ** 2 / 2 + x**4 / 4))
        stop = itd.ResidualBelow(rtol=1e-5, max_steps=20)
        return itd.solve(problem, itd.Newton(), jnp.zeros(3, dtype), t, stop=stop).x

    x, pull = jax.vjp(jax.jit(solve), theta)
    exact = [np.roots([1, 0, 1, -t])[-1].real for t in (1.0, 2.0, 3.0)]
    assert x.dtype == dtype
    eps = float(jnp.finfo(dtype).eps)
    np.testing.assert_allclose(x.astype(float), exact, rtol=eps)
    slope = pull(jnp.ones(3, dtype))[0]
    assert slope.dtype == dtype
    np.testing.assert_allclose(slope.astype(float), 1 / (1 + 3 * np.square(exact)), rtol=2 * eps)


def test_complex_intermediates_of_a_real_problem():
    """Circular deconvolution: the objective computes with Fourier transforms."""
    blur = jnp.fft.rfft(jnp.array([2.0, 0.5, 0.1, 0.1]))

    def objective(x, theta):
        misfit = jnp.abs(jnp.fft.rfft(x) * blur - jnp.fft.rfft(theta)) ** 2
        return (misfit[0] + 2 * misfit[1] + misfit[2]) / 8

    def solve(theta):
        problem = itd.Minimization(objective)
        return itd.solve(problem, itd.GradientDescent(0.2), jnp.zeros(4), theta, stop=STOP).x

    theta = jnp.array([1.0, 0.0, 2.0, -1.0])
    shifted = jnp.fft.irfft(1 / blur, 4)
    wanted = jnp.stack([jnp.roll(shifted, k) for k in range(4)], axis=1)
    np.testing.assert_allclose(jax.jacobian(solve)(theta), wanted, atol=1e-8)


WRONG = {
    "an int": ({"a": 1, "b": 2.0}, TypeError),
    "a decimal": ({"a": np.float64(1), "b": np.array([1, None])}, TypeError),
    "only integers": (jnp.arange(3), ValueError),
    "only text": ("text", ValueError),
    "complex NaN": (jnp.array([complex(0, np.nan)]), ValueError),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_refused(name):
    x0, kind = WRONG[name]
    problem = itd.RootFinding(lambda x, t: x)
    with pytest.raises(kind, match="`x0`"):
        itd.solve(problem, itd.Newton(), x0, 1.0, stop=itd.Steps(1))


def test_results_of_half_precision_are_refused():
    stop, x0 = itd.Steps(1), jnp.zeros(2, jnp.bfloat16)
    minimum = itd.Minimization(lambda x, t: jnp.sum((x - t) ** 2).astype(jnp.bfloat16))
    root = itd.RootFinding(lambda x, t: (x - t).astype(jnp.bfloat16))
    for problem, kind in ((minimum, TypeError), (root, ValueError)):
        with pytest.raises(kind, match="`problem`"):
            itd.solve(problem, itd.Newton(), x0, 1.0, stop=stop)
    good = itd.RootFinding(lambda x, t: x - t)
    program = itd.QuadraticProgram(jnp.eye(2), jnp.ones(2), G=jnp.eye(2), h=jnp.ones(2))
    with pytest.raises(TypeError, match="`x0`"):
        itd.solve(program, itd.ADMM(), jnp.zeros(2, complex), 1.0, stop=stop)
    with pytest.raises(TypeError, match="`x0`"):
        itd.bilevel.hypergradient(lambda x, t: 0.0, good, itd.Newton(), x0, 1.0)
