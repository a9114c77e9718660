"""`args`, data for a problem's functions, and `has_aux`, their auxiliary outputs."""

import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import pytest

import iterdiff as itd

STOP = itd.ResidualBelow(rtol=1e-12, max_steps=200)
X0, THETA, DATA = jnp.zeros(2), jnp.array([1.0, 3.0]), jnp.array([2.0, 5.0])

MODES = {
    "implicit": itd.Implicit(),
    "unrolled": itd.Unrolled(),
    "checked": itd.Checked(itd.Implicit()),
}

PROBLEMS = {  # all are solved by x = data * theta
    "minimization": (
        itd.Minimization(lambda x, theta, data: jnp.sum((x - data * theta) ** 2)),
        itd.GradientDescent(0.5),
    ),
    "root": (itd.RootFinding(lambda x, theta, data: x - data * theta), itd.Newton()),
    "fixed point": (
        itd.FixedPoint(lambda x, theta, data: 0.1 * x + 0.9 * data * theta),
        itd.Picard(),
    ),
    "composite": (
        itd.CompositeMinimization(
            lambda x, theta, data: jnp.sum((x - data * theta) ** 2) / 2,
            lambda x, step, theta: itd.prox.nonnegative(x),
        ),
        itd.ProximalGradient(1.0),
    ),
    "linear system": (
        itd.LinearSystem(
            itd.MatrixOperator(lambda theta, data: jnp.diag(1 / data)), lambda theta: theta
        ),
        itd.Richardson(1.0),
    ),
}


@pytest.mark.parametrize("name", PROBLEMS)
def test_every_kind_of_problem_receives_data(name):
    problem, algorithm = PROBLEMS[name]

    def loss(theta, data):
        run = (problem, algorithm, X0, theta)
        return jnp.sum(itd.solve(*run, stop=STOP, args=data).x)

    value, (in_theta, in_data) = jax.value_and_grad(loss, (0, 1))(THETA, DATA)
    np.testing.assert_allclose(value, DATA @ THETA, rtol=1e-9)
    np.testing.assert_allclose(in_theta, DATA, rtol=1e-9)
    np.testing.assert_array_equal(in_data, 0.0)


@pytest.mark.parametrize("mode", MODES.values(), ids=MODES)
def test_vmap_batches_data(mode):
    problem, algorithm = PROBLEMS["minimization"]
    folds = jnp.stack([DATA, 2 * DATA])

    def validation(theta):
        def one(fold):
            return jnp.sum(
                itd.solve(problem, algorithm, X0, theta, stop=STOP, mode=mode, args=fold).x
            )

        return jnp.mean(jax.vmap(one)(folds))

    np.testing.assert_allclose(jax.jit(jax.grad(validation))(THETA), 1.5 * DATA, rtol=1e-9)


def test_other_data_need_no_new_program():
    traces = []

    def objective(x, theta, data):
        traces.append(1)
        return jnp.sum((x - data * theta) ** 2)

    problem = itd.Minimization(objective)
    run = (problem, itd.GradientDescent(0.5), X0, THETA)
    itd.solve(*run, stop=STOP, args=DATA)
    first = len(traces)
    itd.solve(*run, stop=STOP, args=2 * DATA)
    assert len(traces) == first + 1  # the check of the arguments


def test_entry_points_accept_data():
    problem, algorithm = PROBLEMS["minimization"]
    run = (problem, algorithm, X0, THETA)
    exact = jnp.diag(DATA)
    data = itd.trace(*run, steps=2, modes={"implicit": itd.Implicit()}, args=DATA)
    assert float(data.iterate_error[-1]) == 0.0
    assert itd.derivative_error(problem, DATA * THETA, THETA, exact, args=DATA).absolute < 1e-12
    error = itd.iterate_derivative_error(*run, exact, stop=itd.Steps(1), args=DATA)
    assert error.absolute < 1e-12
    assert itd.check_derivative(*run, stop=STOP, args=DATA).ok
    assert itd.check_derivative(problem, lambda x0, t, d: d * t, X0, THETA, args=DATA).ok
    composite, _ = PROBLEMS["composite"]
    kinks = itd.weakly_active(composite, jnp.zeros(2), jnp.array([0.0, 1.0]), args=DATA)
    assert kinks.tolist() == [True, False]
    assert "implicit" in str(itd.diagnose(*run, budget=3, args=DATA))


def test_a_wrapped_solver_shares_its_data_with_the_problem():
    problem, _ = PROBLEMS["root"]

    @itd.implicit(problem)
    def solver(x0, theta, args):
        return np.asarray(theta) * np.asarray(args)

    gradient = jax.jit(jax.grad(lambda theta: jnp.sum(solver(X0, theta, args=DATA))))(THETA)
    np.testing.assert_allclose(gradient, DATA)


def test_static_data_pass_through():
    problem = itd.RootFinding(lambda x, theta, args: x - theta * (2.0 if args["twice"] else 1.0))
    for twice in ("", "yes"):
        x = itd.solve(problem, itd.Newton(), X0, THETA, stop=STOP, args={"twice": twice}).x
        np.testing.assert_allclose(x, (1 + bool(twice)) * THETA)


@pytest.mark.parametrize(
    "function",
    [lambda x, theta: x - theta, lambda x, theta, scale=1.0: x - scale * theta],
    ids=["two parameters", "a default of its own"],
)
def test_data_that_no_function_takes_are_refused(function):
    problem = itd.RootFinding(function)
    with pytest.raises(TypeError, match="`args`"):
        itd.solve(problem, itd.Newton(), X0, THETA, stop=STOP, args=DATA)


def test_data_that_a_function_needs_are_missed():
    problem, algorithm = PROBLEMS["minimization"]
    with pytest.raises(TypeError, match="`args`.*objective"):
        itd.solve(problem, algorithm, X0, THETA, stop=STOP)
    with pytest.raises(TypeError, match="`args`"):
        itd.trace(problem, algorithm, X0, THETA, steps=2, modes={"implicit": itd.Implicit()})
    with_default = itd.Minimization(lambda x, theta, scale=2.0: jnp.sum((x - scale * theta) ** 2))
    found = itd.solve(with_default, algorithm, X0, THETA, stop=STOP).x
    np.testing.assert_allclose(found, 2 * THETA, rtol=1e-9)


def test_a_parameter_called_args_may_have_a_default():
    problem = itd.RootFinding(lambda x, theta, args=1.0: x - args * theta)
    run = (problem, itd.Newton(), X0, THETA)
    np.testing.assert_allclose(itd.solve(*run, stop=STOP).x, THETA)
    np.testing.assert_allclose(itd.solve(*run, stop=STOP, args=DATA).x, DATA * THETA)


def test_a_problem_of_ones_own_has_no_functions_to_receive_data():
    class Shifted(itd.Problem):
        def residual(self, x, theta):
            return x - theta

    with pytest.raises(TypeError, match="`args`"):
        itd.derivative_error(Shifted(), X0, THETA, jnp.eye(2), args=DATA)


AUX = {
    "minimization": itd.Minimization(
        lambda x, t: (jnp.sum((x - t) ** 2), {"twice": 2 * x, "name": "fit"}), has_aux=True
    ),
    "root": itd.RootFinding(lambda x, t: (x - t, {"twice": 2 * x, "name": "fit"}), has_aux=True),
    "fixed point": itd.FixedPoint(
        lambda x, t: (0.5 * (x + t), {"twice": 2 * x, "name": "fit"}), has_aux=True
    ),
    "composite": itd.CompositeMinimization(
        lambda x, t: (jnp.sum((x - t) ** 2) / 2, {"twice": 2 * x, "name": "fit"}),
        lambda x, step, t: itd.prox.nonnegative(x),
        has_aux=True,
    ),
}
SOLVERS = {
    "minimization": itd.GradientDescent(0.5),
    "root": itd.Newton(),
    "fixed point": itd.Picard(),
    "composite": itd.ProximalGradient(1.0),
}


@pytest.mark.parametrize("name", AUX)
def test_the_auxiliary_output_is_differentiable(name):
    def solved(theta):
        return itd.solve(AUX[name], SOLVERS[name], X0, theta, stop=STOP)

    solution = solved(THETA)
    assert solution.aux["name"] == "fit"
    np.testing.assert_allclose(solution.aux["twice"], 2 * THETA, rtol=1e-9)
    gradient = jax.grad(lambda theta: jnp.sum(solved(theta).aux["twice"] ** 2))(THETA)
    np.testing.assert_allclose(gradient, 8 * THETA, rtol=1e-9)


def test_data_and_auxiliary_output_together():
    problem = itd.Minimization(
        lambda x, theta, args: (jnp.sum((x - args * theta) ** 2), args + x), has_aux=True
    )
    solution = itd.solve(problem, itd.GradientDescent(0.5), X0, THETA, stop=STOP, args=DATA)
    np.testing.assert_allclose(solution.aux, DATA + DATA * THETA)


def test_without_has_aux_there_is_none():
    problem, algorithm = PROBLEMS["minimization"]
    assert itd.solve(problem, algorithm, X0, THETA, stop=STOP, args=DATA).aux is None


def test_a_function_that_returns_no_pair_is_named():
    problem = itd.Minimization(lambda x, theta: jnp.sum((x - theta) ** 2), has_aux=True)
    with pytest.raises(ValueError, match="has_aux"):
        itd.solve(problem, itd.GradientDescent(0.5), X0, THETA, stop=STOP)


def test_a_lineax_operator_needs_no_data():
    problem = itd.LinearSystem(
        lx.DiagonalLinearOperator(jnp.ones(2)), lambda theta, args: args * theta
    )
    x = itd.solve(problem, itd.Richardson(1.0), X0, THETA, stop=STOP, args=DATA).x
    np.testing.assert_allclose(x, DATA * THETA)
