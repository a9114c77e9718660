"""Spectral radius, symmetry and definiteness of a linear map, estimated from a few products.

Only the products are compiled. Arnoldi's method runs on the host, in float64: compiling
`iterdiff.linalg.krylov.arnoldi` would take four times as long as the whole estimate.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, PyTree

from iterdiff.jaxtools import tree
from iterdiff.jaxtools.by_content import ByContent

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


def probe(
    apply: Callable[[PyTree], PyTree],
    like: PyTree,
    products: int = 40,
    *,
    within: PyTree | None = None,
) -> Spectrum:
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
    within : pytree, optional
        Like `like`: the entries of the random vector are multiplied by these, so that the spectrum
        is that of the invariant subspace which they generate.
    """
    size, dtype = tree.size(like), tree.result_dtype(like)
    matvec = ByContent(lambda v: tree.to_vector(apply(tree.from_vector(v, like))))

    def product(v: Vector) -> Vector:
        return np.asarray(matvec(v.astype(dtype)), float)

    rng = np.random.default_rng(0)
    start = rng.standard_normal(size)
    if within is not None:
        start *= np.asarray(tree.to_vector(within), float)
    values, exact = _ritz_values(product, start, min(products, size))
    return Spectrum(values, exact, max(_asymmetry(product, rng, size) for _ in range(3)))


def _ritz_values(
    product: Callable[[Vector], Vector], start: Vector, steps: int
) -> tuple[np.ndarray, bool]:
    """Return the Ritz values after `steps` products, and whether these are eigenvalues.

    Classical Gram-Schmidt, applied twice.
    """
    basis, hessenberg = np.zeros((steps + 1, start.size)), np.zeros((steps + 1, steps))
    basis[0] = start / np.linalg.norm(start)
    for k in range(steps):
        image = remainder = product(basis[k])
        if not np.all(np.abs(image) < FINITE_MAX_MAGNITUDE):
            return np.array([np.inf]), False
        for _ in range(2):
            overlaps = basis @ remainder
            hessenberg[:, k] += overlaps
            remainder = remainder - overlaps @ basis
        height = float(np.linalg.norm(remainder))
        if height <= 1e-10 * max(np.linalg.norm(image), 1e-300) or k + 1 == start.size:
            return np.linalg.eigvals(hessenberg[: k + 1, : k + 1]), True
        hessenberg[k + 1, k] = height
        basis[k + 1] = remainder / height
    return np.linalg.eigvals(hessenberg[:steps]), False


def _asymmetry(product: Callable[[Vector], Vector], rng: np.random.Generator, size: int) -> float:
    u, v = rng.standard_normal((2, size))
    image_u, image_v = product(u), product(v)
    if not np.all(np.abs([image_u, image_v]) < FINITE_MAX_MAGNITUDE):
        return np.inf
    weight = np.linalg.norm(u) * np.linalg.norm(image_v)
    weight += np.linalg.norm(v) * np.linalg.norm(image_u)
    return float(abs(u @ image_v - v @ image_u) / max(weight, 1e-300))
