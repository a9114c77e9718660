"""Fill in the tables of ``docs/solvers.md``: ``python -m tests.solver_table``.

The first table tries every solver in every mode. A trial only traces: a derivative that does not
exist fails at trace time, and nothing needs to be compiled. The tests of the modes and adapters
check that the derivatives are right. The other tables show ``tests/external/results.json``. The
prose around the tables belongs to the page.
"""

import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jaxopt
import optax
import optimistix as optx
import scipy.optimize

import iterdiff as itd
from iterdiff.jaxtools import tree
from iterdiff.loop.task import Task
from tests.cases import Case, build
from tests.external import suites

PAGE = Path(__file__).parents[1] / "docs" / "solvers.md"
TIGHT = {"rtol": 1e-8, "atol": 1e-8}
adapters = itd.adapters


def anything(x, *args):
    """Serve as the function of a jaxopt solver until the adapter puts in the problem's."""
    return x


SOLVERS: dict[str, tuple[Any, str]] = {
    "GradientDescent": (itd.GradientDescent(0.3), "ridge"),
    "HeavyBall": (itd.HeavyBall(0.3, 0.1), "ridge"),
    "Nesterov": (itd.Nesterov(0.3, 0.1), "ridge"),
    "Chebyshev": (itd.Chebyshev(0.5, 4.0), "ridge"),
    "Sobolev": (itd.Sobolev(0.5, 4.0), "ridge"),
    "ProximalGradient": (itd.ProximalGradient(0.5), "lasso"),
    "FISTA": (itd.FISTA(0.5), "lasso"),
    "GaussNewton": (itd.GaussNewton(), "log_regression"),
    "LevenbergMarquardt": (itd.LevenbergMarquardt(), "log_regression"),
    "ADMM": (itd.ADMM(), "quadratic_program"),
    "AugmentedLagrangian": (itd.AugmentedLagrangian(itd.Newton()), "quadratic_program"),
    "Newton": (itd.Newton(), "sqrt"),
    "Chord": (itd.Chord(), "sqrt"),
    "Broyden": (itd.Broyden(), "sqrt"),
    "Bisection": (itd.Bisection(0.0, 2.0), "scalar_root"),
    "Picard": (itd.Picard(), "cosine"),
    "Anderson": (itd.Anderson(2), "cosine"),
    "Richardson": (itd.Richardson(0.2), "spd_system"),
    "Jacobi": (itd.Jacobi(), "spd_system"),
    "GaussSeidel": (itd.GaussSeidel(), "spd_system"),
    "SOR": (itd.SOR(1.1), "spd_system"),
    "ConjugateGradient": (itd.ConjugateGradient(), "spd_system"),
    "GMRES": (itd.GMRES(3), "spd_system"),
    "optax: sgd": (adapters.from_optax(optax.sgd(0.3)), "ridge"),
    "optax: adam": (adapters.from_optax(optax.adam(0.1)), "ridge"),
    "optax: lbfgs": (adapters.from_optax(optax.lbfgs()), "ridge"),
    "optimistix: BFGS": (adapters.from_optimistix(optx.BFGS(**TIGHT)), "ridge"),
    "optimistix: NelderMead": (adapters.from_optimistix(optx.NelderMead(**TIGHT)), "ridge"),
    "optimistix: Newton": (adapters.from_optimistix(optx.Newton(**TIGHT)), "sqrt"),
    "optimistix: Dogleg": (adapters.from_optimistix(optx.Dogleg(**TIGHT)), "sqrt"),
    "optimistix: LevenbergMarquardt": (
        adapters.from_optimistix(optx.LevenbergMarquardt(**TIGHT)),
        "sqrt",
    ),
    "optimistix: FixedPointIteration": (
        adapters.from_optimistix(optx.FixedPointIteration(**TIGHT)),
        "cosine",
    ),
    "jaxopt: GradientDescent, fixed step": (
        adapters.from_jaxopt(jaxopt.GradientDescent(anything, stepsize=0.3)),
        "ridge",
    ),
    "jaxopt: LBFGS": (adapters.from_jaxopt(jaxopt.LBFGS(anything)), "ridge"),
    "jaxopt: LBFGS, backtracking, implicit_diff=False": (
        adapters.from_jaxopt(
            jaxopt.LBFGS(anything, linesearch="backtracking", implicit_diff=False)
        ),
        "ridge",
    ),
    "jaxopt: ProximalGradient": (
        adapters.from_jaxopt(jaxopt.ProximalGradient(anything, anything, stepsize=0.5)),
        "lasso",
    ),
    "jaxopt: FixedPointIteration": (
        adapters.from_jaxopt(jaxopt.FixedPointIteration(anything)),
        "cosine",
    ),
}

BY_DECORATOR = "SciPy, C, a program: `@implicit`"
MODES = {"Unrolled": itd.Unrolled(), "Implicit": itd.Implicit(), "OneStep": itd.OneStep()}


def case_of(name: str) -> Case:
    """Return a case of the problem zoo; for ``scalar_root``, its first unknown only."""
    if name != "scalar_root":
        return build(name)
    case = build("sqrt")
    first = {"x0": case.x0[:1], "theta": case.theta[:1]}
    return Case(
        name, case.problem, **first, solution=case.solution, jacobian=case.jacobian, algorithms=()
    )


def works(trial: Callable[[], Any]) -> str:
    """Return "yes", "warns" or "no" for a trial.

    Raises
    ------
    Exception
        If it fails for an unexpected reason.
    """
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            trial()
        except ValueError as error:
            known = ("cannot differentiate", "`last`", "Reverse-mode differentiation does not work")
            if not any(reason in str(error) for reason in known):
                raise
            return "no"
    return "warns" if any("Unrolled" in str(w.message) for w in caught) else "yes"


def directions(loss: Callable[[Any], Any], theta: Any) -> tuple[str, str]:
    """Try forward mode and, by transposing it as JAX does, reverse mode."""
    found = []

    def trial(theta):
        transposed = []

        def push():
            def pushed(v):
                return jax.jvp(loss, (theta,), (v,))[1]

            transposed.append(jax.linear_transpose(pushed, theta))

        found.append(works(push))
        found.append(works(lambda: transposed[0](1.0)) if transposed else "no")
        return theta

    jax.eval_shape(trial, theta)
    return found[0], found[1]


def both_ways(algorithm: itd.Algorithm, case: Case, mode: itd.Mode) -> str:
    """Try a solver in one mode, forward and reverse."""

    def loss(theta):
        stop = itd.Steps(4)
        x = itd.solve(case.problem, algorithm, case.x0, theta, stop=stop, mode=mode, throw=False).x
        return tree.dot(x, x)

    forward, reverse = directions(loss, case.theta)
    return "forward" if forward != "no" and reverse == "no" else forward


def traced(algorithm: itd.Algorithm, case: Case) -> str:
    """Try what `trace` does: propagate the tangents of the unrolled and the implicit mode."""
    task = Task(case.problem, algorithm, case.x0, case.theta, itd.Steps(4))
    directions = tree.basis(case.theta)

    def follow(mode):
        tangents = mode.tangents(task, directions)
        state = task.state()
        carry = tangents.init(state)
        after = algorithm.step(case.problem, state, case.theta)
        return tangents.value(tangents.update(carry, state), after)

    found = {
        name: works(lambda name=name: eqx.filter_eval_shape(follow, MODES[name]))
        for name in ("Unrolled", "Implicit")
    }
    if all(answer != "no" for answer in found.values()):
        return "yes"
    return ", ".join(name for name, answer in found.items() if answer != "no")


def modes_row(name: str) -> str:
    """Try one solver in all modes, and return its row."""
    if name == BY_DECORATOR:
        return f"| {name} | no | {by_decorator()} | no | no |"
    algorithm, case_name = SOLVERS[name]
    case = case_of(case_name)
    with jax.numpy_dtype_promotion("standard"):  # jaxopt mixes dtypes
        answers = [both_ways(algorithm, case, mode) for mode in MODES.values()]
        answers.append(traced(algorithm, case))
    return f"| {name} | {' | '.join(answers)} |"


def modes_table() -> str:
    """Try all solvers in all modes, and return the table."""
    rows = ["| solver | `Unrolled()` | `Implicit()` | `OneStep()` | `trace` |", "|-|-|-|-|-|"]
    return "\n".join(rows + [modes_row(name) for name in (*SOLVERS, BY_DECORATOR)])


def by_decorator() -> str:
    """Try a solver that JAX cannot trace."""
    case = build("ridge")

    @itd.implicit(case.problem)
    def solver(x0, theta):
        return scipy.optimize.minimize(case.problem.objective, x0, args=(theta,))

    def loss(theta):
        x = solver(case.x0, theta)
        return tree.dot(x, x)

    forward, reverse = directions(loss, case.theta)
    return "yes" if forward == reverse == "yes" else f"{forward}, {reverse}"


def suite_table(name: str) -> str:
    """Return what `results.json` stores of a suite: one sentence, and a table of its files."""
    found = suites.read()[name]
    versions = dict(found["versions"])
    library = f"{name} {versions.pop(name)}"
    if found["commit"]:
        library += f" (commit {found['commit']})"
    others = ", ".join(f"{package} {number}" for package, number in versions.items())
    counts = ["passed", "failed", "skipped", "calls"]
    if all(file["skipped"] is None for file in found["files"]):  # not counted in that run
        counts.remove("skipped")
    head = ["file", *counts]
    rows = [f"{library}, run on {found['date']} with {others}:", "", f"| {' | '.join(head)} |"]
    rows.append("|-" * len(head) + "|")
    for file in found["files"]:
        numbers = " | ".join("–" if file[key] is None else str(file[key]) for key in counts)
        rows.append(f"| `{file['file']}` | {numbers} |")
    return "\n".join(rows)


TABLES: dict[str, Callable[[], str]] = {
    "modes": modes_table,
    "optimistix": lambda: suite_table("optimistix"),
    "jaxopt": lambda: suite_table("jaxopt"),
}


def _between_markers(name: str) -> re.Pattern[str]:
    return re.compile(
        rf"(?<=<!-- begin {name}: python -m tests.solver_table -->\n\n)"
        rf".*?(?=\n\n<!-- end {name} -->)",
        re.DOTALL,
    )


def shown(name: str) -> str:
    """Return the table that the page shows."""
    match = _between_markers(name).search(PAGE.read_text(encoding="utf-8"))
    assert match is not None, f"docs/solvers.md has no markers for {name}"
    return match.group()


def main() -> None:
    """Write all tables into the page."""
    jax.config.update("jax_enable_x64", True)
    page = PAGE.read_text(encoding="utf-8")
    for name, make in TABLES.items():
        made = make()
        page, count = _between_markers(name).subn(lambda _, made=made: made, page)
        assert count == 1, f"docs/solvers.md needs one pair of markers for {name}"
    PAGE.write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main()
