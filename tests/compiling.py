"""How the tests' programs are compiled: fast, because nearly every program runs once."""

import jax

QUICK_TO_COMPILE = {
    "xla_backend_optimization_level": "0",
    "xla_cpu_parallel_codegen_split_count": "1",
}
"""Flags of XLA with which it compiles in about a third of the time. They change how machine code
is made, not what is computed. What a program costs is measured under `AS_SHIPPED` (helpers.py)."""
if jax.__version_info__ < (0, 11):  # later ones do not know it, and end the process
    QUICK_TO_COMPILE["xla_cpu_use_fusion_emitters"] = "false"

FLAGS = [f"--{name}={value}" for name, value in QUICK_TO_COMPILE.items()]
"""The same, as they stand in ``XLA_FLAGS``, which XLA reads at its first use."""
