"""Tests of the benchmarks: their answers, their judgement and their reports; no times."""
