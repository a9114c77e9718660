"""Wrong values for every argument of every public class and function.

What a constructor accepts is used in a solve, whose answer is judged: it may be right, NaN with a
status, or refused there.
"""

import inspect
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optimistix as optx

import iterdiff as itd
from tests.campaign.call import Call

WRONG: dict[str, Callable[[], Any]] = {
    "a text": lambda: "a",
    "None": lambda: None,
    "zero": lambda: 0,
    "minus one": lambda: -1,
    "one and a half": lambda: 1.5,
    "NaN": lambda: float("nan"),
    "infinity": lambda: float("inf"),
    "True": lambda: True,
    "forty digits": lambda: 10**40,
    "complex": lambda: 1j,
    "a vector": lambda: np.ones(3),
    "a list": lambda: [],
    "a dict": lambda: {},
    "an object": object,
    "a key": lambda: jax.random.key(0),
    "a function": lambda: len,
}

WRONG_TO_FUNCTIONS = (
    "a text",
    "None",
    "minus one",
    "NaN",
    "complex",
    "a vector",
    "an object",
    "a key",
    "a function",
)
"""The values that functions receive; constructors, which cost less, receive all."""

QUADRATIC = itd.Minimization(lambda x, t: jnp.sum((x - t) ** 2))
LINEAR = itd.LinearSystem(2 * np.eye(2), lambda t: 2 * t)
ROOT = itd.RootFinding(lambda x, t: x - t)
FIXED = itd.FixedPoint(lambda x, t: x / 2 + t / 2)
LASSO = itd.CompositeMinimization(
    lambda x, t: jnp.sum((x - t) ** 2) / 2, lambda x, s, t: itd.prox.nonnegative(x)
)
THETA = np.array([1.5, 2.5])
X0 = np.zeros(2)
DESCENT = itd.GradientDescent(0.3)
RULE = itd.ResidualBelow(1e-9, 1e-9, 300)
IMPLICIT = itd.Implicit()


def _use_algorithm(problem: itd.Problem) -> Callable[[Any], Any]:
    def use(algorithm: Any) -> Any:
        one = "Bisection" in type(algorithm).__name__
        x0, theta = (X0[0], THETA[0]) if one else (X0, THETA)
        solution = itd.solve(problem, algorithm, x0, theta, stop=RULE, throw=True)
        return solution.x - x0 - theta + THETA if one else solution.x

    return use


def _use_mode(mode: Any) -> Any:
    def x(t: Any) -> Any:
        return itd.solve(QUADRATIC, DESCENT, X0, t, stop=RULE, mode=mode).x

    return jax.jvp(x, (jnp.asarray(THETA),), (jnp.asarray(THETA),))[1]


def _use_rule(rule: Any) -> Any:
    # A rule with large tolerances stops early, as it should: only its status is judged.
    solution = itd.solve(QUADRATIC, DESCENT, X0, THETA, stop=rule, throw=False)
    return THETA if solution.status != itd.Status.DIVERGED else solution.x


def _use_problem(algorithm: itd.Algorithm) -> Callable[[Any], Any]:
    return lambda problem: itd.solve(problem, algorithm, X0, THETA, stop=RULE).x


MADE: dict[str, tuple[Callable, dict[str, Any], Callable[[Any], Any]]] = {
    "GradientDescent": (itd.GradientDescent, dict(step_size=0.3), _use_algorithm(QUADRATIC)),
    "HeavyBall": (itd.HeavyBall, dict(step_size=0.3, momentum=0.1), _use_algorithm(QUADRATIC)),
    "Nesterov": (itd.Nesterov, dict(step_size=0.3, momentum=0.1), _use_algorithm(QUADRATIC)),
    "Chebyshev": (itd.Chebyshev, dict(smallest=1.0, largest=3.0), _use_algorithm(QUADRATIC)),
    "Sobolev": (
        itd.Sobolev,
        dict(smallest=1.0, largest=3.0, alpha=0.5, eta=None, norm="B"),
        _use_algorithm(QUADRATIC),
    ),
    "Newton": (itd.Newton, dict(linear_solver=None), _use_algorithm(ROOT)),
    "Picard": (itd.Picard, dict(damping=1.0), _use_algorithm(FIXED)),
    "Anderson": (itd.Anderson, dict(depth=2, damping=1.0), _use_algorithm(FIXED)),
    "Bisection": (itd.Bisection, dict(lower=-9.0, upper=9.0), _use_algorithm(ROOT)),
    "Richardson": (itd.Richardson, dict(step_size=0.3), _use_algorithm(LINEAR)),
    "Jacobi": (itd.Jacobi, dict(damping=1.0, diagonal=None), _use_algorithm(LINEAR)),
    "SOR": (itd.SOR, dict(relaxation=1.0), _use_algorithm(LINEAR)),
    "GMRES": (itd.GMRES, dict(restart=2), _use_algorithm(LINEAR)),
    "ProximalGradient": (itd.ProximalGradient, dict(step_size=0.3), _use_algorithm(LASSO)),
    "FISTA": (itd.FISTA, dict(step_size=0.3), _use_algorithm(LASSO)),
    "from_optax": (
        itd.adapters.from_optax,
        dict(transformation=optax.sgd(0.3)),
        _use_algorithm(QUADRATIC),
    ),
    "from_optimistix": (
        itd.adapters.from_optimistix,
        dict(solver=optx.BFGS(1e-8, 1e-8), options=None),
        _use_algorithm(QUADRATIC),
    ),
    "Implicit": (itd.Implicit, dict(linear_solver=None, refine=0), _use_mode),
    "Unrolled": (
        itd.Unrolled,
        dict(last=None, checkpoint="sqrt", rtol=1e-6, accelerate=None),
        _use_mode,
    ),
    "Checked": (
        itd.Checked,
        dict(mode=IMPLICIT, rtol=1e-2, on_failure="raise", atol=0.0, report=None),
        _use_mode,
    ),
    "Steps": (itd.Steps, dict(n=100), _use_rule),
    "ResidualBelow": (itd.ResidualBelow, dict(rtol=1e-9, atol=1e-9, max_steps=300), _use_rule),
    "DerivativeErrorBelow": (
        itd.DerivativeErrorBelow,
        dict(rtol=1e-3, max_steps=300, every=10, atol=0.0),
        _use_rule,
    ),
    "Minimization": (itd.Minimization, dict(objective=QUADRATIC.objective), _use_problem(DESCENT)),
    "RootFinding": (itd.RootFinding, dict(function=ROOT.function), _use_problem(itd.Newton())),
    "FixedPoint": (itd.FixedPoint, dict(update=FIXED.update), _use_problem(itd.Picard())),
    "LinearSystem": (
        itd.LinearSystem,
        dict(
            operator=2 * np.eye(2),
            rhs=lambda t: 2 * t,
            symmetric=True,
            positive_definite=False,
        ),
        _use_problem(itd.Richardson(0.3)),
    ),
    "CompositeMinimization": (
        itd.CompositeMinimization,
        dict(smooth=LASSO.smooth, prox=LASSO.prox, penalty=None, residual_step=1.0),
        _use_problem(itd.ProximalGradient(0.3)),
    ),
}


def _constructed(name: str, parameter: str, wrong: str) -> Call:
    make, usual, use = MADE[name]

    def run() -> Any:
        return use(make(**{**usual, parameter: WRONG[wrong]()}))

    # rtol: a rule may stop early if it is told to.
    return Call(
        f"{name}({parameter}={wrong})",
        run,
        right=lambda: THETA,
        rtol=1e-4,
        may_be_nan=True,
    )


def _doubled(x0: Any, theta: Any) -> Any:
    del x0
    return theta


CALLED: dict[str, tuple[Callable, dict[str, Any]]] = {
    "solve": (
        itd.solve,
        dict(
            problem=QUADRATIC,
            algorithm=DESCENT,
            x0=X0,
            theta=THETA,
            stop=RULE,
            mode=IMPLICIT,
            throw=True,
        ),
    ),
    "trace": (
        itd.trace,
        dict(
            problem=QUADRATIC,
            algorithm=DESCENT,
            x0=X0,
            theta=THETA,
            steps=4,
            modes={"a": IMPLICIT},
            reference=None,
            probes=None,
            every=1,
            estimate=False,
            progress=None,
        ),
    ),
    "diagnose": (
        itd.diagnose,
        dict(problem=QUADRATIC, algorithm=itd.Newton(), x0=X0, theta=THETA, rtol=1e-2, budget=5),
    ),
    "check_derivative": (
        itd.check_derivative,
        dict(problem=QUADRATIC, algorithm=DESCENT, x0=X0, theta=THETA, stop=RULE, tol=1e-3),
    ),
    "derivative_error": (
        itd.derivative_error,
        dict(
            problem=QUADRATIC,
            x=THETA,
            theta=THETA,
            derivative=np.eye(2),
            tangent=None,
            cotangent=None,
            loss=None,
            linear_solver=None,
            near=0.1,
        ),
    ),
    "iterate_derivative_error": (
        itd.iterate_derivative_error,
        dict(
            problem=QUADRATIC,
            algorithm=DESCENT,
            x0=X0,
            theta=THETA,
            derivative=np.eye(2),
            stop=RULE,
            tangent=None,
            cotangent=None,
            loss=None,
        ),
    ),
    "implicit": (
        lambda solver, x0, theta, **options: itd.implicit(**options)(solver)(x0, theta),
        dict(
            solver=_doubled,
            problem=QUADRATIC,
            mode=IMPLICIT,
            traceable=None,
            throw=True,
            x0=X0,
            theta=THETA,
        ),
    ),
    "custom_root": (
        lambda solver, init, theta, **options: jax.jacfwd(
            lambda t: itd.adapters.custom_root(**options)(solver)(init, t)
        )(theta),
        dict(
            solver=_doubled,
            optimality_fun=ROOT.function,
            has_aux=False,
            solve=None,
            reference_signature=None,
            init=X0,
            theta=THETA,
        ),
    ),
    "as_optimistix_adjoint": (itd.adapters.as_optimistix_adjoint, dict(mode=IMPLICIT)),
    "weakly_active": (itd.weakly_active, dict(problem=LASSO, x=X0, theta=THETA, tol=None)),
    "value_and_grad_with_report": (itd.value_and_grad_with_report, dict(loss=len)),
    "prox.soft_threshold": (itd.prox.soft_threshold, dict(x=X0, by=1.0)),
    "prox.elastic_net": (itd.prox.elastic_net, dict(x=X0, by=1.0, ridge=1.0)),
    "prox.nonnegative": (itd.prox.nonnegative, dict(x=X0)),
    "prox.box": (itd.prox.box, dict(x=X0, lower=0.0, upper=1.0)),
    "prox.simplex": (itd.prox.simplex, dict(x=jnp.ones(3), total=1.0)),
}

THEORY = {
    "t": 5,
    "steps": 5,
    "smallest": 1.0,
    "largest": 10.0,
    "step_size": 0.1,
    "momentum": 0.2,
    "initial_error": 1.0,
    "G": 1.0,
    "rho": 0.9,
    "initial_drift": 1.0,
    "jacobian_norm": 1.0,
    "eigenvalue": 2.0,
    "total": 10,
    "start": 3,
    "relative_step": 0.1,
    "ratio": 2.0,
    "terms": 3,
    "iterate_error": 0.1,
    "lipschitz_x": 1.0,
    "lipschitz_theta": 1.0,
    "update_derivative_norm": 1.0,
    "errors": np.array([1.0, 2.0, 0.5]),
}
"""Usual arguments of the functions of `iterdiff.theory`."""


def _theory() -> Iterator[tuple[str, tuple[Callable, dict[str, Any]]]]:
    for name in itd.theory.__all__ if hasattr(itd.theory, "__all__") else dir(itd.theory):
        function = getattr(itd.theory, name)
        if not inspect.isfunction(function):
            continue
        needed = [
            p.name
            for p in inspect.signature(function).parameters.values()
            if p.default is p.empty and p.kind is not p.VAR_KEYWORD
        ]
        if set(needed) <= THEORY.keys():
            yield f"theory.{name}", (function, {key: THEORY[key] for key in needed})


def _called(name: str, made: tuple[Callable, dict], parameter: str, wrong: str) -> Call:
    function, usual = made

    def run() -> Any:
        found = function(**{**usual, parameter: WRONG[wrong]()})
        return getattr(found, "x", None)

    # A function may be called, and raise what it raises.
    return Call(f"{name}({parameter}={wrong})", run, may_be_nan=True, own=wrong == "a function")


def calls() -> Iterator[Call]:
    """Yield every argument with every wrong value."""
    for name, (_, usual, _) in MADE.items():
        for parameter in usual:
            for wrong in WRONG:
                yield _constructed(name, parameter, wrong)
    for name, made in {**CALLED, **dict(_theory())}.items():
        for parameter in made[1]:
            for wrong in WRONG_TO_FUNCTIONS:
                yield _called(name, made, parameter, wrong)
