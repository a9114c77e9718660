"""The fresh processes of `first_gradient`: ``python -m benchmarks.speed.fresh_gradient``.

With ``"first gradient" NAME``, it prints the seconds of the imports, those of the first gradient
after them (tracing and compiling), and the gradient; with ``import MODULES``, the seconds of
imports. Before the clock starts it imports only the standard library.
"""

import importlib
import json
import sys
import time
from typing import Any

FIRST = "first gradient"
STEPS = 100
STEP_SIZE = 0.2
TOLERANCE = 1e-8
MAX_STEPS = 1000
PENALTY = -1.0
"""The parameter: the logarithm of the penalty."""


def toy() -> Any:
    """Return ridge regression on 20 x 5 random numbers with one log-penalty."""
    import jax
    import numpy as np

    from benchmarks.speed.case import Case, Data

    jnp, rng = jax.numpy, np.random.default_rng(0)
    data = map(jnp.asarray, (rng.standard_normal((20, 5)), rng.standard_normal(20)))

    def objective(x, theta, data):
        fit = jnp.mean((data.features @ x - data.targets) ** 2)
        return fit / 2 + jnp.exp(theta) * (x @ x) / 2

    def loss(x, data):
        del data
        return jnp.sum((x - 1) ** 2)

    samples = Data(*data, jnp.zeros(0), jnp.zeros(0))
    residual, theta = jax.grad(objective), jnp.asarray(PENALTY)
    return Case("toy", objective, residual, None, loss, samples, theta, STEP_SIZE)


def by_hand(case: Any) -> Any:
    """Iterate to the tolerance, then solve the adjoint system by conjugate gradients."""
    import jax

    def gradient(theta, data):
        def unfinished(x):
            return jax.numpy.linalg.norm(case.residual(x, theta, data)) > TOLERANCE

        def step(x):
            return case.step(x, theta, data)

        x = jax.lax.while_loop(unfinished, step, case.start(data))
        _, push = jax.linearize(lambda x: case.residual(x, theta, data), x)
        slope = jax.grad(case.loss)(x, data)
        adjoint = jax.scipy.sparse.linalg.cg(push, slope, tol=1e-10)[0]
        return -jax.numpy.exp(theta) * (x @ adjoint)

    return gradient


def gradient(case: Any, library: str, implicit: bool, throw: bool) -> Any:
    """Return the gradient of the toy's loss by a library."""
    from benchmarks.speed import case as solves

    steps = MAX_STEPS if implicit else STEPS
    if library == "iterdiff":
        import iterdiff as itd

        stop, mode = itd.Steps(STEPS), itd.Unrolled()
        if implicit:
            stop, mode = itd.ResidualBelow(0.0, TOLERANCE, max_steps=steps), itd.Implicit()
        answer = solves.by_iterdiff(case, stop, mode, throw)
    elif library == "jaxopt":
        answer = solves.by_jaxopt(case, steps, TOLERANCE if implicit else 0.0, implicit)
    elif library == "optimistix":
        answer = solves.by_optimistix(case, steps, 1e-10 if implicit else 0.0, implicit=implicit)
    elif implicit:
        return by_hand(case)
    else:
        answer = solves.scanned(case, steps)
    return solves.gradient_of(case, answer)


# Library and `throw` of each variant; the unit first.
UNROLLED = {
    "jax.grad of a scan": ("jax", True),
    "iterdiff Unrolled()": ("iterdiff", True),
    "iterdiff Unrolled(), throw=False": ("iterdiff", False),
    "jaxopt, implicit_diff=False": ("jaxopt", True),
    "optimistix, RecursiveCheckpointAdjoint": ("optimistix", True),
}
IMPLICIT = {
    "by hand: while_loop and conjugate gradients": ("jax.scipy.sparse.linalg", True),
    "iterdiff Implicit()": ("iterdiff", True),
    "iterdiff Implicit(), throw=False": ("iterdiff", False),
    "jaxopt, implicit_diff=True": ("jaxopt", True),
    "optimistix, ImplicitAdjoint": ("optimistix", True),
}
IMPORTS = {
    "jax, equinox, lineax": "jax,equinox,lineax",
    "iterdiff": "iterdiff",
    "jax": "jax",
    "jax and SciPy's LAPACK, which it loads for the first factorisation": "jax,scipy.linalg",
    "jaxopt": "jaxopt",
    "optimistix": "optimistix",
}
NAMES_OF_A_GRADIENT = (
    *("Minimization", "GradientDescent", "Steps", "ResidualBelow", "Unrolled", "Implicit"),
    "solve",
)


def imports(modules: str) -> dict[str, float]:
    """Import modules, and of iterdiff the names of a gradient; return the seconds it takes."""
    start = time.perf_counter()
    for module in modules.split(","):
        found = importlib.import_module(module)
        if module == "iterdiff":
            for name in NAMES_OF_A_GRADIENT:
                getattr(found, name)
    return {"import": time.perf_counter() - start}


def first(name: str) -> dict[str, float]:
    """Import and differentiate; return the seconds of each part, and the gradient."""
    library, throw = (UNROLLED | IMPLICIT)[name]
    imported = imports(f"jax,{library}")
    import jax

    jax.config.update("jax_enable_x64", True)
    case = toy()
    inputs = jax.block_until_ready((case.theta, case.data))
    function = jax.jit(gradient(case, library, name in IMPLICIT, throw))
    ready = time.perf_counter()
    program = function.lower(*inputs)
    lowered = time.perf_counter()
    value = jax.block_until_ready(program.compile()(*inputs))
    done = time.perf_counter()
    return {
        **imported,
        "tracing": lowered - ready,
        "compiling": done - lowered,
        FIRST: done - ready,
        "program": len(program.as_text().splitlines()),
        "gradient": float(value),
    }


if __name__ == "__main__":
    print(json.dumps({"import": imports, FIRST: first}[sys.argv[1]](sys.argv[2])))
