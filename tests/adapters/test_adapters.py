"""Adapters: the iterates are those of the library, the derivatives those of the closed form."""

import sys

import equinox as eqx
import jax
import jax.numpy as jnp
import jaxopt
import numpy as np
import optax
import optimistix as optx
import pytest

import iterdiff as itd
from iterdiff.adapters import from_jaxopt, from_optax, from_optimistix
from tests.cases import build
from tests.helpers import compiled

SAME = 1e-12  # largest difference of iterates of one recursion that was compiled twice
SOME = 6  # number of steps that are compared


def largest(a, b):
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return max(float(jnp.max(jnp.abs(u - v))) for u, v in pairs)


class Record:
    """The iterates of another library's own run, in the order of their numbers."""

    def __init__(self):
        self.seen = {}

    def __call__(self, number, x):
        """Record an iterate."""
        self.seen[int(number)] = jax.tree.map(np.asarray, x)

    def watch(self, number, x):
        """Record an iterate when the running program computes it."""
        jax.debug.callback(self, number, x)

    def iterates(self):
        """Return the iterates after the start."""
        jax.effects_barrier()
        taken = len(self.seen)  # one that has converged may stop before its last step
        assert SOME // 2 < taken <= SOME
        return [self.seen[number + 1] for number in range(taken)]


def check(case, algorithm, steps, theirs, unrolled=1e-9):
    """Compare each iterate with the library's, and derivatives with the closed form."""

    @compiled
    def run(theta):
        def solution(theta, mode=None):
            stop = itd.Steps(steps)
            return itd.solve(
                case.problem, algorithm, case.x0, theta, stop=stop, mode=mode, throw=False
            ).x

        start = algorithm.init(case.problem, case.x0, theta)
        arrays, static = eqx.partition(start, eqx.is_array)

        def step(arrays, _):
            after = algorithm.step(case.problem, eqx.combine(arrays, static), theta)
            return eqx.filter(after, eqx.is_array), after.x

        out = {"some": jax.lax.scan(step, arrays, None, SOME)[1]}
        out["implicit"] = jax.jacrev(solution)(theta)
        if unrolled is not None:
            out["unrolled"] = jax.jacfwd(lambda theta: solution(theta, itd.Unrolled()))(theta)
        return out

    out, truth = run(case.theta), case.jacobian(case.theta)
    for number, iterate in enumerate(theirs):
        ours = jax.tree.map(lambda leaf, number=number: leaf[number], out["some"])
        assert largest(ours, iterate) < SAME, number
    assert largest(out["implicit"], truth) < 1e-7
    if unrolled is not None:
        assert largest(out["unrolled"], truth) < unrolled


# optax

TRANSFORMATIONS = {
    "sgd": (optax.sgd(0.3, momentum=0.3), 120, 1e-9),
    "adam": (optax.adam(0.05), 800, 1e-9),
    "lbfgs": (optax.lbfgs(), 25, None),  # its line search is not differentiable
}


@pytest.mark.parametrize("name", TRANSFORMATIONS)
def test_optax(name):
    transformation, steps, unrolled = TRANSFORMATIONS[name]
    case = build("ridge")
    update = optax.with_extra_args_support(transformation).update

    @compiled
    def theirs(x):
        def objective(x):
            return case.problem.objective(x, case.theta)

        def step(carry, _):
            x, state = carry
            value, gradient = jax.value_and_grad(objective)(x)
            move, state = update(gradient, state, x, value=value, grad=gradient, value_fn=objective)
            x = optax.apply_updates(x, move)
            return (x, state), x

        return jax.lax.scan(step, (x, transformation.init(x)), None, SOME)[1]

    with jax.numpy_dtype_promotion("standard"):  # which optax's own code needs
        iterates = theirs(case.x0)
        rows = [jax.tree.map(lambda leaf, t=t: leaf[t], iterates) for t in range(SOME)]
        check(case, from_optax(transformation), steps, rows, unrolled)


SEARCHES = {
    "optax": (from_optax(optax.lbfgs()), from_optax(optax.lbfgs(0.3, linesearch=None)), from_optax),
    "jaxopt": (
        from_jaxopt(jaxopt.LBFGS(None)),
        from_jaxopt(jaxopt.LBFGS(None, linesearch="backtracking", implicit_diff=False)),
        from_jaxopt,
    ),
}


@pytest.mark.parametrize("library", SEARCHES)
def test_the_docstring_quotes_the_error_of_a_search_and_names_a_solver_without_it(library):
    searching, other, adapter = SEARCHES[library]
    case = build("ridge")

    def total(theta, algorithm, mode=None):
        task = (case.problem, algorithm, case.x0, theta)
        return itd.solve(*task, stop=itd.Steps(4), mode=mode, throw=False).x.sum()

    with jax.numpy_dtype_promotion("standard"):
        with pytest.raises(ValueError) as caught:
            eqx.filter_eval_shape(jax.grad(total), case.theta, searching, itd.Unrolled())
        said = str(caught.value).split(" or ")[0]
        for text in (adapter.__doc__, itd.Unrolled.__doc__):
            assert said in " ".join(text.split())
        eqx.filter_eval_shape(jax.grad(total), case.theta, other, itd.Unrolled())


# optimistix

TIGHT = {"rtol": 1e-14, "atol": 1e-14}
SOLVERS = {
    "BFGS": (optx.BFGS(**TIGHT), "poisson", 30, 1e-6),
    "Newton": (optx.Newton(**TIGHT), "cubic_tree", 9, 1e-9),
    "LevenbergMarquardt": (optx.LevenbergMarquardt(**TIGHT), "sqrt", 20, 1e-9),
    "FixedPointIteration": (optx.FixedPointIteration(**TIGHT), "cosine", 60, 1e-9),
}


class Recording(optx.AbstractAdjoint):
    """The loop that optimistix uses without a derivative, with every iterate recorded."""

    record: Record

    def apply(self, primal_fn, rewrite_fn, inputs, tags):
        """Run the loop."""
        del rewrite_fn, tags

        def while_loop(going_on, body, init, *, max_steps):
            def watched(carry):
                carry = body(carry)
                self.record.watch(carry[1], carry[0])
                return carry

            return eqx.internal.while_loop(going_on, watched, init, max_steps=max_steps, kind="lax")

        return primal_fn((*inputs, while_loop))


@pytest.mark.parametrize("name", SOLVERS)
def test_optimistix(name):
    solver, case_name, steps, unrolled = SOLVERS[name]
    case, record = build(case_name), Record()
    options = {"max_steps": SOME, "throw": False, "adjoint": Recording(record)}
    if isinstance(solver, optx.AbstractMinimiser):
        call, function = optx.minimise, case.problem.objective
    elif isinstance(solver, optx.AbstractFixedPointSolver):
        call, function = optx.fixed_point, case.problem.update
    else:
        call, function = optx.root_find, case.problem.residual
    call(function, solver, case.x0, case.theta, **options)
    check(case, from_optimistix(solver), steps, record.iterates(), unrolled)


MODES = {
    "implicit": (itd.Implicit(), 1e-12),
    "unrolled": (itd.Unrolled(), 1e-12),
    "last three": (itd.Unrolled(last=3), 1e-3),
}


@pytest.mark.parametrize("name", MODES)
def test_optimistix_takes_our_modes(name):
    mode, tolerance = MODES[name]
    adjoint = itd.adapters.as_optimistix_adjoint(mode)
    picard = optx.FixedPointIteration(rtol=1e-13, atol=1e-13)

    def solution(theta):
        function = lambda x, theta: theta * jnp.cos(x)  # noqa: E731
        return optx.fixed_point(
            function, picard, jnp.array(0.4), theta, adjoint=adjoint, max_steps=100
        ).value

    @jax.jit
    def run(theta):
        forward = jax.jvp(solution, (theta,), (jnp.ones_like(theta),))[1]
        return solution(theta), forward, jax.grad(solution)(theta)

    x, forward, reverse = run(jnp.array(0.1))
    truth = jnp.cos(x) / (1 + 0.1 * jnp.sin(x))
    assert jnp.abs(forward - truth) < tolerance
    assert jnp.abs(forward - reverse) < 1e-14
    if name == "last three":  # rho^3 |J| = (0.1 sin x)^3 J, neither more nor less
        assert jnp.abs((truth - forward) / truth / (-0.1 * jnp.sin(x)) ** 3 - 1) < 1e-6


@pytest.mark.parametrize(
    "error, argument, mode",
    [
        (TypeError, "mode", itd.Checked(itd.Implicit())),
        (ValueError, "accelerate", itd.Unrolled(accelerate=3)),
        (ValueError, "last", itd.Unrolled(last="auto")),
    ],
)
def test_a_mode_that_is_not_an_adjoint_is_an_error(error, argument, mode):
    with pytest.raises(error, match=f"`{argument}`"):
        itd.adapters.as_optimistix_adjoint(mode)


def test_unrolling_needs_a_largest_number_of_steps():
    adjoint = itd.adapters.as_optimistix_adjoint(itd.Unrolled())
    options = {"adjoint": adjoint, "max_steps": None}
    with pytest.raises(ValueError, match="`max_steps`"):
        optx.root_find(lambda x, theta: x - theta, optx.Newton(**TIGHT), 1.0, 2.0, **options)


# jaxopt


def make(kind, problem, steps):
    """Return a solver of jaxopt that takes exactly `steps` steps."""
    options = {"maxiter": steps, "tol": 0.0}
    if kind == "GradientDescent":
        return jaxopt.GradientDescent(
            problem.objective, stepsize=0.3, acceleration=False, **options
        )
    if kind == "LBFGS":
        return jaxopt.LBFGS(problem.objective, linesearch="backtracking", **options)
    if kind == "ProximalGradient":
        prox = lambda x, theta, scaling=1.0: problem.prox(x, scaling, theta)  # noqa: E731
        return jaxopt.ProximalGradient(problem.smooth, prox, stepsize=0.5, **options)
    return jaxopt.AndersonAcceleration(problem.update, history_size=2, **options)


TEMPLATES = {
    "GradientDescent": ("ridge", 120, 1e-9),
    "LBFGS": ("poisson", 20, 1e-9),
    "ProximalGradient": ("lasso", 80, 1e-9),
    "AndersonAcceleration": ("cosine", 15, None),
}


@pytest.mark.parametrize("kind", TEMPLATES)
def test_jaxopt(kind):
    case_name, steps, unrolled = TEMPLATES[kind]
    with jax.numpy_dtype_promotion("standard"):  # which jaxopt's own code needs
        case = build(case_name)
        arguments = (case.theta, case.theta) if kind == "ProximalGradient" else (case.theta,)
        solver, record = make(kind, case.problem, SOME), Record()
        update = solver.update

        def watched(*args):
            after = update(*args)
            record.watch(after.state.iter_num, after.params)
            return after

        solver.update = watched
        solver.run(case.x0, *arguments)
        # The template's own function does not matter: the problem's function replaces it.
        template = make(kind, build(case_name, "float32").problem, 1)
        check(case, from_jaxopt(template), steps, record.iterates(), unrolled)


# All


FOLLOWED = {
    "optax": (from_optax(optax.sgd(0.5)), "ridge"),
    "optimistix": (from_optimistix(optx.FixedPointIteration(**TIGHT)), "cosine"),
    "jaxopt": (from_jaxopt(jaxopt.FixedPointIteration(None)), "cosine"),
}


@pytest.mark.parametrize("library", FOLLOWED)
def test_traced_in_both_modes(library):
    algorithm, case_name = FOLLOWED[library]
    case, modes = build(case_name), {"unrolled": itd.Unrolled(), "implicit": itd.Implicit()}
    task = (case.problem, algorithm, case.x0, case.theta)
    trace = itd.trace(*task, steps=90, modes=modes, reference=case.solution(case.theta))
    assert float(trace.iterate_error[-1]) < 1e-12
    assert float(trace.jacobian_error[:, -1].max()) < 1e-11
    assert float(trace.jacobian_error[:, 1].min()) > 1e-4


def test_least_squares_solvers_of_jaxopt_find_roots():
    case = build("sqrt")
    solvers = from_jaxopt(jaxopt.LevenbergMarquardt(None)), from_jaxopt(jaxopt.GaussNewton(None))

    @compiled
    def solutions(theta):
        task = {"x0": case.x0, "theta": theta, "stop": itd.Steps(30)}
        return [itd.solve(case.problem, solver, **task).x for solver in solvers]

    with jax.numpy_dtype_promotion("standard"):
        for x in solutions(case.theta):
            assert largest(x, case.solution(case.theta)) < 1e-9


def test_a_solver_without_its_bracket_is_an_error():
    with pytest.raises(ValueError, match="`options`.*Bisection"):
        from_optimistix(optx.Bisection(**TIGHT))


def test_solvers_of_jaxopt_that_do_not_step_are_an_error():
    for solver in (jaxopt.LBFGSB(jnp.sum), jaxopt.BoxCDQP(), jaxopt.ZoomLineSearch(jnp.sum)):
        with pytest.raises(TypeError, match=r"`solver`.*@iterdiff\.implicit"):
            from_jaxopt(solver)


ADAPTERS = {
    "optax": (from_optax, "transformation"),
    "optimistix": (from_optimistix, "solver"),
    "jaxopt": (from_jaxopt, "solver"),
}


@pytest.mark.parametrize("library", ADAPTERS)
def test_something_else_is_an_error(library):
    adapter, argument = ADAPTERS[library]
    with pytest.raises(TypeError, match=f"`{argument}`"):
        adapter(object())


@pytest.mark.parametrize("library", ADAPTERS)
def test_a_missing_library_is_named_with_its_extra(library, monkeypatch):
    monkeypatch.setitem(sys.modules, library, None)  # as if it were not installed
    with pytest.raises(ImportError, match=rf"`{library}`.*iterdiff\[adapters\]"):
        ADAPTERS[library][0](object())
