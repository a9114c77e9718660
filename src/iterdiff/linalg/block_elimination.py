r"""Eliminate small independent blocks of a symmetric system, and solve for the few other unknowns.

With the unknowns split into kept ones c and eliminated ones p, the matrix is

.. math:: A = \begin{pmatrix} A_{cc} & A_{cp} \\ A_{pc} & A_{pp} \end{pmatrix},

where :math:`A_{pp}` consists of small blocks on its diagonal. The *Schur complement*
:math:`S = A_{cc} - A_{cp} A_{pp}^{-1} A_{pc}` has as many rows as unknowns are kept.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
from jaxtyping import Array, Float, Int, PyTree

from iterdiff.jaxtools import tree
from iterdiff.jaxtools.arguments import check_callable
from iterdiff.linalg.factor import Factors, Vector, factor, substitute
from iterdiff.linalg.probing import inverted

COLUMNS_AT_ONCE = 8
"""Columns of the matrix that are computed together: each needs the memory of a product."""


class _Eliminated(NamedTuple):
    """A system of which the blocks are eliminated.

    Attributes
    ----------
    coupling : array of shape (c, m, k)
        ``A_cp``: rows of the kept unknowns, the eliminated ones by block.
    inverses : array of shape (m, k, k)
        The inverses of the blocks of ``A_pp``.
    schur : Factors
        Of the Schur complement.
    """

    coupling: Float[Array, "c m k"]
    inverses: Float[Array, "m k k"]
    schur: Factors


class BlockElimination(lx.AbstractLinearSolver):
    r"""Eliminate many small independent blocks of unknowns by the Schur complement.

    In bundle adjustment, each residual involves one camera and one point. The normal matrix, and
    the true Hessian, then have no entries that couple two points: the points are eliminated
    block by block, and a system with the unknowns of the cameras remains. Pass one and the same
    solver to the algorithm, as ``LevenbergMarquardt(linear_solver=solver)``, and to the derivative,
    as ``Implicit(linear_solver=solver)``.

    With c kept unknowns and m blocks of k unknowns, a factorisation takes c + k products with the
    matrix and :math:`2 m k c^2 + \tfrac23 c^3` further operations, and a solve
    :math:`4 m k (c + k) + 2 c^2`. It holds :math:`c m k` numbers. The whole matrix is never formed.

    Parameters
    ----------
    x0 : pytree
        The unknowns, or any pytree like them: its structure and shapes count.
    eliminate : callable
        ``eliminate(x)`` returns the part of the unknowns to eliminate, such as
        ``lambda x: x["points"]``: a leaf, or several leaves with a common first axis. The entries
        with the same first index form a block.

    Raises
    ------
    TypeError
        If `eliminate` is not callable, or an unknown is complex.
    ValueError
        If `eliminate` does not return leaves of the unknowns, or these have no common first axis.
        When it is used: if the system has another size, or is not known to be symmetric.

    Notes
    -----
    That the blocks are independent is a claim. `Implicit` checks every answer by its residual, and
    raises if the claim is wrong; the steps of an algorithm are then no Gauss-Newton steps.

    References
    ----------
    B. Triggs et al., *Bundle adjustment: a modern synthesis*, 1999, section 6.

    Examples
    --------
    >>> import jax
    >>> import jax.numpy as jnp
    >>> import iterdiff as itd
    >>> seen = jnp.array([[1.0, 2.0, 4.0], [1.5, 2.5, 4.5]])  # by two cameras, of three points
    >>> def residuals(x, theta):  # each camera adds an offset; the first one is the origin
    ...     gaps = x["camera"][:, None] + x["points"][None] - theta
    ...     return {"gaps": gaps, "origin": x["camera"][0]}
    >>> x0 = {"camera": jnp.zeros(2), "points": jnp.zeros(3)}
    >>> solver = itd.BlockElimination(x0, lambda x: x["points"])
    >>> def adjusted(theta):
    ...     algorithm = itd.GaussNewton(linear_solver=solver)
    ...     run = itd.LeastSquares(residuals), algorithm, x0, theta
    ...     mode = itd.Implicit(linear_solver=solver)
    ...     return itd.solve(*run, stop=itd.ResidualBelow(atol=1e-4), mode=mode).x
    >>> adjusted(seen)["camera"].round(3).tolist()
    [0.0, 0.5]
    >>> jax.jacobian(lambda theta: adjusted(theta)["camera"][1])(seen).round(3).tolist()
    [[-0.333, -0.333, -0.333], [0.333, 0.333, 0.333]]
    """

    sizes: tuple[int, ...] = eqx.field(static=True)
    widths: tuple[int, ...] = eqx.field(static=True)

    def __init__(self, x0: PyTree, eliminate: Callable[[PyTree], PyTree]):
        check_callable(eliminate=eliminate)
        places = _places(x0)
        leaves, chosen = jax.tree.leaves(places), jax.tree.leaves(eliminate(places))
        known = {id(leaf) for leaf in leaves if isinstance(leaf, np.ndarray)}
        if not chosen or not all(id(leaf) in known for leaf in chosen):
            raise ValueError(
                "`eliminate` must return leaves of the unknowns that it is called with, not "
                f"{chosen!r}; select them, as in lambda x: x['points']."
            )
        lengths = {leaf.shape[0] if leaf.ndim else None for leaf in chosen}
        if len(lengths) != 1 or None in lengths:
            raise ValueError(
                "`eliminate` must return arrays with a common first axis, which counts the blocks, "
                f"but their shapes are {[leaf.shape for leaf in chosen]}; reshape the unknowns."
            )
        taken = {id(leaf) for leaf in chosen}
        unknowns = [leaf for leaf in leaves if id(leaf) in known]
        self.sizes = tuple(leaf.size for leaf in unknowns)
        self.widths = tuple(leaf[0].size if id(leaf) in taken else 0 for leaf in unknowns)

    def _positions(self) -> tuple[Int[np.ndarray, " c"], Int[np.ndarray, "m k"]]:
        """Return where the kept and the eliminated unknowns are in the vector of all."""
        kept, blocks, start = [np.arange(0)], [], 0
        for size, width in zip(self.sizes, self.widths, strict=True):
            places = np.arange(start, start + size)
            if width:
                blocks.append(places.reshape(-1, width))
            else:
                kept.append(places)
            start += size
        return np.concatenate(kept), np.concatenate(blocks, axis=1)

    def init(self, operator: lx.AbstractLinearOperator, options: dict[str, Any]) -> _Eliminated:
        """Return the eliminated system."""
        del options
        if not (lx.is_symmetric(operator) or lx.is_positive_semidefinite(operator)):
            raise ValueError(
                "`linear_solver`: BlockElimination needs a system that is known to be symmetric, "
                "as that of a LeastSquares or Minimization; declare the problem `symmetric`."
            )
        size = sum(self.sizes)
        if operator.in_size() != size:
            raise ValueError(
                f"`linear_solver`: BlockElimination was made for {size} unknowns, but the system "
                f"has {operator.in_size()}; make it with an `x0` like the unknowns."
            )
        operator, (kept, eliminated) = lx.linearise(operator), self._positions()
        like = tree.zeros_like(operator.in_structure())

        def image(places: Int[Array, "..."]) -> Vector:
            unit = tree.to_vector(like).at[places].set(1.0)
            return tree.to_vector(operator.mv(tree.from_vector(unit, like)))

        def column(place: Int[Array, ""]) -> tuple[Float[Array, " c"], Float[Array, "m k"]]:
            found = image(place)
            return found[kept], found[eliminated]

        of_kept, coupling = jax.lax.map(column, jnp.asarray(kept), batch_size=COLUMNS_AT_ONCE)
        # One entry of every block is set at once: no block reaches another.
        columns = jax.lax.map(lambda places: image(places)[eliminated], jnp.asarray(eliminated.T))
        inverses = inverted(jnp.moveaxis(columns, 0, 2))
        onto = jnp.einsum("cmk,mkl->cml", coupling, inverses)
        schur = of_kept - jnp.einsum("cml,dml->cd", onto, coupling)
        return _Eliminated(
            coupling, inverses, factor(schur, positive_definite=False, keep=False, by_lu=True)
        )

    def compute(
        self, state: _Eliminated, vector: PyTree, options: dict[str, Any]
    ) -> tuple[PyTree, lx.RESULTS, dict[str, Any]]:
        """Return the answer to `vector`."""
        del options
        b, (kept, eliminated) = tree.to_vector(vector), self._positions()
        forced = jnp.einsum("mkl,ml->mk", state.inverses, b[eliminated])
        rest = b[kept] - jnp.einsum("cmk,mk->c", state.coupling, forced)
        of_kept = substitute(state.schur, rest)
        pulled = jnp.einsum("cmk,c->mk", state.coupling, of_kept)
        blocks = forced - jnp.einsum("mkl,ml->mk", state.inverses, pulled)
        x = jnp.zeros_like(b).at[kept].set(of_kept).at[eliminated].set(blocks)
        return tree.from_vector(x, vector), lx.RESULTS.successful, {}

    def transpose(
        self, state: _Eliminated, options: dict[str, Any]
    ) -> tuple[_Eliminated, dict[str, Any]]:
        """Return `state`: the operator is symmetric."""
        return state, options

    def conj(
        self, state: _Eliminated, options: dict[str, Any]
    ) -> tuple[_Eliminated, dict[str, Any]]:
        """Return `state`: the operator is real."""
        return state, options

    def assume_full_rank(self) -> bool:
        """Return True."""
        return True


def _places(x0: PyTree) -> PyTree:
    """Return `x0` with an array of its own in place of each floating leaf.

    Raises
    ------
    TypeError
        If an unknown is complex.
    """

    def place(leaf: Any) -> Any:
        if not eqx.is_inexact_array_like(leaf):
            return None if isinstance(leaf, np.ndarray) else leaf
        if jnp.issubdtype(jnp.result_type(leaf), jnp.complexfloating):
            raise TypeError("`x0`: an unknown is complex; use its real and imaginary parts.")
        return np.zeros(np.shape(leaf))

    return jax.tree.map(place, x0)
