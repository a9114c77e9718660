r"""The matrix of a traced linear map, without multiplying by the identity.

The columns of a matrix are products with unit vectors. For :math:`v \mapsto X^T (D (X v))`,
``vmap`` over unit vectors first computes ``X I``: as much work as the rest, although the result is
`X`. Here the jaxpr of the map is analysed before it runs. We trace which entries of `v` each
intermediate value is a scaled copy of. A product of a constant with such a value needs no
computation: its columns are columns of the constant. Row-wise operations that follow are applied
once to all columns. Everything else falls back to ``vmap`` over unit vectors.

What it buys: the Hessian of a generalised linear model (ridge and logistic regression) takes half
the operations. These are the rows "logistic" and "ridge" of the section "Implicit gradients at
convergence" in ``benchmarks/results/speed.md``, where forming the Hessian takes most of the time.

What can break: the analysis recognises primitives and their parameters by name, and JAX may rename
these in any release. What it does not recognise falls back to ``vmap``: forming matrices becomes
slower, not wrong. ``tests/jaxtools/test_linear_map.py`` counts the operations of compiled programs,
so it fails when the fast path is lost.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import eval_jaxpr
from jax.extend.core import ClosedJaxpr
from jaxtyping import Array, Float, Int

from iterdiff.jaxtools.jaxpr import CALLS, Run, flops_of, flops_of_equation, walk

Vector = Float[Array, " n"]
Constant = Callable[[], Any]
"""Returns a value that does not depend on the input; it is computed when it is called."""

RESHAPING = ("reshape", "squeeze", "expand_dims")
SCALING = ("mul", "div", "neg", "convert_element_type", "copy")
ADDING = ("add", "add_any", "sub")


class Selection(NamedTuple):
    """Entries of the input: ``index`` holds the position in the input of each entry."""

    index: np.ndarray

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the value."""
        return self.index.shape


class Columns(NamedTuple):
    """A product with the input, whose columns lie along `axis` of ``make()``.

    Attributes
    ----------
    make : callable
        Returns all columns.
    axis : int
        The axis of ``make()`` along which they are stacked.
    shape : tuple of int
        The shape of the value, without that axis.
    """

    make: Constant
    axis: int
    shape: tuple[int, ...]


class Affine(NamedTuple):
    """An affine image of another value, entry by entry: ``(at_one - at_zero) * base + at_zero``.

    Attributes
    ----------
    base : Selection or Columns
        The other value.
    at_one, at_zero : callable or None
        Return the image where the base is one, and where it is zero. None stands for 1 and 0.
    equation : int
        The number of the equation that computes it.
    """

    base: Selection | Columns
    at_one: Constant | None
    at_zero: Constant | None
    equation: int


class LinearMap:
    """A linear map from vectors to vectors of the same length, as a jaxpr.

    Parameters
    ----------
    jaxpr : jax.extend.core.ClosedJaxpr
        Of a function of one vector.

    Attributes
    ----------
    size : int
        The length of the vectors.
    product_flops, matrix_flops : int
        Floating-point operations (see `iterdiff.jaxtools.jaxpr.flops`) of a product, and of
        forming the matrix.
    """

    def __init__(self, jaxpr: ClosedJaxpr):
        self.jaxpr = jaxpr
        self._input = jaxpr.in_avals[0]
        self.size = self._input.shape[0]
        self._analysis = analysis = _Analysis(self.size)
        start = Affine(Selection(np.arange(self.size)), None, None, -1)
        constants = [analysis.given(value) for value in jaxpr.consts]
        analysis.require(walk(jaxpr.jaxpr, constants, [start], analysis))
        self.product_flops = flops_of(jaxpr.jaxpr)
        self.matrix_flops = self.size * (self.product_flops - analysis.saved_flops)

    @classmethod
    def of(cls, function: Callable[[Vector], Vector], like: Any) -> "LinearMap":
        """Trace `function`, whose argument has the shape and dtype of `like`."""
        return cls(jax.make_jaxpr(function)(jax.ShapeDtypeStruct(like.shape, like.dtype)))

    @property
    def constants(self) -> list:
        """The values that the traced function closes over."""
        return list(self.jaxpr.consts)

    def with_constants(self, constants: list) -> "LinearMap":
        """Return the map with other values of its constants."""
        return LinearMap(ClosedJaxpr(self.jaxpr.jaxpr, constants))

    def __call__(self, v: Vector) -> Vector:
        """Return the product with `v`."""
        return eval_jaxpr(self.jaxpr.jaxpr, self.jaxpr.consts, v)[0]

    def matrix(self, zero: Int[Array, ""] | int = 0) -> Float[Array, "n n"]:
        """Return the matrix.

        Parameters
        ----------
        zero : int
            The number 0. Inside a loop, pass a value that the compiler cannot prove to be the same
            in every round. Otherwise it computes the n unit vectors before the loop, even if the
            loop does not run.
        """
        known, required = self._analysis.known, sorted(self._analysis.required)

        def column(v, *products):
            evaluation = _Evaluation(set(known), dict(zip(required, products, strict=True)))
            return walk(self.jaxpr.jaxpr, self.jaxpr.consts, [v], evaluation)[0]

        columns = [_columns(known[number]) for number in required]
        axes = (0, *(c.axis for c in columns))
        products = [c.make() for c in columns]
        numbers = jnp.arange(self.size, dtype=jnp.int32)
        identity = (numbers[:, None] + zero == numbers[None]).astype(self._input.dtype)
        return jax.vmap(column if known else self, axes, 1)(identity, *products)


def _columns(value: Affine) -> Columns:
    """Return the columns of an affine image of columns."""
    base, at_one, at_zero = value.base, value.at_one, value.at_zero
    assert isinstance(base, Columns)
    if at_one is None:
        return base

    def make() -> Array:
        top = at_one()
        columns = base.make().astype(top.dtype)
        if at_zero is None:
            return columns * jnp.expand_dims(top, base.axis)
        slope, shift = (jnp.expand_dims(v, base.axis) for v in (top - at_zero(), at_zero()))
        return columns * slope + shift

    return base._replace(make=make)


class _Evaluation:
    """Evaluates a jaxpr for one column, except for the values known from the analysis.

    Parameters
    ----------
    known : set of int
        The numbers of the equations whose values are known.
    products : dict
        The values of the known equations that other equations read.
    """

    opened = CALLS

    def __init__(self, known: set[int], products: dict[int, Array]):
        self.known, self.products, self.visited = known, products, 0

    @staticmethod
    def given(value: Any) -> Any:
        """Return a constant."""
        return value

    def visit(self, run: Run, equation: Any, ins: list) -> list:
        """Return the equation's values."""
        del equation
        number, self.visited = self.visited, self.visited + 1
        return [self.products.get(number)] if number in self.known else run(ins)


class _Analysis:
    """Finds the values whose columns are affine images of columns of constants.

    It computes nothing. A value is an `Affine`, a `Constant`, or None if nothing is known of it.

    Attributes
    ----------
    known : dict
        The values found, by the numbers of their equations.
    required : set of int
        The numbers of those that other equations or the result read.
    saved_flops : int
        Operations for one column that `known` and the constants save.
    """

    opened = CALLS

    def __init__(self, size: int):
        self.size = size
        self.known: dict[int, Affine] = {}
        self.required: set[int] = set()
        self.visited = self.saved_flops = 0

    @staticmethod
    def given(value: Any) -> Constant:
        """Return a constant."""
        return lambda: value

    def require(self, values: list) -> None:
        """Record that these values are read."""
        found = [v for v in values if isinstance(v, Affine)]
        self.required.update(v.equation for v in found if isinstance(v.base, Columns))

    def visit(self, run: Run, equation: Any, ins: list) -> list:
        """Return what is known of the equation's values."""
        number, self.visited = self.visited, self.visited + 1
        if all(callable(value) for value in ins):
            self.saved_flops += flops_of_equation(equation)  # computed once, not n times
            return _constants(run, ins, len(equation.outvars))
        found = self._recognise(run, equation, ins, number)
        if found is None:
            self.require(ins)
        elif isinstance(found.base, Columns):
            self.known[number] = found
            self.saved_flops += flops_of_equation(equation)
        return [found] * len(equation.outvars)

    def _recognise(self, run: Run, equation: Any, ins: list, number: int) -> Affine | None:
        """Return the equation's value, if it is a product or an affine image."""
        if any(value is None for value in ins):
            return None
        try:
            product = self._product(equation, ins, number)
            return product or _affine_image(run, equation, ins, number)
        except KeyError:  # a parameter has another name in this release of JAX
            return None

    def _product(self, equation: Any, ins: list, number: int) -> Affine | None:
        """Return a constant's product with entries of the input, if it sums over all of them."""
        if equation.primitive.name != "dot_general":
            return None
        contracted, (batch, _) = equation.params["dimension_numbers"]
        which = 0 if isinstance(ins[0], Affine) else 1
        factor: Any = ins[which]
        constant: Any = ins[1 - which]
        summed, over = contracted[which], contracted[1 - which]
        if batch or isinstance(constant, Affine) or not isinstance(factor.base, Selection):
            return None
        if len(summed) < len(factor.base.shape):
            return None
        shape, out = equation.invars[1 - which].aval.shape, equation.outvars[0].aval
        rest = [i for i in range(len(shape)) if i not in over]
        axis = over[0] if len(over) == 1 else len(rest)
        index = factor.base.index.transpose(summed).reshape(-1)

        def make() -> Array:
            # The barrier prevents a product of two constants at compile time, which is very slow.
            columns = jax.lax.optimization_barrier(constant()).astype(out.dtype)
            if len(over) != 1:
                columns = columns.transpose(*rest, *over)
                columns = columns.reshape(*(shape[i] for i in rest), index.size)
            if factor.at_one is not None:
                scale = factor.at_one().transpose(summed).reshape(-1).astype(out.dtype)
                columns *= scale.reshape([-1 if i == axis else 1 for i in range(columns.ndim)])
            if np.array_equal(index, np.arange(self.size)):
                return columns
            place = (slice(None),) * axis + (index,)
            full = [self.size if i == axis else n for i, n in enumerate(columns.shape)]
            return jnp.zeros(full, out.dtype).at[place].add(columns)

        return Affine(Columns(make, axis, out.shape), None, None, number)


def _constants(run: Run, ins: list, count: int) -> list:
    """Return the values of an equation whose inputs are constants, as constants."""
    found: list = []

    def result(i):
        if not found:
            found.extend(run([value() for value in ins]))
        return found[i]

    return [partial(result, i) for i in range(count)]


def _affine_image(run: Run, equation: Any, ins: list, number: int) -> Affine | None:
    """Return an equation's value, if it is an affine image of the base that its inputs share."""
    images = [value for value in ins if isinstance(value, Affine)]
    base = images[0].base
    if any(image.base is not base for image in images):
        return None
    scaling = _scales(equation, ins)
    if isinstance(base, Selection) and not scaling:
        index = _moved(equation, base.index)
        if index is None or images[0].at_one is None:
            return None if index is None else Affine(Selection(index), None, None, number)
        base = Selection(index)
    elif not scaling and not _adds(equation, ins):
        return None
    elif base.shape != equation.outvars[0].aval.shape:
        return None

    def at(point: int) -> Any:
        pairs = zip(ins, equation.invars, strict=True)
        values = [_at(v, point, w.aval) if isinstance(v, Affine) else v() for v, w in pairs]
        return run(values)

    def value(point: int) -> Constant:
        return _constants(lambda _: at(point), [], 1)[0]

    shifted = any(image.at_zero is not None for image in images)
    if not scaling and len(images) < len(ins):
        shifted = True
    return Affine(base, value(1), value(0) if shifted else None, number)


def _at(image: Affine, point: int, aval: Any) -> Array:
    """Return an image's value where its base is `point`, one or zero."""
    value = image.at_one if point else image.at_zero
    return jnp.full(aval.shape, point, aval.dtype) if value is None else value()


def _scales(equation: Any, ins: list) -> bool:
    """Whether an equation multiplies one affine image by constants."""
    name, count = equation.primitive.name, sum(isinstance(value, Affine) for value in ins)
    return name in SCALING and count == 1 and (name != "div" or isinstance(ins[0], Affine))


def _adds(equation: Any, ins: list) -> bool:
    """Whether an equation adds affine images and constants, or selects among them."""
    name = equation.primitive.name
    return name in ADDING or (name == "select_n" and callable(ins[0]))


def _moved(equation: Any, index: np.ndarray) -> np.ndarray | None:
    """Return the index after an operation that only moves entries; None for any other."""
    name, params = equation.primitive.name, equation.params
    shape = equation.outvars[0].aval.shape
    if name in RESHAPING or (name == "broadcast_in_dim" and math.prod(shape) == index.size):
        return index.reshape(shape)
    if name == "transpose":
        return index.transpose(params["permutation"])
    if name == "slice":
        steps = params["strides"] or (1,) * index.ndim
        ends = zip(params["start_indices"], params["limit_indices"], steps, strict=True)
        return index[tuple(slice(*end) for end in ends)]
    return None
