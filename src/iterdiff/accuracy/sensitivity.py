r"""The residual linearised at a point, and the implicit derivative there.

Where the residual :math:`r(x, \theta)` vanishes, the implicit function theorem gives the
derivative of the solution,

.. math::

    J = -A^{-1} r_\theta, \qquad A = \partial r / \partial x, \quad
    r_\theta = \partial r / \partial \theta.

At any other point the same formula gives an approximation.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
from jaxtyping import Array, Float, PyTree

from iterdiff.jaxtools import tree
from iterdiff.jaxtools.closures import hoist
from iterdiff.jaxtools.reverse_only import custom_rules_in, first_order_only, reverse_only
from iterdiff.jaxtools.tree import floating_part
from iterdiff.linalg.dense_or_krylov import DenseOrKrylov
from iterdiff.linalg.handed import HandedFactors
from iterdiff.linalg.operators import Structure
from iterdiff.linalg.solve import DEFAULT_METHOD, Inverse, Method
from iterdiff.problems.active_set import regular_at
from iterdiff.problems.problem import Problem

LOOSE_RTOL = 1e-2
"""Relative error that is allowed to solves that serve only an estimate, relative to what they
change. Iterative ones stop at a tenth of it, as relative residual."""

Residual = Callable[[PyTree, PyTree], PyTree]
"""``residual(x, theta)``, where everything else that it depends on is bound."""


NO_FORWARD_RULE = (
    "The residual calls a `jax.custom_vjp` function, which has no forward-mode rule: only first "
    "derivatives in reverse mode (jax.grad, jax.jacrev) work. Give the function a "
    "`jax.custom_jvp` rule for forward mode and second derivatives."
)


class Equation(NamedTuple):
    r"""The equation :math:`r(x, \theta) = 0` at a point.

    Attributes
    ----------
    residual : callable
        ``residual(x, theta)``.
    x : pytree of real floating arrays
        The point.
    theta : pytree of real floating arrays
        What the derivative is taken in.
    structure : Structure
        What is known of :math:`A = \partial r / \partial x`.
    """

    residual: Residual
    x: PyTree
    theta: PyTree
    structure: Structure

    def derivative(self, v: PyTree, method: Method, moved: HandedFactors | None = None) -> PyTree:
        """Return ``J v``, which JAX transposes and differentiates; `method` solves.

        A residual that has a reverse rule only (`jax.custom_vjp`) is no obstacle to the transpose.
        The argument `moved` is that of `Inverse`.
        """
        try:
            return Sensitivity(self, method, factor=False).forward(v, moved)
        except TypeError:
            if "custom_vjp" not in custom_rules_in(self.residual, self.x, self.theta):
                raise
        return self._derivative_by_reverse(v, method._replace(factors=None))

    def _derivative_by_reverse(self, v: PyTree, method: Method) -> PyTree:
        """Return ``J v`` such that JAX can transpose it, if the residual has a reverse rule only.

        ``J^T w`` needs ``A^T`` and ``r_theta^T``, which reverse mode gives. The value of ``J v``
        itself raises a TypeError if it is needed.
        """
        x, theta = first_order_only((self.x, self.theta), NO_FORWARD_RULE)
        pull = jax.vjp(self.residual, x, theta)[1]
        structure = self.structure._replace(hessian=False)
        adjoint = Inverse(lambda w: pull(w)[0], x, structure, method)

        def transposed(w):
            return tree.scale(-1.0, pull(adjoint.constant(w))[1])

        return reverse_only(transposed, v, x, NO_FORWARD_RULE)


def loose(method: Method) -> Method | None:
    """Return how systems are solved that serve only an estimate; None if as accurately as ever.

    It is the default solver with a loose tolerance. Any other solver of the user's stays.
    """
    solver = DenseOrKrylov() if method.solver is None else method.solver
    if not isinstance(solver, DenseOrKrylov):
        return None
    loosened = dataclasses.replace(solver, rtol=LOOSE_RTOL / 10)
    return Method(loosened, preconditioner=method.preconditioner)


class Sensitivity:
    r"""The residual linearised at a point, and the implicit derivative there.

    Parameters
    ----------
    equation : Equation
        The residual and the point.
    method : Method
        How solves are made.
    factor : bool
        Whether to factor now, for several solves, if a factorisation is the method to use.

    Attributes
    ----------
    residual, x, theta, structure
        Those of `equation`.
    value : pytree
        The residual at the point.
    operator : callable
        ``v -> A v``.
    inverse : Inverse
        ``b -> A^{-1} b``.
    """

    def __init__(self, equation: Equation, method: Method = DEFAULT_METHOD, *, factor: bool = True):
        self.residual, self.x, self.theta, self.structure = equation
        self.method = method
        self.value, self.operator = jax.linearize(lambda y: self.residual(y, self.theta), self.x)
        self.inverse = Inverse(self.operator, self.x, self.structure, self.method, factor=factor)

    def pushed(self, v: PyTree) -> PyTree:
        """Return ``r_theta v``."""
        return jax.jvp(lambda theta: self.residual(self.x, theta), (self.theta,), (v,))[1]

    def forward(self, v: PyTree, moved: HandedFactors | None = None) -> PyTree:
        """Return ``J v``; `moved` is that of `Inverse`."""
        # The sign is on the right-hand side, so that the transposed solve is that of the adjoint.
        t = self.inverse(tree.scale(-1.0, self.pushed(v)), moved)
        return self.inverse.refused(t, v) if self.inverse.ignores_unknowns else t

    def forward_unchecked(self, v: PyTree) -> PyTree:
        """Return the same, without a check of the answer if there are factors.

        For a derivative that is compared with a checked one at a point nearby.
        """
        if self.inverse.factors is None:
            return self.forward(v)
        return self.inverse.factored(tree.scale(-1.0, self.pushed(v)))

    def pulled(self, adjoint: PyTree) -> PyTree:
        """Return ``J^T w``, given ``A^{-T} w``."""
        pull = jax.vjp(lambda theta: self.residual(self.x, theta), self.theta)[1]
        return tree.scale(-1.0, pull(adjoint)[0])

    def loosely(self, b: PyTree) -> PyTree:
        """Return ``A^{-1} b`` for an estimate: unchecked, and loosely if solves are iterative."""
        if self.inverse.factors is not None:
            return self.inverse.factored(b)
        method = loose(self.method)
        if method is None:
            return self.inverse(b)
        return Inverse(self.operator, self.x, self.structure, method, unique=False)(b)

    def condition(self) -> Float[Array, ""]:
        """Return an estimate of the condition number of ``A``, from below."""
        random = random_vector(self.x)
        inverse = tree.norm(self.loosely(unit(self.loosely(random))))
        return self.condition_from(random, inverse)

    def condition_from(self, random: PyTree, inverse: Float[Array, ""]) -> Float[Array, ""]:
        """Return the same, given the length of ``A^{-1}`` times a unit vector that it stretches."""
        stretch = tree.norm(self.inverse.product(unit(self.inverse.product(random))))
        return jnp.maximum(stretch * inverse, 1.0)


class Helpers(NamedTuple):
    r"""What helps iterative solves of an implicit derivative.

    Attributes
    ----------
    preconditioner : callable, optional
        ``v -> M v``, about the inverse of :math:`\partial r / \partial x`.
    guess : pytree, optional
        Like `x`: where adjoint solves start. Its own cotangent is the adjoint that they find.
    earlier : pytree, optional
        Adjoints before it, stacked along a first axis: solves start at the best combination.
    factors : HandedFactors, optional
        Those of a nearby matrix.
    """

    preconditioner: Callable[[PyTree], PyTree] | None = None
    guess: PyTree | None = None
    earlier: PyTree | None = None
    factors: HandedFactors | None = None

    def span(self) -> Float[Array, "k n"] | None:
        """Return the guess and the earlier adjoints as rows; None if there are no earlier ones."""
        if self.earlier is None:
            return None
        first = jax.tree.map(lambda v: v[None], self.guess)
        rows = jax.tree.map(lambda *parts: jnp.concatenate(parts), first, self.earlier)
        return tree.stack_to_matrix(rows)


def sensitivity(
    problem: Problem,
    x: PyTree,
    theta: PyTree,
    linear_solver: lx.AbstractLinearSolver | None = None,
    helper: Callable[[PyTree], PyTree] | None = None,
) -> Sensitivity:
    """Return the residual linearised at `x`, for derivatives in the floating leaves of theta.

    The function `helper` preconditions, as in `Method`.
    """
    x = jax.lax.stop_gradient(x)
    problem, _ = regular_at(problem, x, theta)
    residual, inputs = explicit(problem, x, theta)
    (of_problem, of_theta), closed_over = jax.lax.stop_gradient(inputs)
    floating, rest = floating_part(of_theta)

    def in_theta(y, floating):
        return residual(y, ((of_problem, eqx.combine(floating, rest)), closed_over))

    structure = problem.structure_at(x, theta)
    method = Method(linear_solver, preconditioner=helper)
    return Sensitivity(Equation(in_theta, x, floating, structure), method)


def explicit(problem: Problem, x: PyTree, theta: PyTree) -> tuple[Callable, Any]:
    """Make every input of the residual explicit, including the values that it closes over.

    Returns
    -------
    residual : callable
        ``residual(x, inputs)``.
    inputs : pytree of arrays
        The array leaves of the problem and of theta, and the closed-over values.
    """
    arrays, static = eqx.partition((problem, theta), eqx.is_array)

    def of_arrays(x, arrays):
        problem, theta = eqx.combine(arrays, static)
        return problem.residual(x, theta)

    converted, closed_over = hoist(of_arrays, x, arrays)

    def residual(x, inputs):
        arrays, closed_over = inputs
        return converted(closed_over, x, arrays)

    return residual, (arrays, closed_over)


def random_vector(like: PyTree) -> PyTree:
    """Return a random vector, the same at every call."""
    return jax.tree.map(lambda v: v[0], tree.fixed_directions(like, 1))


def unit(a: PyTree) -> PyTree:
    """Return `a` over its length, or zero."""
    length = tree.norm(a)
    return tree.scale(1 / jnp.where(length > 0, length, 1.0), a)
