"""Time to the first gradient, and of importing: each measurement in a fresh process.

``python -m benchmarks.first_gradient first NAME`` is such a process: it prints the seconds that
imports took, those of the first gradient after them (tracing, making the program, compiling it),
and the gradient. Nothing but the standard library is imported before the clock runs. What is
imported of iterdiff are the names that a gradient takes: each is loaded when it is asked for.
"""

import importlib
import json
import statistics
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from benchmarks.harness import Effort
    from benchmarks.sections import Section

STEPS = 100
STEP_SIZE = 0.2
TOLERANCE = 1e-8
PENALTY = -1.0


class Toy:
    """Ridge regression on 20 x 5 random numbers, its log-penalty tuned."""

    def __init__(self, jax: Any):
        import numpy as np

        rng = np.random.default_rng(0)
        samples, targets = rng.standard_normal((20, 5)), rng.standard_normal(20)
        self.jax = jax
        self.data = jax.numpy.asarray(samples), jax.numpy.asarray(targets)

    @property
    def start(self):
        """Return zeros."""
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
        """Return the compiled gradient of the loss of an answer."""
        return self.jax.jit(self.jax.grad(lambda theta: self.loss(answer(theta))))


# Each function imports what it needs and returns a function of `Toy` that returns the gradient.


def _jax():
    import jax

    return jax


def _scan():
    def make(toy):
        def answer(theta):
            body = lambda x, _: (toy.step(x, theta), None)  # noqa: E731
            return toy.jax.lax.scan(body, toy.start, None, STEPS)[0]

        return toy.grad(answer)

    return _jax(), make


def _by_hand():
    jax = _jax()
    from jax.scipy.sparse.linalg import cg

    def make(toy):
        def gradient(theta):
            def going_on(x):
                return jax.numpy.linalg.norm(toy.residual(x, theta)) > TOLERANCE

            x = jax.lax.while_loop(going_on, lambda x: toy.step(x, theta), toy.start)
            _, push = jax.linearize(lambda x: toy.residual(x, theta), x)
            adjoint = cg(push, jax.grad(toy.loss)(x), tol=1e-10)[0]
            return -jax.numpy.exp(theta) * (x @ adjoint)

        return jax.jit(gradient)

    return jax, make


ASKED_FOR = ("Minimization", "GradientDescent", "Steps", "ResidualBelow", "Unrolled", "Implicit")


def _named(module: str) -> None:
    """Import a module; of iterdiff, what a gradient takes as well."""
    found = importlib.import_module(module)
    if module == "iterdiff":
        for name in (*ASKED_FOR, "solve"):
            getattr(found, name)


def _iterdiff(mode: str, throw: bool = True):
    jax = _jax()
    _named("iterdiff")
    import iterdiff as itd

    def make(toy):
        problem, algorithm = itd.Minimization(toy.objective), itd.GradientDescent(STEP_SIZE)
        unrolled = mode == "unrolled"
        stop = itd.Steps(STEPS) if unrolled else itd.ResidualBelow(0.0, TOLERANCE, max_steps=1000)
        how = itd.Unrolled() if unrolled else itd.Implicit()

        def answer(theta):
            run = problem, algorithm, toy.start, theta
            return itd.solve(*run, stop=stop, mode=how, throw=throw).x

        return toy.grad(answer)

    return jax, make


def _jaxopt(implicit: bool):
    jax = _jax()
    import jaxopt

    def make(toy):
        solver = jaxopt.GradientDescent(
            toy.objective,
            stepsize=STEP_SIZE,
            acceleration=False,
            implicit_diff=implicit,
            maxiter=1000 if implicit else STEPS,
            tol=TOLERANCE if implicit else 0.0,
        )
        return toy.grad(lambda theta: solver.run(toy.start, theta).params)

    return jax, make


def _optimistix(implicit: bool):
    jax = _jax()
    import optimistix as optx

    def make(toy):
        tolerance = 1e-10 if implicit else 0.0
        adjoint = optx.ImplicitAdjoint() if implicit else optx.RecursiveCheckpointAdjoint()

        def answer(theta):
            return optx.fixed_point(
                toy.step,
                optx.FixedPointIteration(tolerance, tolerance),
                toy.start,
                theta,
                max_steps=1000 if implicit else STEPS,
                throw=implicit,
                adjoint=adjoint,
            ).value

        return toy.grad(answer)

    return jax, make


UNROLLED = {
    "jax.grad of a scan": _scan,
    "iterdiff Unrolled()": lambda: _iterdiff("unrolled"),
    "iterdiff Unrolled(), throw=False": lambda: _iterdiff("unrolled", False),
    "jaxopt, implicit_diff=False": lambda: _jaxopt(False),
    "optimistix, RecursiveCheckpointAdjoint": lambda: _optimistix(False),
}
IMPLICIT = {
    "by hand: while_loop and conjugate gradients": _by_hand,
    "iterdiff Implicit()": lambda: _iterdiff("implicit"),
    "iterdiff Implicit(), throw=False": lambda: _iterdiff("implicit", False),
    "jaxopt, implicit_diff=True": lambda: _jaxopt(True),
    "optimistix, ImplicitAdjoint": lambda: _optimistix(True),
}
CLOCKS = ("import", "trace", "compile", "first")
IMPORTS = {
    "jax, equinox, lineax": ("jax", "equinox", "lineax"),
    "iterdiff": ("iterdiff",),
    "jax": ("jax",),
    "jax, and SciPy's LAPACK, which it loads for the first factorisation": ("jax", "scipy.linalg"),
    "jaxopt": ("jaxopt",),
    "optimistix": ("optimistix",),
}


def first(name: str) -> dict[str, float]:
    """Import and differentiate, with a clock."""
    start = time.perf_counter()
    jax, make = {**UNROLLED, **IMPLICIT}[name]()
    jax.config.update("jax_enable_x64", True)
    imported = time.perf_counter()
    toy = Toy(jax)
    jax.block_until_ready(toy.data)
    ready = time.perf_counter()
    program = make(toy).lower(PENALTY)
    lowered = time.perf_counter()
    gradient = jax.block_until_ready(program.compile()(PENALTY))
    done = time.perf_counter()
    return {
        "import": imported - start,
        "trace": lowered - ready,
        "compile": done - lowered,
        "first": done - ready,
        "gradient": float(gradient),
        "lines": float(len(program.as_text().splitlines())),
    }


def imports(names: str) -> dict[str, float]:
    """Import, with a clock."""
    start = time.perf_counter()
    for name in names.split(","):
        _named(name)
    return {"import": time.perf_counter() - start}


def run(effort: "Effort") -> "Section":
    """Measure."""
    from benchmarks.sections import Section

    section = Section("First gradient and imports, in fresh processes")
    found = _Found(max(3, min(7, effort.rounds)))
    for title, names in (("unrolled", UNROLLED), ("implicit", IMPLICIT)):
        section.say(_first_table(found, title, names))
    section.say(_import_table(found))
    section.figures += _figures(found)
    return section


class _Found:
    """What fresh processes printed, by (kind, name): all take turns."""

    def __init__(self, turns: int):
        from benchmarks.fresh import fresh

        calls = [("first", name) for name in (*UNROLLED, *IMPLICIT)]
        calls += [("import", name) for name in IMPORTS]
        self.turns = turns
        self.all: dict[tuple[str, str], list[dict[str, float]]] = {call: [] for call in calls}
        for turn in range(turns + 1):
            for kind, name in calls:
                argument = ",".join(IMPORTS[name]) if kind == "import" else name
                one = fresh("benchmarks.first_gradient", kind, argument)
                if turn > 0:  # the first turn fills the caches of the file system
                    self.all[kind, name].append(one)

    def middle(self, kind: str, name: str, key: str) -> float:
        """Return the median of a figure."""
        return statistics.median(one[key] for one in self.all[kind, name])

    def over(self, kind: str, name: str, unit: str) -> float:
        """Return the median ratio to another one, turn by turn."""
        pairs = zip(self.all[kind, name], self.all[kind, unit], strict=True)
        return statistics.median(one[kind] / other[kind] for one, other in pairs)


def _first_table(found: _Found, title: str, names: dict[str, Callable]) -> str:
    from benchmarks.harness import duration, number

    lines = [
        f"### First gradient, {title}: ridge 20×5, {STEPS} gradient steps or to {TOLERANCE:.0e}",
        "",
        f"Medians of {found.turns} fresh processes each, in turns; the ratio is of the first "
        "gradient: tracing and compiling, which takes in the only run; imports it does not. The "
        "program's length is in lines of StableHLO.",
        "",
        "| variant | import | tracing | compiling | first gradient | ratio | program | gradient |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    unit = next(iter(names))
    for name in names:
        taken = (duration(found.middle("first", name, key)) for key in CLOCKS)
        lines.append(
            f"| {name} | {' | '.join(taken)} | {number(found.over('first', name, unit))} "
            f"| {found.middle('first', name, 'lines'):.0f} "
            f"| {found.middle('first', name, 'gradient'):.9f} |"
        )
    return "\n".join(lines) + "\n"


def _import_table(found: _Found) -> str:
    from benchmarks.harness import duration, number

    lines = ["### Imports", ""]
    lines += ["iterdiff's names are loaded when they are asked for: here those of a gradient.", ""]
    lines += ["| what | time | ratio |", "| --- | ---: | ---: |"]
    unit = next(iter(IMPORTS))
    for name in IMPORTS:
        ratio = number(found.over("import", name, unit))
        lines.append(f"| {name} | {duration(found.middle('import', name, 'import'))} | {ratio} |")
    return "\n".join(lines) + "\n"


def _figures(found: _Found) -> list[Any]:
    from benchmarks.targets import Figure

    made = []
    for key, names, ours in (
        ("first unrolled", UNROLLED, "iterdiff Unrolled()"),
        ("first implicit", IMPLICIT, "iterdiff Implicit()"),
    ):
        unit = next(iter(names))
        others = [name for name in names if not name.startswith("iterdiff")]
        ratios = {name: found.over("first", name, unit) for name in others}
        fastest = min(ratios, key=ratios.__getitem__)
        made.append(Figure(key, found.over("first", ours, unit), fastest, ratios[fastest]))
    unit = next(iter(IMPORTS))
    made.append(Figure("import", found.over("import", "iterdiff", unit), unit, 1.0))
    return made


if __name__ == "__main__":
    print(json.dumps(imports(sys.argv[2]) if sys.argv[1] == "import" else first(sys.argv[2])))
