"""The test bench itself does what it promises."""

import subprocess
import sys
import warnings
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from jaxtyping import TypeCheckError

import iterdiff
from iterdiff.jaxtools import tree
from iterdiff.problems.inputs import takes_data

CONFTEST = Path(__file__).parents[1] / "conftest.py"


def test_annotations_are_checked():
    with pytest.raises(TypeCheckError):
        takes_data("no problem")
    with pytest.raises(TypeCheckError):
        tree.from_vector(jnp.zeros((2, 2)), jnp.zeros(4))


def test_warnings_are_errors():
    with pytest.raises(UserWarning):
        warnings.warn("this must not pass unseen", stacklevel=1)


def test_keys_are_fresh_and_reproducible(getkey):
    first, second = getkey(), getkey()
    assert not jnp.array_equal(jax.random.key_data(first), jax.random.key_data(second))


@pytest.mark.parametrize("variable", [{}, {"ITERDIFF_SEED": "7"}])
def test_a_failure_prints_its_seed(variable, tmp_path, monkeypatch):
    for name, value in {"PYTHONPATH": str(CONFTEST.parents[1]), **variable}.items():
        monkeypatch.setenv(name, value)
    (tmp_path / "conftest.py").write_text(CONFTEST.read_text(encoding="utf-8"), encoding="utf-8")
    (tmp_path / "test_it.py").write_text(
        "import jax\n\n\ndef test_it(getkey):\n    assert jax.random.uniform(getkey()) > 1\n",
        encoding="utf-8",
    )
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(tmp_path)],
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert run.returncode == 1
    assert f"repeat with ITERDIFF_SEED={variable.get('ITERDIFF_SEED', '20220913')}" in run.stdout


def test_the_citation_names_the_version():
    citation = CONFTEST.parents[1].joinpath("CITATION.cff").read_text(encoding="utf-8")
    assert f"\nversion: {iterdiff.__version__}\n" in citation
