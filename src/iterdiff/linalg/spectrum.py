"""Spectral radius, symmetry and definiteness of a linear map, estimated from a few products."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Float, PyTree

from iterdiff.jaxtools import tree
from iterdiff.linalg.krylov import arnoldi

Vector = Float[np.ndarray, " n"]

FINITE_MAX_MAGNITUDE = 1e150
"""Larger entries count as infinite: their squares may overflow."""


class Spectrum(NamedTuple):
    """Ritz values of a linear map, and how asymmetric it is.

    Attributes
    ----------
    values : complex array
        Ritz values: approximate eigenvalues, of which the extreme ones converge first.
    exact : bool
        Whether these are eigenvalues, because the Krylov space is invariant or the whole space.
    asymmetry : float
        ``|<u, A v> - <v, A u>|`` over ``||u|| ||A v|| + ||v|| ||A u||``, the largest of three
        pairs of random vectors; zero to rounding for a symmetric map.
    """

    values: np.ndarray
    exact: bool
    asymmetry: float

    @property
    def radius(self) -> float:
        """The largest modulus: the spectral radius, or a lower bound of it unless `exact`."""
        return float(np.max(np.abs(self.values)))


def probe(apply: Callable[[PyTree], PyTree], like: PyTree, products: int = 40) -> Spectrum:
    """Estimate the spectrum of a linear map by Arnoldi's method from a random vector.

    Parameters
    ----------
    apply : callable
        ``apply(v)``, linear; `v` and the result are like `like`.
    like : pytree of real floating arrays
        Gives structure, shapes and dtypes.
    products : int
        The largest dimension of the Krylov space, and so the number of products. Six more measure
        the asymmetry.
    """

    def matvec(v: Vector) -> Vector:
        return tree.to_vector(apply(tree.from_vector(v, like)))

    size, dtype = tree.size(like), tree.result_dtype(like)
    steps = min(products, size)

    @jax.jit
    def measure(start, vectors):
        return arnoldi(matvec, start, steps)[1], jax.lax.map(matvec, vectors)

    rng = np.random.default_rng(0)
    start, vectors = rng.standard_normal(size), rng.standard_normal((6, size))
    measured = measure(start.astype(dtype), vectors.astype(dtype))
    columns, images = (np.asarray(array, float) for array in measured)
    pairs = zip(vectors.reshape(3, 2, size), images.reshape(3, 2, size), strict=True)
    asymmetry = max(_asymmetry(*pair) for pair in pairs)
    if not np.all(np.abs(columns) < FINITE_MAX_MAGNITUDE):
        return Spectrum(np.array([np.inf]), False, asymmetry)
    hessenberg = columns.T
    breaks = np.flatnonzero(np.diag(hessenberg, -1) == 0)  # the Krylov space is exhausted
    order = int(breaks[0]) + 1 if breaks.size else steps
    exact = breaks.size > 0 or steps == size
    return Spectrum(np.linalg.eigvals(hessenberg[:order, :order]), exact, asymmetry)


def _asymmetry(vectors: Float[np.ndarray, "2 n"], images: Float[np.ndarray, "2 n"]) -> float:
    if not np.all(np.abs(images) < FINITE_MAX_MAGNITUDE):
        return np.inf
    (u, v), (image_u, image_v) = vectors, images
    weight = np.linalg.norm(u) * np.linalg.norm(image_v)
    weight += np.linalg.norm(v) * np.linalg.norm(image_u)
    return float(abs(u @ image_v - v @ image_u) / max(weight, 1e-300))
