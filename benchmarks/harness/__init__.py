"""How the benchmarks measure, store and report; it imports nothing of iterdiff."""
