"""Compile functions of users' functions: one program each, kept for as long as it can be used."""

import contextlib
import contextvars
import functools
import threading
import types
import weakref
from collections import OrderedDict, deque
from collections.abc import Callable, Hashable, Iterator
from typing import Any, NamedTuple, TypeVar

import equinox as eqx
import jax
import numpy as np

from iterdiff.jaxtools import tree
from iterdiff.jaxtools.closures import hoist
from iterdiff.jaxtools.transformations import transforming

F = TypeVar("F", bound=Callable[..., Any])

MAX_CACHED_PROGRAMS = 128
"""Number of programs that are kept; the least recently used one is dropped first."""

TRACING_OPTIONS = (
    "jax_enable_x64",
    "jax_default_matmul_precision",
    "jax_numpy_dtype_promotion",
    "jax_numpy_rank_promotion",
    "jax_debug_nans",
    "jax_default_prng_impl",
)
"""Options of JAX that change what a trace contains."""

QUICK_OPTIONS: dict[str, int | bool] = {"xla_backend_optimization_level": 0}
"""Options of XLA's compiler for processors. They change how machine code is made, not what is
computed: a program compiles in less than half the time, and its loops run several times slower."""
if jax.__version_info__ < (0, 11):  # later ones do not know it
    QUICK_OPTIONS["xla_cpu_use_fusion_emitters"] = False

QUICK_MAX_READS = 20_000_000
"""Largest product of a program's numbers and evaluations for which quick compilation pays: reading
this many numbers takes its loops less time than it saves."""

_max_numbers = contextvars.ContextVar("max_numbers", default=0)


class Program(NamedTuple):
    """A compiled function with the values that it closes over.

    Attributes
    ----------
    run : callable
        ``run(closed_over, arrays)`` returns the arrays of the result; compiled by `jax.jit`.
    closed_over : pytree of arrays
        What the function closes over, an input of the program.
    static : pytree
        The parts of the result that are no arrays.
    """

    run: Callable
    closed_over: Any
    static: Any


def compiled(function: F) -> F:
    """Return `function` compiled; the values that it closes over become inputs of the program.

    As :func:`equinox.filter_jit`: arrays are traced, and everything else is static and compared.
    There are three differences. Arrays that a user's function closes over are inputs of the
    program; as constants they would be copied several times while it is compiled, and once more
    into it. The number of programs is bounded. And a program is dropped when a function among its
    static arguments is collected, so that no program keeps a dataset alive.

    A function among the arguments is compared by identity. What it reads besides its arguments is
    compared only through a `Snapshot` among the arguments.

    Parameters
    ----------
    function : callable
        Takes positional arguments.

    Returns
    -------
    callable
        The compiled function.
    """

    @functools.wraps(function)
    def call(*args):
        if getattr(jax.config, "jax_disable_jit"):  # noqa: B009  (the type has no attributes)
            return function(*args)
        dynamic, static = eqx.partition(args, _is_array)
        program = _programs.get(function, dynamic, static)
        return eqx.combine(program.run(program.closed_over, dynamic), program.static)

    return call  # pyright: ignore[reportReturnType]


@contextlib.contextmanager
def quickly_compiled(evaluations: int = 1000) -> Iterator[None]:
    """Compile small programs quickly within it: those of tools, which run a few times.

    Where JAX transforms the caller, a program is a part of another one, and compiled with it.

    Parameters
    ----------
    evaluations : int
        About how often a program reads its inputs.
    """
    before = _max_numbers.set(QUICK_MAX_READS // evaluations)
    try:
        yield
    finally:
        _max_numbers.reset(before)


def quick_max_numbers() -> int:
    """Return up to how many numbers among its inputs a program is compiled quickly; 0 for none."""
    if jax.default_backend() != "cpu" or transforming():
        return 0
    return _max_numbers.get()


def program_of(function: Callable, *args: Any) -> Program:
    """Return the program that `compiled` runs for these arguments."""
    return _programs.get(function, *eqx.partition(args, _is_array))


class _Programs:
    """The programs that were used last, by function, static arguments and types of arrays."""

    def __init__(self):
        self._kept: OrderedDict[Hashable, Program] = OrderedDict()
        self._lock = threading.Lock()
        self._unusable: deque[Hashable] = deque()

    def kept(self) -> list[Program]:
        """Return the programs that can still be used."""
        with self._lock:
            self._drop_unusable()
            return list(self._kept.values())

    def _drop_unusable(self) -> None:
        while self._unusable:
            self._kept.pop(self._unusable.popleft(), None)

    def get(self, function: Callable, dynamic: Any, static: Any) -> Program:
        """Return the program for these arguments; make it if it is not kept."""
        arrays, places = jax.tree.flatten(dynamic)
        leaves, structure = jax.tree.flatten(static)
        options = tuple(getattr(jax.config, name) for name in TRACING_OPTIONS)
        max_numbers = quick_max_numbers()
        quick = 0 < tree.size(arrays) <= max_numbers
        context = options, jax.sharding.get_abstract_mesh(), quick
        rest = function, structure, places, tuple(jax.typeof(v) for v in arrays), context
        key = rest, tuple(_key(leaf) for leaf in leaves)
        with self._lock:
            self._drop_unusable()
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key]
        program = _program(function, dynamic, static, max_numbers if quick else 0)
        if not any(tree.is_traced(v) for v in jax.tree.leaves(program.closed_over)):
            self._keep((rest, leaves), program)
        return program

    def _keep(self, parts: tuple[tuple, list], program: Program) -> None:
        rest, leaves = parts
        # The callback only appends: it may run at any time, in any thread.
        key = rest, tuple(_key(leaf, lambda _: self._unusable.append(key)) for leaf in leaves)
        with self._lock:
            self._kept[key] = program
            if len(self._kept) > MAX_CACHED_PROGRAMS:
                self._kept.popitem(last=False)


def _key(leaf: Any, collected: Callable | None = None) -> Hashable:
    """Return a static leaf as part of a key: a function by a weak reference, others by value."""
    if isinstance(leaf, types.FunctionType):
        return weakref.ref(leaf, collected)
    return (type(leaf), leaf) if isinstance(leaf, Hashable) else _Itself(leaf)


class _Itself:
    """A value that cannot be hashed, compared by identity."""

    def __init__(self, value: Any):
        self.value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Itself) and self.value is other.value

    def __hash__(self) -> int:
        return id(self.value)


_programs = _Programs()


def _program(function: Callable, dynamic: Any, static: Any, max_numbers: int) -> Program:
    static_result = None

    def of_arrays(dynamic):
        nonlocal static_result
        found, static_result = eqx.partition(function(*eqx.combine(dynamic, static)), eqx.is_array)
        return found

    explicit, closed_over = hoist(of_arrays, dynamic)
    quick = tree.size((dynamic, closed_over)) <= max_numbers
    run = jax.jit(explicit, compiler_options=QUICK_OPTIONS if quick else None)
    return Program(run, closed_over, static_result)


def _is_array(leaf: Any) -> bool:
    return isinstance(leaf, jax.Array | np.ndarray | np.generic)
