"""`transforming` tells whether a JAX transformation is running."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest

from iterdiff.jaxtools.transformations import transforming

TRANSFORMATIONS = {
    "jit": lambda f: jax.jit(f)(jnp.ones(2)),
    "vmap": lambda f: jax.vmap(f)(jnp.ones(2)),
    "grad": lambda f: jax.grad(f)(1.0),
    "jvp": lambda f: jax.jvp(f, (1.0,), (1.0,)),
    "make_jaxpr": lambda f: jax.make_jaxpr(f)(1.0),
}


@pytest.mark.parametrize("name", TRANSFORMATIONS)
def test_inside_a_transformation_and_after_it(name):
    seen = []

    def function(x):
        seen.append(transforming())
        return x

    TRANSFORMATIONS[name](function)
    assert seen == [True]
    assert not transforming()


def test_a_first_call_inside_a_transformation():
    script = (
        "import jax; from iterdiff.jaxtools.transformations import transforming as t\n"
        "seen = []; jax.jit(lambda x: seen.append(t()) or x)(1.0)\n"
        "assert seen == [True] and not t()\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
