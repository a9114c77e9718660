"""Values of every kind as x0 and as theta, in every entry point."""

import collections
import decimal
import fractions
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pandas
import scipy.sparse
from jax.experimental import sparse

import iterdiff as itd
from tests.campaign.call import Call

Point = collections.namedtuple("Point", "a b")

NUMPY = {
    f"numpy {name}": (lambda name=name: np.array([1, 2]).astype(name))
    for name in "bool i1 i4 i8 u1 u4 u8 f2 f4 f8 longdouble c8 c16 >f8 >f4 >i4 <f8".split()
}
OTHER: dict[str, Callable[[], Any]] = {
    "masked": lambda: np.ma.masked_equal([1.0, 2.0], 1.0),
    "masked, nothing missing": lambda: np.ma.array([1.0, 2.0]),
    "objects": lambda: np.array([1.0, None]),
    "numbers as objects": lambda: np.array([1.0, 2.0], object),
    "text": lambda: "1.0",
    "texts": lambda: np.array(["1", "2"]),
    "bytes": lambda: b"12",
    "dates": lambda: np.array(["2020-01-01", "2020-01-02"], "M8[D]"),
    "records": lambda: np.array([(1.0, 2)], "f8,i4"),
    "None": lambda: None,
    "empty": lambda: np.zeros(0),
    "empty list": lambda: [],
    "empty dict": lambda: {},
    "int": lambda: 2,
    "bool": lambda: True,
    "float": lambda: 2.0,
    "complex": lambda: 2j,
    "huge int": lambda: 10**400,
    "int beyond 64 bits": lambda: 2**70,
    "Decimal": lambda: decimal.Decimal("1.5"),
    "Fraction": lambda: fractions.Fraction(1, 3),
    "list of floats": lambda: [1.0, 2.0],
    "list of a float and an int": lambda: [1.0, 2],
    "nested": lambda: {"a": [1.0, (2.0, np.ones(2))], "b": None},
    "namedtuple": lambda: Point(1.0, np.ones(2)),
    "ordered dict": lambda: collections.OrderedDict(z=1.0, a=2.0),
    "dict with a counter": lambda: {"x": np.ones(2), "n": 3},
    "dict with a text": lambda: {"x": np.ones(2), "kind": "tanh"},
    "dict of mixed keys": lambda: {"x": np.ones(2), 1: np.ones(2)},
    "set": lambda: {1.0, 2.0},
    "range": lambda: range(3),
    "generator": lambda: (float(k) for k in range(2)),
    "function": lambda: np.sin,
    "type": lambda: float,
    "object": lambda: object(),
    "network": lambda: eqx.nn.MLP(1, 1, 2, 1, key=jax.random.key(0)),
    "linear layer": lambda: eqx.nn.Linear(2, 1, key=jax.random.key(0)),
    "key": lambda: jax.random.key(0),
    "old key": lambda: jax.random.PRNGKey(0),
    "bfloat16": lambda: jnp.array([1.0, 2.0], jnp.bfloat16),
    "float8": lambda: jnp.array([1.0, 2.0], jnp.float8_e4m3fn),
    "int4": lambda: jnp.array([1, 2], jnp.int4),
    "weakly typed": lambda: jnp.asarray(2.0) * 1,
    "strongly typed float32": lambda: jnp.array([1.0, 2.0], jnp.float32),
    "scalar of NumPy": lambda: np.float64(2.0),
    "scalar of NumPy, float32": lambda: np.float32(2.0),
    "shape": lambda: jax.ShapeDtypeStruct((2,), float),
    "series": lambda: pandas.Series([1.0, 2.0]),
    "frame": lambda: pandas.DataFrame({"a": [1.0, 2.0]}),
    "sparse of SciPy": lambda: scipy.sparse.eye(2).tocsr(),
    "sparse of JAX": lambda: sparse.BCOO.fromdense(jnp.eye(2)),
    "memory view": lambda: memoryview(b"12"),
    "read-only": lambda: np.broadcast_to(1.0, (2,)),
    "not contiguous": lambda: np.arange(4.0)[::2],
    "zero dimensions": lambda: np.array(2.0),
    "nine dimensions": lambda: np.ones((1,) * 9),
    "negative zero": lambda: np.array([-0.0, 0.0]),
    "matrix of NumPy": lambda: np.asmatrix(np.eye(2)),
    "deleted": lambda: _deleted(),
}
KINDS = {**NUMPY, **OTHER}


def _deleted() -> jax.Array:
    array = jnp.ones(2)
    array.delete()
    return array


def _sum(tree: Any) -> Any:
    """Return the sum of all numbers of a tree of parameters, as float64."""
    numbers = [leaf for leaf in jax.tree.leaves(tree) if eqx.is_array_like(leaf)]
    numbers = [leaf for leaf in numbers if not _is_key(leaf)]
    return sum(jnp.sum(_wide(_converted(leaf))) for leaf in numbers)


def _wide(leaf: Any) -> Any:
    return leaf if jnp.iscomplexobj(leaf) else leaf.astype(float)


def _converted(leaf: Any) -> Any:
    known = isinstance(leaf, np.ndarray | np.generic)
    return jnp.asarray(np.asarray(leaf, float) if known and leaf.dtype.kind != "c" else leaf)


def _is_key(leaf: Any) -> bool:
    dtype = getattr(leaf, "dtype", None)
    return dtype is not None and jnp.issubdtype(dtype, jax.dtypes.extended)


def _problem() -> itd.Problem:
    """Return a minimisation whose solution is x = s, the sum of theta, in every entry."""
    return itd.Minimization(
        lambda x, t: sum(
            jnp.sum(jnp.real((leaf - _sum(t)) * jnp.conj(leaf - _sum(t))))
            for leaf in jax.tree.leaves(eqx.filter(x, eqx.is_inexact_array))
        )
    )


DESCENT = itd.GradientDescent(0.5)
RULE = itd.Steps(3)


def _solved(x0: Any, theta: Any) -> Any:
    return itd.solve(_problem(), DESCENT, x0, theta, stop=RULE).x


def _graded(mode: Any) -> Callable[[Any, Any], Any]:
    def run(x0: Any, theta: Any) -> Any:
        numbers, rest = eqx.partition(theta, eqx.is_inexact_array_like)

        def total(numbers: Any) -> Any:
            given = eqx.combine(numbers, rest)
            x = itd.solve(_problem(), DESCENT, x0, given, stop=RULE, mode=mode).x
            return jnp.real(_sum(x))

        return jax.grad(total)(numbers)

    return run


def _decorated(x0: Any, theta: Any) -> Any:
    solver = itd.implicit(_problem())(
        lambda x0, t: jax.tree.map(lambda leaf: _filled(leaf, complex(_sum(t))), x0)
    )
    return solver(x0, theta)


def _estimated(x: Any, theta: Any) -> Any:
    return itd.derivative_error(_problem(), x, theta, x, tangent=theta).absolute


ENTRIES: dict[str, Callable[[Any, Any], Any]] = {
    "solve": _solved,
    "grad, implicit": _graded(None),
    "implicit": _decorated,
    "derivative_error": _estimated,
}


def _right(entry: str, x0: Any, theta: Any) -> Any:
    """Return the right value of an entry point for arguments that it accepts."""
    total = complex(_sum(theta))
    if entry in ("solve", "implicit"):
        return jax.tree.map(lambda leaf: _filled(leaf, total), x0)
    if entry.startswith("grad"):
        unknowns = jax.tree.leaves(eqx.filter(x0, eqx.is_inexact_array_like))
        count = sum(np.size(leaf) for leaf in unknowns)
        numbers = eqx.filter(theta, eqx.is_inexact_array_like)
        return jax.tree.map(lambda leaf: np.full(np.shape(leaf), float(count)), numbers)
    return None


def _filled(leaf: Any, total: complex) -> Any:
    """Return what becomes of a leaf of `x0`: only floating ones are unknowns."""
    if not eqx.is_inexact_array_like(leaf):
        return leaf
    return np.full(np.shape(leaf), total if jnp.iscomplexobj(leaf) else total.real)


def _call(entry: str, kind: str, as_x0: bool) -> Call:
    plain = np.ones(2)

    def arguments() -> tuple[Any, Any]:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            value = KINDS[kind]()
        return (value, plain) if as_x0 else (plain, value)

    judged = entry in ("solve", "implicit") or entry.startswith("grad")
    name = f"{kind} as {'x0' if as_x0 else 'theta'} of {entry}"
    right = (lambda: _right(entry, *arguments())) if judged else None
    # JAX's gradient of a deleted array: we see a tracer.
    own = kind == "deleted" and entry.startswith("grad")
    return Call(name, lambda: ENTRIES[entry](*arguments()), right, rtol=1e-2, own=own)


def calls() -> Iterator[Call]:
    """Yield every kind in every entry point."""
    for entry in ENTRIES:
        for kind in KINDS:
            for as_x0 in (True, False):
                yield _call(entry, kind, as_x0)
