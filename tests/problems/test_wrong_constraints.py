"""Wrong constraints: one error that names the argument, whatever transforms the call."""

import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import pytest
import scipy.sparse

import iterdiff as itd

STOP = itd.ResidualBelow(rtol=0.0, atol=1e-9, max_steps=500)


@pytest.mark.parametrize(
    ("kind", "argument", "arguments"),
    [
        (ValueError, "Q", {"Q": np.array([[1.0, 1.0], [0.0, 1.0]])}),
        (ValueError, "Q", {"Q": np.eye(3)}),
        (ValueError, "Q", {"Q": np.ones(2)}),
        (ValueError, "c", {"c": np.array([np.nan, 0.0])}),
        (ValueError, "b", {"A": np.ones((1, 2))}),
        (ValueError, "G", {"h": np.ones(1)}),
        (ValueError, "A", {"A": np.ones((1, 3)), "b": np.ones(1)}),
        (ValueError, "G", {"G": np.ones((2, 2)), "h": np.ones(1)}),
        (ValueError, "h", {"G": np.ones((1, 2)), "h": np.array([-np.inf])}),
        (TypeError, "Q", {"Q": np.eye(2) * 1j}),
    ],
)
def test_a_wrong_program_is_one_sentence(kind, argument, arguments):
    with pytest.raises(kind, match=f"`{argument}`"):
        itd.QuadraticProgram(**{"Q": np.eye(2), "c": np.zeros(2), **arguments})


CROSSED = jnp.array([2.0, 2.0]), jnp.array([1.0, 3.0])
SCALAR = lambda theta: theta[0]  # noqa: E731
ONE = lambda theta: theta[:1]  # noqa: E731
MISFITS = {  # programs whose shapes are known only when they are solved
    "`c`": {"c": SCALAR},
    "`Q` times": {"Q": lambda theta: jnp.ones((3, 2))},
    "`h`": {"G": jnp.eye(2), "h": ONE},
    "`b`": {"A": lambda theta: jnp.ones((1, 2)), "b": lambda theta: theta},
    "equality constraint": {"A": lambda theta: jnp.ones((1, 3)), "b": ONE},
}


@pytest.mark.parametrize("transform", [lambda f: f, jax.jit, jax.vmap])
@pytest.mark.parametrize("what", MISFITS)
def test_shapes_that_would_broadcast_are_refused(what, transform):
    problem = itd.QuadraticProgram(**{"Q": jnp.eye(2), "c": lambda theta: -theta, **MISFITS[what]})
    run = lambda theta: itd.solve(problem, itd.ADMM(), jnp.zeros(2), theta, stop=STOP).x  # noqa: E731
    with pytest.raises(ValueError, match=what):
        transform(run)(jnp.ones((2, 2)) if transform is jax.vmap else jnp.ones(2))


@pytest.mark.parametrize("kind", [scipy.sparse.csr_array, lx.MatrixLinearOperator])
def test_any_matrix_that_is_known_has_to_be_symmetric(kind):
    with pytest.raises(ValueError, match="symmetric"):
        itd.QuadraticProgram(kind(jnp.array([[1.0, 1.0], [0.0, 1.0]])), jnp.zeros(2))


def test_crossed_bounds_are_named_in_a_traced_problem():
    box = lambda x, step, theta: itd.prox.box(x, *CROSSED)  # noqa: E731
    problem = itd.CompositeMinimization(lambda x, theta: jnp.sum((x - theta) ** 2), box)
    run = problem, itd.ProximalGradient(0.5), jnp.zeros(2)
    with pytest.raises(ValueError, match="`lower`"):
        jax.jit(lambda theta: itd.solve(*run, theta, stop=STOP).x)(jnp.ones(2))


def test_wrong_constraints_are_one_sentence():
    square = lambda x, theta: jnp.sum((x - theta) ** 2)  # noqa: E731
    with pytest.raises(ValueError, match="`equality`"):
        itd.ConstrainedMinimization(square)
    with pytest.raises(TypeError, match="inequality"):
        itd.ConstrainedMinimization(square, inequality=1.0)
    with pytest.raises(TypeError, match="inner"):
        itd.AugmentedLagrangian(itd.Picard())
    problem = itd.ConstrainedMinimization(square, equality=lambda x, theta: 1)
    algorithm = itd.AugmentedLagrangian(itd.Newton())
    with pytest.raises(TypeError, match="`problem`"):
        itd.solve(problem, algorithm, jnp.zeros(2), jnp.ones(2), stop=STOP)
    with pytest.raises(ValueError, match="`algorithm`"):
        itd.solve(problem, itd.ADMM(), jnp.zeros(2), jnp.ones(2), stop=STOP)
    free = itd.Minimization(square)
    with pytest.raises(ValueError, match="ConstrainedMinimization, QuadraticProgram"):
        itd.solve(free, algorithm, jnp.zeros(2), jnp.ones(2), stop=STOP)


def test_empty_blocks_are_no_constraints():
    problem = itd.QuadraticProgram(
        jnp.eye(2), lambda theta: -theta, A=jnp.zeros((0, 2)), b=jnp.zeros(0)
    )
    slope = jax.jacrev(lambda t: itd.solve(problem, itd.ADMM(), jnp.zeros(2), t, stop=STOP).x)
    np.testing.assert_allclose(slope(jnp.ones(2)), np.eye(2), atol=1e-12)


def test_wrong_multipliers_and_empty_constraints_are_one_sentence():
    square = lambda x, theta: jnp.sum((x - theta) ** 2)  # noqa: E731
    algorithm, start = itd.AugmentedLagrangian(itd.Newton()), jnp.zeros(2)
    line = itd.ConstrainedMinimization(square, equality=lambda x, theta: x[:1])
    empty = itd.ConstrainedMinimization(square, inequality=lambda x, theta: {})
    known = itd.PrimalDual(start, itd.Multipliers(jnp.zeros(3)))
    with pytest.raises(ValueError, match="`x0`"):
        itd.solve(line, algorithm, known, jnp.ones(2), stop=STOP)
    with pytest.raises(TypeError, match="`problem`"):
        itd.solve(empty, algorithm, start, jnp.ones(2), stop=STOP)
    for wrong in ({"Q": "Q"}, {"c": None}):
        with pytest.raises(TypeError, match="`[Qc]`"):
            itd.QuadraticProgram(**{"Q": np.eye(2), "c": np.zeros(2), **wrong})
