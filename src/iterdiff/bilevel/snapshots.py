"""Snapshots of an outer run: written whole or not at all, and refused by another problem."""

import contextlib
import hashlib
import io
import os
import re
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from iterdiff.algorithms.base import Algorithm
from iterdiff.bilevel.inner_run import Posed
from iterdiff.bilevel.nudged import Nudged
from iterdiff.jaxtools.snapshot import traced

LEAF, COLUMN, FINGERPRINT = "leaf_", "column_", "fingerprint"


def fingerprint(posed: Posed | Nudged, x0: PyTree, theta0: PyTree, settings: PyTree) -> str:
    """Return a digest of what an outer run depends on, the same in every process.

    It covers what the functions compute (equations and constants), the data, the starts, and
    `settings`. The functions behind a callback or a custom derivative rule are not compared.
    """
    digest = hashlib.blake2b(digest_size=20)
    problem, loss = posed.first().bound()

    def step(x, theta):
        return posed.algorithm.step(problem, posed.algorithm.init(problem, x, theta), theta)

    stepped = (step,) if isinstance(posed.algorithm, Algorithm) else ()
    for function in (problem.residual, loss, *stepped):
        jaxpr, _ = traced(function, x0, theta0)
        digest.update(_without_addresses(str(jaxpr)))
        for constant in jaxpr.consts:
            _add(digest, constant)
    for leaf in jax.tree.leaves((posed.args, x0, theta0, settings)):
        _add(digest, leaf)
    digest.update(_without_addresses(repr(posed.mode)))
    return digest.hexdigest()


def _without_addresses(text: str) -> bytes:
    return re.sub(r"0x[0-9a-f]+", "", text).encode()


def _add(digest: Any, leaf: Any) -> None:
    if eqx.is_array_like(leaf):
        array = np.asarray(leaf)
        digest.update(f"{array.dtype}{array.shape}".encode())
        digest.update(array.tobytes())
    else:
        digest.update(_without_addresses(repr(leaf)))


def write(path: Path, progress: PyTree, columns: dict[str, np.ndarray], mark: str) -> None:
    """Write a snapshot: a kill at any moment leaves the old file or the new one.

    Raises
    ------
    ValueError
        If the file cannot be written.
    """
    buffer = io.BytesIO()
    leaves = jax.tree.leaves(progress)
    arrays = {f"{LEAF}{k}": np.asarray(leaf) for k, leaf in enumerate(leaves)}
    arrays |= {f"{COLUMN}{name}": values for name, values in columns.items()}
    arrays[FINGERPRINT] = np.array(mark)
    np.savez(buffer, allow_pickle=False, **arrays)
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, temporary = tempfile.mkstemp(prefix=".unfinished-", dir=path.parent)
        with os.fdopen(descriptor, "wb") as file:
            file.write(buffer.getvalue())
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        if temporary is not None:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
        reason = error.strerror or error
        raise ValueError(
            f"`resume`: {path} cannot be written ({reason}). Choose another path."
        ) from error


def read(path: Path, template: PyTree, mark: str) -> tuple[PyTree, dict[str, np.ndarray]]:
    """Return the progress and the columns that were written.

    Parameters
    ----------
    path : Path
        The file.
    template : pytree
        Progress of the same structure.
    mark : str
        The fingerprint of this run.

    Raises
    ------
    ValueError
        If the file is no snapshot, or one of another problem.
    """
    advice = "Choose another path, or remove the file to start anew."
    try:
        with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as file:
            arrays = dict(file)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(f"`resume`: {path} is no snapshot of an outer run. {advice}") from error
    leaves, structure = jax.tree.flatten(template)
    names = [f"{LEAF}{k}" for k in range(len(leaves))]
    if str(arrays.get(FINGERPRINT)) != mark or not arrays.keys() >= set(names):
        raise ValueError(
            f"`resume`: {path} is a snapshot of another problem, start or setting. {advice}"
        )
    restored = [_like(arrays[name], leaf) for name, leaf in zip(names, leaves, strict=True)]
    columns = {k.removeprefix(COLUMN): v for k, v in arrays.items() if k.startswith(COLUMN)}
    return jax.tree.unflatten(structure, restored), columns


def _like(array: np.ndarray, leaf: Any) -> Any:
    if isinstance(leaf, jax.Array):
        return jnp.asarray(array)
    return array if isinstance(leaf, np.ndarray) else type(leaf)(array)
