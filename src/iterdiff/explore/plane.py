"""The plane of x and dx/dθ: where the iterate and each derivative are, step by step."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from iterdiff.diagnostics.recorder import Recorder
from iterdiff.diagnostics.trace import build_recorder
from iterdiff.jaxtools.jit import compiled
from iterdiff.study.config import Study
from iterdiff.study.run import trace_arguments


class Paths(NamedTuple):
    """One unknown and its derivative in one parameter, over the iterations.

    Attributes
    ----------
    x : float array of shape (steps + 1,)
        The unknown.
    slopes : mapping of str to float array of shape (steps + 1,)
        Its derivative by each mode.
    solution : (float, float)
        The unknown and its derivative at the solution.
    unknown, parameter : int
        Which entries: those of the largest derivative.
    single : bool
        Whether there is only one unknown and one parameter.
    """

    x: np.ndarray
    slopes: dict[str, np.ndarray]
    solution: tuple[float, float]
    unknown: int
    parameter: int
    single: bool


def paths(study: Study) -> Paths:
    """Return the paths of the only case of a study.

    Raises
    ------
    TypeError, ValueError
        As `iterdiff.trace`.
    """
    [case] = study.cases
    run, options = trace_arguments(study, case)
    recorder = build_recorder(*run, **{**options, "every": 1, "estimate": False})
    exact = np.asarray(_rows(recorder.reference.tangents))
    parameter, unknown = np.unravel_index(np.argmax(np.abs(exact)), exact.shape)
    place = jnp.asarray([parameter, unknown])
    x, slopes = jax.device_get(_followed(recorder, place, case.steps))
    solution = _flat(recorder.reference.x)[unknown], exact[parameter, unknown]
    ends = float(solution[0]), float(solution[1])
    ordered = {name: slopes[name] for name in study.modes}  # JAX sorts the keys
    return Paths(x, ordered, ends, int(unknown), int(parameter), exact.size == 1)


def _flat(x: Any) -> Array:
    return jnp.concatenate([jnp.ravel(leaf) for leaf in jax.tree.leaves(x)])


def _rows(tangents: Any) -> Array:
    """Return the tangents as rows, one for each direction."""
    leaves = jax.tree.leaves(tangents)
    return jnp.concatenate([leaf.reshape(leaf.shape[0], -1) for leaf in leaves], axis=1)


@compiled
def _followed(recorder: Recorder, place: Array, steps: int) -> tuple[Array, dict[str, Array]]:
    """Return the chosen unknown, and its chosen derivatives, at every iteration."""

    def seen(carry: Any) -> tuple[Array, dict[str, Array]]:
        state, carried = carry
        slopes = {
            name: _rows(follower.value(carried[name], state))[place[0], place[1]]
            for name, follower in recorder.tangents.items()
        }
        return _flat(state.x)[place[1]], slopes

    def step(carry: Any, _: None) -> tuple[Any, Any]:
        return recorder.advance(carry), seen(carry)

    carry, found = jax.lax.scan(step, recorder.begin(), None, steps)
    return jax.tree.map(jnp.append, found, seen(carry))
