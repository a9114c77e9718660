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
from benchmarks.wrong_derivatives.group import Data, Group, Setup, derivative_of, run_all


class Answer(NamedTuple):
    """A derivative, and whether the library reported a failure."""

    derivative: jax.Array
    flagged: jax.Array


Solve = Callable[[jax.Array], tuple[jax.Array, jax.Array]]
"""``solve(theta)`` returns x and whether the library reported a failure."""


def _limits(group: Group, data: Data) -> tuple[int, Any]:
    """Return the most steps and the relative tolerance."""
    if isinstance(group.stop, int):
        return group.stop, data["rtol"]
    return group.stop.max_steps, 1e-3


def by_jaxopt(group: Group, setup: Setup, data: Data, implicit: bool) -> Solve:
    """Return the solve by jaxopt, which reports no failure."""
    import jaxopt

    steps, rtol = _limits(group, data)
    problem, no_failure = setup.problem, jnp.array(False)
    if group.peer == "linear":
        solve = jaxopt.implicit_diff.custom_root(problem.residual)(setup.algorithm)
        return lambda theta: (solve(setup.x0, theta), no_failure)
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
    return lambda theta: (solver.run(setup.x0, *[theta] * arguments).params, no_failure)


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
        answers = {}
        for name, implicit in modes.items():
            solve = solve_of(group, setup, data, implicit)
            # Reverse mode, which all of the libraries offer.
            taken = derivative_of(
                group.kind, lambda t, solve=solve: solve(t)[0], setup, data, jax.jacrev
            )
            answers[name] = Answer(taken[0], solve(setup.theta)[1])
        return answers

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        answers = run_all(one, group.stacked())
    return answers, sorted({str(w.message) for w in caught if issubclass(w.category, UserWarning)})
