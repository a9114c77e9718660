"""The same cases under jaxopt and optimistix as they ship, and what these say of their answers.

Each is given the problem, the start, the step size, the most steps and the tolerance of the case,
and otherwise its defaults. jaxopt has no status: it speaks by raising or warning. optimistix
returns a result, successful or not. A derivative that is not finite counts as flagged.
"""

import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import iterdiff as itd
from benchmarks.wrong_base import QUICK, Data, Group, Kind, Setup


class Said(NamedTuple):
    """A derivative, and whether the library said that something was wrong."""

    derivative: jax.Array
    flagged: jax.Array


Flagging = Callable[[jax.Array], tuple[jax.Array, jax.Array]]


def _derivative(kind: Kind, answer: Flagging, setup: Setup, data: Data) -> Said:
    """Take the derivative in reverse mode, the only one that all of these offer."""
    x, pull, flagged = jax.vjp(answer, setup.theta, has_aux=True)
    if kind == "jacobian":
        derivative = jax.vmap(lambda w: pull(w)[0])(jnp.eye(x.size, dtype=x.dtype))
    elif kind == "cotangent":
        derivative = pull(data["w"])[0]
    else:
        assert setup.loss is not None
        in_x, in_theta = jax.grad(setup.loss, (0, 1))(x, setup.theta)
        derivative = pull(in_x)[0] + in_theta
    return Said(derivative, flagged)


def _settings(group: Group, data: Data) -> tuple[int, Any]:
    if isinstance(group.stop, int):
        return group.stop, data["rtol"]
    return group.stop.max_steps, 1e-3


def by_jaxopt(group: Group, setup: Setup, data: Data, implicit: bool) -> Flagging:
    """Return the solve by jaxopt."""
    import jaxopt

    steps, rtol = _settings(group, data)
    problem = setup.problem
    silent = jnp.array(False)
    if group.peer == "linear":
        solve = jaxopt.implicit_diff.custom_root(problem.residual)(setup.algorithm)
        return lambda theta: (solve(setup.x0, theta), silent)
    start = problem.residual(setup.x0, setup.theta)
    if group.peer != "fixed_point":
        length = setup.algorithm.step_size

        def step_size(_):
            """Return the step: as a schedule, since jaxopt looks at the value of a number."""
            return length

    options = {
        "maxiter": steps,
        "tol": rtol * jnp.linalg.norm(jax.lax.stop_gradient(start)),
        "implicit_diff": implicit,
    }
    if isinstance(problem, itd.CompositeMinimization):
        composite = problem
        solver = jaxopt.ProximalGradient(
            composite.smooth,
            prox=lambda x, theta, step: composite.prox(x, step, theta),
            stepsize=step_size,
            **options,
        )
        return lambda theta: (solver.run(setup.x0, theta, theta).params, silent)
    if isinstance(problem, itd.Minimization):
        solver = jaxopt.GradientDescent(problem.objective, stepsize=step_size, **options)
    else:
        assert isinstance(problem, itd.FixedPoint)
        solver = jaxopt.FixedPointIteration(problem.update, **options)
    return lambda theta: (solver.run(setup.x0, theta).params, silent)


def by_optimistix(group: Group, setup: Setup, data: Data, implicit: bool) -> Flagging:
    """Return the solve by optimistix."""
    import optimistix as optx

    steps, rtol = _settings(group, data)
    rtol = jnp.maximum(rtol, 1e-8)
    problem = setup.problem
    adjoint = optx.ImplicitAdjoint() if implicit else optx.RecursiveCheckpointAdjoint()
    options = {"max_steps": steps, "throw": False, "adjoint": adjoint}
    if isinstance(problem, itd.Minimization):
        function, search = problem.objective, optx.minimise
        solver = optx.GradientDescent(setup.algorithm.step_size, rtol, rtol)
    elif isinstance(problem, itd.FixedPoint):
        function, search = problem.update, optx.fixed_point
        solver = optx.FixedPointIteration(rtol, rtol)
    else:
        function, search = problem.residual, optx.root_find
        solver = optx.Newton(rtol, rtol)

    def answer(theta: jax.Array) -> tuple[jax.Array, jax.Array]:
        solution = search(function, solver, setup.x0, args=theta, **options)
        return solution.value, solution.result != optx.RESULTS.successful

    return answer


SUPPORTED = {
    "jaxopt": (by_jaxopt, ("gradient", "fixed_point", "composite", "linear")),
    "optimistix": (by_optimistix, ("gradient", "fixed_point", "root", "linear")),
}


def run(group: Group, library: str) -> tuple[dict[str, Said], list[str]]:
    """Return what the library says of the group's cases, by mode, and its warnings."""
    solve, kinds = SUPPORTED[library]
    if group.peer not in kinds:
        return {}, []
    implicit_only = group.peer in ("linear", "root")

    def one(data: Data) -> dict[str, Said]:
        setup = group.build(data)
        said = {}
        for name, implicit in (("implicit", True), ("unrolled", False)):
            if implicit or not implicit_only:
                answer = solve(group, setup, data, implicit)
                said[name] = _derivative(group.kind, answer, setup, data)
        return said

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        program = jax.jit(jax.vmap(one), compiler_options=QUICK)
        said = jax.tree.map(np.asarray, program(group.stacked()))
    texts = sorted({str(w.message) for w in caught if issubclass(w.category, UserWarning)})
    return said, texts
