"""Every algorithm in every mode differentiates like the closed form."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import iterdiff as itd
from iterdiff.jaxtools import tree
from iterdiff.linalg.dense_or_krylov import DenseOrKrylov, Limits
from iterdiff.loop.task import Task
from tests.cases import NAMES, Suited, build, suited
from tests.helpers import ALL, compiled, derivatives, relative_error

TOLERANCE = {"float64": 1e-8, "float32": 3e-4}


def _entry(name, index, dtype="float64") -> Suited:
    return build(name, dtype).algorithms[index]


@functools.cache
def truth(name: str, dtype: str = "float64"):
    """Return the derivatives of the closed form."""
    case = build(name, dtype)
    return compiled(lambda: derivatives(case.solution, case))()


def by_solve(name, index, mode, stop, kinds=ALL, dtype="float64"):
    """Return the derivatives through ``solve``, from one compiled program."""
    case, entry = build(name, dtype), _entry(name, index, dtype)

    def solution(theta):
        run = (case.problem, entry.algorithm, case.x0, theta)
        return case.unknowns(itd.solve(*run, stop=stop, mode=mode))

    return compiled(lambda: derivatives(solution, case, kinds))()


def check(name, found, dtype="float64"):
    expected = truth(name, dtype)
    errors = {kind: relative_error(found[kind], expected[kind]) for kind in found}
    wrong = {kind: error for kind, error in errors.items() if not error <= TOLERANCE[dtype]}
    assert not wrong


def _groups() -> dict[str, list[tuple[str, int]]]:
    groups: dict[str, list[tuple[str, int]]] = {}
    for name, index in suited():
        groups.setdefault(_entry(name, index).name, []).append((name, index))
    return groups


def _unrollable(pair: tuple[str, int]) -> bool:
    algorithm = _entry(*pair).algorithm
    return algorithm.differentiable and not algorithm.caveat


def _structure(name: str) -> tuple:
    """Return what the linear solves of a problem's implicit derivative depend on."""
    problem = build(name).problem
    return type(problem), problem.symmetric, problem.positive_definite


def _by_leaves(pairs: list[tuple[str, int]]) -> list[tuple[str, int]]:
    """Return the pairs with trees of unknowns last: the last one of a kind stands for it."""
    return sorted(pairs, key=lambda pair: len(jax.tree.leaves(build(pair[0]).x0)))


def _state(pair: tuple[str, int]) -> type:
    """Return the class of an algorithm's state."""
    case = build(pair[0])
    start = _entry(*pair).algorithm.init
    return type(jax.eval_shape(lambda: start(case.problem, case.x0, case.theta)))


def _one_each(turn: int) -> list[tuple[str, int]]:
    """Return one problem for every algorithm, another one for another `turn`."""
    return [group[turn % len(group)] for group in _groups().values()]


# Problems that no rotation reaches are unrolled, too.
FIXED = [pair for pair in _one_each(0) if _unrollable(pair)]
# The loop sees no more of an algorithm than the class of its state
_FIRST_LAST = [pair for pair in reversed(_one_each(1)) if _unrollable(pair)]
ADAPTIVE = list({_state(pair): pair for pair in _FIRST_LAST}.values())
# Started late, at a converged iterate, Krylov methods divide rounding errors by each other.
KRYLOV = ("ConjugateGradient", "GMRES")
LATE = [p for p in _one_each(2) if _unrollable(p) and _entry(*p).name not in KRYLOV]
IMPLICIT = _one_each(3)
# The algorithm does not enter the derivative of a corrected answer, nor that of one Newton step
REFINED = list({_structure(name): (name, 0) for name, _ in _by_leaves(_one_each(4))}.values())
NEWTON = _by_leaves(_groups()["Newton"])
NEWTON = list({_structure(name): (name, index) for name, index in NEWTON}.values())
# One algorithm for each kind of state; a late start has second derivatives of all but Krylov's.
TWICE = ("GradientDescent", "Nesterov", "Broyden", "ConjugateGradient")
IN_ALL_KINDS = {_structure(pair[0]): pair for pair in _by_leaves(IMPLICIT)}.values()
_REACHED = {name for name, _ in FIXED + ADAPTIVE + LATE}
FIXED += [next(p for p in suited() if p[0] == name) for name in NAMES if name not in _REACHED]


def test_every_algorithm_and_problem_is_reached():
    everything = {
        name
        for name in dir(itd)
        if isinstance(getattr(itd, name), type)
        and issubclass(getattr(itd, name), itd.Algorithm)
        and getattr(itd, name) is not itd.Algorithm
    }
    assert everything == set(_groups()), "add the new algorithm to tests/cases"
    assert {_entry(*pair).name for pair in IMPLICIT} == everything
    assert {name for name, _ in FIXED + ADAPTIVE + LATE} == set(NAMES)


@pytest.mark.parametrize(("name", "index"), FIXED)
def test_unrolled_for_a_fixed_number_of_steps(name, index):
    # Second derivatives: below for every algorithm, by a rule and with a late start
    kinds = ("forward", "batched")
    check(name, by_solve(name, index, itd.Unrolled(), _entry(name, index).fixed, kinds))


@pytest.mark.parametrize(("name", "index"), ADAPTIVE)
def test_unrolled_until_a_rule_is_satisfied(name, index):
    entry = _entry(name, index)
    kinds = ("batched", "reverse_over_reverse") if entry.name in TWICE else ("batched",)
    check(name, by_solve(name, index, itd.Unrolled(), entry.adaptive("float64"), kinds))


@pytest.mark.parametrize(("name", "index"), LATE)
def test_unrolled_late_start(name, index):
    # rho^steps is below rounding, so that `steps` more of them forget what was left out.
    entry = _entry(name, index)
    stop = itd.Steps(2 * entry.steps)
    kinds = ("forward", "forward_over_reverse")
    check(name, by_solve(name, index, itd.Unrolled(last=entry.steps), stop, kinds))


@pytest.mark.parametrize(("name", "index"), NEWTON)
def test_one_step_of_newton(name, index):
    # The derivative of one Newton step is right to first order in the distance.
    kinds = ("forward", "reverse")
    check(name, by_solve(name, index, itd.OneStep(), _entry(name, index).fixed, kinds))


@pytest.mark.parametrize(("name", "index"), IMPLICIT)
def test_implicit(name, index):
    # The algorithm does not enter the derivative: all kinds once for each structure of residuals
    kinds = ALL if (name, index) in IN_ALL_KINDS else ("batched",)
    check(name, by_solve(name, index, itd.Implicit(), _entry(name, index).fixed, kinds))


@pytest.mark.parametrize(("name", "index"), REFINED)
def test_implicit_with_a_newton_correction(name, index):
    # Stopped so early that without the correction the tolerance is missed by far.
    entry = _entry(name, index)
    early = itd.ResidualBelow(rtol=1e-6, atol=1e-6, max_steps=10 * entry.steps)
    kinds = ("batched", "forward")
    check(name, by_solve(name, index, itd.Implicit(refine=1), early, kinds))


# Algorithms whose steps must not be differentiated, or only with a warning


def test_bisection_is_not_unrolled():
    for mode in (itd.Unrolled(), itd.OneStep()):
        with pytest.raises(ValueError, match=r"`mode`.*Bisection.*iterdiff.Implicit"):
            by_solve("cubic_scalar", 2, mode, itd.Steps(55), ("forward",))


def test_anderson_is_unrolled_with_a_warning():
    problem = itd.FixedPoint(lambda x, theta: theta * jnp.cos(x))  # one never compiled before
    with pytest.warns(UserWarning, match="Unrolled.*through Anderson"):
        itd.solve(problem, itd.Anderson(2), 0.0, 0.5, stop=itd.Steps(3), mode=itd.Unrolled())


# float32: one problem a family


@pytest.mark.parametrize(
    ("name", "index", "mode", "rule"),
    [
        ("matrix_quadratic", 1, itd.Unrolled(), "fixed"),
        ("coupled_tree", 2, itd.OneStep(), "fixed"),
        ("cubic_tree", 0, itd.Implicit(), "adaptive"),
        ("spd_system", 1, itd.Unrolled(last=100), "fixed"),
        ("cosine", 0, itd.Implicit(refine=1), "adaptive"),
        ("lasso", 0, itd.Unrolled(), "adaptive"),
    ],
)
def test_float32_to_its_precision(name, index, mode, rule):
    entry = _entry(name, index, "float32")
    stop = entry.fixed if rule == "fixed" else entry.adaptive("float32")
    kinds = ("forward", "batched")
    if not isinstance(mode, itd.Unrolled) or mode.last is None:
        kinds += ("reverse_over_reverse",)
    check(name, by_solve(name, index, mode, stop, kinds, "float32"), "float32")


# The unrolled derivative is that of a plain scan, at every t


PLAIN = [("matrix_quadratic", i) for i in range(3)] + [("spd_system", 5), ("spd_system", 1)]
PLAIN += [("lasso", 0), ("nonnegative_tree", 0)]


@pytest.mark.parametrize(("name", "index"), PLAIN)
def test_unrolled_tangents_are_those_of_a_plain_scan(name, index):
    case, algorithm = build(name), _entry(name, index).algorithm
    steps = 5 if algorithm.__class__ is itd.ConjugateGradient else 25

    def history(theta):
        def body(state, _):
            new = algorithm.step(case.problem, state, theta)
            return new, new.x

        start = algorithm.init(case.problem, case.x0, theta)
        return jax.lax.scan(body, start, None, steps)[1]

    def followed(theta):
        task = Task(case.problem, algorithm, case.x0, theta, itd.Steps(steps))
        follow = itd.Unrolled().tangents(task, tree.basis(theta))

        def body(carry, _):
            state, tangents = carry
            carry = algorithm.step(case.problem, state, theta), follow.update(tangents, state)
            return carry, follow.value(carry[1], carry[0])

        start = algorithm.init(case.problem, case.x0, theta)
        return jax.lax.scan(body, (start, follow.init(start)), None, steps)[1]

    @compiled
    def both():
        directions = tree.basis(case.theta)
        push = jax.vmap(lambda v: jax.jvp(history, (case.theta,), (v,))[1], out_axes=1)
        stop, mode = itd.Steps(steps), itd.Unrolled()

        def solution(theta):
            return itd.solve(case.problem, algorithm, case.x0, theta, stop=stop, mode=mode).x

        return push(directions), followed(case.theta), jax.jacrev(solution)(case.theta)

    plain, ours, last = both()
    size = max(float(jnp.max(jnp.abs(leaf))) for leaf in jax.tree.leaves(plain))
    for u, v in zip(jax.tree.leaves(plain), jax.tree.leaves(ours), strict=True):
        np.testing.assert_allclose(v, u, atol=1e-12 * size, rtol=0)
    # the last one again, in reverse: rows of the Jacobian are x's scalars
    columns = jax.tree.map(lambda leaf: leaf[-1], plain)
    reverse = jax.tree.map(lambda _, block: _as_columns(block, case.theta), case.x0, last)
    for u, v in zip(jax.tree.leaves(columns), jax.tree.leaves(reverse), strict=True):
        np.testing.assert_allclose(v, u, atol=1e-12 * size, rtol=0)


def _as_columns(block, theta):
    """Return a block of a Jacobian with one row for each scalar of theta."""
    rows = [
        jnp.moveaxis(leaf.reshape(*leaf.shape[: leaf.ndim - like.ndim], -1), -1, 0)
        for leaf, like in zip(jax.tree.leaves(block), jax.tree.leaves(theta), strict=True)
    ]
    return jnp.concatenate(rows)


# One problem whose steps depend on theta in every way; few compilations

POISSON = build("poisson")
DESCENT = itd.GradientDescent(0.4)


def run(theta, stop, mode, **options):
    return itd.solve(POISSON.problem, DESCENT, POISSON.x0, theta, stop=stop, mode=mode, **options)


def solving(stop, mode):
    return lambda theta: run(theta, stop, mode).x


def first_and_second(solution, theta):
    """Return Jacobian and value in forward mode, and Hessian and gradient of a loss."""

    def loss(theta):
        return jnp.sum(jnp.sin(solution(theta)))

    return (
        jax.jacfwd(lambda theta: (solution(theta),) * 2, has_aux=True)(theta),
        jax.jacfwd(lambda theta: (jax.grad(loss)(theta),) * 2, has_aux=True)(theta),
    )


@functools.cache
def plain_derivatives(steps: int, last: int | None = None):
    """Return the same of a plain loop, the first steps frozen by hand."""

    def solution(theta):
        x, frozen = POISSON.x0, jax.lax.stop_gradient(theta)
        for t in range(steps):
            at = theta if last is None or t >= steps - last else frozen
            x = x - 0.4 * (jnp.exp(x) - at)
        return x

    return compiled(lambda: first_and_second(solution, POISSON.theta))()


RULE = itd.ResidualBelow(rtol=2e-2, max_steps=30)
TAKEN = 9


def test_how_many_steps_the_rule_takes():
    solution = run(POISSON.theta, RULE, itd.Implicit())
    assert solution.steps == TAKEN


@pytest.mark.parametrize("checkpoint", ["iterates", "sqrt", "log", "none"])
def test_checkpoints_and_rules_change_no_derivative(checkpoint):
    mode = itd.Unrolled(checkpoint=checkpoint)

    @compiled
    def by(theta):
        return [first_and_second(solving(stop, mode), theta) for stop in (itd.Steps(TAKEN), RULE)]

    for found in by(POISSON.theta):
        assert relative_error(found, plain_derivatives(TAKEN)) < 1e-12


@pytest.mark.parametrize("last", [1, 3, TAKEN, 30])
def test_late_start_is_the_derivative_of_the_last_steps(last):
    mode = itd.Unrolled(last=last)
    stops = [RULE] if last > TAKEN else [RULE, itd.Steps(TAKEN)]

    @compiled
    def by(theta):
        return [first_and_second(solving(stop, mode), theta) for stop in stops]

    expected = plain_derivatives(TAKEN, None if last >= TAKEN else last)
    for found in by(POISSON.theta):
        assert relative_error(found, expected) < 1e-12


@pytest.mark.parametrize("mode", [itd.Unrolled(), itd.Unrolled(last=2)], ids=["all", "last"])
def test_members_of_a_batch_take_steps_of_their_own(mode):
    batch = jnp.stack([POISSON.theta, POISSON.theta**2, jnp.array([1.0, 1.01, 0.99])])

    def both(theta):
        def solution(theta):
            return run(theta, RULE, mode).x

        return (
            jax.jacrev(solution)(theta),
            jax.jacfwd(solution)(theta),
            run(theta, RULE, mode).steps,
        )

    one, many = compiled(both), compiled(jax.vmap(both))
    *found, steps = many(batch)
    assert len(set(steps.tolist())) == 3
    for i, theta in enumerate(batch):
        *expected, alone = one(theta)
        assert steps[i] == alone
        assert relative_error([jac[i] for jac in found], expected) < 1e-12


LOPSIDED = jnp.array([[2.0, 1.0, 0.0], [-1.0, 3.0, 0.5], [0.2, 0.0, 1.5]])


@pytest.mark.parametrize("by_lu", [False, True])
@pytest.mark.parametrize("checked", [False, True])
@pytest.mark.parametrize("claim", ["symmetric", "positive_definite"])
def test_a_false_claim_of_symmetry_makes_no_wrong_derivative(claim, checked, by_lu):
    solver = DenseOrKrylov(limits=Limits(lu_max_unknowns=3 if by_lu else 0))
    problem = itd.LinearSystem(lambda x, theta: LOPSIDED @ x, lambda theta: theta, **{claim: True})
    mode = itd.Implicit(linear_solver=solver)
    mode = itd.Checked(mode, on_failure="raise") if checked else mode

    def first(theta):
        run = problem, itd.Richardson(0.3), jnp.zeros(3), theta
        return itd.solve(*run, stop=itd.Steps(300), mode=mode).x[0]

    truth = jnp.linalg.inv(LOPSIDED)[0]
    np.testing.assert_allclose(jax.grad(first)(jnp.ones(3)), truth, rtol=1e-12)
