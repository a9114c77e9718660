"""The checks on eight forced devices of the CPU, in one start of ``tests.devices.eight``."""

import contextlib
import io
import re
import warnings
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import iterdiff as itd

COUNT = 8
UNKNOWNS = 64
THETA = np.linspace(0.5, 2.0, UNKNOWNS)
SLOPE = -2 / THETA**3
"""The gradient of the sum of squares of the solution 1 / theta."""

PROBLEM = itd.Minimization(lambda x, theta: jnp.sum(theta * x**2 / 2 - x))
DESCENT = itd.GradientDescent(0.5)
STOP = itd.ResidualBelow(1e-12, max_steps=200)
MATRIX_FREE = itd.DenseOrKrylov(matrix_free=True)


def mesh_of(kind: AxisType) -> jax.sharding.Mesh:
    """Return all devices in a row."""
    return jax.make_mesh((COUNT,), ("d",), axis_types=(kind,))


def without_gathers(function: Callable, *args: Any) -> Any:
    """Return the result of a compiled function, whose program brings no array together."""
    program = jax.jit(function).lower(*args).compile()
    found = re.findall(r" (?:all-gather|all-to-all)(?:-start)?\(.*", str(program.as_text()))
    assert not found, found
    return program(*args)


def total(theta: Any, x0: Any, mode: itd.Mode, stop: itd.StoppingRule = STOP) -> Any:
    """Return the sum of squares of a solution."""
    return jnp.sum(itd.solve(PROBLEM, DESCENT, x0, theta, stop=stop, mode=mode).x ** 2)


def spread_unknown(kind: AxisType) -> None:
    """Both modes, a check and an estimate of an unknown that is spread over the devices."""
    implicit = itd.Implicit() if kind == AxisType.Explicit else itd.Implicit(MATRIX_FREE)
    modes = implicit, itd.Unrolled(), itd.Checked(implicit, on_failure="nan")

    def everything(theta, x0):
        slopes = [jax.grad(total)(theta, x0, mode) for mode in modes]
        x = itd.solve(PROBLEM, DESCENT, x0, theta, stop=itd.Steps(3)).x
        solver = implicit.linear_solver
        wrong = {"tangent": jnp.ones_like(theta), "linear_solver": solver}
        return slopes, itd.derivative_error(PROBLEM, x, theta, -1 / theta**2, **wrong).absolute

    mesh = mesh_of(kind)
    theta, x0 = (jax.device_put(v, NamedSharding(mesh, P("d"))) for v in (THETA, 0 * THETA))
    with jax.set_mesh(mesh):
        slopes, error = without_gathers(everything, theta, x0)
    for slope in slopes:
        np.testing.assert_allclose(slope, SLOPE, rtol=1e-8)
        assert slope.sharding.spec == P("d")
    assert error < 1e-2  # systems that serve an estimate are solved loosely


COUPLING = 0.05


def several_spread_arrays(places: dict[str, P]) -> None:
    """All modes with an unknown of several arrays, some spread along another axis, or not at all.

    Its equations couple every array with the sum of the first one.
    """
    kinds = {"u": (16,), "v": (2, 8), "w": ()}
    shapes = {name: kinds[name] for name in places}
    sizes = [int(np.prod(shape)) for shape in shapes.values()]
    flat = np.linspace(1.0, 2.0, sum(sizes))
    parts = np.split(flat, np.cumsum(sizes)[:-1])
    named = zip(parts, shapes.items(), strict=True)
    theta = {name: part.reshape(shape) for part, (name, shape) in named}

    def objective(x, theta):
        own = sum(jnp.sum(theta[k] * x[k] ** 2 / 2 - x[k]) for k in x)
        return own + COUPLING * jnp.sum(x["u"]) * sum(jnp.sum(v) for v in x.values())

    modes = itd.Implicit(MATRIX_FREE), itd.Unrolled(), itd.Checked(itd.Implicit(MATRIX_FREE))

    def loss(theta, x0, mode):
        run = itd.Minimization(objective), itd.GradientDescent(0.3), x0, theta
        x = itd.solve(*run, stop=STOP, mode=mode).x
        return sum(jnp.sum(v**2) for v in x.values())

    mesh = mesh_of(AxisType.Auto)
    at = {name: NamedSharding(mesh, place) for name, place in places.items()}
    theta, x0 = (jax.device_put(v, at) for v in (theta, jax.tree.map(np.zeros_like, theta)))
    slopes = without_gathers(lambda *at: [jax.grad(loss)(*at, mode) for mode in modes], theta, x0)
    first = np.arange(flat.size) < sizes[0]
    matrix = np.diag(flat) + COUPLING * (first[:, None].astype(float) + first[None])
    x = np.linalg.solve(matrix, np.ones(flat.size))
    expected = -2 * x * np.linalg.solve(matrix, x)
    for slope in slopes:
        found = np.concatenate([np.ravel(slope[name]) for name in shapes])
        # Entries of x may be about zero: iterations bound the error of the whole vector.
        assert np.linalg.norm(found - expected) <= 1e-8 * np.linalg.norm(expected)


def matrix_of_a_spread_unknown() -> None:
    """On automatic axes the compiler tells where the unknown is, and the program warns."""
    place = NamedSharding(mesh_of(AxisType.Auto), P("d"))
    theta, x0 = (jax.device_put(v, place) for v in (THETA, 0 * THETA))
    slope = jax.jit(jax.grad(lambda theta, x0: total(theta, x0, itd.Implicit())))
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        np.testing.assert_allclose(slope(theta, x0), SLOPE, rtol=1e-8)
    assert any("matrix_free=True" in str(one.message) for one in found)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        slope(jnp.asarray(THETA), jnp.zeros(UNKNOWNS))


def batch_over_devices() -> None:
    """A batch of problems, each on one device."""
    batch = jax.device_put(THETA.reshape(COUNT, -1), NamedSharding(mesh_of(AxisType.Auto), P("d")))

    def slopes(batch):
        both = [
            jax.vmap(jax.grad(lambda t, mode=mode: total(t, jnp.zeros_like(t), mode)))(batch)
            for mode in (itd.Implicit(), itd.Unrolled())
        ]
        return jnp.stack(both)

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = without_gathers(slopes, batch)
    np.testing.assert_allclose(found.reshape(2, -1), np.stack([SLOPE] * 2), rtol=1e-8)


def data_over_devices() -> None:
    """A ridge regression whose rows of data are spread, and its unknown is not."""
    rng = np.random.default_rng(0)
    data, targets = rng.normal(size=(40, 3)) / 6, rng.normal(size=40)

    def objective(x, theta, args=()):
        rows, targets = args
        return jnp.sum((rows @ x - targets) ** 2) / 2 + theta * jnp.sum(x**2) / 2

    def loss(theta, mode, args):
        problem, x0 = itd.Minimization(objective), jnp.zeros(3)
        run = problem, DESCENT, x0, theta
        return jnp.sum(itd.solve(*run, stop=STOP, mode=mode, args=args).x)

    def slopes(theta, args):
        return [jax.grad(loss)(theta, mode, args) for mode in (itd.Implicit(), itd.Unrolled())]

    place = NamedSharding(mesh_of(AxisType.Auto), P("d"))
    args = tuple(jax.device_put(v, place) for v in (data, targets))
    matrix = data.T @ data + 0.7 * np.eye(3)
    x = np.linalg.solve(matrix, data.T @ targets)
    found = without_gathers(slopes, jnp.array(0.7), args)
    np.testing.assert_allclose(found, [-np.sum(np.linalg.solve(matrix, x))] * 2, rtol=1e-7)


def shard_map() -> None:
    """Each device with a problem of its own, where JAX tracks what varies over the devices."""

    @itd.implicit(itd.RootFinding(lambda x, theta: x - theta**2))
    def solver(x0, theta):
        return theta**2

    modes = itd.Implicit(), itd.Unrolled(), itd.Checked(itd.Implicit(), on_failure="nan")

    def report(theta):
        def loss(theta, report):
            mode = itd.Checked(itd.Unrolled(), on_failure="nan", report=report)
            return total(theta, jnp.zeros(1), mode, itd.Steps(2))

        return itd.value_and_grad_with_report(loss)(theta)[2].flagged

    def block(theta):
        slopes = [jax.grad(total)(theta, jnp.zeros(1), mode) for mode in modes]
        slopes.append(jax.grad(lambda theta: jnp.sum(solver(jnp.zeros(1), theta)))(theta))
        return jnp.stack(slopes, 1), report(theta)[None]

    over = {"mesh": mesh_of(AxisType.Auto), "in_specs": P("d"), "out_specs": P("d")}
    theta = THETA[:: UNKNOWNS // COUNT]
    found, flagged = jax.jit(jax.shard_map(block, **over))(theta)
    expected = np.stack([-2 / theta**3] * 3 + [2 * theta], 1)
    np.testing.assert_allclose(found, expected, rtol=1e-8)
    assert np.all(np.asarray(flagged))


def failures() -> None:
    """A run that fails raises outside ``jit``; inside it warns, and gives NaN with its status."""
    place = NamedSharding(mesh_of(AxisType.Auto), P("d"))
    theta, x0 = (jax.device_put(v, place) for v in (THETA, 0 * THETA))
    few = itd.ResidualBelow(1e-12, max_steps=2)

    def slope_and_status(theta):
        def loss(theta):
            solution = itd.solve(PROBLEM, DESCENT, x0, theta, stop=few)
            return jnp.sum(solution.x), solution.status

        return jax.grad(loss, has_aux=True)(theta)

    for call in (lambda: total(theta, x0, itd.Implicit(), few), lambda: slope_and_status(theta)):
        try:
            call()
        except itd.SolveError:
            continue
        raise AssertionError("it raises")
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        slope, status = jax.jit(slope_and_status)(theta)
        assert np.all(np.isnan(slope))
    assert status == itd.Status.MAX_STEPS_REACHED
    assert [one.category for one in found] == [RuntimeWarning]


def lines() -> None:
    """A run over all devices prints each line once."""
    place = NamedSharding(mesh_of(AxisType.Auto), P("d"))
    theta, x0 = (jax.device_put(v, place) for v in (THETA, 0 * THETA))
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        itd.solve(PROBLEM, DESCENT, x0, theta, stop=itd.Steps(20), verbose=10)
        jax.effects_barrier()
    found = [line.split(":")[0] for line in printed.getvalue().splitlines()]
    assert found == ["step 0", "step 10", "step 20"]


def examinations() -> None:
    """`trace` and `diagnose` of an unknown that is spread over the devices."""
    place = NamedSharding(mesh_of(AxisType.Auto), P("d"))
    theta, x0 = jnp.array(0.7), jax.device_put(np.zeros(COUNT), place)
    problem = itd.Minimization(lambda x, theta: jnp.sum(theta * x**2 / 2 - x))
    modes = {"unrolled": itd.Unrolled(), "implicit": itd.Implicit(MATRIX_FREE)}
    traced = itd.trace(problem, DESCENT, x0, theta, steps=60, modes=modes)
    assert float(traced.jacobian_error.isel(iteration=-1).max()) < 1e-8
    assert itd.diagnose(problem, DESCENT, x0, theta).recommended is not None


def outer_loss_of_members() -> None:
    """A batch of inner problems, one on each device, whose hypergradient is that of one device."""
    data = np.random.default_rng(0).standard_normal((COUNT, 6, 3))

    def objective(x, theta, rows):
        fit = jnp.sum((rows[:4, :2] @ x - rows[:4, 2]) ** 2)
        return fit / 2 + jnp.exp(theta) * jnp.sum(x**2) / 2

    def loss(x, theta, rows):
        return jnp.sum((rows[4:, :2] @ x - rows[4:, 2]) ** 2)

    run = loss, itd.Minimization(objective), itd.GradientDescent(0.05), jnp.zeros(2)
    spread = jax.device_put(data, NamedSharding(mesh_of(AxisType.Auto), P("d")))
    at = {"batched": True, "rtol": 1e-6}
    there = itd.bilevel.hypergradient(*run, jnp.array(0.3), args=spread, **at)
    here = itd.bilevel.hypergradient(*run, jnp.array(0.3), args=data, **at)
    np.testing.assert_allclose(there.gradient, here.gradient, rtol=1e-12)
    assert there.counts.steps.tolist() == here.counts.steps.tolist()
    assert len(there.x.sharding.device_set) == COUNT and not there.x.is_fully_replicated
    explicit = jax.device_put(data, NamedSharding(mesh_of(AxisType.Explicit), P("d")))
    with pytest.raises(ValueError, match="`args` must not be spread"):
        itd.bilevel.hypergradient(*run, jnp.array(0.3), args=explicit, **at)


CHECKS = (
    lambda: spread_unknown(AxisType.Explicit),
    lambda: spread_unknown(AxisType.Auto),
    lambda: several_spread_arrays({"u": P("d"), "v": P(None, "d")}),
    lambda: several_spread_arrays({"u": P("d"), "v": P(None, "d"), "w": P()}),
    matrix_of_a_spread_unknown,
    batch_over_devices,
    data_over_devices,
    shard_map,
    failures,
    lines,
    examinations,
    outer_loss_of_members,
)

if __name__ == "__main__":
    jax.config.update("jax_enable_x64", True)
    assert jax.device_count() == COUNT
    for check in CHECKS:
        check()
