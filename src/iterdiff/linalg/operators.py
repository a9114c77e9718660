"""Linear operators on pytrees as operators of lineax, and what is known of them."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import lineax as lx
from jax.tree_util import Partial
from jaxtyping import PyTree

from iterdiff.jaxtools import manual_axes, placement, tree
from iterdiff.jaxtools.closures import hoist
from iterdiff.linalg.krylov import Operand
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


class Operands(NamedTuple):
    """The pytrees of a space as the operands of a solver, all of one dtype.

    Attributes
    ----------
    like : pytree of real floating arrays
        Gives structure, shapes and dtypes.
    flat : bool
        Whether an operand is one vector, as a matrix needs it. Otherwise it has the structure and
        the shapes of `like`, and its leaves stay where they are: one vector of several arrays, or
        of rows, would bring together what is spread over devices.
    """

    like: PyTree
    flat: bool

    def of(self, v: PyTree) -> Operand:
        """Return `v` as an operand."""
        if self.flat:
            return tree.to_vector(v)
        dtype = tree.result_dtype(v)
        return jax.tree.map(lambda leaf: leaf.astype(dtype), v)

    def back(self, operand: Operand) -> PyTree:
        """Return an operand in the structure, shapes and dtypes of `like`."""
        if self.flat:
            return tree.from_vector(operand, self.like)
        return jax.tree.map(lambda leaf, like: leaf.astype(like.dtype), operand, self.like)

    def operator(
        self, function: Callable[[PyTree], PyTree], structure: Structure
    ) -> lx.FunctionLinearOperator:
        """Return a linear map of the space to itself as an operator on operands."""

        def matvec(v: Operand) -> Operand:
            return self.of(function(self.back(manual_axes.aligned(v, self.like))))

        return _operator(matvec, jax.eval_shape(self.of, self.like), structure.tags)


def checked_helper(
    preconditioner: Callable[[PyTree], PyTree], operands: Operands, structure: Structure
) -> lx.FunctionLinearOperator:
    """Return a preconditioner as an operator on operands.

    Raises
    ------
    ValueError
        If its result is not like the unknown.
    """
    like = operands.like
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
    return operands.operator(preconditioner, definite)


def transposed_helper(helper: lx.FunctionLinearOperator) -> lx.FunctionLinearOperator:
    """Return the transpose of a preconditioner.

    Raises
    ------
    TypeError
        If JAX cannot transpose it.
    """
    like = helper.in_structure()

    def transposed(w: Operand) -> Operand:
        return manual_axes.linear_transpose(helper.mv, w)

    try:
        jax.eval_shape(transposed, like)
    except Exception as error:
        raise TypeError(
            "`preconditioner` returned a function that JAX cannot transpose, as the adjoint solve "
            "needs: make it linear in its argument, out of jax.numpy operations."
        ) from error
    return _operator(transposed, like, helper.tags)


def _operator(matvec: Callable, like: Any, tags: frozenset) -> lx.FunctionLinearOperator:
    """Return a function of operands as an operator, with the values it closes over as its leaves.

    Not if operands vary over mesh axes, or are typed as spread: lineax drops that from the leaves.
    """
    if not manual_axes.inside() and not placement.is_spread(like):
        matvec = Partial(*hoist(matvec, like))
    return lx.FunctionLinearOperator(matvec, like, tags, closure_convert=False)
