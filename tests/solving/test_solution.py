"""How a solution prints, and what its message says."""

import jax
import jax.numpy as jnp
import pytest

import iterdiff as itd

LASSO = itd.CompositeMinimization(
    lambda x, theta: jnp.sum((x["a"] - theta) ** 2) / 2,
    lambda x, step, theta: itd.prox.soft_threshold(x, step),
)
THETA = jnp.array([1.0, 3.0])


def solved(theta, steps=100):
    """Solve a lasso of two coordinates, one of them at a kink."""
    start, stop = {"a": jnp.zeros(2)}, itd.Steps(steps)
    return itd.solve(LASSO, itd.ProximalGradient(0.5), start, theta, stop=stop)


def test_values_where_they_are_known():
    solution = solved(THETA)
    expected = (
        "Solution(x={'a': f64[2]}, steps=100, status=STEPS_DONE, residual_norm=0, "
        "weakly_active=1 of 2)"
    )
    assert repr(solution) == str(solution) == expected
    assert solution.message == itd.Status.STEPS_DONE.advice


def test_a_smooth_problem_has_no_kinks_to_print():
    problem = itd.FixedPoint(lambda x, theta: x / 2 + theta)
    solution = itd.solve(problem, itd.Picard(), 0.0, 1.0, stop=itd.Steps(60))
    assert repr(solution) == "Solution(x=f64[], steps=60, status=STEPS_DONE, residual_norm=0)"


def test_types_where_they_are_traced():
    seen = []
    jax.jit(lambda theta: seen.append(repr(solved(theta))) or 0)(THETA)
    assert "x={'a': f64[2]}, steps=i32[], status=i32[], residual_norm=f64[]" in seen[0]


def test_ranges_and_counts_of_a_batch():
    text = repr(jax.vmap(lambda theta: solved(theta, 1))(jnp.stack([THETA, THETA + 1])))
    assert "steps=1..1, status=2 STEPS_DONE, residual_norm=1..1" in text


def test_message_of_a_batch():
    batch = jax.vmap(lambda theta: solved(theta, 1))(jnp.stack([THETA, THETA + 1]))
    assert batch.message == f"2 x STEPS_DONE: {itd.Status.STEPS_DONE.advice}"


def test_other_leaves():
    assert repr(jax.tree.map(lambda _: None, solved(THETA))).startswith("Solution(x={'a': None}")


def test_a_run_that_does_not_converge_names_where_the_numbers_are():
    """In float32 a residual stops falling at its rounding errors."""
    problem = itd.Minimization(lambda x, theta: jnp.sum((x - theta) ** 2) + jnp.sum(x**4))
    dtypes = jnp.float32, jnp.float64
    starts = [(jnp.ones(3, dtype), jnp.full(3, 0.3, dtype)) for dtype in dtypes]
    options = {"stop": itd.ResidualBelow(1e-12, max_steps=100)}
    descent = itd.GradientDescent(0.2)
    with pytest.raises(itd.SolveError, match="`residual_norm`.*float32"):
        itd.solve(problem, descent, *starts[0], **options)
    last = itd.solve(problem, descent, *starts[0], **options, throw=False)
    assert last.status == itd.Status.MAX_STEPS_REACHED
    assert last.steps == 100
    assert 0 < last.residual_norm < 1e-5
    assert itd.solve(problem, descent, *starts[1], **options).status == itd.Status.CONVERGED
