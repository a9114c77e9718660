"""Try every solver in every mode, and write ``docs/solvers.md``: ``python -m tests.solver_table``.

To try is to trace: whatever cannot be differentiated shows then, and nothing needs to be compiled.
That the derivatives are right is the matter of ``test_modes.py`` and ``test_adapters.py``.
"""

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

PAGE = Path(__file__).parents[1] / "docs" / "solvers.md"
TIGHT = {"rtol": 1e-8, "atol": 1e-8}
adapters = itd.adapters


def anything(x, *args):
    """Stand for what a template of jaxopt is made with; the problem's function replaces it."""
    return x


SOLVERS: dict[str, tuple[Any, str]] = {
    "GradientDescent": (itd.GradientDescent(0.3), "ridge"),
    "HeavyBall": (itd.HeavyBall(0.3, 0.1), "ridge"),
    "Nesterov": (itd.Nesterov(0.3, 0.1), "ridge"),
    "Chebyshev": (itd.Chebyshev(0.5, 4.0), "ridge"),
    "Sobolev": (itd.Sobolev(0.5, 4.0), "ridge"),
    "ProximalGradient": (itd.ProximalGradient(0.5), "lasso"),
    "FISTA": (itd.FISTA(0.5), "lasso"),
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

MODES = {"Unrolled": itd.Unrolled(), "Implicit": itd.Implicit(), "OneStep": itd.OneStep()}

HEAD = """# Which solver in which mode

Every solver below was tried in every mode, forward (`jax.jvp`) and reverse (`jax.grad`); this page
is written by that trial (`python -m tests.solver_table`), and a test repeats it. The modes are
explained in [Choose a mode](choose-a-mode.md), the solvers in the [reference](api.md).

"""

FOOT = """
"yes" is forward and reverse; "forward" is `jvp` alone, because a loop inside the solver's own step
(a line search) has no reverse-mode derivative in JAX (which says "Reverse-mode differentiation
does not work for lax.while_loop": take `Implicit()`, `jax.jvp` or a solver without the loop);
"warns" works, with a warning about its accuracy. Under `trace`, "yes" is the unrolled and the
implicit derivative of every iterate, and a name the only one of the two that can be followed.

For iterdiff's own solvers and the fixed-step methods of the others the unrolled derivative
converges with the iterate. Line searches and trust regions are differentiated as the programs that
they are: what comes out is the derivative of the steps that ran, and need not converge to the
solution's. Methods that do no more than compare values of the function (`Bisection`, also that of
optimistix and of jaxopt, `GoldenSearch` and `NelderMead`) have no derivative of steps at all, and
are refused with that reason.

Any other solver, also one that JAX cannot trace, takes the decorator `@itd.implicit(problem)`:
`Implicit` is the mode, in both directions, and there is nothing to unroll or to trace. With
`mode=itd.Checked(itd.Implicit())` it says when the answer was no solution.

A linear system's matrix may be an array, a function `(x, theta) -> A(theta) x`, a lineax operator,
a sparse matrix of `jax.experimental.sparse` (any format) or of SciPy; wrap one that depends on
`theta` in `itd.MatrixOperator`.

## Solutions with kinks

The derivative of a `CompositeMinimization` (lasso, elastic net, bounds, simplex: see `itd.prox`)
is that of the equations on the active set. Where a coordinate is weakly active, just about to
enter or to leave that set, there are two one-sided derivatives and no other:
`solution.weakly_active` marks the coordinates, `derivative_error` says "one-sided" and `Checked`
does not let the derivative pass.

## What the other libraries' own tests say

`tests/external` runs the test files of a checkout, unmodified, with a part of the library replaced
by ours (`ITERDIFF_OPTIMISTIX_TESTS` and `ITERDIFF_JAXOPT_TESTS` name the checkouts). Measured in
November 2026 on a CPU, Python 3.11, jax 0.10.2, equinox 0.13.8, lineax 0.1.1.

optimistix 0.1.0 (with diffrax 0.7.2), its derivative tests (`-k jvp`), our adjoint in place of
`optimistix.ImplicitAdjoint`:

| file | passed | failed | calls of ours |
|-|-|-|-|
| `test_fixed_point.py` | 20 | 0 | 40 |
| `test_root_find.py` | 60 | 0 | 120 |
| `test_minimise.py` | 230 | 0 | 414 |

jaxopt 0.8.5 (with scikit-learn 1.7.2), whole files, our `custom_root` in place of theirs:

| file | passed | failed | calls of ours |
|-|-|-|-|
| `implicit_diff_test.py` | 9 | 0 | 7 |
| `fixed_point_iteration_test.py` | 9 | 0 | 17 |
| `gradient_descent_test.py` | 7 | 0 | 8 |
| `proximal_gradient_test.py` | 8 | 0 | 6 |
| `block_cd_test.py` | 10 | 0 | 14 |
| `bisection_test.py` | 5 | 0 | 35 |
| `eq_qp_test.py` | 8 | 1 | 14 |
| `scipy_wrappers_test.py` | 31 | 1 | 31 |
| `projected_gradient_test.py` | 6 | 0 | 19 |
| `broyden_test.py` | 9 | 0 | 17 |
| `anderson_test.py` | 21 | 0 | 23 |
| `mirror_descent_test.py` | 2 | 0 | 3 |
| `base_test.py` | 7 | 0 | 5 |
| `cd_qp_test.py` | 2 | 0 | 2 |
| `gauss_newton_test.py` | 6 | 0 | 33 |
| `levenberg_marquardt_test.py` | 15 | 0 | 42 |
| `nonlinear_cg_test.py` | 37 | 0 | 46 |
| `lbfgs_test.py` | 60 | 0 | 60 |
| `lbfgsb_test.py` | 31 | 0 | 32 |
| `bfgs_test.py` | 19 | 0 | 19 |
| `projection_test.py` | 23 | 0 | 18 |
| `iterative_refinement_test.py` | 5 | 0 | 8 |
| `optax_wrapper_test.py` | 6 | 0 | 2 |
| `polyak_sgd_test.py` | 13 | 0 | 1 |
| `anderson_wrapper_test.py` | 4 | 1 | 8 |
| `osqp_test.py` | 17 | 2 | 28 |

The failure of `anderson_wrapper_test.py` occurs with theirs in place too. (One more test of
`osqp_test.py` needs cvxpy, which was not installed.) The other four are differences that we want.
The test in `eq_qp_test.py` expects an exception when a solver captures the value that is
differentiated in; ours differentiates in it. The one of `scipy_wrappers_test.py` asks for the
derivative of intercepts that the problem leaves undetermined, a constant being free, and those of
`osqp_test.py` for that of the multipliers of infinite bounds, in which no condition holds; jaxopt
answers with a least-squares solution of a system that has none, and ours says that it has none. (A
loss that does not see what is undetermined has its gradient here too.)
"""


def case_of(name: str) -> Case:
    """Return a case of the zoo, or its first unknown alone."""
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
        If it fails for a reason that this page does not know.
    """
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            trial()
        except ValueError as error:
            known = ("cannot differentiate", "Reverse-mode differentiation does not work")
            if not any(reason in str(error) for reason in known):
                raise
            return "no"
    return "warns" if any("Unrolled" in str(w.message) for w in caught) else "yes"


def directions(loss: Callable[[Any], Any], theta: Any) -> tuple[str, str]:
    """Try to differentiate forward and, by transposing that, in reverse (as JAX itself does)."""
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
    """Try what `trace` does: follow the tangents of all steps, and of the implicit mode."""
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


def table() -> str:
    """Try all, and return the table."""
    rows = ["| solver | `Unrolled()` | `Implicit()` | `OneStep()` | `trace` |", "|-|-|-|-|-|"]
    for name, (algorithm, case_name) in SOLVERS.items():
        case = case_of(case_name)
        with jax.numpy_dtype_promotion("standard"):  # jaxopt mixes dtypes
            answers = [both_ways(algorithm, case, mode) for mode in MODES.values()]
            answers.append(traced(algorithm, case))
        rows.append(f"| {name} | {' | '.join(answers)} |")
    by_host = by_decorator()
    rows.append(f"| SciPy, C, a program: `@implicit` | no | {by_host} | no | no |")
    return "\n".join(rows) + "\n"


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


if __name__ == "__main__":
    jax.config.update("jax_enable_x64", True)
    PAGE.write_text(HEAD + table() + FOOT, encoding="utf-8")
