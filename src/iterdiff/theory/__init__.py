"""Formulas and bounds for the derivatives of iterations: numbers in, numbers out.

The functions are pure `jax.numpy`. They run under `jit` and `vmap`, in float32 and float64, and
never run a solver. In reading order: residual polynomials, the exact error of the unrolled
derivative, its worst cases and bounds, burn-in, convergence rates, and the errors of cheaper
derivatives.

An argument whose value JAX is tracing is not checked.
"""

from iterdiff.theory.bounds import chebyshev_bound as chebyshev_bound
from iterdiff.theory.bounds import gradient_descent_bound as gradient_descent_bound
from iterdiff.theory.bounds import heavy_ball_bound as heavy_ball_bound
from iterdiff.theory.bounds import jacobian_bound as jacobian_bound
from iterdiff.theory.bounds import nesterov_bound as nesterov_bound
from iterdiff.theory.bounds import noncommuting_bound as noncommuting_bound
from iterdiff.theory.bounds import sobolev_bound as sobolev_bound
from iterdiff.theory.burn_in import BurnIn as BurnIn
from iterdiff.theory.burn_in import burn_in as burn_in
from iterdiff.theory.burn_in import burn_in_peak as burn_in_peak
from iterdiff.theory.burn_in import chebyshev_burn_in as chebyshev_burn_in
from iterdiff.theory.burn_in import gradient_descent_burn_in as gradient_descent_burn_in
from iterdiff.theory.burn_in import heavy_ball_burn_in as heavy_ball_burn_in
from iterdiff.theory.burn_in import nesterov_burn_in as nesterov_burn_in
from iterdiff.theory.error_formula import commuting_error as commuting_error
from iterdiff.theory.error_formula import divided_differences as divided_differences
from iterdiff.theory.error_formula import jacobian_part as jacobian_part
from iterdiff.theory.error_formula import noncommuting_error as noncommuting_error
from iterdiff.theory.late_starts import implicit_bound as implicit_bound
from iterdiff.theory.late_starts import late_start as late_start
from iterdiff.theory.late_starts import late_start_bound as late_start_bound
from iterdiff.theory.late_starts import neumann_bound as neumann_bound
from iterdiff.theory.late_starts import one_step_bound as one_step_bound
from iterdiff.theory.measured import MeasuredBurnIn as MeasuredBurnIn
from iterdiff.theory.measured import measured_burn_in as measured_burn_in
from iterdiff.theory.no_burn_in import largest_step_without_burn_in as largest_step_without_burn_in
from iterdiff.theory.no_burn_in import mode_error as mode_error
from iterdiff.theory.no_burn_in import mode_has_burn_in as mode_has_burn_in
from iterdiff.theory.polynomials import ResidualPolynomial as ResidualPolynomial
from iterdiff.theory.polynomials import chebyshev_polynomial as chebyshev_polynomial
from iterdiff.theory.polynomials import gradient_descent_polynomial as gradient_descent_polynomial
from iterdiff.theory.polynomials import heavy_ball_polynomial as heavy_ball_polynomial
from iterdiff.theory.polynomials import nesterov_parameters as nesterov_parameters
from iterdiff.theory.polynomials import nesterov_polynomial as nesterov_polynomial
from iterdiff.theory.polynomials import polyak_parameters as polyak_parameters
from iterdiff.theory.rates import chebyshev_rate as chebyshev_rate
from iterdiff.theory.rates import gradient_descent_rate as gradient_descent_rate
from iterdiff.theory.rates import heavy_ball_rate as heavy_ball_rate
from iterdiff.theory.rates import nesterov_rate as nesterov_rate
from iterdiff.theory.sobolev import sobolev_polynomials as sobolev_polynomials
from iterdiff.theory.worst_cases import Factors as Factors
from iterdiff.theory.worst_cases import chebyshev_factors as chebyshev_factors
from iterdiff.theory.worst_cases import gradient_descent_factors as gradient_descent_factors
from iterdiff.theory.worst_cases import heavy_ball_factors as heavy_ball_factors
from iterdiff.theory.worst_cases import nesterov_factors as nesterov_factors
from iterdiff.theory.worst_cases import sobolev_factors as sobolev_factors
