r"""
Fewer iterations: Anderson acceleration of iterate and Jacobian together
========================================================================

Forward unrolling (piggyback differentiation) iterates the pair of iterate and Jacobian by one map.
``Unrolled(accelerate=10)`` applies Anderson's method to this map: one set of weights combines the
last ten differences of iterates and of their tangents. For four problems, this example counts the
iterations until the relative error of the Jacobian is below :math:`10^{-6}`.
"""

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

import iterdiff as itd
from iterdiff.study.problems.datasets import bundled

jax.config.update("jax_enable_x64", True)

# %%
# Each function returns a problem, how to solve it, and its solution if there is a formula. First
# quadratics in 30 dimensions with smallest eigenvalue :math:`\kappa` and largest eigenvalue 1.
# Three parameters move the matrix and the right-hand side; the matrices do not commute.


def quadratic(kappa, n=30, p=3):
    draw = np.random.default_rng(0)
    q = np.linalg.qr(draw.normal(size=(n, n)))[0]
    values = np.r_[kappa, kappa * np.array([1.5, 2.5, 4.0]), draw.uniform(kappa, 1, n - 5), 1.0]
    root = q * np.sqrt(values)
    moves = draw.normal(size=(p, n, n)) / np.sqrt(n)
    moves = jnp.asarray(root @ ((moves + moves.transpose(0, 2, 1)) / 2) @ root.T)
    matrix = jnp.asarray(root @ root.T)
    end, slopes = jnp.asarray(draw.normal(size=n)), jnp.asarray(draw.normal(size=(n, p)) * 0.3)

    def moved(theta):
        return matrix + jnp.tensordot(theta, moves, 1)

    def objective(x, theta):
        return x @ moved(theta) @ x / 2 - (matrix @ end - slopes @ theta) @ x

    def solution(theta):
        return jnp.linalg.solve(moved(theta), matrix @ end - slopes @ theta)

    x0, descent = jnp.asarray(draw.normal(size=n)), itd.GradientDescent(1.0)
    return itd.Minimization(objective), descent, x0, jnp.zeros(p), solution


# %%
# Further problems: logistic regression on the breast cancer data, differentiated in the logarithm
# of one penalty per weight; and a diagonally dominant system, solved by Jacobi's method.


def logistic():
    table = bundled("breast-cancer")
    rows = jnp.asarray(table.standardised() * table.signs()[:, None])
    count, n = rows.shape

    def objective(x, theta):
        return jnp.mean(jax.nn.softplus(-rows @ x)) + jnp.sum(jnp.exp(theta) * x**2) / 2

    descent = itd.GradientDescent(1 / (np.linalg.eigvalsh(rows.T @ rows / count)[-1] / 4 + 0.05))
    theta = jnp.full(n, np.log(0.05))
    return itd.Minimization(objective), descent, jnp.zeros(n), theta, None


def dominant(n=30, p=3):
    draw = np.random.default_rng(3)
    off = -np.abs(draw.normal(size=(n, n)))
    np.fill_diagonal(off, 0)
    matrix = jnp.asarray(off + np.diag(1.08 * np.abs(off).sum(1)))
    moves = jnp.asarray(draw.normal(size=(p, n, n)) * 0.3)
    right = jnp.asarray(draw.normal(size=n) * 10)
    slopes = jnp.asarray(draw.normal(size=(n, p)) * 3)

    def update(x, theta):
        moved = matrix + jnp.tensordot(theta, moves, 1)
        return x - (moved @ x - right - slopes @ theta) / jnp.diag(moved)

    def solution(theta):
        return jnp.linalg.solve(matrix + jnp.tensordot(theta, moves, 1), right + slopes @ theta)

    x0 = jnp.asarray(draw.normal(size=n))
    return itd.FixedPoint(update), itd.Picard(), x0, jnp.zeros(p), solution


EXAMPLES = {
    "quadratic, κ = 0.1": quadratic(0.1),
    "quadratic, κ = 0.01": quadratic(0.01),
    "logistic": logistic(),
    "Jacobi": dominant(),
}

# %%
# The measurement. After reaching the tolerance the pair continues for a hundred iterations. Its
# error is not monotone, but must stay below :math:`10^{-5}` and end below the tolerance.

TOLERANCE, STAYS = 1e-6, 100
PAIR_STEPS, PLAIN_STEPS = 300, 2500


def errors(example, mode, steps):
    *run, known = example
    traced = itd.trace(*run, steps=steps, modes={"mode": mode}, reference=known)
    return traced.jacobian_error[0].values / traced.jacobian_error.attrs["reference_norm"]


def arrival(error):
    return int(np.argmax(error <= TOLERANCE)) if (error <= TOLERANCE).any() else None


figure, axes = plt.subplots(figsize=(7, 4.5), layout="constrained")
speedups = []
print(f"{'':22} {'plain':>7} {'pair':>6} {'ratio':>6}   worst after, 100 after")
for (name, example), colour in zip(EXAMPLES.items(), plt.cm.tab10.colors, strict=False):
    plain = errors(example, itd.Unrolled(), PLAIN_STEPS)
    pair = errors(example, itd.Unrolled(accelerate=10), PAIR_STEPS)
    slow, fast = arrival(plain), arrival(pair)
    later = pair[fast : fast + STAYS + 1].max(), pair[fast + STAYS]
    assert later[0] <= 10 * TOLERANCE and later[1] <= TOLERANCE, f"{name}: does not stay"
    speedups.append(slow / fast)
    print(f"{name:22} {slow:7} {fast:6} {slow / fast:6.1f}   {later[0]:.1e} {later[1]:.0e}")
    axes.plot(np.maximum(plain, 1e-16), color=colour, linestyle=":")
    axes.plot(np.maximum(pair[: fast + STAYS], 1e-16), color=colour, label=name)
print(f"median ratio {np.median(speedups):.0f}")
axes.axhline(TOLERANCE, color="0.7", linewidth=0.8)
axes.set(
    xscale="log",
    yscale="log",
    xlim=(1, None),
    xlabel="iteration",
    ylabel="relative Jacobian error",
    title="Unrolled: plain (dotted), accelerated pair (solid)",
)
axes.legend(fontsize="small")
plt.show()

# %%
# Each iteration of the pair costs one step and one tangent step per parameter, as in plain forward
# unrolling, and a least-squares problem with ten columns. If the steps dominate the cost, the time
# falls about as much as the number of iterations. If a linear solve is affordable, implicit
# differentiation is cheaper still.
