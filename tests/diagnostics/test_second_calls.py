"""A second call with the same shapes and functions compiles nothing."""

import jax
import jax.numpy as jnp

import iterdiff as itd

PROBLEM = itd.Minimization(lambda x, theta: jnp.sum(jnp.cosh(x - theta)) + jnp.sum(x**2) / 2)
DESCENT = itd.GradientDescent(0.3)
STOP = itd.ResidualBelow(1e-8, max_steps=100)


def _slope(theta, mode):
    run = PROBLEM, DESCENT, jnp.zeros(2), theta
    return jax.grad(lambda t: jnp.sum(itd.solve(*run[:3], t, stop=STOP, mode=mode).x))(theta)


CALLS = {
    "implicit": lambda run: _slope(run[3], itd.Implicit()),
    "unrolled": lambda run: _slope(run[3], itd.Unrolled()),
    "derivative_error": lambda run: itd.derivative_error(run[0], *run[2:], jnp.eye(2) / 2),
    "trace": lambda run: itd.trace(*run, steps=5, modes={"implicit": itd.Implicit()}),
    "diagnose": lambda run: itd.diagnose(*run),
    "check_derivative": lambda run: itd.check_derivative(*run, stop=STOP),
    "optimal_value": lambda run: jax.grad(
        lambda theta: itd.optimal_value(*run[:3], theta, stop=STOP)
    )(run[3]),
}


def test_second_calls_compile_nothing(caplog):
    def compiled(call, start):
        caplog.clear()
        with jax.log_compiles():
            call((PROBLEM, DESCENT, jnp.array([start, 0.0]), jnp.array([0.5, start])))
        return sum("Finished XLA compilation" in record.message for record in caplog.records)

    first = {name: compiled(call, 0.1) for name, call in CALLS.items()}
    assert all(first.values())
    # Hardly another start: `diagnose` times as many steps as the solve needs.
    again = {name: compiled(call, 0.1 + 1e-9) for name, call in CALLS.items()}
    assert again == dict.fromkeys(CALLS, 0)
