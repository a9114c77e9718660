"""Cases with constraints, whose active set is known, and the Gauss-Newton approximation."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

import iterdiff as itd
from benchmarks.wrong_derivatives.group import Data, Group, Setup, case, grid
from benchmarks.wrong_derivatives.slow_cases import IMPLICIT, spd

UNKNOWNS, CONSTRAINTS, PARAMETERS = 6, 8, 3

POLISHED = {**IMPLICIT, "refined": itd.Implicit(refine=1)}
THREE = {**POLISHED, "unrolled": itd.Unrolled()}


def program_case(
    rng: np.random.Generator,
    active: int,
    rtol: float = 0.0,
    *,
    margin: float = 0.3,
    weak: float | None = None,
) -> Data:
    """Return a quadratic program whose first `active` constraints hold with equality.

    ``min x^T Q x / 2 + (c + C theta)^T x`` where ``G x <= h + H theta``. The solution and its
    multipliers are drawn; `c` and `h` follow. Multipliers and slacks span `margin` decades below
    1, and the last active multiplier is `weak`, if it is given.
    """
    q, g = spd(rng, UNKNOWNS, 10.0), rng.standard_normal((CONSTRAINTS, UNKNOWNS))
    x, theta = rng.standard_normal(UNKNOWNS), 0.3 * rng.standard_normal(PARAMETERS)
    holds = np.arange(CONSTRAINTS) < active
    margins = 10 ** rng.uniform(-margin, 0.0, (2, CONSTRAINTS))
    multipliers = np.where(holds, margins[0], 0.0)
    if weak is not None:
        multipliers[active - 1] = weak
    in_c = rng.standard_normal((UNKNOWNS, PARAMETERS))
    in_h = rng.standard_normal((CONSTRAINTS, PARAMETERS))
    slack = np.where(holds, 0.0, margins[1])
    return {
        **case(rng, theta, np.zeros(UNKNOWNS), guess=x, rtol=rtol),
        "q": q,
        "g": g,
        "c": -q @ x - g.T @ multipliers - in_c @ theta,
        "h": g @ x + slack - in_h @ theta,
        "in_c": in_c,
        "in_h": in_h,
        "holds": holds.astype(float),
    }


def _program(data: Data) -> itd.QuadraticProgram:
    return itd.QuadraticProgram(
        data["q"],
        lambda theta: data["c"] + data["in_c"] @ theta,
        G=data["g"],
        h=lambda theta: data["h"] + data["in_h"] @ theta,
    )


def _on(data: Data, holds: jax.Array) -> itd.RootFinding:
    """Return the equations of the minimiser on an active set, without multipliers."""
    rows = holds[:, None] * data["g"]
    back = jnp.linalg.pinv(rows, rtol=1e-10)

    def residual(x, theta):
        slope = data["q"] @ x + data["c"] + data["in_c"] @ theta
        gap = rows @ x - holds * (data["h"] + data["in_h"] @ theta)
        return slope - back @ (rows @ slope) + back @ gap

    return itd.RootFinding(residual)


def _by_admm(truth: str) -> Callable[[Data], Setup]:
    """Return the builder of ADMM runs whose solution is on the active set ``data[truth]``."""

    def build(data: Data) -> Setup:
        run = itd.ADMM(), data["x0"], data["theta"]
        return Setup(_program(data), *run, true=_on(data, data[truth]))

    return build


def _by_step(found: str) -> Callable[[Data], Setup]:
    """Return the builder of solvers that end on the active set ``data[found]``, by a Newton step.

    The solution is on ``data["holds"]``.
    """

    def build(data: Data) -> Setup:
        def solver(x0, theta):
            equations = _on(data, data[found])
            jacobian = jax.jacfwd(equations.residual)(x0, theta)
            return x0 - jnp.linalg.solve(jacobian, equations.residual(x0, theta))

        run = solver, data["x0"], data["theta"]
        return Setup(_program(data), *run, true=_on(data, data["holds"]))

    return build


def stopped_early() -> list[Group]:
    """Return ADMM that stops before, or just after, it has found the active set."""

    def maker(rng, rtol, active):
        return program_case(rng, active, rtol, margin=2.0)

    cases = grid("admm", maker, rtol=(0.9, 0.5, 0.2, 5e-2, 1e-2, 1e-4), active=(1, 3))
    build = _by_admm("holds")
    return [Group("early stopped ADMM", "admm", build, cases, THREE, stop=400, foreign=True)]


def wrong_active_sets() -> list[Group]:
    """Return solvers that end on another active set than the solution's."""
    changes = {"none": (), "one missing": (0,), "one too many": (7,), "one for another": (0, 7)}

    def maker(rng, change, active):
        made = program_case(rng, active, margin=2.5)
        found = made["holds"].copy()
        for place in changes[change]:
            found[place] = 1 - found[place]
        return {**made, "found": found}

    cases = grid("active-set", maker, change=changes, active=(2, 4))
    return [Group("wrong active set", "active-set", _by_step("found"), cases, POLISHED)]


def weakly_active() -> list[Group]:
    """Return solutions at which a multiplier is zero, or nearly so."""

    def maker(rng, multiplier, active):
        return program_case(rng, active, weak=multiplier)

    axes = {"multiplier": (0.0, 1e-9, 1e-3, 1e-1), "active": (1, 3)}
    cases = grid("weakly-active", maker, **axes)
    build = _by_step("holds")
    return [Group("weakly active constraints", "weakly-active", build, cases, IMPLICIT)]


def dependent() -> list[Group]:
    """Return active constraints that depend on each other, and that theta moves together or not."""

    def maker(rng, moved, factor):
        made = program_case(rng, 2, 1e-6)
        made["g"][2], made["holds"][2] = factor * made["g"][1], 1.0
        together = factor * made["in_h"][1]
        made["in_h"][2] = together if moved == "together" else together + 1.0
        made["h"][2] = factor * (made["h"] + made["in_h"] @ made["theta"])[1]
        made["h"][2] -= made["in_h"][2] @ made["theta"]
        truth = made["holds"] * (np.arange(CONSTRAINTS) != 2)
        return {**made, "truth": truth}

    axes = {"moved": {"together": 0, "apart": 0}, "factor": (1.0, 3.0)}
    cases = grid("dependent", maker, **axes)
    build = _by_admm("truth")
    return [
        Group("dependent constraints", "dependent", build, cases, POLISHED, stop=2000, foreign=True)
    ]


def gauss_newton() -> list[Group]:
    """Return fits whose residuals are small, or not, with the approximate and the true Hessian."""
    times = np.linspace(0.0, 3.0, 12)

    def build(data: Data) -> Setup:
        def residuals(x, theta):
            return x[0] * jnp.exp(-x[1] * times) - data["data"] - data["in_data"] @ theta

        problem = itd.LeastSquares(residuals)
        return Setup(problem, itd.LevenbergMarquardt(), data["x0"], data["theta"])

    def maker(rng, noise, rate):
        curve = 2.0 * np.exp(-rate * times)
        off = noise * rng.standard_normal(12)
        in_data, start = rng.standard_normal((12, PARAMETERS)), np.array([2.0, rate])
        theta = np.zeros(PARAMETERS)
        given = {"data": curve + off, "in_data": in_data, "guess": start, "rtol": 1e-9}
        return case(rng, theta, start, **given)

    modes = {**IMPLICIT, "gauss-newton": itd.Implicit(gauss_newton=True)}
    cases = grid("gauss-newton", maker, noise=(1e-5, 1e-2, 0.1, 0.3), rate=(0.3, 0.8))
    return [Group("Gauss-Newton derivative", "gauss-newton", build, cases, modes, stop=200)]


def groups() -> list[Group]:
    """Return the groups of this module."""
    made = stopped_early, wrong_active_sets, weakly_active, dependent, gauss_newton
    return [group for make in made for group in make()]
