"""Inclusion probabilities, and InfoBatch's passes, as the papers have them; NumPy, float64."""

import numpy as np


def proportional(scores, share, smoothing):
    """min(1, C (Ĝ + c mean(Ĝ))) of the wanted sum, C by bisection; 1 where there is no score."""
    scores = np.asarray(scores, np.float64)
    known = scores >= 0
    values = scores[known]
    found = np.ones(len(scores))
    if len(values) == 0:
        return found
    sizes = values + smoothing * values.mean() if values.sum() > 0 else np.ones(len(values))
    wanted = min(max(share * len(values), 1.0), len(values))
    low, high = 0.0, 1 / sizes[sizes > 0].min()
    for _ in range(200):
        middle = (low + high) / 2
        enough = np.minimum(1, middle * sizes).sum() >= wanted
        low, high = (low, middle) if enough else (middle, high)
    found[known] = np.minimum(1, high * sizes)
    return found


def info_batch(scores, pruned, rng):
    """One pass of InfoBatch: which examples are kept, and their weights (Qin et al. 2024, eq. 3).

    Each example whose score is below the mean is left out with probability r; the gradients of
    those that are kept of them are scaled by 1/(1 − r).
    """
    scores = np.asarray(scores, np.float64)
    low = scores < scores.mean()
    left_out = low & (rng.random(len(scores)) < pruned)
    weights = np.where(low, 1 / (1 - pruned), 1.0)
    return np.flatnonzero(~left_out), weights
