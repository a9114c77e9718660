"""Linear operators on pytrees as operators of lineax on vectors, and what is known of them."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import lineax as lx
from jax.tree_util import Partial
from jaxtyping import PyTree

from iterdiff.jaxtools import manual_axes, placement, tree
from iterdiff.jaxtools.closures import hoist
from iterdiff.linalg.krylov import Vector
from iterdiff.linalg.residual_check import SPREAD


class Structure(NamedTuple):
    """What is known of a linear operator in advance.

    Attributes
    ----------
    symmetric, positive_definite : bool
        As in `Problem`: claims, which the check of every answer verifies.
    hessian : bool
        Whether the operator is a Hessian, so that it is its own transpose. This is a fact, not a
        claim: transposed solves are then not traced separately.
    spread : bool
        Whether the vectors are known to be spread over several devices: no matrix is formed.
    """

    symmetric: bool
    positive_definite: bool
    hessian: bool = False
    spread: bool = False

    def without_claims(self) -> "Structure":
        """Return what is known of a general operator on the same vectors."""
        return Structure(False, False, spread=self.spread)

    @property
    def tags(self) -> frozenset[object]:
        """The structure as tags of a lineax operator."""
        claims = {
            lx.symmetric_tag: self.symmetric,
            lx.positive_semidefinite_tag: self.positive_definite,
            SPREAD: self.spread,
        }
        return frozenset(tag for tag, claimed in claims.items() if claimed)


def checked_helper(
    preconditioner: Callable[[PyTree], PyTree], like: PyTree, structure: Structure
) -> lx.FunctionLinearOperator:
    """Return a preconditioner as an operator on vectors.

    Raises
    ------
    ValueError
        If its result is not like the unknown.
    """
    expected, found = jax.eval_shape(lambda v: v, like), jax.eval_shape(preconditioner, like)
    if jax.tree.structure(expected) != jax.tree.structure(found) or any(
        a.shape != b.shape for a, b in zip(*map(jax.tree.leaves, (expected, found)), strict=True)
    ):
        raise ValueError(
            f"`preconditioner` must return a function from vectors like x to vectors like x, but "
            f"that one maps {expected} to {found}."
        )
    # A claim of symmetry would keep lineax from transposing it. Conjugate gradients ask for one.
    definite = Structure(False, structure.positive_definite)
    return of_vectors(preconditioner, like, definite)


def transposed_helper(helper: lx.FunctionLinearOperator) -> lx.FunctionLinearOperator:
    """Return the transpose of a preconditioner.

    Raises
    ------
    TypeError
        If JAX cannot transpose it.
    """
    vector = helper.in_structure()

    def transposed(w: Vector) -> Vector:
        return manual_axes.linear_transpose(helper.mv, w)

    try:
        jax.eval_shape(transposed, vector)
    except Exception as error:
        raise TypeError(
            "`preconditioner` returned a function that JAX cannot transpose, as the adjoint solve "
            "needs: make it linear in its argument, out of jax.numpy operations."
        ) from error
    return _operator(transposed, vector, helper.tags)


def of_vectors(
    operator: Callable[[PyTree], PyTree], like: PyTree, structure: Structure
) -> lx.FunctionLinearOperator:
    """Return an operator on pytrees as an operator on vectors."""

    def matvec(v: Vector) -> Vector:
        return tree.to_vector(operator(tree.from_vector(manual_axes.aligned(v, like), like)))

    vector = jax.eval_shape(tree.to_vector, like)
    return _operator(matvec, vector, structure.tags)


def _operator(matvec: Callable, vector: Any, tags: frozenset) -> lx.FunctionLinearOperator:
    """Return a function of vectors as an operator, with the values it closes over as its leaves.

    Not if vectors vary over mesh axes, or are typed as spread: lineax drops that from the leaves.
    """
    if not manual_axes.inside() and not placement.is_spread(vector):
        matvec = Partial(*hoist(matvec, vector))
    return lx.FunctionLinearOperator(matvec, vector, tags, closure_convert=False)
