"""Linear systems: every kind of matrix as an operator, and derivatives through it."""

import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import pytest
import scipy.sparse
from jax.experimental import sparse

import iterdiff as itd
from iterdiff.algorithms.stationary import diagonal_of
from iterdiff.jaxtools import tree
from tests.helpers import compiled

ROUNDING = 1e-12
MATRIX = np.diag([4.0, 5.0, 6.0]) + 0.3 * np.random.default_rng(0).normal(size=(3, 3))


OPERATORS = {
    "array": MATRIX,
    "lineax": lx.MatrixLinearOperator(jnp.asarray(MATRIX)),
    "SciPy": scipy.sparse.csc_array(MATRIX),
    **{
        kind.__name__: kind.fromdense(jnp.asarray(MATRIX))
        for kind in (sparse.BCOO, sparse.BCSR, sparse.COO, sparse.CSR, sparse.CSC)
    },
}
LINEAR = {
    "Richardson": (itd.Richardson(0.2), 120),
    "Jacobi": (itd.Jacobi(), 60),
    "GaussSeidel": (itd.GaussSeidel(), 40),
    "SOR": (itd.SOR(1.1), 40),
    "GMRES": (itd.GMRES(3), 1),
    "ConjugateGradient": (itd.ConjugateGradient(), 3),
    "Newton": (itd.Newton(), 1),
}


@pytest.mark.parametrize("name", OPERATORS)
def test_every_kind_of_matrix_is_an_operator(name):
    # products, batches of products and transposed products: all that iterdiff needs
    problem = itd.LinearSystem(OPERATORS[name], lambda b: b)
    x = jnp.array([1.0, 2.0, 3.0])

    @compiled
    def products(x):
        def product(v):
            return problem.operator(v, x)

        return product(x), jax.vmap(product)(jnp.eye(3)).T, jax.linear_transpose(product, x)(x)[0]

    image, matrix, pulled = products(x)
    assert np.max(np.abs(image - MATRIX @ np.asarray(x))) < ROUNDING
    assert np.max(np.abs(matrix - MATRIX)) < ROUNDING
    assert np.max(np.abs(pulled - MATRIX.T @ np.asarray(x))) < ROUNDING


SYMMETRIC = (MATRIX + MATRIX.T) / 2
SPARSE = itd.LinearSystem(
    sparse.CSR.fromdense(jnp.asarray(SYMMETRIC)), lambda b: b, positive_definite=True
)


def sparse_solution(b, algorithm, steps, mode=None):
    return itd.solve(SPARSE, algorithm, jnp.zeros(3), b, stop=itd.Steps(steps), mode=mode).x


def test_every_linear_solver_takes_a_sparse_matrix():
    b = jnp.array([1.0, 2.0, 3.0])
    solve_all = compiled(lambda b: {name: sparse_solution(b, *LINEAR[name]) for name in LINEAR})
    truth = np.linalg.solve(SYMMETRIC, b)
    for name, x in solve_all(b).items():
        assert np.max(np.abs(x - truth)) < ROUNDING, name


def test_both_modes_differentiate_through_a_sparse_matrix():
    def jacobians(b):
        task = LINEAR["GaussSeidel"]
        return [
            jax.jacrev(sparse_solution)(b, *task, mode) for mode in (itd.Implicit(), itd.Unrolled())
        ]

    for jacobian in compiled(jacobians)(jnp.array([1.0, 2.0, 3.0])):
        assert np.max(np.abs(jacobian - np.linalg.inv(SYMMETRIC))) < ROUNDING


def test_a_sparse_matrix_of_parameters_is_differentiated_in():
    where = sparse.BCOO.fromdense(jnp.asarray(MATRIX)).indices
    operator = itd.MatrixOperator(lambda data: sparse.BCOO((data, where), shape=(3, 3)))
    b = jnp.array([1.0, 2.0, 3.0])
    problem = itd.LinearSystem(operator, lambda data: b)

    def solution(data):
        return itd.solve(problem, itd.GaussSeidel(), jnp.zeros(3), data, stop=itd.Steps(40)).x

    inverse = np.linalg.inv(MATRIX)
    truth = -np.einsum("ij,k->ijk", inverse, inverse @ np.asarray(b)).reshape(3, 9)
    jacobian = jax.jit(jax.jacfwd(solution))(jnp.asarray(MATRIX).reshape(-1))
    assert np.max(np.abs(jacobian - truth)) < ROUNDING


def test_tags_of_lineax_count_as_declarations():
    tagged = lx.MatrixLinearOperator(jnp.eye(3), lx.positive_semidefinite_tag)
    problem = itd.LinearSystem(tagged, lambda b: b)
    assert problem.symmetric and problem.positive_definite


RECTANGULAR = {
    "array": jnp.ones((2, 3)),
    "lineax": lx.MatrixLinearOperator(jnp.ones((2, 3))),
    "sparse": sparse.BCOO.fromdense(jnp.ones((2, 3))),
}


@pytest.mark.parametrize("name", RECTANGULAR)
def test_a_matrix_must_be_square(name):
    matrix = RECTANGULAR[name]
    with pytest.raises(ValueError, match="`operator`"):
        itd.LinearSystem(matrix, lambda b: b)
    of_theta = itd.LinearSystem(itd.MatrixOperator(lambda theta: matrix), lambda b: b)
    with pytest.raises(ValueError, match="`operator`"):
        of_theta.residual(jnp.ones(3), jnp.ones(3))


@pytest.mark.parametrize("max_numbers", [1, 12, 100])  # one column, two columns, all
def test_the_diagonal_of_an_operator(max_numbers):
    like = {"a": jnp.zeros(2), "b": jnp.zeros((1, 3))}
    weights = jnp.arange(1.0, 6.0)

    def total(theta):
        def operator(v):
            vector = tree.to_vector(v)
            return tree.from_vector(theta**2 * weights * vector + jnp.sum(vector), like)

        found = tree.to_vector(diagonal_of(operator, like, max_numbers))
        return found @ weights, found

    slope, found = compiled(jax.grad(total, has_aux=True))(3.0)
    np.testing.assert_allclose(found, 9 * weights + 1, rtol=1e-14)
    np.testing.assert_allclose(slope, 6 * weights @ weights, rtol=1e-14)
