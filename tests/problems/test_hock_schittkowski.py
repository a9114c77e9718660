"""Problems of Hock and Schittkowski, solved by SciPy, with derivatives and multipliers.

W. Hock and K. Schittkowski, *Test Examples for Nonlinear Programming Codes*, Springer 1981.

All problems share one program: unknowns and constraints that a problem does not have are padded.
A perturbation ``t`` shifts the objective by ``t[0] x[0]``, every equality by ``t[1]`` and every
inequality by ``t[2]``.
"""

import jax
import jax.numpy as jnp
import numpy as np
from scipy import optimize

import iterdiff as itd
from tests.helpers import compiled

EQUALITIES, INEQUALITIES, UNKNOWNS = 3, 4, 5
SIZE = UNKNOWNS + EQUALITIES  # an equality that is not used binds one further unknown
ROOT = np.sqrt(np.array([2.0, 3.0, 7.0]))

# number: objective, equalities (= 0), inequalities (<= 0), start, solution, least value
PROBLEMS = {
    7: (lambda x: jnp.log(1 + x[0] ** 2) - x[1],
        lambda x: [(1 + x[0] ** 2) ** 2 + x[1] ** 2 - 4], lambda x: [],
        [2, 2], [0, ROOT[1]], -ROOT[1]),
    10: (lambda x: x[0] - x[1], lambda x: [],
         lambda x: [3 * x[0] ** 2 - 2 * x[0] * x[1] + x[1] ** 2 - 1], [-10, 10], [0, 1], -1),
    11: (lambda x: (x[0] - 5) ** 2 + x[1] ** 2 - 25, lambda x: [], lambda x: [x[0] ** 2 - x[1]],
         [4.9, 0.1], None, -8.498464223),
    14: (lambda x: (x[0] - 2) ** 2 + (x[1] - 1) ** 2, lambda x: [x[0] - 2 * x[1] + 1],
         lambda x: [x[0] ** 2 / 4 + x[1] ** 2 - 1], [2, 2],
         [(ROOT[2] - 1) / 2, (ROOT[2] + 1) / 4], 9 - 2.875 * ROOT[2]),
    27: (lambda x: (x[0] - 1) ** 2 / 100 + (x[1] - x[0] ** 2) ** 2,
         lambda x: [x[0] + x[2] ** 2 + 1], lambda x: [], [2, 2, 2], None, 0.04),
    28: (lambda x: (x[0] + x[1]) ** 2 + (x[1] + x[2]) ** 2,
         lambda x: [x[0] + 2 * x[1] + 3 * x[2] - 1], lambda x: [],
         [-4, 1, 1], [0.5, -0.5, 0.5], 0),
    29: (lambda x: -x[0] * x[1] * x[2], lambda x: [],
         lambda x: [x[0] ** 2 + 2 * x[1] ** 2 + 4 * x[2] ** 2 - 48],
         [1, 1, 1], [4, 2 * ROOT[0], 2], -16 * ROOT[0]),
    35: (lambda x: 9 - 8 * x[0] - 6 * x[1] - 4 * x[2] + 2 * x[0] ** 2 + 2 * x[1] ** 2 + x[2] ** 2
         + 2 * x[0] * x[1] + 2 * x[0] * x[2], lambda x: [],
         lambda x: [x[0] + x[1] + 2 * x[2] - 3, -x[0], -x[1], -x[2]],
         [0.5, 0.5, 0.5], [4 / 3, 7 / 9, 4 / 9], 1 / 9),
    40: (lambda x: -x[0] * x[1] * x[2] * x[3],
         lambda x: [x[0] ** 3 + x[1] ** 2 - 1, x[0] ** 2 * x[3] - x[2], x[3] ** 2 - x[1]],
         lambda x: [], [0.8] * 4, None, -0.25),
    43: (lambda x: x[0] ** 2 + x[1] ** 2 + 2 * x[2] ** 2 + x[3] ** 2 - 5 * x[0] - 5 * x[1]
         - 21 * x[2] + 7 * x[3], lambda x: [],
         lambda x: [x[0] ** 2 + x[1] ** 2 + x[2] ** 2 + x[3] ** 2 + x[0] - x[1] + x[2] - x[3] - 8,
                    x[0] ** 2 + 2 * x[1] ** 2 + x[2] ** 2 + 2 * x[3] ** 2 - x[0] - x[3] - 10,
                    2 * x[0] ** 2 + x[1] ** 2 + x[2] ** 2 + 2 * x[0] - x[1] - x[3] - 5],
         [0, 0, 0, 0], [0, 1, 2, -1], -44),
}  # fmt: skip


def padded(part):
    """Return the objectives (0), equalities (1) or inequalities (2) as branches of a switch."""

    def branch(problem):
        objective, equalities, inequalities, start, _, _ = problem
        own = len(equalities(np.ones(SIZE)))

        def evaluate(x, t):
            x = list(jnp.unstack(x))
            if part == 0:
                rest = list(x[len(start) : UNKNOWNS + own])
                return objective(x) + t[0] * x[0] + sum(v**2 for v in [*rest, 0 * x[0]]) / 2
            if part == 1:
                values = [v + t[1] for v in equalities(x)] + list(x[UNKNOWNS + own :])
                return jnp.stack(values)
            values = [v + t[2] for v in inequalities(x)]
            return jnp.stack(values + [0 * x[0] - 1] * (INEQUALITIES - len(values)))

        return evaluate

    return [branch(problem) for problem in PROBLEMS.values()]


def switched(part):
    branches = padded(part)
    return lambda x, theta: jax.lax.switch(theta["index"], branches, x, theta["t"])


OBJECTIVE, EQUALITY, INEQUALITY = (switched(part) for part in range(3))
PROBLEM = itd.ConstrainedMinimization(OBJECTIVE, equality=EQUALITY, inequality=INEQUALITY)


@compiled
def values_and_slopes(x, theta):
    """Return the objective and the constraints, with their derivatives, in one program."""

    def stacked(x):
        parts = OBJECTIVE(x, theta)[None], EQUALITY(x, theta), INEQUALITY(x, theta)
        return jnp.concatenate(parts)

    return stacked(x), jax.jacfwd(stacked)(x)


def slsqp(x0, theta):
    """Solve by SciPy; `values_and_slopes` runs once for each point."""
    known = {}

    def at(x, which, rows):
        key = x.tobytes()
        if key not in known:
            known[key] = [np.asarray(v) for v in values_and_slopes(x, theta)]
        return known[key][which][rows]

    equal, unequal = slice(1, 1 + EQUALITIES), slice(1 + EQUALITIES, None)
    kinds = (("eq", equal, 1), ("ineq", unequal, -1))
    constraints = [
        {
            "type": kind,
            "fun": lambda x, rows=rows, sign=sign: sign * at(x, 0, rows),
            "jac": lambda x, rows=rows, sign=sign: sign * at(x, 1, rows),
        }
        for kind, rows, sign in kinds
    ]
    options = {"ftol": 1e-15, "maxiter": 500}
    found = optimize.minimize(
        lambda x: at(x, 0, 0), x0, jac=lambda x: at(x, 1, 0), method="SLSQP",
        constraints=constraints, options=options,
    )  # fmt: skip
    return found.x


def value(x, theta):
    """Return the objective."""
    return float(values_and_slopes(x, theta)[0][0])


def start_of(problem):
    return jnp.asarray(problem[3] + [0.0] * (SIZE - len(problem[3])), float)


def test_solutions_derivatives_and_multipliers():
    @compiled
    def derivatives(x, theta):
        def at(t):
            return itd.implicit(PROBLEM)(lambda x0, theta: x)(x, {**theta, "t": t})

        def multipliers(t):
            return itd.multipliers(PROBLEM, x, {**theta, "t": t})

        t = theta["t"]
        return jax.jacrev(at)(t), multipliers(t)

    for index, (number, problem) in enumerate(PROBLEMS.items()):
        x0, theta = start_of(problem), {"index": jnp.array(index), "t": jnp.zeros(3)}
        x = slsqp(x0, theta)
        assert abs(value(x, theta) - problem[5]) < 1e-7 * (1 + abs(problem[5])), number
        if problem[4] is not None:
            np.testing.assert_allclose(x[: len(problem[4])], problem[4], atol=1e-5)
        jacobian, multipliers = derivatives(x, theta)
        h = 1e-4
        for k in range(3):
            moved = [{**theta, "t": theta["t"].at[k].set(s * h)} for s in (1, -1)]
            ahead, behind = (np.asarray(slsqp(x, m)) for m in moved)
            slope = (ahead - behind) / (2 * h)
            np.testing.assert_allclose(
                jacobian[:, k], slope, atol=1e-3 * (1 + np.abs(slope).max()), err_msg=str(number)
            )
            # The derivative of the least value is that of the Lagrangian in t.
            gain = (value(ahead, moved[0]) - value(behind, moved[1])) / (2 * h)
            own = len(problem[1](np.ones(SIZE)))
            price = [x[0], jnp.sum(multipliers.equality[:own]), jnp.sum(multipliers.inequality)][k]
            np.testing.assert_allclose(price, gain, atol=1e-4 * (1 + abs(gain)))
