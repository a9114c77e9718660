r"""
Riccati's equation: which cost does this controller minimise?
=============================================================

A linear-quadratic regulator (LQR) for an inverted pendulum minimises a quadratic cost. Its gain
follows from the solution P of Riccati's equation, which SciPy finds. Here the gain is known, say
from watching a good operator, and the weights of the cost are wanted. The derivative of P comes
from the equation, not from SciPy's algorithm (a Schur decomposition).
"""

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import scipy.linalg

import iterdiff as itd

jax.config.update("jax_enable_x64", True)

# %%
# A pendulum on a cart, linearised upright, in steps of 0.05 s. State: position, speed, angle, and
# angular speed.

A = jnp.asarray(
    scipy.linalg.expm(0.05 * np.array([[0, 1, 0, 0], [0, 0, -1, 0], [0, 0, 0, 1], [0, 0, 11, 0.0]]))
)
B = 0.05 * jnp.array([[0.0], [1.0], [0.0], [-1.0]])


def gain(P, R):
    return jnp.linalg.solve(R + B.T @ P @ B, B.T @ P @ A)


def riccati(P, weights):
    Q, R = jnp.diag(weights["state"]), jnp.array([[weights["force"]]])
    return Q + A.T @ P @ (A - B @ gain(P, R))


@itd.implicit(itd.FixedPoint(riccati), traceable=False)
def cost_to_go(P0, weights):
    del P0
    Q, R = np.diag(weights["state"]), np.array([[weights["force"]]])
    return scipy.linalg.solve_discrete_are(np.asarray(A), np.asarray(B), Q, R)


@jax.jit
def controller(logs):
    """Return the gain for the logarithms of the four weights, relative to that of the force."""
    weights = {"state": jnp.exp(logs), "force": jnp.array(1.0)}
    P = cost_to_go(jnp.eye(4), weights)
    return gain(P, jnp.array([[1.0]]))[0]


# %%
# The derivative agrees with finite differences.

true = jnp.log(jnp.array([3.0, 0.3, 20.0, 0.5]))
start = jnp.zeros(4)
slope = jax.jit(jax.jacfwd(controller))(start)
step = 1e-5 * jnp.eye(4)
differences = [(controller(start + s) - controller(start - s)) / 2e-5 for s in step]
error = float(jnp.max(jnp.abs(slope - jnp.stack(differences, axis=1))))
print(f"largest difference from finite differences: {error:.1e}")
assert error < 1e-6

# %%
# Recover the weights: four gains, four unknowns.

observed = controller(true)
same = itd.LeastSquares(lambda logs, observed: controller(logs) - observed)
stop = itd.ResidualBelow(rtol=1e-9, max_steps=50)
found = itd.solve(same, itd.LevenbergMarquardt(), start, observed, stop=stop).x
print("weights found", jnp.exp(found).round(4), "true", jnp.exp(true))
assert jnp.allclose(controller(found), observed, rtol=1e-5)

# %%
# The recovered controller moves the cart as the operator does; the first guess takes another path.

figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
for name, logs, style in (("first guess", start, ":"), ("true", true, "-"), ("found", found, "--")):
    closed = np.asarray(A - B @ controller(logs)[None])
    states = [np.array([0.0, 0.0, 0.2, 0.0])]
    for _ in range(100):
        states.append(closed @ states[-1])
    axes.plot(0.05 * np.arange(101), np.array(states)[:, 0], style, label=name)
axes.set(xlabel="time, s", ylabel="position of the cart, m")
axes.set_title("The cart's path under three controllers")
axes.legend()
plt.show()
