"""Differentiate through any iterative algorithm, and know how wrong the derivative is.

The stub `__init__.pyi` lists the public names in reading order: problems, algorithms, modes,
stopping rules, solving, diagnostics. Each name is loaded when it is first used, so that a program
waits only for what it needs (SPEC 1 of Scientific Python,
https://scientific-python.org/specs/spec-0001/).
"""

import lazy_loader

__version__ = "0.1.0"

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
