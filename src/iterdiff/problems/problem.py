"""Problems: what to solve, independent of the algorithm.

A problem owns ``residual(x, theta)``, which vanishes at the solution ``x*(theta)``. Implicit
differentiation differentiates this equation, and stopping rules measure convergence by it.
Pass every quantity that you differentiate with respect to in `theta`, and data in `args` of
`solve`. What a user's function closes over is data, too: its value at the time of the call counts.
(A closed-over value that JAX is tracing is detected, and the derivative includes it.)
"""

import abc
from collections.abc import Callable
from typing import Any, ClassVar, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from iterdiff.jaxtools import tree
from iterdiff.jaxtools.arguments import check_callable, check_tolerance
from iterdiff.jaxtools.reverse_only import custom_rules_in
from iterdiff.jaxtools.snapshot import Snapshot
from iterdiff.linalg.operators import Structure
from iterdiff.problems.functions import Bound
from iterdiff.problems.layout import Layout

P = TypeVar("P", bound="Problem")


class Problem(eqx.Module):
    """An equation ``residual(x, theta) = 0``, to be solved for ``x`` at given ``theta``.

    Subclass it for a kind of problem that the built-in classes do not cover. Only `residual` is
    required.

    Attributes
    ----------
    symmetric : bool
        Whether ``d residual / dx`` is symmetric at the solution.
    positive_definite : bool
        Whether it is symmetric positive definite at the solution. `Implicit` verifies this
        claim: if it is false, the derivative costs a second factorisation but stays correct.
    residual_is_gradient : bool
        Whether the residual is the gradient of a scalar function, so that ``d residual / dx`` is
        a Hessian, and its transpose need not be formed.
    marks_kinks : bool
        Whether `weakly_active`, which `solve` then calls, looks for the kinks of such problems.
    structure : Structure
        The three declarations about ``d residual / dx``, for linear solves.
    functions : dict of str to int
        The fields that hold functions of the user's, each with its number of inputs. Data come
        after these.
    like_x : tuple of str, or None
        The functions among these that return a value like `x`. None: not declared.
    snapshot : Snapshot or None
        What the functions computed when they were checked: programs are reused only if it is equal.
    spread : bool
        Whether a call of iterdiff found the unknowns spread over several devices.
    layout : Layout or None
        How the unknowns are laid out in the answer; None if they are the answer.
    """

    residual_is_gradient: ClassVar[bool] = False
    marks_kinks: ClassVar[bool] = False
    functions: ClassVar[dict[str, int]] = {}
    like_x: ClassVar[tuple[str, ...] | None] = None
    snapshot: Snapshot | None = eqx.field(kw_only=True, default=None, repr=False)
    spread: bool = eqx.field(kw_only=True, default=False, repr=False, static=True)
    layout: Layout | None = eqx.field(kw_only=True, default=None, repr=False)

    @property
    def structure(self) -> Structure:
        """What the problem declares about ``d residual / dx``."""
        claims = self.symmetric, self.positive_definite, self.residual_is_gradient
        return Structure(*claims, self.spread)

    def structure_at(self, x: PyTree, theta: PyTree) -> Structure:
        """Return what is known about ``d residual / dx`` at a point: what is declared."""
        del x, theta
        return self.structure

    @property
    def symmetric(self) -> bool:
        """Whether ``d residual / dx`` is symmetric at the solution."""
        return False

    @property
    def positive_definite(self) -> bool:
        """Whether ``d residual / dx`` is symmetric and positive definite at the solution."""
        return False

    def aux(self, x: PyTree, theta: PyTree) -> PyTree:
        """Return the auxiliary output at `x`, which becomes ``Solution.aux``; by default None."""
        del x, theta

    def start(self, x0: PyTree, theta: PyTree) -> PyTree:
        """Return the unknowns of the residual at the start of a run; by default `x0` itself.

        A problem whose residual has more unknowns than the answer, such as multipliers, adds them.
        """
        del theta
        return x0

    def value(self, unknowns: PyTree, theta: PyTree) -> Float[Array, ""] | None:
        """Return what the problem minimises, or None: it is no minimisation, or it does not say."""
        del unknowns, theta

    def answer(self, unknowns: PyTree) -> PyTree:
        """Return what users call `x`, given the unknowns of the residual; by default these."""
        return unknowns

    def restored(self, unknowns: PyTree) -> PyTree:
        """Return the answer as the caller laid it out."""
        answer = self.answer(unknowns)
        return answer if self.layout is None else self.layout.restored(answer)

    def multipliers(self, unknowns: PyTree) -> PyTree:
        """Return the multipliers among the unknowns of the residual; None without constraints."""
        del unknowns

    @abc.abstractmethod
    def residual(self, x: PyTree, theta: PyTree) -> PyTree:
        """Return the residual, which vanishes at the solution.

        Parameters
        ----------
        x : pytree of real floating arrays
            Point at which to evaluate the residual.
        theta : pytree
            Parameters. Derivatives are taken with respect to the floating leaves.

        Returns
        -------
        pytree
            The residual, with the structure, shapes and dtypes of `x`.
        """


class ProblemOfFunctions(Problem):
    """A problem made of functions of the user's, whose first may have an auxiliary output.

    Attributes
    ----------
    has_aux : bool
        Whether the first of `functions` returns a pair ``(value, aux)``. ``Solution.aux`` is the
        second at the answer.
    """

    has_aux: bool = eqx.field(static=True, kw_only=True, default=False)

    def __post_init__(self):
        """Separate the value from the auxiliary output, with `has_aux`."""
        name = next(iter(self.functions))
        function = getattr(self, name)
        if self.has_aux and callable(function) and not isinstance(function, Bound):
            setattr(self, name, Bound(function, has_aux=True))

    def aux(self, x: PyTree, theta: PyTree) -> PyTree:
        """Return the auxiliary output at `x`; None without `has_aux`."""
        if not self.has_aux:
            return None
        return getattr(self, next(iter(self.functions))).aux(x, theta)


class SmoothMinimization(ProblemOfFunctions):
    r"""Base class of minimisations without constraints, of a twice differentiable objective.

    The residual is the gradient :math:`\nabla_x f(x, \theta)`, and its Jacobian is the Hessian.
    """

    objective: eqx.AbstractVar[Callable[[PyTree, PyTree], Float[Array, ""]]]
    like_x: ClassVar[tuple[str, ...] | None] = ()
    residual_is_gradient: ClassVar[bool] = True

    @property
    def symmetric(self) -> bool:
        """True, since a Hessian is symmetric."""
        return True

    @property
    def positive_definite(self) -> bool:
        """True, as at every strict minimiser (second-order sufficient condition)."""
        return True

    def structure_at(self, x: PyTree, theta: PyTree) -> Structure:
        """Return what is known of the Hessian: of an overridden gradient, nothing for certain.

        A `jax.custom_vjp` rule is taken to override. With a `jax.custom_jvp` rule, which many
        functions of JAX have, symmetry is a claim that linear solves verify.
        """
        rules = custom_rules_in(self.objective, x, theta)
        if "custom_vjp" in rules:
            return self.structure.without_claims()
        return self.structure._replace(hessian=not rules)

    def value(self, unknowns: PyTree, theta: PyTree) -> Float[Array, ""]:
        """Return the objective."""
        return self.objective(unknowns, theta)

    def residual(self, x: PyTree, theta: PyTree) -> PyTree:
        """Return the gradient of the objective with respect to `x`."""
        return jax.grad(self.objective)(x, theta)


class Minimization(SmoothMinimization):
    r"""Minimise ``objective(x, theta)`` over `x`, without constraints.

    The residual is the gradient :math:`\nabla_x f(x, \theta)`, and its Jacobian is the Hessian:
    symmetric, and positive definite at a strict minimiser. `Implicit` verifies definiteness, so
    that the derivative at a saddle point is correct too. It does not rely on symmetry if the
    objective calls a function with a derivative rule of its own (`jax.custom_vjp`,
    `jax.custom_jvp`): an overridden gradient is no gradient of a function.

    Parameters
    ----------
    objective : callable
        ``objective(x, theta)`` returns a real floating scalar. It must be twice differentiable
        near the solution; error estimates and ``Implicit(refine=1)`` need a third derivative.
    has_aux : bool
        Whether `objective` returns a pair ``(value, aux)``: the second, any pytree, becomes
        ``Solution.aux``, which JAX differentiates like the answer.

    Raises
    ------
    TypeError
        If `objective` is not callable.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> import iterdiff as itd
    >>> problem = itd.Minimization(lambda x, theta: jnp.sum((x - theta) ** 2))
    >>> problem.residual(jnp.array([1.0, 2.0]), jnp.array([0.0, 2.0])).tolist()
    [2.0, 0.0]
    """

    objective: Callable[[PyTree, PyTree], Float[Array, ""]]
    functions: ClassVar[dict[str, int]] = {"objective": 2}

    def __check_init__(self):
        """Check that `objective` is callable."""
        check_callable(objective=self.objective)


class RootFinding(ProblemOfFunctions):
    """Find `x` with ``function(x, theta) = 0``.

    Parameters
    ----------
    function : callable
        ``function(x, theta)`` returns a pytree like `x`. It must be differentiable near the
        solution, with a nonsingular Jacobian with respect to `x` there.
    has_aux : bool
        Whether `function` returns a pair ``(value, aux)``: the second, any pytree, becomes
        ``Solution.aux``, which JAX differentiates like the answer.

    Raises
    ------
    TypeError
        If `function` is not callable.
    """

    function: Callable[[PyTree, PyTree], PyTree]
    functions: ClassVar[dict[str, int]] = {"function": 2}
    like_x: ClassVar[tuple[str, ...] | None] = ("function",)

    def __check_init__(self):
        """Check that `function` is callable."""
        check_callable(function=self.function)

    def residual(self, x: PyTree, theta: PyTree) -> PyTree:
        """Return ``function(x, theta)``."""
        return self.function(x, theta)


class FixedPoint(ProblemOfFunctions):
    """Find `x` with ``x = update(x, theta)``.

    The residual is ``x - update(x, theta)``, whose Jacobian is ``I - d update / dx``.

    Parameters
    ----------
    update : callable
        ``update(x, theta)`` returns a pytree like `x`. It must be differentiable near the fixed
        point, and 1 must not be an eigenvalue of its Jacobian there.
    has_aux : bool
        Whether `update` returns a pair ``(value, aux)``: the second, any pytree, becomes
        ``Solution.aux``, which JAX differentiates like the answer.

    Raises
    ------
    TypeError
        If `update` is not callable.
    """

    update: Callable[[PyTree, PyTree], PyTree]
    functions: ClassVar[dict[str, int]] = {"update": 2}
    like_x: ClassVar[tuple[str, ...] | None] = ("update",)

    def __check_init__(self):
        """Check that `update` is callable."""
        check_callable(update=self.update)

    def residual(self, x: PyTree, theta: PyTree) -> PyTree:
        """Return ``x - update(x, theta)``."""
        return tree.sub(x, self.update(x, theta))


class CompositeMinimization(ProblemOfFunctions):
    r"""Minimise ``smooth(x, theta)`` plus a term given by its proximal operator.

    The residual is the natural map
    :math:`x - \mathrm{prox}_{s g}(x - s \nabla_x f(x, \theta), s, \theta)`, which vanishes at
    the solution for every :math:`s > 0`. Its Jacobian is the identity on the coordinates that
    the proximal operator holds fixed and the scaled Hessian on the support, so that implicit
    differentiation is restricted to the support.

    Parameters
    ----------
    smooth : callable
        ``smooth(x, theta)`` returns a real floating scalar.
    prox : callable
        ``prox(x, step_size, theta)`` returns
        ``argmin_z  step_size * g(z, theta) + ||z - x||^2 / 2``, like `x`.
    penalty : callable, optional
        ``penalty(x, theta)`` returns ``g(x, theta)``. Used only to report objective values.
    residual_step : float
        The step ``s`` in the residual, positive. A value near the inverse of the largest
        eigenvalue of the Hessian of `smooth` gives the best-conditioned implicit system.
    has_aux : bool
        Whether `smooth` returns a pair ``(value, aux)``: the second, any pytree, becomes
        ``Solution.aux``, which JAX differentiates like the answer.

    Raises
    ------
    TypeError
        If `smooth` or `prox` is not callable.
    ValueError
        If `residual_step` is not positive.
    """

    smooth: Callable[[PyTree, PyTree], Float[Array, ""]]
    prox: Callable[[PyTree, Float[Array, ""], PyTree], PyTree]
    penalty: Callable[[PyTree, PyTree], Float[Array, ""]] | None = None
    residual_step: float = eqx.field(static=True, default=1.0)
    marks_kinks: ClassVar[bool] = True
    functions: ClassVar[dict[str, int]] = {"smooth": 2, "prox": 3, "penalty": 2}
    like_x: ClassVar[tuple[str, ...] | None] = ("prox",)

    def __check_init__(self):
        """Check that the functions are callable and that `residual_step` is positive."""
        check_callable(smooth=self.smooth, prox=self.prox)
        if self.penalty is not None:
            check_callable(penalty=self.penalty)
        check_tolerance("residual_step", self.residual_step)

    def forward_backward(self, x: PyTree, step_size: Float[Array, ""], theta: PyTree) -> PyTree:
        """Return one proximal gradient step, ``prox(x - s grad smooth(x), s, theta)``.

        Parameters
        ----------
        x : pytree of real floating arrays
            Point to step from.
        step_size : scalar
            The step ``s``, positive.
        theta : pytree
            Parameters.

        Returns
        -------
        pytree
            The next point; NaN if the gradient is not finite. A prox that consists of comparisons
            would turn NaN into a number, because every comparison with NaN is false.
        """
        gradient = jax.grad(self.smooth)(x, theta)
        step_size = jnp.asarray(step_size, tree.result_dtype(x))
        point = self.prox(tree.axpy(-step_size, gradient, x), step_size, theta)
        finite = tree.all_finite(jax.lax.stop_gradient(gradient))
        return tree.where(finite, point, tree.full_like(point, jnp.nan))

    def value(self, unknowns: PyTree, theta: PyTree) -> Float[Array, ""] | None:
        """Return ``smooth`` plus ``penalty``, if it was given."""
        if self.penalty is None:
            return None
        return self.smooth(unknowns, theta) + self.penalty(unknowns, theta)

    def residual(self, x: PyTree, theta: PyTree) -> PyTree:
        """Return ``x`` minus one proximal gradient step of length `residual_step`."""
        step = jnp.asarray(self.residual_step, tree.result_dtype(x))
        return tree.sub(x, self.forward_backward(x, step, theta))


def replaced(problem: P, **fields: Any) -> P:
    """Return a copy with other values in some fields, made without the class's constructor."""
    # Neither `copy.copy`, after which equinox keeps the copy for ever, nor `eqx.tree_at`, which
    # needs the field to be set. The class is frozen.
    changed = object.__new__(type(problem))
    for name, value in {**vars(problem), **fields}.items():
        object.__setattr__(changed, name, value)
    return changed
