"""Other libraries' solvers as algorithms, our modes for other libraries, and the way from jaxopt.

None of the libraries is loaded before it is used. They come with
``pip install 'iterdiff[adapters]'``.
"""

from iterdiff.adapters.custom_root import custom_root as custom_root
from iterdiff.adapters.from_jaxopt import from_jaxopt as from_jaxopt
from iterdiff.adapters.from_optax import from_optax as from_optax
from iterdiff.adapters.from_optimistix import from_optimistix as from_optimistix
from iterdiff.adapters.optimistix_adjoint import as_optimistix_adjoint as as_optimistix_adjoint
