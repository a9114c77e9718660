"""The same cases in jaxopt and optimistix, and whether these flag their answers.

Each library gets the problem, start, step size, step limit and tolerance of the case; everything
else is its default. jaxopt has no status; it raises or warns. optimistix returns a result. A
derivative that is not finite counts as flagged.
"""

import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

import iterdiff as itd
from benchmarks.wrong_derivatives.group import Data, Group, Kind, Setup, run_all


class Answer(NamedTuple):
    """A derivative, and whether the library reported a failure."""

    derivative: jax.Array
    flagged: jax.Array


Solve = Callable[[jax.Array], tuple[jax.Array, jax.Array]]
"""``solve(theta)`` returns x and whether the library reported a failure."""


def _derivative(kind: Kind, solve: Solve, setup: Setup, data: Data) -> Answer:
    """Take the derivative in reverse mode, which all of the libraries offer."""
    x, pull, flagged = jax.vjp(solve, setup.theta, has_aux=True)
    if kind == "jacobian":
        derivative = jax.vmap(lambda w: pull(w)[0])(jnp.eye(x.size, dtype=x.dtype))
    elif kind == "cotangent":
        derivative = pull(data["w"])[0]
    else:
        assert setup.loss is not None
        in_x, in_theta = jax.grad(setup.loss, (0, 1))(x, setup.theta)
        derivative = pull(in_x)[0] + in_theta
    return Answer(derivative, flagged)


def _limits(group: Group, data: Data) -> tuple[int, Any]:
    """Return the most steps and the relative tolerance."""
    if isinstance(group.stop, int):
        return group.stop, data["rtol"]
    return group.stop.max_steps, 1e-3


def by_jaxopt(group: Group, setup: Setup, data: Data, implicit: bool) -> Solve:
    """Return the solve by jaxopt, which reports no failure."""
    import jaxopt

    steps, rtol = _limits(group, data)
    problem, silent = setup.problem, jnp.array(False)
    if group.peer == "linear":
        solve = jaxopt.implicit_diff.custom_root(problem.residual)(setup.algorithm)
        return lambda theta: (solve(setup.x0, theta), silent)
    start = jax.lax.stop_gradient(problem.residual(setup.x0, setup.theta))
    options = {"maxiter": steps, "tol": rtol * jnp.linalg.norm(start), "implicit_diff": implicit}
    arguments = 1
    if isinstance(problem, itd.FixedPoint):
        solver = jaxopt.FixedPointIteration(problem.update, **options)
    else:
        length = setup.algorithm.step_size
        options["stepsize"] = lambda _: length  # jaxopt would branch on the value of a number
        if isinstance(problem, itd.CompositeMinimization):
            composite, arguments = problem, 2
            solver = jaxopt.ProximalGradient(
                composite.smooth, lambda x, theta, h: composite.prox(x, h, theta), **options
            )
        else:
            solver = jaxopt.GradientDescent(problem.objective, **options)
    return lambda theta: (solver.run(setup.x0, *[theta] * arguments).params, silent)


def by_optimistix(group: Group, setup: Setup, data: Data, implicit: bool) -> Solve:
    """Return the solve by optimistix."""
    import optimistix as optx

    steps, rtol = _limits(group, data)
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

    def solve(theta: jax.Array) -> tuple[jax.Array, jax.Array]:
        solution = search(function, solver, setup.x0, args=theta, **options)
        return solution.value, solution.result != optx.RESULTS.successful

    return solve


SUPPORTED = {
    "jaxopt": (by_jaxopt, ("gradient", "fixed_point", "composite", "linear")),
    "optimistix": (by_optimistix, ("gradient", "fixed_point", "root", "linear")),
}
"""The solve of each library, and the kinds of solver (`Group.peer`) that it has."""


def run(group: Group, library: str) -> tuple[dict[str, Answer], list[str]]:
    """Return the library's answers to the group's cases, by mode, and its warnings."""
    solve_of, kinds = SUPPORTED[library]
    if group.peer not in kinds:
        return {}, []
    modes = {"implicit": True}
    if group.peer not in ("linear", "root"):
        modes["unrolled"] = False

    def one(data: Data) -> dict[str, Answer]:
        setup = group.build(data)
        solves = {name: solve_of(group, setup, data, mode) for name, mode in modes.items()}
        return {k: _derivative(group.kind, solve, setup, data) for k, solve in solves.items()}

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        answers = run_all(one, group.stacked())
    return answers, sorted({str(w.message) for w in caught if issubclass(w.category, UserWarning)})
