"""What every test runs under: float64, strict promotion, fixed seeds, checked annotations.

The annotations are checked by beartype through jaxtyping's own pytest option, set in
``pyproject.toml``; it must be in force before iterdiff is first imported.
"""

import ast
import gc
import os
from collections.abc import Callable, Iterator

import jax
import matplotlib
import pytest
from jaxtyping._import_hook import JaxtypingTransformer

from tests.compiling import FLAGS

# XLA's pool has this many threads. With more, jaxlib 0.10's batched LAPACK calls wait in the pool
# for work that only the pool can do: as many at once as it has threads wait for ever.
os.environ["NPROC"] = "1"
os.environ["XLA_FLAGS"] = " ".join(FLAGS + os.environ.get("XLA_FLAGS", "").split())

jax.config.update("jax_enable_x64", True)
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")
# A program that calls back to Python and runs beside the one that waits for it can deadlock where
# cores are few (jax-ml/jax issues 24255 and 25861); run in the thread that calls it, it cannot.
jax.config.update("jax_cpu_enable_async_dispatch", False)
matplotlib.use("Agg")

_visit = JaxtypingTransformer.visit_FunctionDef


def _visit_without_body(self: JaxtypingTransformer, node: ast.FunctionDef) -> ast.FunctionDef:
    """Let annotations be checked, but not those of functions inside this one.

    The checks of an inner function are compiled again at each call of the outer one, which takes
    a tenth of the run.
    """
    body, node.body = node.body, []
    node = _visit(self, node)
    node.body = body
    return node


JaxtypingTransformer.visit_FunctionDef = _visit_without_body

# Imports and traces make many objects and little garbage: by default the collector, which calls
# JAX's own at each of its turns, takes up to a twentieth of a test.
gc.set_threshold(50_000, 20, 100)

SEED_VARIABLE = "ITERDIFF_SEED"
DEFAULT_SEED = 20220913
# Compiled programs are dropped between modules once a process holds this much (in MiB).
CACHE_LIMIT_MIB = 3000


def _seed() -> int:
    return int(os.environ.get(SEED_VARIABLE, DEFAULT_SEED))


@pytest.fixture
def getkey(request: pytest.FixtureRequest) -> Callable[[], jax.Array]:
    """Return a function that gives a fresh random key at each call, the same in every run."""
    key = jax.random.key(_seed())
    request.node.user_properties.append((SEED_VARIABLE, _seed()))

    def next_key() -> jax.Array:
        nonlocal key
        key, fresh = jax.random.split(key)
        return fresh

    return next_key


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo):
    """Print the seed with the failure of a test that draws random numbers."""
    report = yield
    seeds = [value for name, value in item.user_properties if name == SEED_VARIABLE]
    if report.failed and seeds:
        report.sections.append(("Seed", f"repeat with {SEED_VARIABLE}={seeds[0]}"))
    return report


def pytest_collection_finish() -> None:
    """Freeze what the imports have made: see `drop_compiled_programs`."""
    gc.freeze()


def pytest_report_header() -> str:
    """Say which seed the run uses, also when nothing fails."""
    return f"{SEED_VARIABLE}={_seed()}"


def _resident_mib() -> float:
    try:
        with open("/proc/self/statm", encoding="ascii") as file:
            pages = int(file.read().split()[1])
    except OSError:  # no such file system here: never clear
        return 0.0
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


@pytest.fixture(scope="module", autouse=True)
def drop_compiled_programs() -> Iterator[None]:
    """Give memory back after a module whose compiled programs have grown too large.

    What a module leaves alive is frozen: the collector need not look at it again, which takes a
    tenth of the run.
    """
    yield
    if _resident_mib() > CACHE_LIMIT_MIB:
        gc.unfreeze()
        jax.clear_caches()
        gc.collect()
    gc.freeze()
