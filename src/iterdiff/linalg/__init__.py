"""Linear solves: the choice of method, checked answers, factors, Krylov methods, spectra."""
