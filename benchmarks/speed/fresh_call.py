"""The fresh processes of `first_calls`: ``python -m benchmarks.speed.fresh_call NAME``.

They print the processor time of the first call after the imports and of the second, in seconds.
"""

import json
import sys
import time
from collections.abc import Callable
from typing import Any

ROWS, COLUMNS = 200, 10
STEP_SIZE = 1e-3
PENALTY = 0.3
"""The parameter: the logarithm of the penalty."""
TRACED_STEPS = 200
GRADIENT, CHECKED = "gradient, `Implicit()`", "gradient, `Checked(Implicit())`"
ESTIMATE, TRACE, CHECK = "`derivative_error`", "`trace`", "`check_derivative`"
DIAGNOSE = "`diagnose`"
NAMES = (ESTIMATE, TRACE, CHECK, DIAGNOSE, GRADIENT, CHECKED)


def call(name: str) -> Callable[[], Any]:
    """Return a call on ridge regression by gradient descent, as a user makes it."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    import iterdiff as itd

    rng = np.random.default_rng(0)
    data = tuple(
        map(jnp.asarray, (rng.standard_normal((ROWS, COLUMNS)), rng.standard_normal(ROWS)))
    )

    def objective(x, theta, data):
        features, targets = data
        return jnp.sum((features @ x - targets) ** 2) / 2 + jnp.exp(theta) * jnp.sum(x**2) / 2

    def loss(theta, mode):
        return jnp.sum(itd.solve(*run, theta, stop=stop, mode=mode, args=data).x ** 2)

    problem, theta = itd.Minimization(objective), jnp.asarray(PENALTY)
    run = problem, itd.GradientDescent(STEP_SIZE), jnp.zeros(COLUMNS)
    stop = itd.ResidualBelow(rtol=1e-8, max_steps=2000)
    modes = {"unrolled": itd.Unrolled(), "implicit": itd.Implicit()}
    implicit, checked = (
        jax.jit(jax.grad(lambda theta, mode=mode: loss(theta, mode)))
        for mode in (itd.Implicit(), itd.Checked(itd.Implicit(), rtol=1e-3))
    )
    x, jacobian = jnp.zeros(COLUMNS), jnp.zeros(COLUMNS)
    return {
        ESTIMATE: lambda: itd.derivative_error(problem, x, theta, jacobian, args=data),
        TRACE: lambda: itd.trace(*run, theta, steps=TRACED_STEPS, modes=modes, args=data),
        CHECK: lambda: itd.check_derivative(*run, theta, stop=stop, args=data),
        DIAGNOSE: lambda: itd.diagnose(*run, theta, args=data),
        GRADIENT: lambda: implicit(theta),
        CHECKED: lambda: checked(theta),
    }[name]


def main(name: str) -> None:
    """Print what one process takes."""
    import jax

    jax.config.update("jax_enable_x64", True)
    import xarray  # noqa: F401  (an import of `trace` that is not ours)

    made, seconds = call(name), []
    for _ in range(2):
        start = time.process_time()
        jax.block_until_ready(jax.tree.leaves(made()))
        seconds.append(time.process_time() - start)
    print(json.dumps(dict(zip(("first", "second"), seconds, strict=True))))


if __name__ == "__main__":
    main(sys.argv[1])
