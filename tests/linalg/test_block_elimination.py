"""Points eliminated block by block: the answers of dense solves, and false claims refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import iterdiff as itd
from tests.helpers import compiled, relative_error

CAMERAS, POINTS = 2, 5
RNG = np.random.default_rng(0)
SEEN = RNG.standard_normal((CAMERAS, POINTS, 2))
START = {
    "cameras": jnp.ones((CAMERAS, 2)),
    "count": jnp.asarray(3),  # no unknown
    "points": {"place": jnp.asarray(RNG.standard_normal((POINTS, 2))), "size": jnp.ones(POINTS)},
}
STOP = itd.ResidualBelow(rtol=0.0, atol=1e-9, max_steps=100)


def residuals(x, theta):
    """Return residuals of one camera and one point each, large and curved at the solution."""
    place, size = x["points"]["place"], x["points"]["size"]
    seen = x["cameras"][:, None] * place[None] + jnp.sin(size)[None, :, None]
    return {
        "seen": seen - SEEN - theta,
        "cameras": x["cameras"] - 1.0,
        "points": (0.5 * place, size - theta),
    }


def solver(eliminate=lambda x: x["points"], x0=START):
    return itd.BlockElimination(x0, eliminate)


def adjusted(theta, linear_solver, coupled=0.0):
    """Return the solution's points; `coupled` is the weight of a residual of two points."""

    def all_residuals(x, theta):
        gap = x["points"]["size"][0] - x["points"]["size"][1]
        return residuals(x, theta), coupled * gap

    algorithm = itd.LevenbergMarquardt(linear_solver=linear_solver)
    mode = itd.Implicit(linear_solver=linear_solver)
    run = itd.LeastSquares(all_residuals), algorithm, START, theta
    x = itd.solve(*run, stop=STOP, mode=mode, throw=False).x
    return jnp.concatenate([leaf.ravel() for leaf in jax.tree.leaves(x["points"])])


def test_eliminated_points_give_the_answers_of_dense_solves():
    @compiled
    def all_numbers(theta, coupled):
        def reverse(linear_solver, coupled):
            x, pull = jax.vjp(lambda t: adjusted(t, linear_solver, coupled), theta)
            return x, pull(jnp.cos(x))[0]

        found = jax.vmap(lambda coupled: reverse(solver(), coupled))(coupled)
        pushed = jax.jvp(lambda t: adjusted(t, solver()), (theta,), (jnp.ones(()),))[1]
        return found, reverse(None, 0.0), pushed

    (x, slopes), (truth, slope), pushed = all_numbers(jnp.array(0.1), jnp.array([0.0, 1.0]))
    assert relative_error(x[0], truth) < 1e-8
    assert relative_error(slopes[0], slope) < 1e-8
    assert relative_error(jnp.cos(truth) @ pushed, slope) < 1e-8
    assert np.isnan(slopes[1])  # the claim that no residual couples two points is false


WRONG = {
    "no leaf": (ValueError, "`eliminate`", lambda: solver(lambda x: x["points"]["size"] + 1)),
    "nothing": (ValueError, "`eliminate`", lambda: solver(lambda x: ())),
    "no unknown": (ValueError, "`eliminate`", lambda: solver(lambda x: x["count"])),
    "no common axis": (
        ValueError,
        "`eliminate`",
        lambda: solver(lambda x: (x["cameras"], x["points"])),
    ),
    "complex": (TypeError, "`x0`", lambda: solver(lambda x: x, jnp.ones(2, complex))),
    "another size": (
        ValueError,
        "`linear_solver`",
        lambda: slope(itd.Minimization(lambda x, t: jnp.sum((x - t) ** 2))),
    ),
    "not symmetric": (
        ValueError,
        "`linear_solver`",
        lambda: slope(itd.RootFinding(lambda x, t: x - t)),
    ),
}


def slope(problem):
    """Return a derivative by a solver for other unknowns."""
    mode = itd.Implicit(linear_solver=solver())
    run = itd.implicit(problem, mode=mode)(lambda x0, theta: x0)
    return jax.grad(lambda t: run(jnp.ones(2), t).sum())(1.0)


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_call_is_named(name):
    error, argument, call = WRONG[name]
    with pytest.raises(error, match=argument):
        call()
