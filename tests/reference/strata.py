"""Slow truth of stratified sampling in NumPy, float64."""

import numpy as np


def neyman_shares(prior, mean_squares, smoothing):
    """(π_k σ_k/Σ π σ + c π_k)/(1 + c)."""
    spread = [p * np.sqrt(s) for p, s in zip(prior, mean_squares)]
    return (np.array(spread) / sum(spread) + smoothing * np.array(prior)) / (1 + smoothing)


def counts(shares, size, offset):
    """How many places of a batch each stratum gets: those of the points (i + u)/b in its part."""
    ends = np.cumsum(shares)
    found = np.zeros(len(shares), int)
    for i in range(size):
        found[next(k for k, end in enumerate(ends) if (i + offset) / size < end)] += 1
    return found


def offsets(shares, size):
    """All that an offset can do: the middle of each stretch without a change, and its length."""
    ends = np.cumsum(shares)[:-1] * size
    cuts = np.unique(np.concatenate([[0.0, 1.0], ends - np.floor(ends)]))
    return (cuts[1:] + cuts[:-1]) / 2, np.diff(cuts)


def mean_squares(prior, batches, guess, decay=0.98, guessed=64.0):
    """σ² after batches of (strata, scores), each fading those before it."""
    sums = np.zeros([len(prior), 2])
    for strata, scores in batches:
        known = [s >= 0 and s < 1.8e19 for s in scores]  # Squares are float32.
        if any(known):
            sums *= decay
            guessed = max(decay * guessed, 1e-3)
        for stratum, score, sound in zip(strata, scores, known):
            if sound:
                sums[stratum] += [score**2, 1]
    seen = sums[:, 1] > 0
    if not seen.any():
        unit = 1.0
    else:
        means = sums[seen, 0] / sums[seen, 1]
        unit = np.dot(prior[seen], means) / np.dot(prior[seen], guess[seen]) or 1.0
    return (sums[:, 0] + guessed * unit * guess) / (sums[:, 1] + guessed)
