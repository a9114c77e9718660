"""Solvers of quadratic programs, as their users call them; ``docs/constraints.md`` shows them.

The program: minimise ``x^T Q x / 2 + c^T x`` where ``G x <= h``, with ``theta = {"c": c, "h": h}``.
"""

import numpy as np

Q = np.array([[2.0, 0.5, 0.0], [0.5, 1.0, 0.3], [0.0, 0.3, 1.5]])
G = np.array([[-1.0, 0.0, 0.0], [0.0, -1.0, 0.0], [0.0, 0.0, -1.0], [1.0, 1.0, 1.0]])


def by_quadprog(x0, theta):
    """Return the solution by quadprog, an active-set method in C++."""
    import quadprog

    return quadprog.solve_qp(Q, -np.asarray(theta["c"]), -G.T, -np.asarray(theta["h"]))[0]


def by_osqp(x0, theta):
    """Return the solution by OSQP, an operator-splitting method in C; polished."""
    import osqp
    import scipy.sparse

    solver, below = osqp.OSQP(), np.full(len(G), -np.inf)
    matrices = scipy.sparse.csc_matrix(Q), np.asarray(theta["c"]), scipy.sparse.csc_matrix(G)
    solver.setup(*matrices, below, np.asarray(theta["h"]), verbose=False, polishing=True)
    return solver.solve(raise_error=True).x


def by_proxsuite(x0, theta):
    """Return the solution by ProxQP, an augmented Lagrangian in C++."""
    import proxsuite

    solver = proxsuite.proxqp.dense.QP(len(Q), 0, len(G))
    solver.settings.eps_abs = 1e-10
    below = np.full(len(G), -1e20)
    solver.init(Q, np.asarray(theta["c"]), None, None, G, below, np.asarray(theta["h"]))
    solver.solve()
    return solver.results.x


def by_cvxpy(x0, theta):
    """Return the solution by CVXPY, a modelling language."""
    import cvxpy

    x = cvxpy.Variable(len(Q))
    objective = cvxpy.quad_form(x, Q) / 2 + np.asarray(theta["c"]) @ x
    program = cvxpy.Problem(cvxpy.Minimize(objective), [G @ x <= np.asarray(theta["h"])])
    program.solve(solver=cvxpy.CLARABEL)
    return x.value


SOLVERS = {
    "quadprog": by_quadprog,
    "osqp": by_osqp,
    "proxsuite": by_proxsuite,
    "cvxpy": by_cvxpy,
}
"""The solvers, by the package that each needs."""
