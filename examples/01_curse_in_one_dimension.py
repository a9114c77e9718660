r"""
The curse of unrolling: the derivative gets worse while the iterate converges
=============================================================================

Gradient descent on :math:`\theta x^2 / 2` has the iterates
:math:`x_t = (1 - \eta\theta)^t x_0`, a decreasing sequence. Their derivative in :math:`\theta` is
:math:`-\eta t (1 - \eta\theta)^{t-1} x_0`, the product of a linear and an exponential factor. Its
absolute value *grows* until :math:`t = -1 / \ln(1 - \eta\theta)`, although the solution
:math:`x^* = 0` does not depend on :math:`\theta`. Scieur, Gidel, Bertrand and Pedregosa described
this phenomenon (NeurIPS 2022, arXiv 2209.13271).
"""

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

import iterdiff as itd

jax.config.update("jax_enable_x64", True)

# %%
# The problem, the algorithm, and three ways to differentiate.

theta, eta, x0, steps = jnp.array(0.05), 0.1, jnp.array(0.5), 1000
problem = itd.Minimization(lambda x, theta: theta * x**2 / 2)
trace = itd.trace(
    problem,
    itd.GradientDescent(eta),
    x0,
    theta,
    steps=steps,
    modes={"unrolled": itd.Unrolled(), "implicit": itd.Implicit(), "one step": itd.OneStep()},
)

# %%
# The error of the unrolled derivative equals the closed form up to rounding.

t = np.arange(steps + 1)
closed_form = eta * t * (1 - eta * float(theta)) ** (t - 1.0) * float(x0)
unrolled = trace.jacobian_error.sel(mode="unrolled").values
assert np.max(np.abs(unrolled - closed_form)) < 1e-12
peak = -1 / np.log(1 - eta * float(theta))
print(f"The unrolled Jacobian is worst at iteration {peak:.1f}.")

# %%
# All three modes and the iterate. The implicit derivative is evaluated at a point that is not yet
# the solution. Its error is :math:`x_t / \theta`, ten at the start, and falls with the iterate. The
# two curves cross at :math:`t = 1 / (\eta\theta) - 1 = 199`, where the unrolled derivative is
# worst; from there on the implicit one is better. One-step differentiation (JFB) has the error
# :math:`\eta (1 - \eta\theta)^{t-1} x_0`, the smallest of the three, by luck: it leaves out
# :math:`(1 - \eta\theta)\, dx^* / d\theta`, and this solution does not move. Most solutions do.

figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
axes.plot(t, trace.iterate_error, color="0.6", label="iterate")
for mode in trace.mode.values:
    axes.plot(t, trace.jacobian_error.sel(mode=mode), label=f"Jacobian, {mode}")
axes.axvline(peak, color="0.6", linestyle=":", label="peak by theory")
axes.set(yscale="log", ylim=(1e-4, 20), xlabel="iteration", ylabel="absolute error")
axes.set_title("The iterate converges from the first step, its unrolled derivative grows first")
axes.legend(loc="lower left")
plt.show()
