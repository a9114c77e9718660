"""Run something and report on it: trace, diagnose, check_derivative, iterate errors."""
