"""What doctests run under, wherever pytest is started: the same as the tests."""

import contextlib
from collections.abc import Iterator

import jax
import pytest

import tests.conftest  # noqa: F401  (sets JAX up)


@pytest.fixture(autouse=True)
def lenient_promotion_for_foreign_code(request: pytest.FixtureRequest) -> Iterator[None]:
    """Hold our code to strict promotion, but not the libraries that adapters call."""
    parts = request.node.path.parts
    foreign = "external" in parts or ("src" in parts and "adapters" in parts)
    with contextlib.ExitStack() as stack:
        if foreign:
            stack.enter_context(jax.numpy_dtype_promotion("standard"))
            stack.enter_context(jax.numpy_rank_promotion("allow"))
        yield
