"""The implicit gradient at a converged point, with every library's default settings.

Seven problems, of which some want a factorisation and some want conjugate gradients. Every
variant is given the solution; what is timed is the derivative alone. The unit is one evaluation
of the residual. Truths are dense factorisations in NumPy, refined once.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import iterdiff as itd
from benchmarks import problems, targets
from benchmarks.harness import Effort, Row, Table, Variant, best, measure, number, row
from benchmarks.problems import Case, Data
from benchmarks.sections import Section
from benchmarks.targets import Figure

KRYLOV_RTOL = 1e-10
"""Of the hand-written Krylov variants."""

RIGHT = targets.TARGETS[f"implicit error {targets.IMPLICIT[0]}"].limit
"""A variant with a larger true error is nothing to compare times with."""

Solve = Callable[[Case, Any, Any, Data, Any], Any]
"""``solve(case, x, theta, data, rhs)`` solves with the transpose of d residual / dx."""


def evaluation(case: Case) -> Callable:
    """Return one evaluation of the residual."""
    return lambda x, theta, data: case.residual(x, theta, data)


def by_hand(case: Case, solve: Solve) -> Callable:
    """Return the implicit gradient with a linear solve of one's own."""

    def gradient(x, theta, data):
        adjoint = solve(case, x, theta, data, jax.grad(case.loss)(x, data))
        return -jax.vjp(lambda t: case.residual(x, t, data), theta)[1](adjoint)[0]

    return gradient


def conjugate_gradients(case, x, theta, data, rhs):
    """Solve by conjugate gradients."""
    _, push = jax.linearize(lambda x: case.residual(x, theta, data), x)
    enough = KRYLOV_RTOL**2 * (rhs @ rhs)

    def going_on(carry):
        return (carry[3] > enough) & (carry[4] < 10 * rhs.size)

    def step(carry):
        y, r, direction, square, count = carry
        image = push(direction)
        length = square / (direction @ image)
        y = y + length * direction
        r = r - length * image
        new = r @ r
        direction = r + (new / square) * direction
        return y, r, direction, new, count + 1

    start = (jnp.zeros_like(rhs), rhs, rhs, rhs @ rhs, 0)
    return jax.lax.while_loop(going_on, step, start)[0]


def gmres(case, x, theta, data, rhs):
    """Solve by restarted GMRES, JAX's own, with products with the transpose."""
    _, pull = jax.vjp(lambda x: case.residual(x, theta, data), x)
    solve = jax.scipy.sparse.linalg.gmres
    return solve(lambda v: pull(v)[0], rhs, tol=KRYLOV_RTOL, atol=0.0, restart=50)[0]


def factored(case, x, theta, data, rhs):
    """Form the Jacobian by its formula, and factor it."""
    return _dense(case, case.jacobian(x, theta, data), rhs)


def factored_by_jax(case, x, theta, data, rhs):
    """Form the Jacobian by JAX, and factor it."""
    return _dense(case, jax.jacfwd(case.residual)(x, theta, data), rhs)


def _dense(case, matrix, rhs):
    if case.objective is None:
        return jnp.linalg.solve(matrix.T, rhs)
    return jax.scipy.linalg.cho_solve(jax.scipy.linalg.cho_factor(matrix, lower=True), rhs)


def by_jaxopt(case: Case) -> Callable:
    """Return jaxopt's implicit gradient, its solver standing at the solution."""

    def gradient(x, theta, data):
        from jaxopt import implicit_diff

        solver = implicit_diff.custom_root(case.residual)(lambda x, *_: x)
        return jax.grad(lambda t: case.loss(solver(x, t, data), data))(theta)

    return gradient


def by_optimistix(case: Case) -> Callable:
    """Return optimistix's implicit gradient, its solver standing at the solution."""

    def gradient(x, theta, data):
        import optimistix as optx

        def answer(t):
            function = lambda x, inputs: case.residual(x, *inputs)  # noqa: E731
            return optx.root_find(function, _standing(optx), x, (t, data)).value

        return jax.grad(lambda t: case.loss(answer(t), data))(theta)

    return gradient


def _standing(optx: Any) -> Any:
    """Return a root finder of optimistix that stops where it starts."""

    class Standing(optx.AbstractRootFinder):
        rtol: float = 1e-8
        atol: float = 1e-8
        norm: Callable = optx.max_norm

        def init(self, fn, y, args, options, f_struct, aux_struct, tags):
            del fn, y, args, options, f_struct, aux_struct, tags
            return jnp.array(True)

        def step(self, fn, y, args, options, state, tags):
            del fn, args, options, tags
            return y, state, None

        def terminate(self, fn, y, args, options, state, tags):
            del fn, y, args, options, tags
            return state, optx.RESULTS.successful

        def postprocess(self, fn, y, aux, args, options, state, tags, result):
            del fn, args, options, state, tags, result
            return y, aux, {}

    return Standing()


def by_iterdiff(case: Case) -> Callable:
    """Return our implicit gradient, the solver standing at the solution."""

    def gradient(x, theta, data):
        solver = itd.implicit(case.problem(data))(lambda x0, _: x0)
        return jax.grad(lambda t: case.loss(solver(x, t), data))(theta)

    return gradient


UNIT = "one evaluation of the residual"
DEFAULT = "iterdiff Implicit()"


def table(case: Case, batched: bool = False) -> Table:
    """Return the table of a problem; of a batch, every leaf of the inputs has it in front."""
    symmetric = case.objective is not None
    krylov = conjugate_gradients if symmetric else gmres
    label = "conjugate gradients" if symmetric else "GMRES"
    factor = "Cholesky" if symmetric else "LU"
    made = {
        UNIT: evaluation(case),
        f"by hand: {label} to {KRYLOV_RTOL:.0e}": by_hand(case, krylov),
        f"by hand: formula of the Jacobian, {factor}": by_hand(case, factored),
        f"by hand: jax.jacfwd of the residual, {factor}": by_hand(case, factored_by_jax),
        "jaxopt custom_root, defaults": by_jaxopt(case),
        "optimistix ImplicitAdjoint, defaults": by_optimistix(case),
        DEFAULT: by_iterdiff(case),
    }

    def variant(name, function):
        function = jax.vmap(function) if batched else function
        return Variant(name, lambda inputs: function(*inputs), name != UNIT)

    title = f"Implicit gradient at the solution: {case.name}"
    variants = tuple(variant(name, function) for name, function in made.items())
    return Table(title, variants, case.inputs, case.gradient)


def batch(count: int, samples: int = 50, size: int = 10) -> Case:
    """Return many small logistic regressions, each with data of its own, stacked."""
    cases = [
        problems.logistic("", problems.synthetic("signs", samples, size, seed), 1e-2)
        for seed in range(count)
    ]
    names = ("data", "theta", "solution", "gradient")
    stacked = {
        name: jax.tree.map(
            lambda *leaves: jnp.asarray(np.stack(leaves)), *(getattr(one, name) for one in cases)
        )
        for name in names
    }
    return dataclasses.replace(cases[0], name=targets.IMPLICIT[-1], **stacked)


def cases(toy: bool) -> dict[str, Callable[[], Case]]:
    """Return what makes each problem, by the name that its targets have."""
    names, breast_cancer = targets.IMPLICIT, problems.breast_cancer
    if toy:
        return {
            names[0]: lambda: problems.logistic(names[0], breast_cancer(), 1e-2),
            names[5]: lambda: problems.layer(20),
            names[6]: lambda: batch(3),
        }
    synthetic = problems.synthetic
    return {
        names[0]: lambda: problems.logistic(names[0], breast_cancer(), 1e-2),
        names[1]: lambda: problems.ridge(names[1], breast_cancer(), 1e-2),
        names[2]: lambda: problems.logistic(names[2], synthetic("signs", 20_000, 500), 1e-3),
        names[3]: lambda: problems.ridge(names[3], synthetic("ill", 500, 500), 1e-8),
        names[4]: lambda: problems.ridge(names[4], synthetic("numbers", 4000, 5000), 1e-2),
        names[5]: lambda: problems.layer(1000),
        names[6]: lambda: batch(1000),
    }


def run(effort: Effort) -> Section:
    """Measure."""
    section = Section("Implicit gradients at convergence")
    for name, make in cases(effort.toy).items():
        case = make()
        found = table(case, batched=case.theta.ndim > 1)
        rows = section.add(found, measure(found, effort))
        if not effort.toy:
            section.figures += _figures(name, rows)
    return section


def _figures(name: str, rows: list[Row]) -> list[Figure]:
    ours, fastest = row(rows, DEFAULT), best(rows, RIGHT)
    note = f"{number(ours.ratio)} evaluations"
    wrong = [one for one in rows if one.name.startswith(("jaxopt", "optimistix"))]
    wrong = [one for one in wrong if one.relative_error is not None]
    most = max(wrong, key=lambda one: one.relative_error or 0.0)
    assert ours.relative_error is not None and most.relative_error is not None
    return [
        Figure(f"implicit {name}", ours.ratio / fastest.ratio, fastest.name, 1.0, note),
        Figure(f"implicit error {name}", ours.relative_error, most.name, most.relative_error),
    ]
