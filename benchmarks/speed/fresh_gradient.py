"""The fresh processes of `first_gradient`: ``python -m benchmarks.speed.fresh_gradient``.

With ``"first gradient" NAME``, it prints the seconds of the imports, those of the first gradient
after them (tracing and compiling), and the gradient; with ``import MODULES``, the seconds of
imports. Before the clock starts it imports only the standard library.
"""

import importlib
import json
import sys
import time
from collections.abc import Callable
from typing import Any

FIRST = "first gradient"

STEPS = 100
STEP_SIZE = 0.2
TOLERANCE = 1e-8
MAX_STEPS = 1000
PENALTY = -1.0
"""The parameter: the logarithm of the penalty."""


class Toy:
    """Ridge regression on 20 x 5 random numbers with one log-penalty."""

    def __init__(self, jax: Any):
        import numpy as np

        rng = np.random.default_rng(0)
        samples, targets = rng.standard_normal((20, 5)), rng.standard_normal(20)
        self.jax = jax
        self.data = jax.numpy.asarray(samples), jax.numpy.asarray(targets)

    @property
    def start(self):
        """Zeros."""
        return self.jax.numpy.zeros(5)

    def objective(self, x, theta):
        """Return the penalised mean square."""
        jnp = self.jax.numpy
        samples, targets = self.data
        return jnp.mean((samples @ x - targets) ** 2) / 2 + jnp.exp(theta) * (x @ x) / 2

    def residual(self, x, theta):
        """Return the objective's gradient."""
        return self.jax.grad(self.objective)(x, theta)

    def step(self, x, theta):
        """Return the next iterate."""
        return x - STEP_SIZE * self.residual(x, theta)

    def loss(self, x):
        """Return the squared distance to ones."""
        return self.jax.numpy.sum((x - 1) ** 2)

    def grad(self, answer: Callable) -> Callable:
        """Return the compiled gradient of the loss of ``answer(theta)``."""
        return self.jax.jit(self.jax.grad(lambda theta: self.loss(answer(theta))))


# Each function takes a `Toy` and returns its compiled gradient.


def by_scan(toy):
    """Differentiate a plain scan."""

    def answer(theta):
        def body(x, _):
            return toy.step(x, theta), None

        return toy.jax.lax.scan(body, toy.start, None, STEPS)[0]

    return toy.grad(answer)


def by_hand(toy):
    """Iterate to the tolerance, then solve the adjoint system by conjugate gradients."""
    jax = toy.jax

    def gradient(theta):
        def unfinished(x):
            return jax.numpy.linalg.norm(toy.residual(x, theta)) > TOLERANCE

        x = jax.lax.while_loop(unfinished, lambda x: toy.step(x, theta), toy.start)
        _, push = jax.linearize(lambda x: toy.residual(x, theta), x)
        adjoint = jax.scipy.sparse.linalg.cg(push, jax.grad(toy.loss)(x), tol=1e-10)[0]
        return -jax.numpy.exp(theta) * (x @ adjoint)

    return jax.jit(gradient)


def by_iterdiff(toy, implicit: bool, throw: bool = True):
    """Differentiate `iterdiff.solve`."""
    import iterdiff as itd

    problem, algorithm = itd.Minimization(toy.objective), itd.GradientDescent(STEP_SIZE)
    how: dict[str, Any] = {"stop": itd.Steps(STEPS), "mode": itd.Unrolled()}
    if implicit:
        rule = itd.ResidualBelow(0.0, TOLERANCE, max_steps=MAX_STEPS)
        how = {"stop": rule, "mode": itd.Implicit()}

    def answer(theta):
        return itd.solve(problem, algorithm, toy.start, theta, throw=throw, **how).x

    return toy.grad(answer)


def by_jaxopt(toy, implicit: bool):
    """Differentiate jaxopt's gradient descent."""
    import jaxopt

    solver = jaxopt.GradientDescent(
        toy.objective,
        stepsize=STEP_SIZE,
        acceleration=False,
        implicit_diff=implicit,
        maxiter=MAX_STEPS if implicit else STEPS,
        tol=TOLERANCE if implicit else 0.0,
    )
    return toy.grad(lambda theta: solver.run(toy.start, theta).params)


def by_optimistix(toy, implicit: bool):
    """Differentiate optimistix's fixed-point iteration."""
    import optimistix as optx

    tolerance = 1e-10 if implicit else 0.0
    solver = optx.FixedPointIteration(tolerance, tolerance)
    options = {
        "max_steps": MAX_STEPS if implicit else STEPS,
        "throw": implicit,
        "adjoint": optx.ImplicitAdjoint() if implicit else optx.RecursiveCheckpointAdjoint(),
    }

    def answer(theta):
        return optx.fixed_point(toy.step, solver, toy.start, theta, **options).value

    return toy.grad(answer)


# The modules that a variant imports, and the function that makes its gradient; the unit first.
CG = "jax.scipy.sparse.linalg"
UNROLLED = {
    "jax.grad of a scan": ("jax", by_scan),
    "iterdiff Unrolled()": ("jax,iterdiff", lambda toy: by_iterdiff(toy, False)),
    "iterdiff Unrolled(), throw=False": (
        "jax,iterdiff",
        lambda toy: by_iterdiff(toy, False, throw=False),
    ),
    "jaxopt, implicit_diff=False": ("jax,jaxopt", lambda toy: by_jaxopt(toy, False)),
    "optimistix, RecursiveCheckpointAdjoint": (
        "jax,optimistix",
        lambda toy: by_optimistix(toy, False),
    ),
}
IMPLICIT = {
    "by hand: while_loop and conjugate gradients": (f"jax,{CG}", by_hand),
    "iterdiff Implicit()": ("jax,iterdiff", lambda toy: by_iterdiff(toy, True)),
    "iterdiff Implicit(), throw=False": (
        "jax,iterdiff",
        lambda toy: by_iterdiff(toy, True, throw=False),
    ),
    "jaxopt, implicit_diff=True": ("jax,jaxopt", lambda toy: by_jaxopt(toy, True)),
    "optimistix, ImplicitAdjoint": ("jax,optimistix", lambda toy: by_optimistix(toy, True)),
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
    modules, make = (UNROLLED | IMPLICIT)[name]
    imported = imports(modules)
    import jax

    jax.config.update("jax_enable_x64", True)
    toy = Toy(jax)
    jax.block_until_ready(toy.data)
    ready = time.perf_counter()
    program = make(toy).lower(PENALTY)
    lowered = time.perf_counter()
    gradient = jax.block_until_ready(program.compile()(PENALTY))
    done = time.perf_counter()
    return {
        **imported,
        "tracing": lowered - ready,
        "compiling": done - lowered,
        FIRST: done - ready,
        "program": len(program.as_text().splitlines()),
        "gradient": float(gradient),
    }


if __name__ == "__main__":
    print(json.dumps({"import": imports, FIRST: first}[sys.argv[1]](sys.argv[2])))
