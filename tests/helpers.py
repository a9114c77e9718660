"""What several test files need: derivatives of every kind at once, and relative errors.

Compiling takes nearly all the time of this suite, so that all derivatives of one map go into one
compiled program.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from tests.cases import Case

AS_SHIPPED = {
    "xla_backend_optimization_level": 3,
    "xla_cpu_parallel_codegen_split_count": 32,
}
"""XLA's own settings, which ``compiling.py`` overrides: for tests of what a program costs."""
if jax.__version_info__ < (0, 11):  # see compiling.py
    AS_SHIPPED["xla_cpu_use_fusion_emitters"] = True

ALL = ("forward", "reverse", "batched", "reverse_over_reverse", "forward_over_reverse")


def compiled(function: Callable) -> Callable:
    """Return `function` under ``jit``: one program, where eager calls compile one each."""
    return jax.jit(function)


def relative_error(a: PyTree, b: PyTree) -> float:
    """Return ``|a - b| / |b|`` over all leaves; structures, shapes and dtypes must agree."""
    assert jax.tree.structure(a) == jax.tree.structure(b)
    above = below = 0.0
    for u, v in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert (u.shape, u.dtype) == (v.shape, v.dtype)
        above += float(np.sum((np.asarray(u, float) - np.asarray(v, float)) ** 2))
        below += float(np.sum(np.asarray(v, float) ** 2))
    assert below > 0, "nothing to compare with"
    return (above / below) ** 0.5


class Counter:
    """Counts the products that run, those of a batch one by one."""

    def __init__(self):
        self.count = 0

    def _add(self, _):
        self.count += 1

    def __call__(self, v):
        """Return `v`, and count that the program gets here."""

        def same(_, v):
            jax.debug.callback(self._add, v[0])
            return v

        # A linear solve with the identity: JAX transposes and batches it.
        return jax.lax.custom_linear_solve(lambda v: v, v, same, same)

    def take(self) -> int:
        """Return the count, and begin again."""
        jax.effects_barrier()
        count, self.count = self.count, 0
        return count


def dot(a: PyTree, b: PyTree) -> jax.Array:
    """Return the inner product of two trees, in float64."""
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return sum(jnp.sum(u * v).astype(float) for u, v in pairs)


def fixed_direction(like: PyTree) -> PyTree:
    """Return entries between 0.3 and 1.2, none of them alike."""
    leaves, structure = jax.tree.flatten(like)
    made = []
    for k, leaf in enumerate(leaves):
        values = 0.3 + 0.9 * np.mod(0.37 + 0.618 * np.arange(leaf.size) + 0.23 * k, 1.0)
        made.append(jnp.asarray(values.reshape(leaf.shape), leaf.dtype))
    return jax.tree.unflatten(structure, made)


def neighbours(theta: PyTree) -> PyTree:
    """Return two parameters near `theta`, stacked."""
    return jax.tree.map(lambda leaf: jnp.stack([leaf, leaf * jnp.asarray(1.03, leaf.dtype)]), theta)


def derivatives(solution: Callable, case: Case, kinds: tuple[str, ...] = ALL) -> dict[str, Any]:
    """Return derivatives of the map ``solution`` at the case's theta, by their names in `ALL`.

    First order: the whole Jacobian, forward and reverse, and gradients of a nonlinear loss over a
    batch of parameters. Second order: a product of that loss's Hessian with a vector. The value is
    that of the first kind: another solve for it alone would be compiled once more.
    """
    theta = case.theta
    weights, direction = fixed_direction(case.x0), fixed_direction(theta)

    def twice(theta):
        return (solution(theta),) * 2

    def loss(theta):
        x = solution(theta)
        return dot(weights, x) + dot(x, x) / 2, x

    def slope(theta):
        gradient, x = gradient_of_loss(theta)
        return dot(direction, gradient), x

    def over_a_batch():
        gradients, x = jax.vmap(gradient_of_loss)(neighbours(theta))
        return gradients, jax.tree.map(lambda leaf: leaf[0], x)

    gradient_of_loss = jax.grad(loss, has_aux=True)
    # Each returns the derivative and the value.
    makers = {
        "forward": lambda: jax.jacfwd(twice, has_aux=True)(theta),
        "reverse": lambda: jax.jacrev(twice, has_aux=True)(theta),
        "batched": over_a_batch,
        "reverse_over_reverse": lambda: jax.grad(slope, has_aux=True)(theta),
        "forward_over_reverse": lambda: jax.jvp(
            gradient_of_loss, (theta,), (direction,), has_aux=True
        )[1:],
    }
    found = {kind: makers[kind]() for kind in kinds}
    return {"value": found[kinds[0]][1], **{kind: made for kind, (made, _) in found.items()}}
