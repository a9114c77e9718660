"""Wrong calls: one error, at once, that names the argument."""

import re

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest

import iterdiff as itd
from iterdiff.problems.checks import check_untraced


@pytest.fixture(autouse=True)
def without_type_checks(monkeypatch):
    """Let wrong arguments reach the library, since its users do not run under beartype."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)


QUADRATIC = itd.Minimization(lambda x, theta: jnp.sum((x - theta) ** 2))
DESCENT = itd.GradientDescent(0.25)
X0, THETA, STOP = jnp.zeros(2), jnp.ones(2), itd.Steps(3)


def solve(problem=QUADRATIC, algorithm=DESCENT, x0=X0, theta=THETA, stop=STOP, **options):
    return itd.solve(problem, algorithm, x0, theta, stop=stop, **options)


class Reshaping(itd.Algorithm):
    """A step that does not keep shapes, dtypes or structure."""

    how: str
    accepts = (itd.Problem,)

    def init(self, problem, x0, theta):
        """Return `x0`."""
        del problem, theta
        return itd.Iterate(x0)

    def step(self, problem, state, theta):
        """Return something else."""
        del problem, theta
        x = state.x
        changed = {
            "shape": lambda: jnp.stack([x, x]),
            "dtype": lambda: x.astype(jnp.float32),
            "structure": lambda: {"x": x},
        }
        return itd.Iterate(changed[self.how]())


def check_message(message, argument):
    """Check that a message names the argument, in at most two sentences."""
    assert argument in message
    assert len(re.findall(r"[.?!] +[A-Z]", message)) <= 1, message


NAN = np.array([1.0, np.nan])
WRONG = {  # arguments of solve, the exception, what its message names
    # x0
    "x0 integer": (dict(x0=jnp.zeros(2, int)), ValueError, "`x0`"),
    "x0 Python int": (dict(x0=3), TypeError, "`x0`"),
    "x0 boolean": (dict(x0=jnp.zeros(2, bool)), ValueError, "`x0`"),
    "x0 empty tree": (dict(x0={}), ValueError, "`x0`"),
    "x0 None": (dict(x0=None), ValueError, "`x0`"),
    "x0 empty array": (dict(x0=jnp.zeros(0)), ValueError, "`x0`"),
    "x0 string": (dict(x0="start"), ValueError, "`x0`"),
    "x0 NaN": (dict(x0=jnp.asarray(NAN)), ValueError, "`x0`"),
    "x0 NaN leaf": (dict(x0={"a": X0, "b": NAN}), ValueError, "`x0`['b']"),
    "x0 infinite": (dict(x0=jnp.array([1.0, jnp.inf])), ValueError, "`x0`"),
    "x0 one wrong leaf": (dict(x0={"a": X0, "b": 1}), TypeError, "`x0`['b']"),
    # theta
    "theta integer": (dict(theta=jnp.ones(2, int)), ValueError, "`theta`"),
    "theta None": (dict(theta=None), ValueError, "`theta`"),
    "theta NaN": (dict(theta=jnp.asarray(NAN)), ValueError, "`theta`"),
    "theta NaN leaf": (dict(theta=(THETA, jnp.nan)), ValueError, "`theta`[1]"),
    # the residual and x0
    "residual structure of a root finding": (
        dict(problem=itd.RootFinding(lambda x, theta: (x, x)), algorithm=itd.Newton()),
        ValueError,
        "`problem`: the residual",
    ),
    "residual shape": (
        dict(problem=itd.RootFinding(lambda x, theta: jnp.sum(x)), algorithm=itd.Newton()),
        ValueError,
        "`problem`: the residual",
    ),
    "residual dtype": (
        dict(problem=itd.RootFinding(lambda x, theta: x.astype("float32")), algorithm=itd.Newton()),
        ValueError,
        "`problem`: the residual",
    ),
    "right-hand side structure": (
        dict(
            problem=itd.LinearSystem(lambda x, theta: x, lambda theta: {"a": theta}),
            algorithm=itd.Richardson(0.1),
        ),
        ValueError,
        "`problem`: the right-hand side",
    ),
    "right-hand side that would broadcast": (
        dict(
            problem=itd.LinearSystem(lambda x, theta: x, lambda theta: theta[0]),
            algorithm=itd.Richardson(0.1),
        ),
        ValueError,
        "`problem`: the right-hand side",
    ),
    "update structure": (
        dict(problem=itd.FixedPoint(lambda x, theta: (x,)), algorithm=itd.Picard()),
        ValueError,
        "`problem`: the update",
    ),
    "prox shape": (
        dict(
            problem=itd.CompositeMinimization(lambda x, t: jnp.sum(x), lambda x, s, t: x[0]),
            algorithm=itd.ProximalGradient(0.1),
        ),
        ValueError,
        "`problem`: the prox",
    ),
    "objective a vector": (
        dict(problem=itd.Minimization(lambda x, theta: x - theta)),
        TypeError,
        "`problem`: the objective",
    ),
    "objective an integer": (
        dict(problem=itd.Minimization(lambda x, theta: jnp.sum(x > 0))),
        TypeError,
        "`problem`: the objective",
    ),
    "objective nothing": (
        dict(problem=itd.Minimization(lambda x, theta: None)),
        TypeError,
        "`problem`: the objective",
    ),
    # steps that do not keep the state
    "step shape": (dict(algorithm=Reshaping("shape")), ValueError, "`step`"),
    "step dtype": (dict(algorithm=Reshaping("dtype")), ValueError, "`step`"),
    "step structure": (dict(algorithm=Reshaping("structure")), ValueError, "`step`"),
    # modes and rules
    "last above the steps": (dict(mode=itd.Unrolled(last=4)), ValueError, "`last`"),
    "last above the most steps": (
        dict(mode=itd.Unrolled(last=9), stop=itd.ResidualBelow(max_steps=8)),
        ValueError,
        "`last`",
    ),
    "last with a rule for derivatives": (
        dict(mode=itd.Unrolled(last=2), stop=itd.DerivativeErrorBelow(1e-2)),
        ValueError,
        "`last`",
    ),
    "stop a number": (dict(stop=100), TypeError, "`stop`"),
    "stop a class": (dict(stop=itd.Steps), TypeError, "`stop`"),
    "mode a string": (dict(mode="implicit"), TypeError, "`mode`"),
    "mode a class": (dict(mode=itd.Implicit), TypeError, "`mode`"),
    # problems and algorithms
    "problem a function": (dict(problem=lambda x, theta: x), TypeError, "`problem`"),
    "algorithm a class": (dict(algorithm=itd.GradientDescent), TypeError, "`algorithm`"),
    "algorithm a string": (dict(algorithm="newton"), TypeError, "`algorithm`"),
    "descent on a root finding": (
        dict(problem=itd.RootFinding(lambda x, theta: x - theta)),
        ValueError,
        "`algorithm`",
    ),
    "Newton on a nonsmooth problem": (
        dict(
            problem=itd.CompositeMinimization(lambda x, t: jnp.sum(x), lambda x, s, t: x),
            algorithm=itd.Newton(),
        ),
        ValueError,
        "`algorithm`",
    ),
    "Bisection of several unknowns": (
        dict(
            problem=itd.RootFinding(lambda x, theta: x - theta), algorithm=itd.Bisection(0.0, 2.0)
        ),
        ValueError,
        "`x0`",
    ),
    "Bisection unrolled": (
        dict(
            problem=itd.RootFinding(lambda x, theta: x - theta),
            algorithm=itd.Bisection(0.0, 2.0),
            x0=0.0,
            theta=1.0,
            mode=itd.Unrolled(),
        ),
        ValueError,
        "`mode`",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_call_of_solve(name):
    arguments, kind, argument = WRONG[name]
    with pytest.raises(kind) as info:
        solve(**arguments)
    assert info.type is kind
    check_message(str(info.value), argument)


MADE_WRONG = {  # what to call, the exception, what its message names
    "step of zero": (lambda: itd.GradientDescent(0.0), ValueError, "`step_size`"),
    "negative step": (lambda: itd.Richardson(-0.1), ValueError, "`step_size`"),
    "step NaN": (lambda: itd.HeavyBall(jnp.nan, 0.1), ValueError, "`step_size`"),
    "step of a proximal gradient": (lambda: itd.ProximalGradient(0), ValueError, "`step_size`"),
    "step of FISTA": (lambda: itd.FISTA(-1), ValueError, "`step_size`"),
    "step of Nesterov": (lambda: itd.Nesterov(0.0, 0.1), ValueError, "`step_size`"),
    "step infinite": (lambda: itd.GradientDescent(jnp.inf), ValueError, "`step_size`"),
    "step no number": (lambda: itd.GradientDescent("1/L"), TypeError, "`step_size`"),
    "step complex": (lambda: itd.Richardson(1j), TypeError, "`step_size`"),
    "step an array": (lambda: itd.GradientDescent(jnp.ones(2)), ValueError, "`step_size`"),
    "damping": (lambda: itd.Picard(0.0), ValueError, "`damping`"),
    "damping of Jacobi": (lambda: itd.Jacobi(-1.0), ValueError, "`damping`"),
    "damping of Anderson": (lambda: itd.Anderson(3, 0.0), ValueError, "`damping`"),
    "depth": (lambda: itd.Anderson(0), ValueError, "`depth`"),
    "depth a float": (lambda: itd.Anderson(2.0), TypeError, "`depth`"),
    "restart": (lambda: itd.GMRES(0), ValueError, "`restart`"),
    "restart a float": (lambda: itd.GMRES(2.0), TypeError, "`restart`"),
    "momentum": (lambda: itd.HeavyBall(0.1, 1.0), ValueError, "`momentum`"),
    "momentum of Nesterov": (lambda: itd.Nesterov(0.1, -1.0), ValueError, "`momentum`"),
    "relaxation": (lambda: itd.SOR(2.0), ValueError, "`relaxation`"),
    "spectrum": (lambda: itd.Chebyshev(2.0, 1.0), ValueError, "`smallest`"),
    "no steps": (lambda: itd.Steps(0), ValueError, "`n`"),
    "steps a float": (lambda: itd.Steps(10.0), TypeError, "`n`"),
    "steps a bool": (lambda: itd.Steps(True), TypeError, "`n`"),
    "rtol": (lambda: itd.ResidualBelow(-1e-3), ValueError, "`rtol`"),
    "rtol NaN": (lambda: itd.ResidualBelow(float("nan")), ValueError, "`rtol`"),
    "atol": (lambda: itd.ResidualBelow(1e-3, -1.0), ValueError, "`atol`"),
    "no tolerance": (lambda: itd.ResidualBelow(0.0, 0.0), ValueError, "`rtol`"),
    "max_steps": (lambda: itd.ResidualBelow(max_steps=0), ValueError, "`max_steps`"),
    "max_steps beyond 32 bits": (
        lambda: itd.ResidualBelow(max_steps=2**31),
        ValueError,
        "`max_steps`",
    ),
    "steps beyond 32 bits": (lambda: itd.Steps(2**32 + 5), ValueError, "`n`"),
    "derivative rtol": (lambda: itd.DerivativeErrorBelow(0.0), ValueError, "`rtol`"),
    "derivative atol": (
        lambda: itd.DerivativeErrorBelow(0.1, atol=-1.0),
        ValueError,
        "`atol`",
    ),
    "every": (lambda: itd.DerivativeErrorBelow(0.1, every=0), ValueError, "`every`"),
    "last": (lambda: itd.Unrolled(last=0), ValueError, "`last`"),
    "last a float": (lambda: itd.Unrolled(last=1.0), TypeError, "`last`"),
    "checkpoint": (lambda: itd.Unrolled(checkpoint="all"), ValueError, "`checkpoint`"),
    "refine": (lambda: itd.Implicit(refine=-1), ValueError, "`refine`"),
    "refine a float": (lambda: itd.Implicit(refine=0.5), TypeError, "`refine`"),
    "linear solver": (lambda: itd.Implicit("cg"), TypeError, "`linear_solver`"),
    "checked twice": (
        lambda: itd.Checked(itd.Checked(itd.Implicit())),
        TypeError,
        "`mode`",
    ),
    "checked nothing": (lambda: itd.Checked("implicit"), TypeError, "`mode`"),
    "checked rtol": (lambda: itd.Checked(itd.Implicit(), 0.0), ValueError, "`rtol`"),
    "checked action": (
        lambda: itd.Checked(itd.Implicit(), on_failure="ignore"),
        ValueError,
        "`on_failure`",
    ),
    "residual step": (
        lambda: itd.CompositeMinimization(jnp.sum, lambda x, *_: x, residual_step=0.0),
        ValueError,
        "`residual_step`",
    ),
    "objective": (lambda: itd.Minimization(3.0), TypeError, "`objective`"),
    "root of a string": (lambda: itd.RootFinding("x - 1"), TypeError, "`function`"),
    "update": (lambda: itd.FixedPoint(None), TypeError, "`update`"),
    "prox": (lambda: itd.CompositeMinimization(jnp.sum, 0.1), TypeError, "`prox`"),
    "right-hand side": (lambda: itd.LinearSystem(np.eye(2), X0), TypeError, "`rhs`"),
    "operator not square": (
        lambda: itd.LinearSystem(np.ones((2, 3)), lambda theta: theta),
        ValueError,
        "`operator`",
    ),
    "operator a string": (
        lambda: itd.LinearSystem("A", lambda theta: theta),
        ValueError,
        "`operator`",
    ),
}


@pytest.mark.parametrize("name", MADE_WRONG)
def test_a_thing_made_wrong(name):
    make, kind, argument = MADE_WRONG[name]
    with pytest.raises(kind) as info:
        make()
    check_message(str(info.value), argument)


A = 2 * np.eye(3)
SIZES = {
    "matrix": itd.LinearSystem(A, lambda theta: theta),
    "matrix of theta": itd.LinearSystem(
        itd.MatrixOperator(lambda theta: jnp.diag(theta)), lambda theta: theta
    ),
    "matrix and right-hand side": itd.LinearSystem(A, lambda theta: jnp.append(theta, 1.0)),
    "operator": itd.LinearSystem(lambda x, theta: A @ x, lambda theta: theta),
    "equation": itd.RootFinding(lambda x, theta: A @ x - theta),
    "update": itd.FixedPoint(lambda x, theta: A @ x / 4 - theta),
    "objective": itd.Minimization(lambda x, theta: jnp.sum((A @ x - theta) ** 2)),
    "smooth part": itd.CompositeMinimization(
        lambda x, theta: jnp.sum((A @ x - theta) ** 2),
        lambda x, step_size, theta: itd.prox.soft_threshold(x, step_size),
    ),
}


@pytest.mark.parametrize("x0", [jnp.zeros(4), {"a": jnp.zeros(3)}], ids=["size", "structure"])
@pytest.mark.parametrize("name", SIZES)
def test_a_start_of_another_size_than_the_problem(name, x0):
    problem = SIZES[name]
    algorithm = itd.Newton() if name != "smooth part" else itd.ProximalGradient(0.1)
    with pytest.raises(ValueError, match="`problem`") as info:
        solve(problem=problem, algorithm=algorithm, x0=x0, theta=jnp.ones(3))
    check_message(str(info.value), "`x0`")


def test_a_function_that_jax_cannot_trace_is_left_to_jax():
    problem = itd.RootFinding(lambda x, theta: x - theta if x > 0 else x + theta)
    with pytest.raises(jax.errors.TracerBoolConversionError):
        solve(problem=problem, algorithm=itd.Newton(), x0=1.0, theta=1.0)


def test_a_traced_step_size_is_let_through():
    # its value is unknown; the status of the run tells if it diverges
    def final(step):
        return solve(algorithm=itd.GradientDescent(step), throw=False).x

    assert jnp.all(jnp.isfinite(jax.jit(final)(-1.0)))


def test_functions_that_return_data_need_known_values():
    def closing_over(value):
        problem = itd.Minimization(lambda x, theta: value * jnp.sum((x - theta) ** 2))
        check_untraced("measure", problem, DESCENT, X0, THETA)
        return value

    assert closing_over(1.0) == 1.0
    with pytest.raises(TypeError, match="`measure`.*`problem`"):
        jax.jit(closing_over)(1.0)


# The decorator and the estimate check their arguments too


def test_the_decorator_checks_its_arguments():
    @itd.implicit(QUADRATIC)
    def solver(x0, theta):
        return theta

    with pytest.raises(ValueError, match="`x0`"):
        solver(jnp.zeros(2, int), THETA)
    with pytest.raises(ValueError, match="`theta`"):
        solver(X0, jnp.ones(2, int))


ESTIMATES = {
    "two keywords": (dict(tangent=THETA, cotangent=X0), "`tangent`"),
    "tangent structure": (dict(tangent=(THETA,)), "`tangent`"),
    "tangent shape": (dict(tangent=jnp.ones(3)), "`tangent`"),
    "cotangent structure": (dict(cotangent={"a": X0}), "`cotangent`"),
    "derivative shape": (dict(derivative=jnp.ones(3)), "`derivative`"),
}


@pytest.mark.parametrize("name", ESTIMATES)
def test_a_wrong_call_of_derivative_error(name):
    arguments, argument = ESTIMATES[name]
    with pytest.raises(ValueError) as info:
        itd.derivative_error(QUADRATIC, X0, THETA, **{"derivative": X0, **arguments})
    check_message(str(info.value), argument)
