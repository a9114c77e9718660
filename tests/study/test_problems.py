"""The problems of the built-in studies, against closed forms."""

import jax
import jax.numpy as jnp
import numpy as np

import iterdiff as itd
from iterdiff.study.problems.physics import Bratu, Diffusion
from iterdiff.study.problems.regressions import LogisticRegression, RidgeRegression


def test_ridge_is_solved_by_its_normal_equations(tmp_path):
    path = tmp_path / "table.csv"
    path.write_text("a,b,y\n1,2,3\n2,1,5\n4,4,4\n0,3,1\n7,5,9\n")
    (posed,) = RidgeRegression(data=str(path), target="y", penalty=0.2, start=2.0).pose()
    raw = np.loadtxt(path, delimiter=",", skiprows=1)
    z = (raw - raw.mean(0)) / raw.std(0)
    features, y = z[:, :2], z[:, 2]
    hessian = features.T @ features / 5 + 0.2 * np.eye(2)
    weights = np.linalg.solve(hessian, features.T @ y / 5)
    np.testing.assert_allclose(posed.reference(posed.theta), weights, rtol=1e-12)
    np.testing.assert_allclose(
        posed.problem.residual(posed.x0, posed.theta),
        hessian @ (posed.x0 - weights),
        rtol=1e-12,
    )
    np.testing.assert_allclose(posed.spectrum, np.linalg.eigvalsh(hessian), rtol=1e-12)
    np.testing.assert_allclose(posed.x0, 2 * np.random.default_rng(0).standard_normal(2))


def test_logistic_is_bounded_by_its_constants(getkey):
    (posed,) = LogisticRegression(penalty=0.03, start=3.0).pose()
    assert posed.theta.shape == posed.x0.shape == (30,)
    (low, high), theory = posed.spectrum, posed.theory
    hessian = jax.jit(jax.hessian(posed.problem.objective))
    for point in (jnp.zeros(30), posed.x0, jax.random.normal(getkey(), (30,))):
        values = np.linalg.eigvalsh(hessian(point, posed.theta))
        assert low <= values[0] * (1 + 1e-9) and values[-1] <= high * (1 + 1e-9)
    np.testing.assert_allclose(np.linalg.eigvalsh(hessian(jnp.zeros(30), posed.theta))[-1], high)
    for size in (0.01, 0.3, 10.0):
        x, step = jax.random.normal(getkey(), (2, 30))
        change = hessian(x + size * step, posed.theta) - hessian(x, posed.theta)
        distance = size * jnp.linalg.norm(step)
        assert jnp.linalg.norm(change, 2) <= theory.lipschitz_x * distance
    moved = jax.jacobian(posed.problem.residual, 1)(x, posed.theta)
    assert jnp.linalg.norm(moved) <= theory.lipschitz_theta * jnp.linalg.norm(x) * 1.0001


def test_diffusion_is_the_five_point_stencil_and_symmetric():
    (posed,) = Diffusion(cells=4, contrast=5.0, roughness=0.5).pose()

    @jax.jit
    def matrix(theta):
        units = jnp.eye(16).reshape(16, 4, 4)
        return jax.vmap(lambda v: posed.problem.operator(v, theta).ravel())(units)

    one_way = 2 * np.eye(4) - np.eye(4, k=1) - np.eye(4, k=-1) + np.diag([1.0, 0, 0, 1])
    plain = np.kron(one_way, np.eye(4)) + np.kron(np.eye(4), one_way)
    np.testing.assert_allclose(matrix(jnp.ones((4, 4))), plain, atol=1e-14)
    uneven = matrix(posed.theta)
    np.testing.assert_allclose(uneven, uneven.T, atol=1e-13)
    np.testing.assert_allclose(np.linalg.eigvalsh(uneven)[[0, -1]], posed.spectrum)
    exact = posed.reference(posed.theta)
    residual = posed.problem.residual(exact, posed.theta)
    np.testing.assert_allclose(residual, np.zeros((4, 4)), atol=1e-14)


def test_bratu_approaches_the_known_solution():
    (posed,) = Bratu(points=63, source=2.0).pose()
    stop = itd.ResidualBelow(rtol=1e-12, max_steps=30)
    u = itd.solve(posed.problem, itd.Newton(), posed.x0, posed.theta, stop=stop).x
    omega = 1.0
    for _ in range(200):
        omega = np.sqrt(4.0) * np.cosh(omega / 4)
    s = np.arange(1, 64) / 64
    exact = -2 * np.log(np.cosh((s - 0.5) * omega / 2) / np.cosh(omega / 4))
    np.testing.assert_allclose(u, exact, atol=1e-3 * exact.max())
