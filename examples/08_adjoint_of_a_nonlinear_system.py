r"""
The adjoint method for a nonlinear system: a ladder of diodes
=============================================================

A voltage feeds a chain of resistors; behind each one a diode leads to ground. Its current grows
exponentially with its voltage, so that Kirchhoff's law is a nonlinear system :math:`r(v, R) = 0`.
How does the last voltage depend on each resistor? By hand, by the adjoint method and by iterdiff.
"""

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

import iterdiff as itd

jax.config.update("jax_enable_x64", True)
STAGES, SUPPLY, LEAK, THERMAL = 8, 5.0, 1e-9, 0.05  # -, V, A, V

# %%
# Kirchhoff's law at each node: what flows in through its resistor flows on, or through its diode.


def residual(v, R):
    before = jnp.concatenate([jnp.array([SUPPLY]), v[:-1]])
    through = (before - v) / R
    onward = jnp.concatenate([through[1:], jnp.zeros(1)])
    return through - onward - LEAK * jnp.expm1(v / THERMAL)


R = jnp.linspace(800.0, 1500.0, STAGES)

# %%
# By iterdiff: Newton's method and ``jax.grad``. The exponential is steep, so that the start lies on
# its safe side, above the solution.

circuit = itd.RootFinding(residual)


def last_voltage(R):
    stop = itd.ResidualBelow(rtol=0.0, atol=1e-15, max_steps=60)
    return itd.solve(circuit, itd.Newton(), jnp.full(STAGES, 0.8), R, stop=stop).x


v = np.asarray(last_voltage(R))
by_iterdiff = jax.grad(lambda R: last_voltage(R)[-1])(R)

# %%
# By hand: the Jacobian A of the residual in v is tridiagonal; B, its derivative in R, has two
# entries in each column. The sensitivities of all voltages solve :math:`A\, dv = -B`.

r = np.asarray(R)
before = np.concatenate([[SUPPLY], v[:-1]])
A = np.diag(-1 / r - LEAK / THERMAL * np.exp(v / THERMAL))
A[np.arange(STAGES - 1), np.arange(STAGES - 1)] -= 1 / r[1:]
A += np.diag(1 / r[1:], 1) + np.diag(1 / r[1:], -1)
slope = -(before - v) / r**2  # of the current through each resistor
B = np.diag(slope) - np.diag(slope[1:], 1)
by_hand = np.linalg.solve(A, -B)[-1]

# %%
# By the adjoint method: one system with the transposed matrix, for the one voltage that counts.

adjoint = np.linalg.solve(A.T, np.eye(STAGES)[-1])
by_adjoint = -adjoint @ B

for name, other in {"by hand": by_hand, "by adjoint": by_adjoint}.items():
    difference = np.max(np.abs(by_iterdiff - other)) / np.max(np.abs(other))
    print(f"largest difference between iterdiff and {name}: {difference:.1e} (relative)")
    assert difference < 1e-10

# %%
# Where do the three differ? In effort. By hand, you write the entries of A and B and solve for
# every column of the sensitivity. The adjoint method saves the columns, iterdiff also the entries.

figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
stage = np.arange(1, STAGES + 1)
axes.plot(stage, by_hand * 1e6, "s", markersize=12, fillstyle="none", label="by hand")
axes.plot(stage, by_adjoint * 1e6, "x", markersize=9, label="by adjoint")
axes.plot(stage, by_iterdiff * 1e6, ".", label="by iterdiff")
axes.set(xlabel="resistor", ylabel="derivative of the last voltage, µV per Ω")
axes.set_title("Three ways to the same derivative")
axes.legend()
plt.show()
