r"""
Compare algorithms in a study of your own
=========================================

A study consists of cases that differ in one respect, and of the modes that differentiate each case.
Running it gives one dataset; tables, verdicts and figures are views of that dataset. This study
compares two dampings of a fixed-point iteration for Kepler's equation, :math:`E = M + e \sin E`,
differentiated in the eccentricity e.
"""

import io

import jax
import jax.numpy as jnp
import matplotlib.image
import matplotlib.pyplot as plt

import iterdiff as itd
from iterdiff.study.config import Case, Study
from iterdiff.study.run import cases, run
from iterdiff.study.views.plots import figures
from iterdiff.study.views.summary import jacobian_of
from iterdiff.study.views.verdicts import verdicts

jax.config.update("jax_enable_x64", True)

# %%
# The problem: an eccentric orbit at a mean anomaly of half a radian.

problem = itd.FixedPoint(lambda anomaly, e: 0.5 + e * jnp.sin(anomaly))
x0, e = jnp.array(0.5), jnp.array(0.9)

# %%
# The study. Cases may differ in anything; here they differ in the algorithm.

algorithms = {"Picard": itd.Picard(), "Picard, damped": itd.Picard(damping=0.6)}
study = Study(
    name="kepler",
    title="Kepler's equation, e = 0.9, M = 0.5",
    cases=tuple(
        Case(label, problem, algorithm, x0, e, steps=60) for label, algorithm in algorithms.items()
    ),
    modes={"unrolled": itd.Unrolled(), "implicit": itd.Implicit(), "one-step": itd.OneStep()},
)
data = run(study)
print(*verdicts(data), sep="\n")

# %%
# The numbers behind the verdicts, from the same dataset.

for label, case in cases(data):
    found = jacobian_of(case, "unrolled")
    print(f"{label}: relative error {found.final / found.scale:.1e} after {int(case.steps)} steps")

# %%
# The figure that ``iterdiff study`` writes.

picture = io.BytesIO()
figures(data)["convergence"].savefig(picture, dpi=150)
picture.seek(0)
plt.figure(figsize=(8.4, 6.1), layout="constrained")
plt.imshow(matplotlib.image.imread(picture))
plt.axis("off")
plt.title("Errors of the iterate and of three derivatives, for two dampings")
plt.show()
