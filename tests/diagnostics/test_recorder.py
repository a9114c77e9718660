"""A recorder can be built, lowered and run apart from `trace`."""

import equinox as eqx
import jax.numpy as jnp
import numpy as np

import iterdiff as itd
from iterdiff.diagnostics.recorder import begin, record
from iterdiff.diagnostics.trace import build_recorder
from iterdiff.jaxtools import tree
from tests.cases import build
from tests.helpers import AS_SHIPPED

MODES = {"unrolled": itd.Unrolled(), "implicit": itd.Implicit(), "one-step": itd.OneStep()}


def test_a_recorder_can_be_run_apart_from_trace():
    case = build("ridge")
    task = (case.problem, case.algorithms[0].algorithm, case.x0, case.theta)
    options = {"steps": 12, "modes": {"unrolled": itd.Unrolled()}}
    recorder, data = build_recorder(*task, **options), itd.trace(*task, **options)
    (state, _), rows, _ = record(recorder, begin(recorder), recorder.count)
    assert rows.shape == (12, 4)
    np.testing.assert_allclose(rows[:, 0], data.iterate_error[:-1], rtol=1e-12)
    end = tree.norm(tree.sub(state.x, recorder.reference.x))
    np.testing.assert_allclose(end, data.iterate_error[-1], rtol=1e-12)


def test_memory_does_not_grow_with_the_steps():
    n = 60
    matrix = np.diag(np.linspace(1, 2, n))
    problem = itd.Minimization(lambda x, theta: x @ matrix @ x / 2 - theta @ x)
    task = (problem, itd.GradientDescent(0.5), jnp.zeros(n), jnp.ones(n))

    def temporary(steps):
        recorder = build_recorder(*task, steps=steps, modes=MODES, reference=1 / np.diag(matrix))
        program = eqx.filter_jit(record).lower(recorder, begin(recorder), recorder.count)
        memory = program.compile(AS_SHIPPED).compiled.memory_analysis()
        return memory.temp_size_in_bytes, memory.output_size_in_bytes

    (few, few_out), (many, many_out) = temporary(10), temporary(1000)
    jacobian = 8 * n * n
    assert few > jacobian  # else nothing is measured
    assert many - few < jacobian
    # The output is the carry, and one number per curve and iteration (3 modes, 3 curves).
    assert many_out - few_out <= 990 * 8 * 8
