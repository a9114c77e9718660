r"""
Truncated unrolling: which steps are worth differentiating?
===========================================================

``Unrolled(last=k)`` does not differentiate the first :math:`K = T - k` steps. The rule
``theory.late_start`` predicts the best K, which does not depend on T: wait until the implicit
derivative at the iterate is no more wrong than zero would be, :math:`\|J(x_K) - J^*\| \approx
\|J^*\|`. This example computes the error for *every* K and compares the rule with the best.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

import iterdiff as itd
from iterdiff import theory
from iterdiff.study.config import Case
from iterdiff.study.late_starts import late_starts

jax.config.update("jax_enable_x64", True)

# %%
# ``late_starts`` computes all starts at once. The Jacobian that starts at K is the sum of the
# contributions of the steps from K on; one backward sweep for every T adds them up.
#
# First a single mode: gradient descent on a parabola, started nearer and farther away. Here the
# theoretical bound is an equality, and the rule is exact to the iteration.


class Parabola(eqx.Module):
    """An objective in one dimension, minimal at slope / theta."""

    slope: float = 0.05

    def __call__(self, x, theta):
        """Return the objective."""
        return theta * x**2 / 2 - self.slope * x


curvature, slope, step_size = 0.05, 0.05, 0.1
rho, solution, jacobian = 1 - step_size * curvature, slope / curvature, -slope / curvature**2
problem, descent = itd.Minimization(Parabola()), itd.GradientDescent(step_size)
print("One mode: the best K and the rule's, then relative errors")
print(f"{'start':>6} {'T':>5} {'best K':>7} {'rule':>7} {'best':>8} {'K = 0':>8} {'K = T/2':>8}")
for x0 in (-1.0, -9.0, -99.0):
    drift = step_size * abs(x0 - solution)
    predicted = float(theory.late_start(rho, drift, abs(jacobian)))
    total = int(predicted) + 400
    theta = jnp.asarray(curvature)
    case = Case("", problem, descent, jnp.asarray(x0), theta, 1400, reference=lambda t: slope / t)
    measured = late_starts(case, [total]).errors[0, : total + 1]
    starts = np.arange(total + 1)
    bound = theory.late_start_bound(total, starts, rho, drift, abs(jacobian))
    assert np.max(np.abs(measured - bound)) < 1e-12 * abs(jacobian)
    best = int(np.argmin(measured))
    assert abs(best - predicted) < 1
    values = measured[[best, 0, total // 2]] / abs(jacobian)
    numbers = " ".join(f"{v:8.2g}" for v in values)
    print(f"{x0:6g} {total:5} {best:7} {predicted:7.1f} {numbers}")

# %%
# Now several modes: quadratics with smallest eigenvalue :math:`\kappa` and largest eigenvalue 1,
# started far away (20 times the usual distance), solved by gradient descent with two step sizes and
# by the heavy ball. The rule then uses the drift :math:`(1 - \rho) \|J(x_t) - J^*\|`, in which
# every mode counts by its contribution to the sum. It is evaluated at each iterate until it
# predicts that no further step should be skipped.


class Quadratic(eqx.Module):
    """An objective whose matrix and right-hand side depend on theta."""

    matrix: jax.Array
    moves: jax.Array
    right: jax.Array
    slopes: jax.Array

    def moved(self, theta):
        """Return the matrix at theta."""
        return self.matrix + jnp.tensordot(theta, self.moves, 1)

    def __call__(self, x, theta):
        """Return the objective."""
        return x @ self.moved(theta) @ x / 2 - (self.right - self.slopes @ theta) @ x

    def solution(self, theta):
        """Return the minimiser at theta."""
        return jnp.linalg.solve(self.moved(theta), self.right - self.slopes @ theta)


def quadratic(kappa, n=30, p=3):
    draw = np.random.default_rng(0)
    q = np.linalg.qr(draw.normal(size=(n, n)))[0]
    root = q * np.sqrt(np.r_[kappa, kappa * 1.5, draw.uniform(kappa, 1, n - 3), 1.0])
    moves = draw.normal(size=(p, n, n)) / np.sqrt(n)
    moves = jnp.asarray(root @ ((moves + moves.transpose(0, 2, 1)) / 2) @ root.T)
    matrix = jnp.asarray(root @ root.T)
    solution, slopes = jnp.asarray(draw.normal(size=n)), jnp.asarray(draw.normal(size=(n, p)) * 0.3)
    start = solution + 20 * (jnp.asarray(draw.normal(size=n)) - solution)
    return Quadratic(matrix, moves, matrix @ solution, slopes), start


polyak = theory.polyak_parameters(0.01, 1.0)
RUNS = [
    ("GD, 1/L", 0.1, itd.GradientDescent(1.0), theory.gradient_descent_rate(0.1, 1.0, 1.0)),
    ("GD, 2/(L+ℓ)", 0.01, itd.GradientDescent(2 / 1.01), theory.chebyshev_rate(1e-4, 1.0)),
    ("heavy ball", 0.01, itd.HeavyBall(*polyak), theory.chebyshev_rate(0.01, 1.0)),
]
TOTALS = [(20, 40, 80), (100, 300), (30, 60, 100)]
figure, axes = plt.subplots(1, 3, figsize=(9, 3.6), sharey=True, layout="constrained")
columns = " ".join(f"{name:>8}" for name in ("best", "rule", "K = 0", "K = T/2", "rule/best"))
print("30 modes: the best K and the rule's, then relative errors")
print(f"{'T':>5} {'best K':>7} {'rule':>5} {columns}")
for axis, (method, kappa, algorithm, rate), totals in zip(axes, RUNS, TOTALS, strict=True):
    objective, start = quadratic(kappa)
    problem, theta = itd.Minimization(objective), jnp.zeros(3)
    known = {"reference": objective.solution, "rate": float(rate)}
    found = late_starts(Case("", problem, algorithm, start, theta, totals[-1], **known), totals)
    truth = np.linalg.norm(jax.jacfwd(objective.solution)(theta))
    print(f"{method}, κ = {kappa:g}")
    axis.axvline(found.predicted, color="0.4", linestyle="--", label=f"rule: {found.predicted:g}")
    for total, errors in zip(totals, found.errors / truth, strict=True):
        best, predicted = int(np.nanargmin(errors)), min(round(found.predicted), total)
        values = errors[[best, predicted, 0, total // 2]]
        numbers = " ".join(f"{v:8.2g}" for v in values)
        print(f"{total:5} {best:7} {predicted:5} {numbers} {values[1] / values[0]:9.2f}")
        (line,) = axis.plot(errors, label=f"T = {total}")
        axis.plot(best, errors[best], "o", color=line.get_color())
    axis.set(yscale="log", xlabel="K, steps left out", title=f"{method}, κ = {kappa:g}")
    axis.legend(fontsize="small")
axes[0].set_ylabel("Jacobian error, relative to ‖J*‖")
figure.suptitle("Error of every late start (dots: the best K, dashed: the rule)")
plt.show()

# %%
# Dots mark the best K, dashed lines the rule. For 1/L the rule is close to the best. For the other
# two it starts too early: their fast modes oscillate, and each differentiated step excites them
# again. Where a late start gains much but the best error is about 1 (as if the derivative were
# zero), the run is still inside its burn-in and should be longer. A late start does save the memory
# of K states.
