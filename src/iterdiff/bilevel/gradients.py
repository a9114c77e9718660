"""The gradient of an outer loss, solved on until it is accurate."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PyTree

from iterdiff.accuracy.reasons import REASONS
from iterdiff.algorithms.base import traceable_step
from iterdiff.algorithms.status import Status
from iterdiff.bilevel.inner_run import (
    ENDED_ACCURATE,
    ENDED_FAILED,
    Accuracy,
    Found,
    Posed,
)
from iterdiff.bilevel.nudged import Nudged, RunState
from iterdiff.bilevel.posing import How, posed_of
from iterdiff.jaxtools import tree
from iterdiff.jaxtools.arguments import (
    Tolerance,
    check_count,
    check_tolerance,
)
from iterdiff.modes.base import Mode
from iterdiff.problems.checks import check_untraced
from iterdiff.problems.problem import Problem


class Counts(eqx.Module):
    """The work of a call; of a batch, one count for each member.

    Attributes
    ----------
    steps : integer
        Inner steps.
    checks : integer
        How often value and gradient of the outer loss were taken.
    gradients : integer
        Evaluations of the inner residual: one a step (as first-order algorithms take), and four a
        check.
    products : scalar
        Products with the residual's Jacobian in the checks, those that form the matrix included;
        NaN where the systems are solved iteratively, which does not count them.
    """

    steps: Int[Array, "*b"]
    checks: Int[Array, "*b"]
    gradients: Int[Array, "*b"]
    products: Float[Array, "*b"]


class HypergradientState(eqx.Module):
    """Where `hypergradient` stands; pass it to the next call.

    Attributes
    ----------
    theta, args : pytree
        Where. At another theta, or with other data, the next call goes on from the solution, with a
        new memory of the algorithm.
    inner : InnerState or NudgedState
        The algorithm's state, the adjoint, and the schedule of the checks.
    """

    theta: PyTree
    args: PyTree
    inner: RunState


class Hypergradient(eqx.Module):
    """The gradient of an outer loss, and how wrong it is.

    Attributes
    ----------
    value, value_error : scalar
        The outer loss at the inner solution, with the adjoint correction, and its error bar:
        absolute. The bar is infinite if nothing is known.
    gradient : pytree
        Like the floating part of theta.
    error, uncertainty : scalar
        The estimated error of `gradient`, and how wrong that estimate may be: absolute, in
        Euclidean norm.
    relative_error : scalar
        `error` over the norm of `corrected`.
    trusted : bool
        Whether `error` should be within a factor of two of the true error, as in `ErrorEstimate`.
    corrected : pytree
        The gradient at the Newton correction of `x`, with an error of about `uncertainty`.
    x : pytree
        The inner iterate; of a batch, stacked.
    status : integer scalar
        A `Status` code. The gradient has not the wanted accuracy if the status has failed.
    counts : Counts
        The work of this call.
    reason_code : integer scalar
        The index of `reason`.
    state : HypergradientState
        Pass it to the next call.
    """

    value: Float[Array, ""]
    value_error: Float[Array, ""]
    gradient: PyTree
    error: Float[Array, ""]
    uncertainty: Float[Array, ""]
    relative_error: Float[Array, ""]
    trusted: Bool[Array, ""]
    corrected: PyTree
    x: PyTree
    status: Int[Array, ""]
    counts: Counts
    reason_code: Int[Array, ""]
    state: HypergradientState

    @property
    def reason(self) -> str:
        """Why the error is not trusted; empty if it is. Not available under ``jit``."""
        return REASONS[int(self.reason_code)]

    @property
    def message(self) -> str:
        """What `status` means and what to do. Not available under ``jit``."""
        return Status(int(self.status)).advice

    def __repr__(self) -> str:
        """Return the numbers on one line; shapes while JAX traces."""
        numbers = self.value, self.value_error, self.error, self.trusted, self.status
        if any(tree.is_traced(v) or np.ndim(v) for v in numbers):
            return eqx.tree_pformat(self)
        value, bar, error = (f"{float(v):.3g}" for v in numbers[:3])
        return (
            f"Hypergradient(value={value} ± {bar}, error={error}, trusted={bool(self.trusted)}, "
            f"status={Status(int(self.status)).name}, steps={int(np.sum(self.counts.steps))})"
        )


def hypergradient(
    loss: Callable[..., Float[Array, ""]],
    problem: Problem,
    algorithm: Any,
    x0: PyTree,
    theta: PyTree,
    *,
    rtol: Tolerance = 1e-2,
    mode: Mode | None = None,
    state: HypergradientState | None = None,
    max_steps: int = 10_000,
    batched: bool = False,
    hessian_free: str | None = None,
    args: PyTree = None,
) -> Hypergradient:
    r"""Return value and gradient of :math:`L(x^*(\theta), \theta)`, solved on until accurate.

    The inner run takes steps, examines the gradient, and goes on where it was until the estimated
    error is below `rtol`. No constant of the problem is needed (see `iterdiff.derivative_error`).
    The value is adjoint-corrected: its error is of second order in the inner distance, where the
    error of the gradient is of first order.

    Parameters
    ----------
    loss : callable
        ``loss(x, theta)`` or ``loss(x, theta, args)`` returns a scalar.
    problem, algorithm, x0, theta
        The inner problem, as in `iterdiff.solve`. `algorithm` may also be a solver with the
        decorator ``@iterdiff.implicit``: each evaluation calls it once, from the last solution.
    rtol : real scalar
        Largest relative error of the gradient: ``error + uncertainty`` over its norm.
    mode : Implicit, optional
        How the gradient is taken. With ``Implicit(refine=1)``, one Newton correction replaces the
        last inner steps; each check then costs a second factorisation.
    state : HypergradientState, optional
        The `state` of an earlier result. At the same theta the run continues; at another one it
        starts from the last solution. `x0` then only gives the shapes.
    max_steps : int
        The most inner steps of this call.
    batched : bool
        Whether every array in `args` has a leading axis, with one inner problem for each entry,
        such as the folds of a cross-validation. The loss is their mean, theta is shared, and each
        run stops when its own gradient is accurate. `x0` is the start of each.
    hessian_free : "penalty", optional
        Use first derivatives only, by differences of inner problems that the loss nudges; see the
        notes. `algorithm` may then be a black box, ``solver(fun, x0, tol)``: it returns the
        minimiser of ``fun(x)``, which returns value and gradient as NumPy does, or a SciPy result.
    args : pytree, optional
        Data for the problem's functions and the loss.

    Returns
    -------
    Hypergradient
        Works under ``jit`` and ``vmap``; it carries no derivative.

    Raises
    ------
    TypeError, ValueError
        If an argument is wrong; the message names it.

    Notes
    -----
    A check costs one factorisation and a few products, or a few iterative solves. Between checks
    the run takes as many steps as the observed convergence predicts; while nothing is observed,
    the steps double. A run that has come as far as rounding lets it ends with
    `Status.MAX_STEPS_REACHED`, too.

    The call does not raise if the run fails; look at `status`: `Status.CONVERGED` (as accurate as
    `rtol` asks), `Status.MAX_STEPS_REACHED`, or `Status.DIVERGED`, where the error is infinite.

    The modes that differentiate steps have no place here: a run that goes on from the last solution
    would be differentiated through its last steps only.

    With ``hessian_free="penalty"`` seven inner problems are solved, with the objective
    :math:`G + \beta F` for small nudges :math:`\beta` of both signs. The difference quotient of
    :math:`\partial_\theta (G + \beta F)` is the gradient up to :math:`O(\beta^2)`; three nudges
    show that error and extrapolate it away, and solving on shows what the solver leaves. Nudges
    and tolerances shrink until `rtol` is reached. It does not work under ``jit``.

    References
    ----------
    J. Kwon, D. Kwon, S. Wright and R. Nowak, *A fully first-order method for stochastic bilevel
    optimization*, ICML 2023; B. Scellier and Y. Bengio, *Equilibrium propagation*, Front. Comput.
    Neurosci. 2017, on nudged problems.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> import iterdiff as itd
    >>> problem = itd.Minimization(lambda x, theta: jnp.sum(jnp.cosh(x - theta) + x**2 / 2))
    >>> def loss(x, theta):
    ...     return jnp.sum((x - 1) ** 2)
    >>> descent, theta = itd.GradientDescent(0.3), jnp.array([1.0, 3.0])
    >>> found = itd.bilevel.hypergradient(loss, problem, descent, jnp.zeros(2), theta)
    >>> found
    Hypergradient(value=0.729 ± 2.37e-10, error=1.91e-05, trusted=True, status=CONVERGED, steps=10)
    >>> again = itd.bilevel.hypergradient(
    ...     loss, problem, descent, jnp.zeros(2), theta, rtol=1e-8, state=found.state
    ... )  # goes on where the first call stopped
    """
    posed, x0, theta = posed_of(
        loss, problem, algorithm, x0, theta, args, How(mode, batched, hessian_free)
    )
    if hessian_free is not None:
        check_untraced("hessian_free", posed.problem, args, x0, theta)
    check_tolerance("rtol", rtol)
    check_count("max_steps", max_steps)
    with traceable_step(algorithm):
        if state is None:
            inner, same = posed.start(x0, theta), jnp.array(False)
        else:
            _check_state(state, posed, x0, theta)
            inner, same = state.inner, _all_equal((state.theta, state.args), (theta, args))
        found = posed.go_on(theta, inner, same, accuracy_of(x0, rtol, max_steps))
    return _result(found, posed.problem, HypergradientState(theta, args, found.state))


def accuracy_of(
    x0: PyTree,
    rtol: Any,
    max_steps: int,
    *,
    of_corrected: bool = False,
    reject_above: Any = np.inf,
) -> Accuracy:
    """Return when a run may stop, as scalars of the dtype of `x0`."""
    dtype = tree.result_dtype(x0)
    return Accuracy(
        rtol=jnp.asarray(rtol, dtype),
        atol=jnp.zeros((), dtype),
        of_corrected=jnp.asarray(of_corrected),
        reject_above=jnp.asarray(reject_above, dtype),
        max_steps=jnp.asarray(max_steps, jnp.int32),
    )


def _check_state(state: Any, posed: Posed | Nudged, x0: PyTree, theta: PyTree) -> None:
    if not isinstance(state, HypergradientState):
        raise TypeError(f"`state` must be the state of an earlier result, not {state!r}.")
    wanted = jax.eval_shape(lambda: posed.start(x0, theta))
    given = jax.eval_shape(lambda: state.inner)
    if not eqx.tree_equal(wanted, given):
        raise ValueError(
            "`state` belongs to another problem or algorithm: its shapes differ. Pass None to "
            "start anew."
        )


def _all_equal(a: PyTree, b: PyTree) -> Bool[Array, ""]:
    """Return whether two pytrees have equal leaves; False if their structures differ."""
    if jax.tree.structure(a) != jax.tree.structure(b):
        return jnp.array(False)
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    same = [jnp.array(u is v) | _equal(u, v) for u, v in pairs]
    return jnp.stack(same).all() if same else jnp.array(True)


def _equal(u: Any, v: Any) -> Bool[Array, ""]:
    if not (eqx.is_array_like(u) and eqx.is_array_like(v)):
        return jnp.array(u is v)
    return jnp.array(False) if np.shape(u) != np.shape(v) else jnp.all(jnp.asarray(u == v))


def status_of(ended: Int[Array, "*b"]) -> Int[Array, ""]:
    """Return the status of a run; of a batch, the worst."""
    ended = jnp.max(ended)
    missed = jnp.where(ended == ENDED_FAILED, Status.DIVERGED, Status.MAX_STEPS_REACHED)
    return jnp.where(ended == ENDED_ACCURATE, Status.CONVERGED, missed).astype(jnp.int32)


@eqx.filter_jit
def _summary(found: Found) -> tuple:
    examined = found.examined
    counts = Counts(found.steps, found.checks, found.gradients, found.products)
    size = tree.norm(examined.corrected)
    relative = examined.error / jnp.where(size > 0, size, 0.0)
    relative = jnp.where(examined.error == 0, 0.0, relative)
    return examined.value_error, examined.error, relative, counts, status_of(found.ended)


def _result(found: Found, problem: Problem, state: HypergradientState) -> Hypergradient:
    examined = found.examined
    value_error, error, relative, counts, status = _summary(found)
    return Hypergradient(
        value=examined.value,
        value_error=value_error,
        gradient=examined.gradient,
        error=error,
        uncertainty=examined.uncertainty,
        relative_error=relative,
        trusted=examined.trusted,
        corrected=examined.corrected,
        x=problem.answer(examined.x),
        status=status,
        counts=counts,
        reason_code=examined.reason_code,
        state=state,
    )
