"""Differentiate the iterations that ran."""

import warnings
from typing import get_args

import equinox as eqx
from jaxtyping import PyTree

from iterdiff.algorithms.base import Algorithm
from iterdiff.jaxtools.arguments import check_count, check_tolerance, check_word
from iterdiff.jaxtools.raise_if import Throw
from iterdiff.loop.differentiable import Last, differentiable_run, steps_back
from iterdiff.loop.stopping import StoppingRule
from iterdiff.loop.task import Tangents, Task
from iterdiff.loop.unroll import Checkpoint
from iterdiff.modes.accelerated import AcceleratedTangents, attach_accelerated, check_accelerable
from iterdiff.modes.base import Mode, Outcome
from iterdiff.modes.tangents import LateTangents, UnrolledTangents, cheapest_tangents


class Unrolled(Mode):
    r"""Differentiate the iterations that ran: all of them, or the last few.

    With ``last=None``, the result is the exact *iterate derivative*: the derivative of the map
    :math:`\theta \mapsto x_T`, also in `x0` and in the algorithm's hyper-parameters. In forward
    mode this is known as piggyback differentiation. As an approximation of the *solution
    derivative*, its error obeys

    .. math::

        E_{t+1} = A_t E_t + C_t, \qquad \|C_t\| = O(\|x_t - x^*\|),

    with :math:`A_t = \partial F / \partial x`. In the end it decreases at the rate of the iterates,
    but first it may grow: the curse of unrolling. With ``last=k``, the iterate k steps before the
    end is a constant (a late start, or truncated backpropagation). This takes memory for k steps
    and leaves an error of :math:`\rho^k \|J^*\|`. A few steps from a solution found by other means,
    differentiated this way, are also known as phantom gradients.

    Forward mode costs about one more run per direction, and no memory. The memory of reverse mode
    depends on `checkpoint`. Both work to any order, under ``jit`` and ``vmap``, with a fixed number
    of steps or a stopping rule. A step with a data-dependent loop inside (most line searches)
    cannot be differentiated in reverse mode: JAX raises "Reverse-mode differentiation does not
    work for lax.while_loop". Use `Implicit`, forward mode, or an algorithm without such a loop.

    Parameters
    ----------
    last : int or "auto", optional
        Differentiate only the last `last` steps (all of them if fewer ran). 1 is one-step
        differentiation, see `OneStep`. With "auto", the mode measures at the end of the run how
        many steps matter: after how many powers of the step's Jacobian a random vector has shrunk
        by `rtol`. This saves time if the run continued long after that, and memory, because it
        reserves room for about twice the square root of `max_steps` iterates, with any policy.
        It does not suit algorithms whose steps change with t.
    checkpoint : {"iterates", "sqrt", "log", "none"}
        What the reverse sweep keeps of T steps that compute s numbers each, for iterates of size n:

        - ``"iterates"``: the T iterates (T n numbers). Each step is computed twice; several steps
          are linearised together. (If everything that a fixed number of steps computes fits into
          256 KiB per member of a batch, or into a quarter of the data, the mode proceeds as with
          "none".) With a stopping rule, T is not known beforehand: the sweep keeps as many
          iterates as fit into 2.5 MiB per member of a batch, or into an eighth of the data if that
          is more, and recomputes the steps between them once.
        - ``"sqrt"``: the iterates at the start of each block of about 32 steps, and everything that
          one block computes (T n / 32 + 32 s). Each step is computed twice. More than 1,024 blocks
          are grouped by their square root, and each step is computed once more. With a stopping
          rule, about twice the square root of `max_steps` iterates.
        - ``"log"``: about 100 log(T) / log(100) iterates. Each step is computed once more for each
          factor of 100 in T, and with a stopping rule once more again.
        - ``"none"``: everything that the T steps compute (T s). Each step is computed once. With a
          stopping rule, as "iterates".
    rtol : float
        The relative tolerance of ``last="auto"``, between 0 and 1.
    accelerate : int, optional
        Accelerate the derivative by Anderson's method with a window of this length, 10 for example.
        For algorithms whose state is only the iterate. The answer is that of the plain run. Its
        derivative comes from a *pair* (x, J) with the same start, in which x is an accelerated copy
        of the iterate: at each step, one set of weights combines the last iterates and their
        tangents. So the derivative approximates the solution derivative, not the derivative of
        the iterations that ran, and may be accurate long before the answer is. In `trace` it is
        the pair's tangents after t steps; in `solve`, after as many steps as the run took, or fewer
        if the pair stops moving. Only first derivatives in forward mode; memory for 2 k pairs with
        a window of length k. Directions differentiated together (by ``jax.jacfwd``) share their
        mixing weights, so before convergence each depends slightly on which others are requested.
        Not together with `last`.

    Raises
    ------
    TypeError
        If `last` or `accelerate` is not an int.
    ValueError
        If `last` or `accelerate` is less than 1, both are given, `rtol` is not between 0 and 1,
        or `checkpoint` is not one of these words. When it solves, if the last steps of the
        algorithm do not have the derivative (`ConjugateGradient`, `GMRES`).

    References
    ----------
    D. Scieur, G. Gidel, Q. Bertrand, F. Pedregosa, *The curse of unrolling*, NeurIPS 2022;
    J. Bolte, E. Pauwels, S. Vaiter, *One-step differentiation of iterative algorithms*,
    NeurIPS 2023; A. Griewank and C. Faure, *Piggyback differentiation and optimization*, 2003;
    Z. Geng et al., *On training implicit models*, NeurIPS 2021 (phantom gradients);
    A. Griewank and A. Walther, *Evaluating Derivatives*, SIAM 2008, chapter 12.
    """

    last: Last = eqx.field(static=True, default=None)
    checkpoint: Checkpoint = eqx.field(static=True, default="iterates")
    rtol: float = eqx.field(static=True, default=1e-6)
    accelerate: int | None = eqx.field(static=True, default=None)

    def __check_init__(self):
        """Check the types and ranges of the fields."""
        check_tolerance("rtol", self.rtol)
        if not self.rtol < 1:
            raise ValueError(
                f"`rtol` must lie between 0 and 1, but it is {self.rtol}; with 1 or more, no step "
                'would be differentiated by `last="auto"`.'
            )
        if self.last is not None and not (isinstance(self.last, str) and self.last == "auto"):
            check_count("last", self.last)
        check_word("checkpoint", self.checkpoint, get_args(Checkpoint))
        if self.accelerate is not None:
            check_count("accelerate", self.accelerate)
            if self.last is not None:
                raise ValueError(
                    "`accelerate` and `last` exclude each other, because the accelerated pair "
                    "starts where the run does; leave one of them out."
                )

    def check(self, stop: StoppingRule) -> None:
        """Raise if `last` does not fit the stopping rule.

        Raises
        ------
        ValueError
            If `last` exceeds the steps that can run, or the rule judges the derivative.
        """
        if self.last is not None and stop.judges_derivative:
            raise ValueError(
                "`last` cannot be used with a rule that judges the derivative, because the early "
                "steps' contribution would always be missing; leave `last` out."
            )
        if isinstance(self.last, int) and self.last > stop.max_steps:
            raise ValueError(
                f"`last` = {self.last} exceeds the {stop.max_steps} steps that can run; lower "
                "it, or leave it out to differentiate all steps."
            )

    def solve(self, task: Task, *, throw: Throw) -> Outcome:
        """Run such that JAX differentiates the steps.

        Raises
        ------
        ValueError
            If the derivative of the algorithm's steps does not approximate that of the solution.
        """
        del throw
        check_differentiable(task.algorithm, self.last)
        if self.accelerate is not None:
            check_accelerable(task.algorithm)
            end = self.primal(task)
            x = attach_accelerated(task, end.state.x, end.steps, self.accelerate)
            return Outcome(x, end.steps, end.status)
        end = self.primal(task) if task.stop.judges_derivative else None
        run = differentiable_run(task, self.checkpoint, last=self.last, rtol=self.rtol, end=end)
        return Outcome(run.state.x, run.steps, run.status)

    def answer(self, task: Task, x: PyTree, *, throw: Throw) -> PyTree:
        """Return the answer of another run, which carries the derivative."""
        del x
        return self.solve(task, throw=throw).x

    def tangents(self, task: Task, directions: PyTree) -> Tangents:
        """Return the tangents of all steps, or of the last few."""
        check_differentiable(task.algorithm, self.last)
        x0, theta = task.x0, task.theta
        every = UnrolledTangents(task.problem, task.algorithm, x0, theta, directions)
        if self.accelerate is not None:
            check_accelerable(task.algorithm)
            return AcceleratedTangents(every, self.accelerate)
        if self.last is None or self.last == "auto":
            steps = task.stop.max_steps
            return cheapest_tangents(task.problem, task.algorithm, x0, theta, directions, steps)
        last = steps_back(self.last, task)
        return LateTangents(task.problem, task.algorithm, task.theta, directions, last)


def check_differentiable(algorithm: Algorithm, last: Last = None) -> None:
    """Raise if the steps, or the `last` of them, must not be differentiated; warn of a caveat.

    Raises
    ------
    ValueError
        With the reason, and the modes that work.
    """
    name = type(algorithm).__name__
    if not algorithm.differentiable:
        raise ValueError(
            f"`mode`: Unrolled and OneStep cannot differentiate {name}: {algorithm.caveat} "
            "Use iterdiff.Implicit()."
        )
    if isinstance(last, int) and not algorithm.last_steps_suffice:
        raise ValueError(
            f"`last` = {last} (OneStep is `last=1`) loses the derivative of {name}, whose steps do "
            "not see theta once they have converged. Use iterdiff.Implicit(), or leave `last` out."
        )
    if algorithm.caveat:
        warnings.warn(
            f"Unrolled or OneStep through {name}: {algorithm.caveat} "
            "iterdiff.Implicit() does not have this problem.",
            stacklevel=2,
        )


def OneStep() -> Unrolled:
    r"""Return the mode that differentiates only the last step, ``Unrolled(last=1)``.

    The derivative is :math:`\partial F(x_{T-1}, \theta) / \partial\theta`, with no linear solve and
    the memory of one step. Its error tends to :math:`\|A J^*\| \le \rho \|J^*\|`: small for
    superlinear methods such as Newton's, large for slow ones. For layers defined by an equation
    (deep equilibrium models) it is known as Jacobian-free backpropagation (JFB).

    References
    ----------
    J. Bolte, E. Pauwels, S. Vaiter, *One-step differentiation of iterative algorithms*,
    NeurIPS 2023; S. W. Fung et al., *JFB: Jacobian-free backpropagation for implicit networks*,
    AAAI 2022.
    """
    return Unrolled(last=1)
