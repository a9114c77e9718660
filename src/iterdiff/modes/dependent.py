"""Refuse derivatives that do not exist because active constraints depend on each other."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PyTree

from iterdiff.accuracy.sensitivity import Residual
from iterdiff.jaxtools import tree
from iterdiff.jaxtools.closures import Perturbed
from iterdiff.jaxtools.lax import custom_solve
from iterdiff.jaxtools.raise_if import Throw, raise_if
from iterdiff.problems.active_set import Dependence, apart
from iterdiff.problems.constrained import PrimalDual
from iterdiff.problems.problem import replaced

NOT_UNIQUE = (
    "The derivative of the multipliers does not exist: the gradients of the active constraints "
    "depend on each other, so that the multipliers are not unique. The derivative of `x` exists; "
    "remove redundant constraints if you need that of the multipliers."
)
MOVED_APART = (
    "The derivative of the solution does not exist: the gradients of the active constraints depend "
    "on each other, and the parameters move these constraints apart. Remove redundant constraints, "
    "or move theta away from this point."
)


def refuse_lost(
    tangent: PrimalDual,
    residual: Residual,
    x: PrimalDual,
    perturbed: Perturbed,
    throw: Throw,
) -> PrimalDual:
    """Return the tangent of a solution; what does not exist of it raises, or is NaN.

    Forward mode cannot see whether the multipliers' tangent is used, so that it is NaN. Reverse
    mode sees their cotangent, and raises if it is not zero.

    Parameters
    ----------
    tangent : PrimalDual
        The tangent, with the multipliers of dependent constraints pinned.
    residual : callable
        ``residual(x, inputs)``, as `explicit` returns it, with pinned multipliers.
    x : PrimalDual
        The solution.
    perturbed : Perturbed
        The inputs of the residual and the `Dependence` of the constraints.
    throw : bool
        Whether failures raise.
    """
    at = jax.lax.stop_gradient((x, perturbed.primals))
    flags = _as_number(perturbed.inputs[1].found), _as_number(_moved_apart(residual, at, perturbed))

    def forward(t: PrimalDual) -> PrimalDual:
        lost, lost_x = (flag > 0 for flag in flags)
        t = _nan_where(lost_x, t)
        if throw:
            t = raise_if(t, lost_x, [MOVED_APART], throw=throw)
        return t._replace(multipliers=_nan_where(lost, t.multipliers))

    def transposed(w: PrimalDual) -> PrimalDual:
        lost, lost_x = (flag > 0 for flag in flags)
        used = tree.norm(w.multipliers) > 0
        failed = lost_x | (lost & used)
        if throw:
            return raise_if(w, failed, [NOT_UNIQUE, MOVED_APART], lost_x.astype(jnp.int32), throw)
        return _nan_where(failed, w)

    return custom_solve(lambda t: t, tangent, forward, transposed)


def _moved_apart(
    residual: Residual, at: tuple[PrimalDual, tuple], perturbed: Perturbed
) -> Bool[Array, ""]:
    """Return whether the perturbed inputs move dependent active constraints apart."""
    x, primals = at

    def rows(primals):
        ((arrays, theta), closed_over), *_ = perturbed.rebuild(primals)
        arrays = replaced(arrays, pinned=jax.tree.map(jnp.zeros_like, arrays.pinned))
        return tree.to_vector(residual(x, ((arrays, theta), closed_over)).multipliers)

    found: Dependence = perturbed.inputs[1]
    pull = jax.vjp(rows, primals)[1]
    return apart(lambda w: pull(w)[0], found.of_pinned, found.pinned)


def _as_number(flag: Bool[Array, ""]) -> Float[Array, ""]:
    """Return 1 or 0, which has no tangent.

    A flag may have a tangent of dtype float0, with which JAX cannot differentiate a linear solve.
    """
    return jax.lax.select(flag, jnp.ones(()), jnp.zeros(()))


def _nan_where(condition: Bool[Array, ""], a: PyTree) -> PyTree:
    return jax.tree.map(lambda v: jnp.where(condition, jnp.nan, v), a)
