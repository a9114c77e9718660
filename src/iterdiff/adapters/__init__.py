"""Solvers of other libraries as algorithms, and our modes for other libraries.

`from_optax`, `from_optimistix` and `from_jaxopt` return an `iterdiff.Algorithm`.
`as_optimistix_adjoint` and `custom_root` bring our derivatives to optimistix and to code written
for jaxopt. A library is imported when its adapter is first called; install all of them with
``pip install 'iterdiff[adapters]'``.
"""

from iterdiff.adapters.custom_root import custom_root as custom_root
from iterdiff.adapters.from_jaxopt import from_jaxopt as from_jaxopt
from iterdiff.adapters.from_optax import from_optax as from_optax
from iterdiff.adapters.from_optimistix import from_optimistix as from_optimistix
from iterdiff.adapters.optimistix_adjoint import as_optimistix_adjoint as as_optimistix_adjoint
