r"""A linear map of vectors, traced once: what a product costs, and its matrix.

The columns of a matrix are products with unit vectors. For :math:`v \mapsto X^T (D (X v))` to
compute all of them, ``X I`` comes first: as much work as the rest, though it is `X` itself.
Here the map is read before it is run. As long as the entries of a value are entries of ``v``,
each times a constant, it is known by indices; where a constant is multiplied by such a value,
the columns of the product are those of the constant; and what is done to each row of them
thereafter is done once, not column by column. What else there is runs as always, under ``vmap``.
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
"""Returns a value that does not depend on the input: computed where it is needed."""

MOVING = ("reshape", "squeeze", "expand_dims")
SCALING = ("mul", "div", "neg", "convert_element_type", "copy")
ADDING = ("add", "add_any", "sub")


class Selection(NamedTuple):
    """Entries of the input: `index` says which one stands where."""

    index: np.ndarray

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the value."""
        return self.index.shape


class Columns(NamedTuple):
    """A product with the input: its columns lie along `axis` of ``make()``."""

    make: Constant
    axis: int
    shape: tuple[int, ...]


class Image(NamedTuple):
    """A value that is ``(one - zero) * base + zero``, entry by entry.

    Attributes
    ----------
    base : Selection or Columns
        What it was made of.
    one, zero : callable or None
        The value where the base is one, and where it is zero; None for 1 and 0.
    number : int
        That of the equation.
    """

    base: Selection | Columns
    one: Constant | None
    zero: Constant | None
    number: int


class LinearMap:
    """A linear map from vectors to vectors of the same length.

    Parameters
    ----------
    jaxpr : jax.extend.core.ClosedJaxpr
        Of a function of one vector.

    Attributes
    ----------
    size : int
        The length of the vectors.
    work, forming : int
        Floating-point operations (see `iterdiff.counting`) of a product, and of the matrix.
    """

    def __init__(self, jaxpr: ClosedJaxpr):
        self.jaxpr = jaxpr
        self._input = jaxpr.in_avals[0]
        self.size = self._input.shape[0]
        self._reading = reading = _Reading(self.size)
        start = Image(Selection(np.arange(self.size)), None, None, -1)
        constants = [reading.given(value) for value in jaxpr.consts]
        reading.need(walk(jaxpr.jaxpr, constants, [start], reading))
        self.work = flops_of(jaxpr.jaxpr)
        self.forming = self.size * (self.work - reading.saved)

    @classmethod
    def of(cls, function: Callable[[Vector], Vector], like: Any) -> "LinearMap":
        """Return `function`, of vectors such as `like`, traced."""
        return cls(jax.make_jaxpr(function)(jax.ShapeDtypeStruct(like.shape, like.dtype)))

    @property
    def constants(self) -> list:
        """What the map is made of."""
        return list(self.jaxpr.consts)

    def with_constants(self, constants: list) -> "LinearMap":
        """Return the map with others in their place."""
        return LinearMap(ClosedJaxpr(self.jaxpr.jaxpr, constants))

    def __call__(self, v: Vector) -> Vector:
        """Return the product with `v`."""
        return eval_jaxpr(self.jaxpr.jaxpr, self.jaxpr.consts, v)[0]

    def matrix(self, zero: Int[Array, ""] | int = 0) -> Float[Array, "n n"]:
        """Return the matrix.

        `zero` is the number 0. Within a loop it is one that the compiler cannot tell to be the
        same in every round, or it makes the unit vectors, n of them, before the loop.
        """
        known, needed = self._reading.known, sorted(self._reading.needed)

        def column(v, *products):
            running = _Running(set(known), dict(zip(needed, products, strict=True)))
            return walk(self.jaxpr.jaxpr, self.jaxpr.consts, [v], running)[0]

        columns = [_made(known[number]) for number in needed]
        axes = (0, *(c.axis for c in columns))
        products = [c.make() for c in columns]
        numbers = jnp.arange(self.size, dtype=jnp.int32)
        identity = (numbers[:, None] + zero == numbers[None]).astype(self._input.dtype)
        return jax.vmap(column if known else self, axes, 1)(identity, *products)


def _made(image: Image) -> Columns:
    """Return the columns of an image of columns."""
    base, one, zero = image.base, image.one, image.zero
    assert isinstance(base, Columns)
    if one is None:
        return base

    def make() -> Array:
        top = one()
        columns = base.make().astype(top.dtype)
        if zero is None:
            return columns * jnp.expand_dims(top, base.axis)
        slope, shift = (jnp.expand_dims(v, base.axis) for v in (top - zero(), zero()))
        return columns * slope + shift

    return base._replace(make=make)


class _Running:
    """Compute, but for the values that are known, by number; of these, the needed are there."""

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


class _Reading:
    """Compute nothing; find the values whose columns are images of those of constants.

    A value is an `Image`, a `Constant`, or None: unknown.
    """

    opened = CALLS

    def __init__(self, size: int):
        self.size = size
        self.known: dict[int, Image] = {}
        self.needed: set[int] = set()
        self.visited = self.saved = 0

    @staticmethod
    def given(value: Any) -> Constant:
        """Return a constant."""
        return lambda: value

    def need(self, values: list) -> None:
        """Note which values are needed as they are."""
        images = [v for v in values if isinstance(v, Image)]
        self.needed.update(v.number for v in images if isinstance(v.base, Columns))

    def visit(self, run: Run, equation: Any, ins: list) -> list:
        """Return what is known of the equation's values."""
        number, self.visited = self.visited, self.visited + 1
        if all(callable(value) for value in ins):
            self.saved += flops_of_equation(equation)  # computed once, not n times
            return _constants(run, ins, len(equation.outvars))
        image = None
        if all(value is not None for value in ins):
            image = self._product(equation, ins, number) or _image(run, equation, ins, number)
        if image is None:
            self.need(ins)
        elif isinstance(image.base, Columns):
            self.known[number] = image
            self.saved += flops_of_equation(equation)
        return [image] * len(equation.outvars)

    def _product(self, equation: Any, ins: list, number: int) -> Image | None:
        """Return a constant's product with entries of the input, if it is summed over them all."""
        if equation.primitive.name != "dot_general":
            return None
        contracted, (batch, _) = equation.params["dimension_numbers"]
        which = 0 if isinstance(ins[0], Image) else 1
        image: Any = ins[which]
        constant: Any = ins[1 - which]
        summed, over = contracted[which], contracted[1 - which]
        if batch or isinstance(constant, Image) or not isinstance(image.base, Selection):
            return None
        if len(summed) < len(image.base.shape):
            return None
        shape, out = equation.invars[1 - which].aval.shape, equation.outvars[0].aval
        rest = [i for i in range(len(shape)) if i not in over]
        axis = over[0] if len(over) == 1 else len(rest)
        index = image.base.index.transpose(summed).reshape(-1)

        def make() -> Array:
            # Hidden: at compile time a product of two constants takes far longer.
            columns = jax.lax.optimization_barrier(constant()).astype(out.dtype)
            if len(over) != 1:
                columns = columns.transpose(*rest, *over)
                columns = columns.reshape(*(shape[i] for i in rest), index.size)
            if image.one is not None:
                scale = image.one().transpose(summed).reshape(-1).astype(out.dtype)
                columns *= scale.reshape([-1 if i == axis else 1 for i in range(columns.ndim)])
            if np.array_equal(index, np.arange(self.size)):
                return columns
            place = (slice(None),) * axis + (index,)
            full = [self.size if i == axis else n for i, n in enumerate(columns.shape)]
            return jnp.zeros(full, out.dtype).at[place].add(columns)

        return Image(Columns(make, axis, out.shape), None, None, number)


def _constants(run: Run, ins: list, count: int) -> list:
    """Return what an equation makes of constants."""
    found: list = []

    def result(i):
        if not found:
            found.extend(run([value() for value in ins]))
        return found[i]

    return [partial(result, i) for i in range(count)]


def _image(run: Run, equation: Any, ins: list, number: int) -> Image | None:
    """Return what an equation makes of images of the same base, if that is one."""
    images = [value for value in ins if isinstance(value, Image)]
    base = images[0].base
    if any(image.base is not base for image in images):
        return None
    scaling = _scales(equation, ins)
    if isinstance(base, Selection) and not scaling:
        index = _moved(equation, base.index)
        if index is None or images[0].one is None:
            return None if index is None else Image(Selection(index), None, None, number)
        base = Selection(index)
    elif not scaling and not _adds(equation, ins):
        return None
    elif base.shape != equation.outvars[0].aval.shape:
        return None

    def at(point: int) -> Any:
        pairs = zip(ins, equation.invars, strict=True)
        return run([_at(v, point, atom.aval) if isinstance(v, Image) else v() for v, atom in pairs])

    def value(point: int) -> Constant:
        return _constants(lambda _: at(point), [], 1)[0]

    shifted = any(image.zero is not None for image in images)
    if not scaling and len(images) < len(ins):
        shifted = True
    return Image(base, value(1), value(0) if shifted else None, number)


def _at(image: Image, point: int, aval: Any) -> Array:
    """Return an image's value where its base is one (or zero)."""
    value = image.one if point else image.zero
    return jnp.full(aval.shape, point, aval.dtype) if value is None else value()


def _scales(equation: Any, ins: list) -> bool:
    """Return whether an equation multiplies an image by a constant."""
    name, count = equation.primitive.name, sum(isinstance(value, Image) for value in ins)
    return name in SCALING and count == 1 and (name != "div" or isinstance(ins[0], Image))


def _adds(equation: Any, ins: list) -> bool:
    """Return whether an equation adds images and constants, or chooses among them."""
    name = equation.primitive.name
    return name in ADDING or (name == "select_n" and callable(ins[0]))


def _moved(equation: Any, index: np.ndarray) -> np.ndarray | None:
    """Return which entries stand where after an operation, if it only moves them."""
    name, params = equation.primitive.name, equation.params
    shape = equation.outvars[0].aval.shape
    if name in MOVING or (name == "broadcast_in_dim" and math.prod(shape) == index.size):
        return index.reshape(shape)
    if name == "transpose":
        return index.transpose(params["permutation"])
    if name == "slice":
        steps = params["strides"] or (1,) * index.ndim
        ends = zip(params["start_indices"], params["limit_indices"], steps, strict=True)
        return index[tuple(slice(*end) for end in ends)]
    return None
