"""Small systems and one policy for each method: what the tests of linear solves share."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from iterdiff.linalg.dense_or_krylov import DenseOrKrylov, Limits
from iterdiff.linalg.operators import Structure
from iterdiff.linalg.solve import Inverse, Method

SIZE = 12
GENERAL = Structure(symmetric=False, positive_definite=False)
DEFINITE = Structure(symmetric=True, positive_definite=True)


def orthogonal(seed: int) -> np.ndarray:
    return np.linalg.qr(np.random.default_rng(seed).normal(size=(SIZE, SIZE)))[0]


def with_spectrum(spectrum) -> np.ndarray:
    q = orthogonal(0)
    matrix = (q * np.asarray(spectrum)) @ q.T
    return (matrix + matrix.T) / 2


SPD = with_spectrum(np.linspace(1, 10, SIZE))
INDEFINITE = with_spectrum(np.where(np.arange(SIZE) % 3, 1, -1) * np.linspace(1, 5, SIZE))
NONSYMMETRIC = with_spectrum(np.linspace(2, 6, SIZE)) + 0.5 * orthogonal(1)
SINGULAR = with_spectrum([0.0, *np.linspace(1, 3, SIZE - 1)])
RHS = np.random.default_rng(2).normal(size=SIZE)
WEIGHTS = np.random.default_rng(3).normal(size=SIZE)
MIDDLE = 100

# One policy for each method; systems this small would otherwise be worth no trial.
METHODS = {
    "lu": Limits(SIZE, SIZE, SIZE, trial_min_products=0),
    "factored": Limits(0, SIZE, SIZE, trial_min_products=0),
    # The trial has no time for a single product: the dense method solves.
    "fallback": Limits(0, 0, SIZE, trial_min_products=0),
    "krylov": Limits(0, 0, 0, 0),
}
SOLVERS = {name: DenseOrKrylov(limits=limits) for name, limits in METHODS.items()}
every_method = pytest.mark.parametrize("method", METHODS)


def solve(matrix, b, structure, solver, **options):
    """Return the answer to `b`; `solver` is one of lineax or the name of a method."""
    solver = SOLVERS[solver] if isinstance(solver, str) else solver
    b = jnp.asarray(b)
    method = Method(solver, options.pop("throw", False))
    return Inverse(lambda v: matrix @ v, b, structure, method, **options)(b)


def both_ways(by, b, w):
    """Return the answer to `b`, and that of the transposed system to `w`."""
    x, pull = jax.vjp(by, b)
    return x, pull(w)[0]


def spread(condition: float) -> np.ndarray:
    """Return a symmetric matrix with eigenvalues from 1 / condition to 1, in a random basis."""
    basis = np.linalg.qr(np.random.default_rng(6).normal(size=(MIDDLE, MIDDLE)))[0]
    return (basis * np.logspace(-np.log10(condition), 0, MIDDLE)) @ basis.T
