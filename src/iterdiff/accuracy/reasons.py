"""Why an estimate is not trusted: sentences, and the names of their places."""

REASONS = (
    "",
    "A linear solve failed: the Jacobian of the residual is singular or nearly so. The solution "
    "has no derivative there, or none that this precision can compute.",
    "Too far from a solution to estimate the error: one Newton step does not get close enough. Run "
    "more steps.",
    "At the limit of the precision: the estimated error is no larger than rounding errors, or the "
    "noise of the residual, amplified by the condition of the linear system, may be. In float32, "
    "use float64; tighten the tolerances of solvers inside the residual.",
    "Near a saddle: the closest stationary point is not a minimum, so that the iterations may end "
    "elsewhere, with another derivative. Run more steps, or state the problem as RootFinding if "
    "you want the saddle.",
    "The residual does not vanish here: its solution is farther away than `near` allows. Run more "
    "steps; if the solver has converged, it has solved another problem than the residual states "
    "(see iterdiff.check_derivative).",
    "The algorithm has a fixed point where the residual does not vanish: the two belong to "
    "different problems (see iterdiff.check_derivative).",
    "One-sided: the solution is at a kink (abs, max, a constraint about to become active). It has "
    "two one-sided derivatives there, and this is at most one of them. "
    "`iterdiff.weakly_active(problem, x, theta)` shows where.",
    "The given derivative is not finite.",
    "No derivative was checked: the loss does not pass `report` on to a solve. Write "
    "mode=Checked(mode, report=report) in the loss.",
    "The iteration moves away from the closest root of the residual. It will end elsewhere, with "
    "another derivative: run more steps, or start elsewhere.",
    "Differences of nudged inner problems do not shrink with the nudge as those of a smooth "
    "problem do: the solver's errors dominate them, or the loss or the inner problem is not "
    "smooth.",
    "The run diverged, or the residual, the objective or the loss is not finite at this point: no "
    "derivative here means anything. Use a smaller step size, or a start closer to the solution.",
)
OK, SINGULAR, TOO_FAR, FLOOR, SADDLE, AWAY, DISAGREES, ONE_SIDED, NOT_FINITE = range(9)
NOT_REPORTED, REPELLED, NOT_SECOND_ORDER, NO_VALUE = 9, 10, 11, 12

OF_CORRECTED = (
    " (If the derivative you passed is itself a `corrected` one, it may still be accurate.)"
)
"""What `TOO_FAR` leaves open, where the caller passes the derivative."""
