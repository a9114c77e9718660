"""How an iteration runs: loops, checkpoints, the reverse sweep, stopping rules, status."""
