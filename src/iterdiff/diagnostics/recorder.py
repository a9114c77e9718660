"""Run an iteration with the tangents of its iterates, and record how wrong both are."""

from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, PyTree

from iterdiff.accuracy.correction import correct
from iterdiff.accuracy.estimate import compare
from iterdiff.diagnostics.reference import Reference
from iterdiff.jaxtools import tree
from iterdiff.jaxtools.jaxpr import shared
from iterdiff.jaxtools.jit import compiled
from iterdiff.loop.task import Tangents, Task

Progress = Callable[[int, int], None]
"""Called as ``progress(done, total)`` with numbers of records."""

MAX_REPORTS = 100
"""Upper limit of the number of progress reports. Each one costs a return to Python."""

Carry = tuple[Any, dict[str, PyTree]]
"""The algorithm's state, and what each mode carries to follow its tangents."""


class EstimatedError(NamedTuple):
    """The error of a Jacobian, estimated without the reference.

    Attributes
    ----------
    absolute : scalar
        The estimate, as `derivative_error` returns it.
    trusted : bool
        Whether it is meant to be within a factor of two of the truth.
    """

    absolute: Float[Array, ""]
    trusted: Bool[Array, ""]


class Record(NamedTuple):
    """The numbers recorded of one iterate; `trace` defines them.

    `record_all` returns one Record of arrays, one entry per iterate.
    """

    iterate_error: Float[Array, "..."]
    objective_error: Float[Array, "..."] | None
    residual_norm: Float[Array, "..."]
    jacobian_error: dict[str, Float[Array, "..."]]
    estimated_error: dict[str, EstimatedError] | None


class Recorder(eqx.Module):
    """An iteration whose iterates and tangents are compared with a reference.

    Attributes
    ----------
    task : Task
        The iteration.
    tangents : dict of str to Tangents
        How each mode follows its tangents.
    reference : Reference
        The solution and its Jacobian.
    directions : pytree
        The directions of the tangents, stacked along a first axis.
    probes : int, optional
        The number of random directions; None if they are the basis, for the full Jacobian.
    every : int
        Steps from one record to the next.
    estimate : bool
        Whether errors are also estimated without the reference.
    """

    task: Task
    tangents: dict[str, Tangents]
    reference: Reference
    directions: PyTree
    probes: int | None = eqx.field(static=True)
    every: int = eqx.field(static=True)
    estimate: bool = eqx.field(static=True)

    @property
    def count(self) -> int:
        """Number of records before the last one."""
        return self.task.stop.max_steps // self.every

    def begin(self) -> Carry:
        """Return the state and the tangents at iteration 0."""
        state = self.task.state()
        return state, {name: follower.init(state) for name, follower in self.tangents.items()}

    def advance(self, carry: Carry) -> Carry:
        """Return the state and the tangents after one more step."""
        state, carried = carry
        new_state = self.task.step(state)
        new_carried = {
            name: follower.update(carried[name], state) for name, follower in self.tangents.items()
        }
        return new_state, new_carried

    def measure(self, carry: Carry) -> Record:
        """Return the record of the current iterate."""
        state, carried = carry
        problem, theta, truth = self.task.problem, self.task.theta, self.reference
        answer, objective_error = problem.answer, None
        value, least = (problem.value(x, theta) for x in (state.x, truth.x))
        if value is not None and least is not None:
            objective_error = value - least
        jacobians = {
            name: follower.value(carried[name], state) for name, follower in self.tangents.items()
        }
        errors = {
            name: self.frobenius(tree.sub(answer(tangents), answer(truth.tangents)))
            for name, tangents in jacobians.items()
        }
        return Record(
            tree.norm(tree.sub(answer(state.x), answer(truth.x))),
            objective_error,
            tree.norm(problem.residual(state.x, theta)),
            errors,
            self._estimated(state.x, jacobians) if self.estimate else None,
        )

    def frobenius(self, tangents: PyTree) -> Float[Array, ""]:
        """Return the Frobenius norm of the Jacobian with these tangents, estimated with probes."""
        return self._per_direction(tree.norm(tangents))

    def _per_direction(self, norm: Float[Array, ""]) -> Float[Array, ""]:
        return norm / np.sqrt(float(1 if self.probes is None else self.probes))

    def _estimated(self, x: PyTree, jacobians: dict[str, PyTree]) -> dict[str, EstimatedError]:
        """Estimate the errors of all modes' tangents from one Newton correction of `x`."""
        correction = correct(self.task.problem, x, self.task.theta)
        at_x = jax.vmap(correction.at.forward)(self.directions)
        corrected = jax.vmap(correction.exactly().forward)(self.directions)
        answer = self.task.problem.answer
        estimated = {}
        for name, tangents in jacobians.items():
            seen = answer(tangents), answer(at_x), answer(corrected)
            error = compare(*seen, correction.points)
            estimated[name] = EstimatedError(self._per_direction(error.absolute), error.trusted)
        return estimated


@compiled
def begin(recorder: Recorder) -> Carry:
    """Return the state and the tangents at iteration 0."""
    return recorder.begin()


def record_rows(
    recorder: Recorder, carry: Carry, count: int, ends: bool = False
) -> tuple[Carry, Float[Array, "count k"], Record]:
    """Make `count` records, and take the steps between them.

    The program is one scan whose only output per record is one row of numbers, the leaves of its
    `Record`: writing them one by one takes longer than a step of a small problem. Work that the
    record and the next step have in common, such as a gradient, is done once.

    Parameters
    ----------
    recorder : Recorder
        What is recorded.
    carry
        The state and the tangents at the first record.
    count : int
        The number of records.
    ends : bool
        Whether the last record is that of the last iterate. Only one step follows it then, as part
        of the work in common: a record without it would be a second program, as large as this one.

    Returns
    -------
    carry
        The state and the tangents after ``count * recorder.every`` steps, unless it `ends`.
    rows : float array of shape (count, k)
        One row per record.
    layout : Record of jax.ShapeDtypeStruct
        Structure and dtypes of a record, for `unstacked`.
    """
    dynamic, static = eqx.partition(carry, eqx.is_array)
    layout: Any = None

    def one_step(dynamic, _):
        advanced = recorder.advance(eqx.combine(dynamic, static))
        return eqx.filter(advanced, eqx.is_array), None

    @shared
    def measured_step(dynamic):
        nonlocal layout
        measured = recorder.measure(eqx.combine(dynamic, static))
        layout = jax.tree.map(lambda v: jax.ShapeDtypeStruct((), v.dtype), measured)
        return one_step(dynamic, None)[0], _row(measured)

    def one_record(dynamic, more):
        dynamic, row = measured_step(dynamic)
        if recorder.every > 1:
            step = lambda _, dynamic: one_step(dynamic, None)[0]  # noqa: E731
            dynamic = jax.lax.fori_loop(0, more, step, dynamic)
        return dynamic, row

    more = np.full(count, recorder.every - 1, np.int32)
    if ends:
        more[-1] = 0
    dynamic, rows = jax.lax.scan(one_record, dynamic, more)
    return eqx.combine(dynamic, static), rows, layout


record = compiled(record_rows)
"""`record_rows` as one compiled program."""


def record_all(recorder: Recorder, progress: Progress | None = None) -> Record:
    """Run the whole iteration, in chunks if progress is reported.

    Returns
    -------
    Record
        NumPy arrays of shape (records,), the last iterate included.
    """
    carry, chunks, done, layout = begin(recorder), [], 0, None
    total = recorder.count + 1
    chunk = total if progress is None else -(-total // MAX_REPORTS)
    while done < total:
        length = min(chunk, total - done)
        # Without steps between records, the last chunk is no other program.
        ends = recorder.every > 1 and done + length == total
        carry, rows, layout = record(recorder, carry, length, ends)
        chunks.append(np.asarray(rows))
        done += length
        if progress is not None:
            progress(done, total)
    assert layout is not None
    return unstacked(np.concatenate(chunks), layout)


def unstacked(rows: np.ndarray, layout: Record) -> Record:
    """Return the rows of `record_rows` as a record of arrays."""
    leaves, structure = jax.tree.flatten(layout)
    columns = [column.astype(like.dtype) for column, like in zip(rows.T, leaves, strict=True)]
    return jax.tree.unflatten(structure, columns)


def _row(record: Record) -> Float[Array, " k"]:
    leaves = jax.tree.leaves(record)
    dtype = jnp.result_type(*filter(tree.is_floating, leaves))
    return jnp.stack([leaf.astype(dtype) for leaf in leaves])
