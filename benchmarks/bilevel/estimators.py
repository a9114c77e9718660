"""Run scikit-learn's own checks of estimators on ours: ``python -m benchmarks.bilevel.estimators``.

Every check fits models of other shapes, which JAX compiles anew, so that this takes minutes.
"""

import argparse
import json
import time
import warnings
from pathlib import Path

from sklearn.utils.estimator_checks import check_estimator

from iterdiff.bilevel import sklearn as ours

ESTIMATORS = (
    ours.RidgeHO(),
    ours.LassoHO(),
    ours.ElasticNetHO(),
    ours.LogisticRegressionHO(),
)


def checked(estimator) -> dict:
    """Return how many checks passed, and which failed or were skipped, with the reasons."""
    begun = time.perf_counter()
    results = check_estimator(estimator, on_fail=None)
    found: dict = {"passed": 0, "failed": {}, "skipped": {}}
    for result in results:
        if result["status"] == "passed":
            found["passed"] += 1
        else:
            found[result["status"]][result["check_name"]] = repr(result["exception"])
    found["seconds"] = round(time.perf_counter() - begun)
    return found


def main() -> None:
    """Check every estimator, and write what came of it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("out/bench/bilevel-estimators.json"))
    parser.add_argument("--only", default="")
    given = parser.parse_args()
    found = {}
    for estimator in ESTIMATORS:
        name = type(estimator).__name__
        if given.only in name:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                found[name] = checked(estimator)
            print(name, found[name], flush=True)
    given.out.parent.mkdir(parents=True, exist_ok=True)
    given.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
