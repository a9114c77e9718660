"""Linear data of which half the features matter."""

import numpy as np
from benchopt import BaseDataset


class Dataset(BaseDataset):
    """Gaussian features, noise, and weights of which every other one is zero."""

    name = "simulated"
    parameters = {"rows": [60], "features": [10], "seed": [0]}

    def get_data(self):
        """Return a training and a validation set of equal size."""
        draw = np.random.default_rng(self.seed)
        weights = draw.standard_normal(self.features) * (np.arange(self.features) % 2)
        sets = []
        for _ in range(2):
            features = draw.standard_normal((self.rows, self.features))
            sets.append((features, features @ weights + draw.standard_normal(self.rows)))
        return {"train": sets[0], "validation": sets[1]}
