"""Second derivatives through every mode inside JAX's transformations and loops.

Before JAX 0.12, a scan that is differentiated twice drops the rule of a `jax.custom_jvp` function
whose inputs depend on the loop. The values stay right; second derivatives are silently wrong.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optimistix as optx
import pytest

import iterdiff as itd
from tests.helpers import compiled

STOP = itd.ResidualBelow(rtol=1e-13, max_steps=200)
PROBLEM = itd.Minimization(lambda x, theta: (1 + theta**2) * x**2 / 2 - theta * x)


def closed_form(theta):
    return theta / (1 + theta**2)


def solved(mode, stop=STOP):
    run = PROBLEM, itd.GradientDescent(0.6), jnp.array(0.0)
    return lambda theta: itd.solve(*run, theta, stop=stop, mode=mode).x


def by_optimistix(theta):
    solver = optx.Newton(rtol=1e-12, atol=1e-12)
    adjoint = itd.adapters.as_optimistix_adjoint(itd.Implicit())
    return optx.root_find(PROBLEM.residual, solver, jnp.array(0.0), theta, adjoint=adjoint).value


@itd.implicit(PROBLEM)
def wrapped(x0, theta):
    del x0
    return closed_form(theta)


SOLUTIONS = {
    "implicit": solved(itd.Implicit()),
    "unrolled": solved(itd.Unrolled()),
    "late": solved(itd.Unrolled(last=100), itd.Steps(150)),
    "checked implicit": solved(itd.Checked(itd.Implicit(), on_failure="nan")),
    "checked unrolled": solved(itd.Checked(itd.Unrolled(), on_failure="nan")),
    "decorator": lambda theta: wrapped(jnp.array(0.0), theta),
    "optimistix adjoint": by_optimistix,
}


def in_a_scan_carry(f, theta):
    return jax.lax.scan(lambda carry, _: (f(carry), None), theta, None, 2)[0]


def in_a_scan_closure(f, theta):
    return jax.lax.scan(lambda total, u: (total + f(u * theta), None), 0.0, jnp.ones(2))[0]


# Every program is compiled under `jit` as a whole.
REVERSIBLE = {
    "vmap": lambda f, theta: jnp.mean(jax.vmap(f)(theta * jnp.arange(1.0, 3.0))),
    "map": lambda f, theta: jnp.mean(jax.lax.map(f, theta * jnp.arange(1.0, 3.0))),
    "scan carry": in_a_scan_carry,
    "scan closure": in_a_scan_closure,
    "checkpoint in cond": lambda f, theta: jax.lax.cond(
        theta > 0, jax.checkpoint(f), lambda t: t, theta
    ),
}
FORWARD = {
    "map": REVERSIBLE["map"],
    "while": lambda f, theta: jax.lax.while_loop(lambda c: c > 0.4, f, theta),
}
DROPPING = ("scan carry", "scan closure", "while")
"""The loops that drop a rule. Only these are for what attaches its derivative as a mode does that
is tested in all loops; `test_checked` has the second derivatives of checked modes elsewhere."""
IN_ALL_LOOPS = ("implicit", "unrolled", "late")


@pytest.mark.parametrize("name", SOLUTIONS)
def test_second_derivatives(name):
    def all_of(f, theta):
        reverse = {k: jax.hessian(lambda t, g=g: g(f, t))(theta) for k, g in reversible.items()}
        forward = {
            k: jax.jacfwd(jax.jacfwd(lambda t, g=g: g(f, t)))(theta) for k, g in forwards.items()
        }
        return reverse, forward

    reversible, forwards = (
        {k: g for k, g in loops.items() if k in DROPPING or name in IN_ALL_LOOPS}
        for loops in (REVERSIBLE, FORWARD)
    )
    found, expected = (
        compiled(lambda theta, f=f: all_of(f, theta))(jnp.array(0.7))
        for f in (SOLUTIONS[name], closed_form)
    )
    for values, truths in zip(found, expected, strict=True):
        for label, value in values.items():
            np.testing.assert_allclose(
                value, truths[label], rtol=1e-7, err_msg=f"{name} in {label}"
            )
