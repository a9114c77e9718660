"""Run something and report on it: trace, diagnose, check_derivative, iterate errors.

- ``trace``: ``reference`` finds the truth, ``recorder`` runs, ``dataset`` assembles the result.
- ``diagnose``: a trial run by ``trace``, timed by ``gradient_cost``, in words by ``advice`` and
  ``diagnosis``.
- ``check_derivative``: ``checked_run`` solves, ``map_checks`` and ``solve_checks`` compare with
  ``finite_differences``, and ``checkup`` is the result.
- ``iterate_error``: the error of a derivative as iterate derivative.
"""
