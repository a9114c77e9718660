"""What a few products with a linear map tell of it: spectral radius, symmetry, definiteness."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Float, PyTree

from iterdiff.jaxtools import tree

Vector = Float[np.ndarray, " n"]

HUGE = 1e150
"""What grows beyond this, or is not a number, is infinite here: its square may overflow."""


class Spectrum(NamedTuple):
    """Ritz values of a linear map, and how asymmetric it is.

    Attributes
    ----------
    values : complex array
        Approximate eigenvalues; the extreme ones come out first, as the Krylov space grows.
    exact : bool
        Whether the Krylov space is the whole space (or invariant), so that these are
        eigenvalues.
    asymmetry : float
        ``|<u, A v> - <v, A u>|`` over ``||u|| ||A v|| + ||v|| ||A u||``, the largest of three
        pairs of random vectors; zero to rounding for a symmetric map.
    """

    values: np.ndarray
    exact: bool
    asymmetry: float

    @property
    def radius(self) -> float:
        """The largest modulus: the spectral radius, from below unless `exact`."""
        return float(np.max(np.abs(self.values)))


def probe(apply: Callable[[PyTree], PyTree], like: PyTree, products: int = 40) -> Spectrum:
    """Probe a linear map by at most `products` products, and six more for its symmetry.

    Arnoldi's method with full reorthogonalisation, from a random vector.

    Parameters
    ----------
    apply : callable
        ``apply(v)``, linear; `v` and the result are like `like`.
    like : pytree of real floating arrays
        Gives structure, shapes and dtypes.
    products : int
        The largest dimension of the Krylov space.
    """

    def flat(vector):
        return tree.to_vector(apply(tree.from_vector(vector, like)))

    push = jax.jit(flat)
    size = tree.size(like)
    dtype = tree.result_dtype(like)
    rng = np.random.default_rng(0)

    def product(v: Vector) -> Vector:
        return np.asarray(push(v.astype(dtype)), float)

    values, exact = _arnoldi(product, rng.standard_normal(size), min(products, size))
    return Spectrum(values, exact, max(_asymmetry(product, rng, size) for _ in range(3)))


def _arnoldi(product: Callable[[Vector], Vector], start: Vector, most: int):
    basis = [start / np.linalg.norm(start)]
    hessenberg = np.zeros((most + 1, most))
    for j in range(most):
        image = product(basis[j])
        if not np.all(np.abs(image) < HUGE):
            return np.array([np.inf]), False
        scale = np.linalg.norm(image)
        for _ in range(2):
            for i, v in enumerate(basis):
                overlap = float(v @ image)
                hessenberg[i, j] += overlap
                image = image - overlap * v
        rest = float(np.linalg.norm(image))
        if rest <= 1e-10 * max(scale, 1e-300) or j + 1 == start.size:
            return np.linalg.eigvals(hessenberg[: j + 1, : j + 1]), True
        hessenberg[j + 1, j] = rest
        basis.append(image / rest)
    return np.linalg.eigvals(hessenberg[:most, :most]), False


def _asymmetry(product: Callable[[Vector], Vector], rng: np.random.Generator, size: int) -> float:
    u, v = rng.standard_normal((2, size))
    au, av = product(u), product(v)
    if not np.all(np.abs([au, av]) < HUGE):
        return np.inf
    weight = np.linalg.norm(u) * np.linalg.norm(av) + np.linalg.norm(v) * np.linalg.norm(au)
    return float(abs(u @ av - v @ au) / max(weight, 1e-300))
