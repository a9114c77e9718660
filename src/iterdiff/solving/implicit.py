"""The implicit derivative for any solver at all."""

import functools
from collections.abc import Callable
from typing import Any

import equinox as eqx
from jaxtyping import PyTree

from iterdiff.jaxtools import tree
from iterdiff.jaxtools.closures import nan_derivative_where
from iterdiff.jaxtools.tree import floating_part
from iterdiff.loop.run import stop_gradient
from iterdiff.modes.base import Mode
from iterdiff.modes.checked import Checked
from iterdiff.modes.implicit import Implicit
from iterdiff.problems.checks import check_theta, check_x0
from iterdiff.problems.problem import Problem
from iterdiff.solving import host


def implicit(
    problem: Problem,
    *,
    mode: Mode | None = None,
    traceable: bool | None = None,
    throw: bool = True,
) -> Callable[[Callable[..., Any]], Callable[..., PyTree]]:
    """Give any solver at all the implicit derivative of `problem` (a decorator).

    The solver is left as it is: SciPy, a C library, a program that reads and writes files. The
    decorated function works eagerly and under ``jit``, ``vmap``, ``grad``, ``jvp``, to any order.
    While JAX traces, a solver that it cannot trace is called on the host, with NumPy arrays
    (`jax.pure_callback`; under ``vmap`` once for each member of the batch).

    Parameters
    ----------
    problem : Problem
        Its residual vanishes at what the solver returns.
    mode : Implicit or Checked, optional
        Sets the linear solver and Newton corrections; by default ``Implicit()``. With
        ``Checked(Implicit())`` every derivative estimates its error, and a solver whose answer is
        not near a solution of `problem` is told of too.
    traceable : bool, optional
        Whether JAX can trace the solver. By default that is tried: a solver that raises when it
        is given traced arrays is called on the host instead. Pass False for one with side
        effects (the attempt calls it), True to see at once why tracing fails.
    throw : bool
        Whether a failure raises: of the solver, where it returns an object that says so
        (``success`` or ``converged``, as SciPy's results do) or an answer that is not finite, and
        of the linear solve behind the derivative. If not, the answer is NaN (or as it was
        returned, if that is not finite), and so is the derivative.

    Returns
    -------
    callable
        A decorator of functions ``solver(x0, theta, *args, **kwargs)``, which return an answer
        like `x0`, or a SciPy result object with it. Differentiate in `theta`; the derivative in
        the other arguments is zero.

    Raises
    ------
    TypeError, ValueError
        At once, if `problem` is no problem or `mode` differentiates steps, which the solver does
        not offer; by the decorated function, if `x0` or `theta` is no such thing, or the answer
        does not look like `x0`.
    SolverFailed
        By the decorated function, if the solver reports failure, with its own message, or if its
        answer is not finite. What the solver itself raises is passed on. Under ``jit`` both are a
        RuntimeError that quotes the message or the traceback.

    Examples
    --------
    >>> import jax
    >>> import numpy as np
    >>> import iterdiff as itd
    >>> @itd.implicit(itd.RootFinding(lambda x, theta: x**3 - theta))
    ... def cube_root(x0, theta):
    ...     return np.cbrt(np.asarray(theta))  # NumPy: JAX cannot trace it
    >>> jax.jit(jax.value_and_grad(lambda theta: cube_root(1.0, theta)))(8.0)
    (Array(2., dtype=float...), Array(0.08333333, dtype=float...))
    """
    mode = Implicit() if mode is None else mode
    answering = _answering(problem, mode)
    plain = answering.mode if isinstance(answering, Checked) else answering

    def decorate(solver: Callable[..., Any]) -> Callable[..., PyTree]:
        @functools.wraps(solver)
        def solved(x0: PyTree, theta: PyTree, *args, **kwargs) -> PyTree:
            x0, theta = check_x0(x0), check_theta(theta)
            start, given, args, kwargs = stop_gradient((x0, theta, args, kwargs))
            call = host.Call(solver, start, given, args, kwargs, throw)
            x = host.run(call, traceable)
            if getattr(plain, "refine", 0) == 0 and not host.transforming():
                return x
            return _attach(problem, answering, x, theta, throw)

        return solved

    return decorate


def _answering(problem: Problem, mode: Mode) -> Implicit | Checked:
    """Return the mode; refuse one that needs more of a solver than its answer, and no problem."""
    if not isinstance(problem, Problem):
        raise TypeError(
            f"`problem` must be an iterdiff.Problem, not {problem!r}; write "
            "@iterdiff.implicit(problem) over the solver."
        )
    if not isinstance(mode, Mode):
        raise TypeError(f"`mode` must be a mode such as iterdiff.Implicit(), not {mode!r}.")
    inner = mode.mode if isinstance(mode, Checked) else mode
    if not isinstance(inner, Implicit) or not isinstance(mode, Implicit | Checked):
        raise ValueError(
            f"`mode`: {type(inner).__name__} differentiates steps, and a solver under "
            "@iterdiff.implicit offers its answer alone. Modes that work: iterdiff.Implicit(), "
            "iterdiff.Checked(iterdiff.Implicit())."
        )
    return mode


@eqx.filter_jit
def _attach(
    problem: Problem, mode: Implicit | Checked, x: PyTree, theta: PyTree, throw: bool
) -> PyTree:
    x = mode.attach(problem, x, theta, throw=throw)
    # A linear residual has a finite derivative at NaN, too; and one that does not depend on the
    # answer would let the compiler leave out the solver, with what it has to say.
    return nan_derivative_where(~tree.all_finite(x), x, floating_part(theta)[0])
