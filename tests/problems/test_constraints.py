"""Quadratic programs with known solutions: regular ones, and those at the edges."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import iterdiff as itd
from iterdiff.extend import ConstraintLimits
from tests.helpers import compiled, relative_error

STOP = itd.ResidualBelow(rtol=0.0, atol=1e-9, max_steps=500)
N, EQUALITIES, INEQUALITIES, BATCH = 5, 2, 4, 6

PROBLEM = itd.QuadraticProgram(
    lambda theta, args: args["Q"],
    lambda theta: theta["c"],
    A=lambda theta, args: args["A"],
    b=lambda theta: theta["b"],
    G=lambda theta, args: args["G"],
    h=lambda theta: theta["h"],
)


def random_programs(key):
    """Return a batch of programs with two active inequalities, their solutions and Jacobians."""
    rng = np.random.default_rng(np.asarray(jax.random.key_data(key)))
    made = []
    for _ in range(BATCH):
        root = rng.standard_normal((N, N))
        Q, x = root @ root.T + np.eye(N), rng.standard_normal(N)
        A, G = rng.standard_normal((EQUALITIES, N)), rng.standard_normal((INEQUALITIES, N))
        y, z = rng.standard_normal(EQUALITIES), np.array([1.0, 0.0, 0.5, 0.0])
        slack = np.array([0.0, 0.7, 0.0, 0.4])
        theta = {"b": A @ x, "c": -(Q @ x + A.T @ y + G.T @ z), "h": G @ x + slack}
        active = z > 0
        J = np.concatenate([A, G[active]])
        kkt = np.block([[Q, J.T], [J, np.zeros((len(J), len(J)))]])
        right = np.zeros((len(kkt), EQUALITIES + N + INEQUALITIES))
        right[:N, EQUALITIES : EQUALITIES + N] = -np.eye(N)
        right[N : N + EQUALITIES, :EQUALITIES] = np.eye(EQUALITIES)
        right[N + EQUALITIES :, EQUALITIES + N :] = np.eye(INEQUALITIES)[active]
        moved = np.linalg.solve(kkt, right)
        of_z = np.zeros((INEQUALITIES, right.shape[1]))
        of_z[active] = moved[N + EQUALITIES :]
        jacobian = np.concatenate([moved[: N + EQUALITIES], of_z])
        made.append(({"Q": Q, "A": A, "G": G}, theta, np.concatenate([x, y, z]), jacobian))
    return jax.tree.map(lambda *parts: jnp.asarray(np.stack(parts)), *made)


def flat(solution):
    """Return the answer and its multipliers as one vector."""
    return jnp.concatenate([solution.x, *solution.multipliers])


def test_random_programs_in_every_mode(getkey):
    data, theta, truth, jacobian = random_programs(getkey())
    direction = jax.tree.map(lambda v: jnp.cos(jnp.arange(v[0].size, dtype=float) + 1), theta)

    def all_numbers(data, theta):
        def run(theta, mode, stop=STOP):
            args = (PROBLEM, itd.ADMM(), jnp.zeros(N), theta)
            return itd.solve(*args, stop=stop, mode=mode, args=data)

        def pushed(mode, stop):
            answer = lambda theta: flat(run(theta, mode, stop))  # noqa: E731
            return jax.jvp(answer, (theta,), (direction,))[1]

        answer, pull = jax.vjp(lambda theta: flat(run(theta, itd.Implicit(refine=1))), theta)
        rows = jax.vmap(lambda w: pull(w)[0])(jnp.eye(answer.size))
        return {
            "answer": answer,
            "reverse": jnp.concatenate([rows[k] for k in ("b", "c", "h")], axis=1),
            "forward": pushed(itd.Implicit(refine=1), STOP),
            "unrolled": pushed(itd.Unrolled(), itd.Steps(60)),
        }

    found = compiled(jax.vmap(all_numbers))(data, theta)
    moved = jacobian @ jnp.concatenate([direction[k] for k in ("b", "c", "h")])
    expected = {"answer": truth, "reverse": jacobian, "forward": moved, "unrolled": moved}
    for name, value in expected.items():
        tolerance = 1e-6 if name == "unrolled" else 1e-10
        assert relative_error(found[name], value) < tolerance, name


def test_float32(getkey):
    half = lambda v: v.astype("float32")  # noqa: E731
    data, theta, truth, jacobian = jax.tree.map(half, random_programs(getkey()))

    def reverse(data, theta):
        def x(theta):
            stop = itd.ResidualBelow(rtol=1e-4, max_steps=200)
            run = (PROBLEM, itd.ADMM(), jnp.zeros(N, "float32"), theta)
            return itd.solve(*run, stop=stop, args=data).x

        found, pull = jax.vjp(x, theta)
        return found, jax.vmap(lambda w: pull(w)[0]["c"])(jnp.eye(N, dtype="float32"))

    found, of_c = compiled(jax.vmap(reverse))(data, theta)
    assert relative_error(found, truth[:, :N]) < 1e-2
    assert relative_error(of_c, jacobian[:, :N, EQUALITIES : EQUALITIES + N]) < 1e-3


# Programs with two unknowns at t = 1. Rows: Q's diagonal, c, dc/dt, then G, h, dh/dt of three
# inequalities. The last entry is the derivative of x in t, and of the multipliers (None: refused).
FAR = ([1.0, 1.0], 9.0, 0.0)
EDGES = {
    "regular": ([1, 1], [-2, 0], [0, 0], [([1, 0], 1, 1), FAR, FAR], [1, 0], [-1, 0, 0]),
    "weak": ([1, 1], [-1, 0], [0, 0], [([1, 0], 1, 1), FAR, FAR], None, None),
    "twice": ([1, 1], [-2, 0], [0, 0], [([1, 0], 1, 1)] * 2 + [FAR], [1, 0], None),
    "equality": ([1, 1], [-2, 0], [0, 0], [([1, 0], 1, 1), ([-1, 0], -1, -1), FAR], [1, 0], None),
    "apart": ([1, 1], [-2, 0], [0, 0], [([1, 0], 1, 1), ([1, 0], 1, 2), FAR], None, None),
    "scaled": ([1, 1], [-2, 0], [0, 0], [([1, 0], 1, 1), ([3, 0], 3, 3), FAR], [1, 0], None),
    "scaled apart": ([1, 1], [-2, 0], [0, 0], [([1, 0], 1, 1), ([3, 0], 3, 1), FAR], None, None),
    "vertex": (
        [0, 0], [-1, -2], [-1, 1], [([1, 0], 1, 0), ([0, 1], 1, 0), FAR], [0, 0], [1, -1, 0],
    ),
    "moved": (
        [0, 0], [-1, -2], [0, 0], [([1, 0], 1, 1), ([0, 1], 1, 0), FAR], [1, 0], [0, 0, 0],
    ),
    "crowded": (
        [0, 0], [-1, -2], [0, 0], [([1, 0], 1, 0), ([0, 1], 1, 0), ([1, 1], 2, 0)], [0, 0], None,
    ),
    "face": ([0, 0], [-1, 0], [0, 0], [([1, 0], 1, 0), ([0, 1], 1, 0), ([0, -1], 1, 0)],
             None, None),
    "infeasible": ([1, 1], [0, 0], [0, 0], [([1, 0], -1, 0), ([-1, 0], -1, 0), FAR], None, None),
    "unbounded": ([0, 0], [-1, 0], [0, 0], [([0, 1], 1, 0), ([0, -1], 1, 0), ([0, 1], 9, 0)],
                  None, None),
}  # fmt: skip


def edge(name):
    """Return the data of a program."""
    diagonal, c, dc, rows, _, _ = EDGES[name]
    G, h, dh = zip(*rows, strict=True)
    parts = {"Q": np.diag(diagonal), "c": c, "dc": dc, "G": G, "h": h, "dh": dh}
    return {key: np.asarray(value, float) for key, value in parts.items()}


LINE = itd.QuadraticProgram(
    lambda t, args: args["Q"],
    lambda t, args: args["c"] + (t - 1) * args["dc"],
    G=lambda t, args: args["G"],
    h=lambda t, args: args["h"] + (t - 1) * args["dh"],
)


def on_line(t, args, mode=None, throw=False):
    return itd.solve(
        LINE, itd.ADMM(), jnp.zeros(2), t, stop=STOP, mode=mode, args=args, throw=throw
    )


def test_edges():
    def all_numbers(args):
        def parts(t):
            solution = on_line(t, args)
            return solution.x, solution.multipliers.inequality

        t = jnp.array(1.0)
        solution = on_line(t, args)
        forward, reverse = jax.jacfwd(parts)(t), jax.jacrev(parts)(t)
        return solution.status, solution.weakly_active, forward, reverse

    names = list(EDGES)
    data = jax.tree.map(lambda *parts: jnp.stack(parts), *[edge(name) for name in names])
    status, weak, forward, reverse = compiled(jax.vmap(all_numbers))(data)
    for k, name in enumerate(names):
        ends = {"infeasible": itd.Status.INFEASIBLE, "unbounded": itd.Status.UNBOUNDED}
        assert status[k] == ends.get(name, itd.Status.CONVERGED), name
        *_, of_x, of_z = EDGES[name]
        if name == "weak":
            assert weak[k].tolist() == [True, False, False]
            assert abs(forward[0][k][0]) in (0, 1)
            continue
        if name not in (*ends, "face"):
            assert not np.any(weak[k]), name
        for part, truth in enumerate((of_x, of_z)):
            for found in (forward[part][k], reverse[part][k]):
                if (name, part) == ("face", 1):
                    continue  # they do not move: reverse mode gives zero, forward mode refuses
                if truth is None:
                    assert not np.all(np.isfinite(found)), (name, part)
                else:
                    np.testing.assert_allclose(found, truth, atol=1e-9, err_msg=name)


def test_what_does_not_exist_is_refused_in_words():
    t = jnp.array(1.0)

    def multipliers(t, args):
        return on_line(t, args, throw=True).multipliers.inequality

    def x(t, args):
        return on_line(t, args, throw=True).x

    np.testing.assert_allclose(jax.jacrev(x)(t, edge("twice")), [1, 0], atol=1e-9)
    with pytest.raises(itd.SolveError, match="multipliers"):
        jax.jacrev(multipliers)(t, edge("twice"))
    with pytest.raises(itd.SolveError, match="apart"):
        jax.jacrev(x)(t, edge("apart"))
    with pytest.raises(itd.SolveError):
        jax.jacrev(x)(t, edge("infeasible"))


def test_checked_speaks_at_a_weakly_active_constraint():
    checked = itd.Checked(itd.Implicit(), on_failure="nan")
    slope = jax.grad(lambda t, args: on_line(t, args, checked).x[0])
    t = jnp.array(1.0)
    assert np.isnan(slope(t, edge("weak")))
    np.testing.assert_allclose(slope(t, edge("regular")), 1, rtol=1e-6)
    np.testing.assert_allclose(slope(t, edge("twice")), 1, rtol=1e-6)


def test_second_order_and_trace():
    problem = itd.ConstrainedMinimization(
        lambda x, theta: jnp.sum((x - theta) ** 2) / 2,
        inequality=lambda x, theta: {"disk": jnp.sum(x**2) - 1},
    )
    algorithm, theta = itd.AugmentedLagrangian(itd.Newton()), jnp.array([3.0, 4.0])

    def value(theta, mode=None):
        solution = itd.solve(problem, algorithm, jnp.zeros(2), theta, stop=STOP, mode=mode)
        return jnp.sum(solution.x**3) + solution.multipliers.inequality["disk"] ** 2

    def truth(theta):  # x = theta / |theta|, and the multiplier is (|theta| - 1) / 2
        length = jnp.sqrt(jnp.sum(theta**2))
        return jnp.sum((theta / length) ** 3) + (length - 1) ** 2 / 4

    np.testing.assert_allclose(
        compiled(jax.hessian(value))(theta), compiled(jax.hessian(truth))(theta), atol=1e-6
    )
    modes = {"implicit": itd.Implicit(), "unrolled": itd.Unrolled()}
    data = itd.trace(problem, algorithm, jnp.zeros(2), theta, steps=12, modes=modes)
    exact = (np.eye(2) - np.outer([0.6, 0.8], [0.6, 0.8])) / 5
    norm = data.jacobian_error.attrs["reference_norm"]
    np.testing.assert_allclose(norm, np.linalg.norm(exact), rtol=1e-8)
    assert np.all(data.jacobian_error.values[:, -1] < 1e-9)
    estimate = itd.derivative_error(problem, jnp.array([0.6, 0.8]), theta, jnp.asarray(exact))
    assert estimate.absolute < 1e-10
    with pytest.raises(TypeError, match="`problem`"):
        itd.multipliers(itd.Minimization(lambda x, t: jnp.sum(x * t)), jnp.ones(2), theta)


def test_the_hessian_of_a_solve_with_a_constant_jacobian():
    problem = itd.Minimization(lambda x, theta: jnp.sum((x - jnp.sin(theta)) ** 2) / 2)

    def first(theta):
        run = (problem, itd.GradientDescent(0.5), jnp.zeros(2), theta)
        return itd.solve(*run, stop=itd.ResidualBelow()).x[0]

    found = jax.jacfwd(jax.jacrev(first))(jnp.array([1.0, 2.0]))
    np.testing.assert_allclose(found, np.diag([-np.sin(1.0), 0.0]), atol=1e-12)


def test_a_point_on_a_wrong_active_set_is_seen():
    """Both multipliers at this vertex are negative; without any constraint, one is violated."""
    G, h = jnp.array([[1.0, 0.0], [-2.0, 1.0]]), jnp.array([30.0, -30.0])
    problem = itd.QuadraticProgram(jnp.eye(2), lambda theta: -theta, G=G, h=h)

    @compiled
    @jax.vmap
    def judged(x, derivative):
        error = itd.derivative_error(problem, x, jnp.array([31.9, 29.0]), derivative)
        return error.relative, error.exceeds(1e-2)

    right = jnp.diag(jnp.array([0.0, 1.0]))
    error, exceeds = judged(jnp.array([[30.0, 30.0], [30.0, 29.0]]), jnp.stack([jnp.eye(2), right]))
    np.testing.assert_allclose(error, [1, 0], atol=1e-9)
    assert exceeds.tolist() == [True, False]


def test_a_stationary_violation_is_no_proof_of_infeasibility():
    """Zero is the worst point of the circle's constraint, and Newton's method stays at it."""

    def constraint(x, theta):
        return jnp.sum(x**2) - theta[2]

    square = lambda x, theta: jnp.sum((x - theta[:2]) ** 2)  # noqa: E731
    circle = itd.ConstrainedMinimization(square, equality=constraint)
    stop = itd.ResidualBelow(1e-8, max_steps=60)

    @compiled
    @jax.vmap
    def ended(x0, theta):
        algorithm = itd.AugmentedLagrangian(itd.Newton())

        def run(theta):
            solution = itd.solve(circle, algorithm, x0, theta, stop=stop, throw=False)
            return solution.x, solution.status

        return *run(theta), jax.jacrev(lambda theta: run(theta)[0])(theta)

    theta = jnp.array([[0.1, 0, 1], [0.1, 0, 1], [3, 4, -1]])  # no point satisfies the last one
    x, status, slope = ended(jnp.array([[0.0, 0.0], [0.7, 0.4], [1.0, 0.0]]), theta)
    stuck = itd.Status.LOCALLY_INFEASIBLE
    assert status.tolist() == [stuck, itd.Status.CONVERGED, stuck]
    assert np.isnan(slope[0]).all() and np.isnan(slope[2]).all()
    np.testing.assert_allclose(x[1], [1, 0], atol=1e-7)  # the advice: another start
    assert "another `x0`" in stuck.advice


def test_constraints_too_many_for_a_matrix():
    """The multipliers are found, and the derivative taken, without the constraints' Jacobian."""
    problem = itd.ConstrainedMinimization(
        lambda x, theta: jnp.sum((x - theta) ** 2) / 2,
        equality=lambda x, theta: jnp.sum(x) - 1,
        inequality=lambda x, theta: -x,
        limits=ConstraintLimits(jacobian_max_numbers=1),
    )
    theta = jnp.array([0.9, 0.5, -1.0])  # the nearest point of the simplex is (0.7, 0.3, 0)
    x = jnp.array([0.7, 0.3, 0.0])
    found = itd.multipliers(problem, x, theta)
    np.testing.assert_allclose(found.equality, 0.2, atol=1e-9)
    np.testing.assert_allclose(found.inequality, [0, 0, 1.2], atol=1e-9)
    solver = itd.implicit(problem)(lambda x0, theta: x)
    slope = jax.jacobian(lambda theta: solver(x, theta))(theta)
    np.testing.assert_allclose(slope[:2, :2], [[0.5, -0.5], [-0.5, 0.5]], atol=1e-9)
    np.testing.assert_allclose(slope[2], 0, atol=1e-9)


def test_an_infinite_bound_bounds_nothing(getkey):
    batch = jax.tree.map(lambda v: v[0], random_programs(getkey()))
    data, theta, truth, jacobian = batch
    inactive = np.array([1, 3])  # as they were made
    direction = {"b": jnp.ones(EQUALITIES), "c": jnp.cos(jnp.arange(1.0, N + 1))}
    direction["h"] = jnp.array([1.0, 0.0, -1.0, 0.0])
    moved = jacobian @ np.concatenate([direction[name] for name in "bch"])

    def all_numbers(theta):
        found = {}
        for algorithm in (itd.ADMM(), itd.AugmentedLagrangian(itd.Newton())):

            def run(theta, algorithm=algorithm):
                solution = itd.solve(PROBLEM, algorithm, jnp.zeros(N), theta, args=data, stop=STOP)
                return flat(solution), solution.weakly_active

            value, slope, weak = jax.jvp(run, (theta,), (direction,), has_aux=True)
            found[type(algorithm).__name__] = value, slope, weak
        x = jnp.asarray(truth[:N])
        return found, itd.multipliers(PROBLEM, x, theta, args=data)

    all_numbers = compiled(all_numbers)
    for bound in (np.inf, 1e30):
        found, multipliers = all_numbers({**theta, "h": theta["h"].at[inactive].set(bound)})
        for value, slope, weak in found.values():
            np.testing.assert_allclose(value, truth, atol=1e-7)
            np.testing.assert_allclose(slope, moved, rtol=1e-6, atol=1e-7)
            assert not np.any(weak)
        np.testing.assert_allclose(np.concatenate(multipliers), truth[N:], atol=1e-9)


def test_an_infinite_bound_does_not_hide_that_there_is_no_solution():
    rows = jnp.array([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0]])
    for curvature, h, status in (
        (1.0, [0.0, -1.0, jnp.inf], itd.Status.INFEASIBLE),  # x <= 0 and x >= 1
        (0.0, [1.0, 0.0, jnp.inf], itd.Status.UNBOUNDED),  # the objective falls with y
    ):
        Q, c = jnp.diag(jnp.array([1.0, curvature])), jnp.array([0.0, -1.0])
        problem = itd.QuadraticProgram(Q, c, G=rows, h=jnp.array(h))
        solution = itd.solve(
            problem, itd.ADMM(), jnp.zeros(2), jnp.ones(()), stop=STOP, throw=False
        )
        assert solution.status == status
