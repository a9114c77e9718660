"""Cases whose residual is noisy, badly scaled, repelling, kinked, or loses digits."""

import jax
import jax.numpy as jnp
import numpy as np

import iterdiff as itd
from benchmarks.wrong_derivatives.group import Data, Group, Setup, builder, case, fixed, grid
from benchmarks.wrong_derivatives.slow_cases import BOTH, IMPLICIT, THREE, contraction_case, newton

# Residuals that carry noise of their own


def jittered(value: jax.Array, x: jax.Array, size: jax.Array) -> jax.Array:
    """Return `value` with a relative error that looks random, and no derivative of it."""
    place = 1e5 * jnp.arange(x.size, dtype=x.dtype)
    return value * (1 + size * jnp.sin(1e9 * jax.lax.stop_gradient(x) + place))


@jax.custom_jvp
def bisected(y: jax.Array, tolerance: jax.Array) -> jax.Array:
    """Return the root z of ``z + z**3 / 3 = y`` in [-4, 4], to a tolerance."""

    def halve(_, ends):
        low, high = ends
        middle = (low + high) / 2
        below = (middle + middle**3 / 3 < y) & (high - low > tolerance)
        above = (middle + middle**3 / 3 >= y) & (high - low > tolerance)
        return jnp.where(below, middle, low), jnp.where(above, middle, high)

    start = jnp.full_like(y, -4.0), jnp.full_like(y, 4.0)
    return sum(jax.lax.fori_loop(0, 60, halve, start)) / 2


@bisected.defjvp
def _bisected_jvp(primals, tangents):
    z = bisected(*primals)
    return z, tangents[0] / (1 + z**2)


def exact_root(y: jax.Array) -> jax.Array:
    """Return the root z of ``z + z**3 / 3 = y``: ``2 sinh(asinh(3 y / 2) / 3)``."""
    return 2 * jnp.sinh(jnp.arcsinh(1.5 * y) / 3)


@jax.custom_jvp
def looked_up(y: jax.Array, spacing: jax.Array) -> jax.Array:
    """Return tanh(y) by the nearest entry of a table, which also holds the slopes."""
    return jnp.tanh(jnp.round(y / spacing) * spacing)


@looked_up.defjvp
def _looked_up_jvp(primals, tangents):
    value = looked_up(*primals)
    return value, (1 - value**2) * tangents[0]


def in_single(y: jax.Array) -> jax.Array:
    """Return tanh(y), computed in float32."""
    return jnp.tanh(y.astype(jnp.float32)).astype(y.dtype)


def noisy() -> list[Group]:
    """Return implicit layers, solved early or as far as the noise of their residual allows."""

    def maker(rng, norm, noise):
        return contraction_case(rng, norm, 0.0, 6) | {"noise": noise}

    def layer(of_argument, clean=jnp.tanh):
        def build(data: Data) -> Setup:
            def argument(x, theta):
                return data["weight"] @ x + data["u"] @ theta + data["b"]

            stated = itd.FixedPoint(lambda x, t: of_argument(argument(x, t), x, data["noise"]))
            true = itd.FixedPoint(lambda x, t: clean(argument(x, t)))
            return Setup(stated, itd.Picard(), data["x0"], data["theta"], true)

        return build

    kinds = {
        "jitter": (layer(lambda y, x, s: jittered(jnp.tanh(y), x, s)), (1e-4, 1e-6, 1e-9)),
        "tolerance": (layer(lambda y, _, s: bisected(y, s), exact_root), (1e-3, 1e-5, 1e-8)),
        "table": (layer(lambda y, _, s: looked_up(y, s)), (1e-3, 1e-4, 1e-5)),
        "single": (layer(lambda y, *_: in_single(y)), (1e-7,)),
    }
    groups = []
    for name, (build, sizes) in kinds.items():
        cases = grid(f"noisy-{name}", maker, norm=(0.3, 0.8, 0.95), noise=sizes)
        for steps in (4, 25, 400):
            stop, title = itd.Steps(steps), f"noisy-{name}-{steps}"
            groups.append(Group("noisy residuals", title, build, cases, THREE, stop=stop))
    return groups


def noisy_newton() -> list[Group]:
    """Return equations with jitter, solved by Newton's method, whose Jacobian has none."""

    def maker(rng, noise, condition, n=5):
        q = np.linalg.qr(rng.standard_normal((n, n)))[0]
        a = (q * np.logspace(-np.log10(condition), 0, n)) @ np.linalg.qr(q + np.eye(n))[0]
        root, c = rng.standard_normal(n), rng.standard_normal((n, 3))
        arrays = {"a": a, "root": root, "c": c, "guess": root, "noise": noise}
        return case(rng, 0.1 * rng.standard_normal(3), root + 0.1, **arrays)

    def equation(data: Data, size) -> itd.RootFinding:
        def function(x, theta):
            left = data["a"] @ (x - data["root"]) + 0.1 * (x - data["root"]) ** 3
            value = left - jnp.sin(data["c"] @ theta) * (1 + x**2) / 50
            return value + size * (jittered(jnp.ones_like(x), x, 1.0) - 1)

        return itd.RootFinding(function)

    def build(data: Data) -> Setup:
        stated, true = equation(data, data["noise"]), equation(data, 0.0)
        return Setup(stated, itd.Newton(), data["x0"], data["theta"], true)

    cases = grid("noisy-newton", maker, noise=(1e-5, 1e-7, 1e-10), condition=(3.0, 30.0))
    family, kind, stop = "noisy residuals", "jacobian", itd.Steps(12)
    return [Group(family, "noisy-newton", build, cases, BOTH, kind, stop=stop)]


# Unknowns of different size


def scaled() -> list[Group]:
    """Return a slow large unknown beside small ones that are far from their roots."""

    def maker(rng, size, start):
        theta = np.array([1.2, 1.0, 0.7]) * rng.uniform(0.8, 1.2, 3)
        guess = np.array([size * theta[0], np.log(theta[1]), theta[2]])
        arrays = {"size": size, "guess": guess}
        return case(rng, theta, np.array([0.0, start, 0.0]), **arrays)

    def build(data: Data) -> Setup:
        def update(x, theta):
            slow = x[0] - 0.05 * (x[0] - data["size"] * theta[0])
            small = x[1] - 0.1 * (jnp.exp(x[1]) - theta[1]) / (1 + jnp.exp(x[1]))
            return jnp.stack([slow, small, theta[2] * (2 + jnp.tanh(5 * (x[1] - 3)))])

        loss = lambda x, _: x[2] ** 2 + x[1] / 10 + x[0] / data["size"]  # noqa: E731
        run = itd.FixedPoint(update), itd.Picard(), data["x0"], data["theta"]
        return Setup(*run, loss=loss)

    cases = grid("scaled", maker, size=(1e-3, 1.0, 1e3, 1e6), start=(0.3, 2.0, 8.0))
    return [
        Group("unknowns of different size", f"scaled-{k}", build, cases, BOTH, "loss", itd.Steps(k))
        for k in (10, 40, 600)
    ]


# Gradients whose parts cancel


def cancelling() -> list[Group]:
    """Return linear systems whose cotangent makes the parts of a gradient cancel, in float32."""

    def maker(rng, left, n=8):
        a = (np.eye(n) + 0.3 * rng.standard_normal((n, n)) / np.sqrt(n)).astype("float32")
        c = rng.standard_normal((n, 2)).astype("float32")
        jacobian = np.linalg.solve(a.astype(float), c.astype(float))
        w = rng.standard_normal(n)
        w = w - np.linalg.pinv(jacobian.T) @ (jacobian.T @ w)  # J^T w = 0
        w = w + left * np.linalg.pinv(jacobian.T) @ np.ones(2)
        made = {"a": a, "c": c, "w": w, "v": np.ones(2), "guess": np.zeros(n)}
        return {k: np.asarray(v, "float32") for k, v in case(rng, np.ones(2), w, **made).items()}

    def build(data: Data) -> Setup:
        problem = itd.RootFinding(lambda x, t: data["a"] @ x - data["c"] @ t)
        return Setup(problem, itd.Newton(), 0 * data["x0"], data["theta"])

    cases = grid("cancelling", maker, left=10.0 ** -np.arange(0, 9.0))
    stop = itd.Steps(3)
    return [Group("cancellation", "cancelling", build, cases, BOTH, stop=stop)]


# Roots from which the iteration moves away


def repelling() -> list[Group]:
    """Return iterations that start near a root that repels them."""

    def settle(update, x, steps=20000):
        for _ in range(steps):
            x = update(x)
        return x

    def layer_case(rng, gain, away, n=4):
        w, u = rng.standard_normal((n, n)), 0.3 * rng.standard_normal((n, 2))
        w = (w + w.T) / 2
        values, vectors = np.linalg.eigh(w)
        w = gain * w / max(abs(values))
        top = vectors[:, np.argmax(abs(values))]
        w = w if values[np.argmax(abs(values))] > 0 else -w
        start, theta = away * top, np.zeros(2)
        guess = settle(lambda x: np.tanh(w @ x + u @ theta), start)
        return case(rng, theta, start, weight=w, u=u, guess=guess)

    def layer(data: Data) -> itd.Problem:
        return itd.FixedPoint(lambda x, t: jnp.tanh(data["weight"] @ x + data["u"] @ t))

    def map_case(rng, theta, away):
        guess = np.full(1, 1 - 1 / theta)
        return case(rng, np.full(1, theta), np.full(1, away), guess=guess)

    def logistic_map(_: Data) -> itd.Problem:
        return itd.FixedPoint(lambda x, theta: theta * x * (1 - x) + 0 * x)

    layers = grid("repelling", layer_case, gain=(1.2, 2.0), away=(1e-1, 1e-3, 1e-6))
    maps = grid("map", map_case, theta=(1.3, 2.0, 2.8), away=(1e-1, 1e-3, 1e-6))
    family, made = "repelling roots", []
    for k in (1, 4, 2000):
        options = {"stop": itd.Steps(k), "foreign": True}
        by_picard = builder(layer, fixed(itd.Picard())), layers, IMPLICIT
        by_map = builder(logistic_map, fixed(itd.Picard())), maps, IMPLICIT
        made.append(Group(family, f"repelling-layer-{k}", *by_picard, **options))
        made.append(Group(family, f"repelling-map-{k}", *by_map, **options))
    return made


# Kinks of problems without a prox


KINKS = {"abs": jnp.abs, "relu": jax.nn.relu, "max": lambda v: jnp.maximum(v, 0.3 * v)}
"""Functions with a kink at zero."""


def kinks() -> list[Group]:
    """Return contractions whose first unknown is at a kink, or beside it.

    At the kink no derivative exists: the true problem takes the slope of the other side.
    """

    def maker(rng, margin, n=4):
        w = rng.standard_normal((n, n))
        w *= 0.4 / np.linalg.norm(w, 2)
        root = rng.uniform(0.5, 1.5, n) * rng.choice([-1, 1], n)
        root[0] = margin
        arrays = {"weight": w, "root": root, "guess": root, "margin": margin}
        return case(rng, np.zeros(2), np.zeros(n), u=rng.standard_normal((n, 2)), **arrays)

    def contraction(data: Data, bend) -> itd.FixedPoint:
        def update(x, theta):
            return (
                data["root"] + data["weight"] @ (bend(x) - bend(data["root"])) + data["u"] @ theta
            )

        return itd.FixedPoint(update)

    def of(bend):
        def build(data: Data) -> Setup:
            def other(x):
                side = jnp.sign(data["root"]).at[0].set(jnp.where(data["margin"] < 0, -1.0, 1.0))
                return jax.jvp(bend, (side,), (x,))[1]

            stated, true = contraction(data, bend), contraction(data, other)
            return Setup(stated, itd.Picard(), data["x0"], data["theta"], true)

        return build

    margins = (-1e-1, 1e-1, 1e-3, 1e-5, 0.0)
    return [
        Group(
            "kinks",
            f"kink-{name}",
            of(bend),
            grid(f"kink-{name}", maker, margin=margins),
            IMPLICIT,
            "jacobian",
            itd.Steps(120),
        )
        for name, bend in KINKS.items()
    ]


def hubers() -> list[Group]:
    """Return the location of samples by Huber's loss, with a sample at the loss's corner.

    At the corner, the true problem counts that sample as an outlier.
    """

    def maker(rng, margin, n=9):
        samples = np.concatenate([rng.uniform(-0.8, 0.8, n - 3), [2.5, -3.0]])
        samples = np.append(samples - samples[np.abs(samples) < 1].mean(), 0.0)
        inliers = np.abs(samples) < 1
        inliers[-1] = False
        center = samples[inliers].sum() / inliers.sum()
        # One sample more, `margin` outside the corner; its pull of 1 moves the center.
        center = (samples[inliers].sum() + 1.0) / inliers.sum()
        samples[-1] = center + 1.0 + margin
        arrays = {"samples": samples, "guess": np.full(1, center), "margin": margin}
        return case(rng, np.zeros(n), np.zeros(1), w=np.ones(1), v=np.ones(n), **arrays)

    def slope(gap):
        return jnp.clip(gap, -1.0, 1.0)

    def build(data: Data) -> Setup:
        def residual(x, theta):
            return -jnp.sum(slope(data["samples"] + theta - x))[None] / 9

        def outlying(x, theta):
            gaps = data["samples"] + theta - x
            return -(jnp.sum(slope(gaps[:-1])) + 1.0)[None] / 9

        stated, true = itd.RootFinding(residual), itd.RootFinding(outlying)
        return Setup(stated, itd.Newton(), data["x0"] + 0.05, data["theta"], true)

    cases = grid("huber", maker, margin=(1e-1, 1e-3, 1e-5, 0.0))
    return [Group("kinks", "huber", build, cases, IMPLICIT, stop=itd.Steps(8))]


# A batch of one equation


def kepler() -> list[Group]:
    """Return Kepler's equation, ``E - e sin E = M``, also where its slope nearly vanishes."""

    def maker(rng, sample):
        del sample
        e = 1 - 10 ** rng.uniform(-5, -0.01)
        mean = 10 ** rng.uniform(-3, np.log10(np.pi))
        low, high = 0.0, np.pi
        for _ in range(100):
            middle = (low + high) / 2
            low, high = (middle, high) if middle - e * np.sin(middle) < mean else (low, middle)
        arrays = {"guess": np.full(1, low), "w": np.ones(1), "v": np.ones(2)}
        return case(rng, np.array([mean, e]), np.full(1, np.pi), **arrays)

    def equation(_: Data) -> itd.Problem:
        return itd.RootFinding(lambda x, t: x - t[1] * jnp.sin(x) - t[0])

    cases = grid("kepler", maker, sample=range(300))
    build = builder(equation, newton)
    return [
        Group("Kepler's equation", f"kepler-{k}", build, cases, IMPLICIT, stop=itd.Steps(k))
        for k in (4, 40)
    ]


def groups() -> list[Group]:
    """Return these cases."""
    makers = (noisy, noisy_newton, scaled, cancelling, repelling, kinks, hubers, kepler)
    return [group for make in makers for group in make()]
