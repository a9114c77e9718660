"""How a problem is solved: the contract of an algorithm, and one family of methods per file."""
