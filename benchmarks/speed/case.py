"""Problems as functions of their data, and how each library runs gradient descent on them.

Hand-written variants and libraries do the same work on the same arrays. Libraries are imported
where they are used: fresh processes measure these imports.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp


class Data(NamedTuple):
    """Training samples of a regression, and held-out samples for its loss."""

    features: Any
    targets: Any
    held_features: Any
    held_targets: Any


@dataclasses.dataclass(frozen=True)
class Case:
    """A problem and a loss of its solution.

    Attributes
    ----------
    name : str
        The name in reports.
    objective : callable or None
        ``objective(x, theta, data)``; its gradient is the residual.
    residual : callable
        ``residual(x, theta, data)``, zero at the solution.
    jacobian : callable or None
        ``jacobian(x, theta, data)``, the formula of d residual / dx.
    loss : callable
        ``loss(x, data)``.
    data : Data
        The samples.
    theta : array
        The parameters.
    step_size : float
        Step size of gradient descent.
    solution : array, optional
        The zero of the residual.
    gradient : array, optional
        d loss(solution) / d theta.
    """

    name: str
    objective: Callable | None
    residual: Callable
    jacobian: Callable | None
    loss: Callable
    data: Data
    theta: jax.Array
    step_size: float
    solution: Any = None
    gradient: Any = None

    def problem(self, data: Data) -> Any:
        """Return the problem as users of iterdiff state it."""
        import iterdiff as itd

        if self.objective is None:
            return itd.RootFinding(lambda x, theta: self.residual(x, theta, data))
        objective = self.objective
        return itd.Minimization(lambda x, theta: objective(x, theta, data))

    def step(self, x: jax.Array, theta: jax.Array, data: Data) -> jax.Array:
        """Return the next iterate of gradient descent."""
        return x - self.step_size * self.residual(x, theta, data)

    def start(self, data: Data) -> jax.Array:
        """Return zeros."""
        return jnp.zeros(data.features.shape[1])


# Each of these returns the last iterate as a function of (theta, data).


def scanned(case: Case, steps: int, policy: str = "none") -> Callable:
    """Return a plain scan.

    Parameters
    ----------
    policy : {"none", "steps", "sqrt"}
        What reverse mode recomputes: nothing, each step, or each of about sqrt(T) blocks.
    """

    def last(theta, data):
        def body(x, _):
            return case.step(x, theta, data), None

        def block(x, _):
            return jax.lax.scan(body, x, None, inner_steps)[0], None

        repeated, count = {
            "none": (body, steps),
            "steps": (jax.checkpoint(body), steps),
            "sqrt": (jax.checkpoint(block), steps // inner_steps),
        }[policy]
        return jax.lax.scan(repeated, case.start(data), None, count)[0]

    inner_steps = next(k for k in range(math.isqrt(steps), steps + 1) if steps % k == 0)
    return last


def by_jaxopt(case: Case, steps: int, tol: float = 0.0, implicit: bool = False) -> Callable:
    """Return jaxopt's gradient descent with a constant step size."""

    def answer(theta, data):
        import jaxopt

        solver = jaxopt.GradientDescent(
            case.objective,
            maxiter=steps,
            tol=tol,
            stepsize=case.step_size,
            acceleration=False,
            implicit_diff=implicit,
        )
        return solver.run(case.start(data), theta, data).params

    return answer


def by_optimistix(case: Case, steps: int, rtol: float = 0.0, **adjoint: Any) -> Callable:
    """Return optimistix's fixed-point iteration of gradient steps.

    Parameters
    ----------
    adjoint : keywords
        ``implicit=True``, or arguments of `RecursiveCheckpointAdjoint`.
    """
    implicit = adjoint.pop("implicit", False)

    def answer(theta, data):
        import optimistix as optx

        return optx.fixed_point(
            lambda x, inputs: case.step(x, *inputs),
            optx.FixedPointIteration(rtol=rtol, atol=0.0),
            case.start(data),
            (theta, data),
            max_steps=steps,
            throw=implicit,
            adjoint=optx.ImplicitAdjoint()
            if implicit
            else optx.RecursiveCheckpointAdjoint(**adjoint),
        ).value

    return answer


def by_iterdiff(case: Case, stop: Any, mode: Any, throw: bool = True) -> Callable:
    """Return `iterdiff.solve` by gradient descent."""
    import iterdiff as itd

    algorithm = itd.GradientDescent(case.step_size)

    def answer(theta, data):
        run = case.problem(data), algorithm, case.start(data), theta
        return itd.solve(*run, stop=stop, mode=mode, throw=throw).x

    return answer


def gradient_of(case: Case, answer: Callable) -> Callable:
    """Return the gradient of the loss of an answer, as a function of (theta, data)."""
    return jax.grad(lambda theta, data: case.loss(answer(theta, data), data))


def gradients_of(case: Case, answers: dict[str, Callable]) -> dict[str, Callable]:
    """Return the gradient of the loss of each answer."""
    return {name: gradient_of(case, answer) for name, answer in answers.items()}
