"""Linear solves: which method, the matrix, factors, Krylov methods, the spectrum."""
