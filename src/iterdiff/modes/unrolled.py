"""Differentiate the iterations that ran."""

import warnings
from typing import get_args

import equinox as eqx
from jaxtyping import PyTree

from iterdiff.algorithms.base import Algorithm
from iterdiff.jaxtools.arguments import check_count
from iterdiff.loop.differentiable import Last, differentiable_run, steps_back
from iterdiff.loop.stopping import StoppingRule
from iterdiff.loop.task import Tangents, Task
from iterdiff.loop.unroll import Checkpoint
from iterdiff.modes.accelerated import JointTangents, attach, check_accelerable
from iterdiff.modes.base import Mode, Outcome
from iterdiff.modes.tangents import LateTangents, UnrolledTangents, following


class Unrolled(Mode):
    r"""Differentiate the iterations that ran, all of them or the last few.

    It is the exact *iterate derivative* (with ``last=None``): that of the map
    :math:`\theta \mapsto x_T`, also in `x0` and in the algorithm's hyper-parameters. As an
    approximation of the *solution derivative* its error follows

    .. math::

        E_{t+1} = A_t E_t + C_t, \qquad \|C_t\| = O(\|x_t - x^*\|),

    with :math:`A_t = \partial F / \partial x`. It falls at the rate of the iterates in the end,
    but may first grow: the curse of unrolling. With ``last=k`` the iterate k steps before the
    end is taken as a constant (late start): memory for k steps, and an error of
    :math:`\rho^k \|J^*\|` that does not go away.

    Forward mode costs about as much again per direction and no memory; reverse mode as below;
    both to any order, under ``jit`` and ``vmap``, with a fixed number of steps or a stopping
    rule. A step that loops until it is content (most line searches) has no reverse mode: JAX says
    "Reverse-mode differentiation does not work for lax.while_loop" when it transposes. Take
    `Implicit`, forward mode, or an algorithm without a loop in its step.

    Parameters
    ----------
    last : int or "auto", optional
        Differentiate the last `last` steps only (all of them if fewer ran). 1 is one-step
        differentiation, which suits fast-converging steps such as Newton's. With "auto", as
        many as it takes for what earlier steps would add to fall below `rtol`: their number k
        is measured at the end of the run, as that after which powers of the step's Jacobian have
        shrunk a random vector by `rtol`. It saves time where the run went on long after that,
        and memory: room for about twice the square root of `max_steps` iterates is made
        (by "iterates", too). Not for algorithms whose steps change with t.
    checkpoint : {"iterates", "sqrt", "log", "none"}
        What the reverse sweep over T steps keeps, where a step computes s numbers and an
        iterate has n:

        - ``"iterates"``: the T iterates (T n); each step is computed twice, several of them
          linearised at once. (A fixed number of steps for which 256 KiB, for each member of a
          batch, or a quarter of the data is enough is differentiated as by "none".) With a
          stopping rule, whose T is not known beforehand, as many
          iterates as fit into 2.5 MiB (for each member of a batch) or an eighth of the data, if
          that is more; steps between kept iterates are computed once more.
        - ``"sqrt"``: the iterates at the start of each block of about 32 steps, and everything
          that one block computes (T n / 32 + 32 s); each step is computed twice. Above 1,024
          blocks they are grouped by their square root, and each step computed once more. With a
          stopping rule, about twice the square root of `max_steps` iterates.
        - ``"log"``: about 100 log(T) / log(100) iterates; each step is computed once more for
          each factor of 100 in T, and with a stopping rule once more again.
        - ``"none"``: everything that the T steps computed (T s); each step is computed once. With
          a stopping rule as "iterates".
    rtol : float
        The relative tolerance of ``last="auto"``, positive.
    accelerate : int, optional
        Accelerate the derivative by Anderson's method with a window of this length (10 is a good
        one), for algorithms whose state is the iterate alone. The answer stays that of the
        plain run. Its derivative is followed by a *pair* (x, J), from the same start and with an
        accelerated copy of x: one set of weights, chosen anew at each step, combines the last
        iterates and their tangents. So the derivative approximates the solution derivative, is
        not that of the iterations that ran, and may be right long before the answer is. In
        `trace` it is the pair's tangents after t steps; in `solve` after as many steps as the
        run took, or fewer when the pair stands still. First derivatives in forward mode only;
        memory for 2 k pairs with a window of length k. Directions followed together (as by
        ``jax.jacfwd``) share their weights, so that before convergence the derivative in one
        direction depends on its company. It does not go with `last`.

    Raises
    ------
    TypeError, ValueError
        If `last` or `accelerate` is no positive int or both are given, `rtol` is not positive, or
        `checkpoint` none of these words.

    References
    ----------
    D. Scieur, G. Gidel, Q. Bertrand, F. Pedregosa, *The curse of unrolling*, NeurIPS 2022;
    J. Bolte, E. Pauwels, S. Vaiter, *One-step differentiation of iterative algorithms*,
    NeurIPS 2023; A. Griewank and A. Walther, *Evaluating Derivatives*, SIAM 2008, chapter 12.
    """

    last: Last = eqx.field(static=True, default=None)
    checkpoint: Checkpoint = eqx.field(static=True, default="iterates")
    rtol: float = eqx.field(static=True, default=1e-6)
    accelerate: int | None = eqx.field(static=True, default=None)

    def __check_init__(self):
        """Refuse a count that is none and a policy that is none."""
        if not self.rtol > 0:
            raise ValueError(f"`rtol` must be positive, but it is {self.rtol}.")
        if self.last is not None and self.last != "auto":
            check_count("last", self.last)
        if self.checkpoint not in get_args(Checkpoint):
            names = ", ".join(repr(name) for name in get_args(Checkpoint))
            raise ValueError(f"`checkpoint` must be one of {names}, not {self.checkpoint!r}.")
        if self.accelerate is not None:
            check_count("accelerate", self.accelerate)
            if self.last is not None:
                raise ValueError(
                    "`accelerate` does not go with `last`: the accelerated pair follows all steps. "
                    "Leave one of them out."
                )

    def check(self, stop: StoppingRule) -> None:
        """Refuse to differentiate more steps than can run.

        Raises
        ------
        ValueError
            If `last` exceeds the steps.
        """
        if self.last is not None and stop.judges_derivative:
            raise ValueError(
                "`last` does not go with a rule that judges the derivative: what the early steps "
                "would contribute stays missing. Leave `last` out."
            )
        if isinstance(self.last, int) and self.last > stop.max_steps:
            raise ValueError(
                f"`last` = {self.last} exceeds the {stop.max_steps} steps that run at most; "
                "lower it, or leave it out to differentiate them all."
            )

    def solve(self, task: Task, *, throw: bool) -> Outcome:
        """Run such that JAX differentiates the steps.

        Raises
        ------
        ValueError
            If the algorithm's steps are not differentiable in a way that helps.
        """
        del throw
        check_differentiable(task.algorithm)
        if self.accelerate is not None:
            check_accelerable(task.algorithm)
            end = self.primal(task)
            x = attach(task, end.state.x, end.steps, self.accelerate)
            return Outcome(x, end.steps, end.status)
        end = self.primal(task) if task.stop.judges_derivative else None
        run = differentiable_run(task, self.checkpoint, last=self.last, rtol=self.rtol, end=end)
        return Outcome(run.state.x, run.steps, run.status)

    def answer(self, task: Task, x: PyTree, *, throw: bool) -> PyTree:
        """Return the answer of a second run."""
        del x
        return self.solve(task, throw=throw).x

    def tangents(self, task: Task, directions: PyTree) -> Tangents:
        """Follow the tangents of all steps, or of the last few."""
        check_differentiable(task.algorithm)
        x0, theta = task.x0, task.theta
        every = UnrolledTangents(task.problem, task.algorithm, x0, theta, directions)
        if self.accelerate is not None:
            check_accelerable(task.algorithm)
            return JointTangents(every, self.accelerate)
        if self.last is None or self.last == "auto":
            steps = task.stop.max_steps
            return following(task.problem, task.algorithm, x0, theta, directions, steps)
        last = steps_back(self.last, task)
        return LateTangents(task.problem, task.algorithm, task.theta, directions, last)


def check_differentiable(algorithm: Algorithm) -> None:
    """Refuse an algorithm whose steps must not be differentiated; pass on its caveat.

    Raises
    ------
    ValueError
        Naming the reason, and the modes that work.
    """
    name = type(algorithm).__name__
    if not algorithm.differentiable:
        raise ValueError(
            f"`mode`: Unrolled (and OneStep) cannot differentiate {name}: {algorithm.caveat} "
            "Modes that work: iterdiff.Implicit()."
        )
    if algorithm.caveat:
        warnings.warn(
            f"Unrolled (or OneStep) through {name}: {algorithm.caveat} "
            "iterdiff.Implicit() has no such trouble.",
            stacklevel=2,
        )


def OneStep() -> Unrolled:
    r"""Return the one-step mode, ``Unrolled(last=1)``.

    The derivative of the last step alone, :math:`\partial F(x_{T-1}, \theta) / \partial\theta`.
    Its error tends to :math:`\|A J^*\| \le \rho \|J^*\|`: small for
    superlinear methods such as Newton's, large for slow ones.

    References
    ----------
    J. Bolte, E. Pauwels, S. Vaiter, *One-step differentiation of iterative algorithms*,
    NeurIPS 2023.
    """
    return Unrolled(last=1)
