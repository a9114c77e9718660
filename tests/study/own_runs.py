"""A problem of a user's own, with ways to fail: x_t = 2 theta (1 - 2**-t) from Picard's steps."""

import os
import resource
from pathlib import Path

import jax.numpy as jnp
import numpy as np

import iterdiff as itd

PROBLEM = itd.FixedPoint(lambda x, theta: 0.5 * x + theta)
NOTHING = 3


def run(theta: float = 1.0, fault: str = "none"):
    """Return the run, or fail in the given way."""
    if fault == "raises":
        raise RuntimeError("broken <b>on purpose</b>")
    if fault == "ends the process":
        os._exit(9)
    if fault == "fills the memory":
        fill_memory()
    return PROBLEM, itd.Picard(), jnp.asarray(0.0), jnp.asarray(float(theta))


def fill_memory(spare: int = 2**28):
    """Take memory until the operating system refuses more, `spare` bytes above what is in use."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + spare, before[1]))
    try:
        return [np.ones(2**22) for _ in range(1000)]
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


SLOPED = itd.FixedPoint(lambda x, theta, slope: slope * x + theta)


def sloped(slope: float):
    """Return a run without a solution for slope 1; otherwise x_t = (1 - slope**t) / (1 - slope)."""
    run = {"problem": SLOPED, "algorithm": itd.Picard(), "x0": 0.0, "theta": 1.0}
    return {**run, "args": jnp.asarray(slope)}


def needs(size):
    """Need a parameter."""
    raise NotImplementedError(size)


def as_mapping(scale: float = 2.0):
    """Return data and a spectrum besides."""
    problem = itd.Minimization(lambda x, theta, scale: scale * (x - theta) ** 2 / 2)
    return {
        "problem": problem,
        "x0": jnp.asarray(0.0),
        "theta": jnp.asarray(1.0),
        "args": jnp.asarray(scale),
        "spectrum": (scale, scale),
        "title": "a parabola",
    }


def wrong():
    """Return something else."""
    return {"problem": PROBLEM, "x_0": 1.0, "theta": 2.0}
