"""Johnson & Guestrin 2018, transcribed literally in NumPy and float64; generic solvers."""

from __future__ import annotations

import numpy as np
import scipy.optimize

LENGTHS = (1, 2, 4, 8, 16)


def features(norms, side=()) -> np.ndarray:
    """s_i of section 6 from all norms seen so far, the oldest first; side features; the bias."""
    norms = np.asarray(norms, np.float64)
    averages, variances = [], []
    for length in LENGTHS:
        last = norms[-length:]
        averages.append(last.mean() if len(last) else 0.0)
        if length >= 4:
            variances.append(last.var() if len(last) else 0.0)
    return np.array([*averages, *variances, *np.sqrt(variances), *side, 1.0])


def proposal(features_of_all, c, d) -> np.ndarray:
    """p of Proposition 4.1."""
    estimates, uncertainties = features_of_all @ c, features_of_all @ d
    k = np.sqrt(len(features_of_all) / uncertainties.sum()) if uncertainties.sum() > 0 else 0.0
    v = estimates + k * uncertainties
    return v / v.sum()


def worst_case(estimates, uncertainties) -> np.ndarray:
    """argmax {(Σv)² : v ≥ 0, mean Q ≤ 1}, (PRC′), by a generic solver."""

    def slack(v):
        return 1 - np.mean((estimates - v) ** 2 / uncertainties)

    found = scipy.optimize.minimize(
        lambda v: -v.sum(),
        estimates,
        method="SLSQP",
        bounds=[(0, None)] * len(estimates),
        constraints={"type": "ineq", "fun": slack},
        options={"ftol": 1e-12, "maxiter": 500},
    )
    return found.x


def size_of(c, d, data) -> float:
    """(PT)'s objective, as the mean over the n examples."""
    return float(data.mean_features @ d)


def constraint(c, d, data) -> float:
    """The left side of (PT)'s constraint, term by term."""
    terms = [
        w * (c @ s - v) ** 2 / (d @ s) for s, v, w in zip(data.features, data.norms, data.weights)
    ]
    return float(np.mean(terms))


def train(data, start) -> tuple[np.ndarray, np.ndarray]:
    """(PT) by a generic solver, constraint and all.

    SLSQP keeps bounds and constraint up to a tolerance only, and what violates them may be smaller
    than any set that does not. So its point is moved within the bounds, and d scaled until the
    constraint is 1, the smallest that it may be for this c and the direction of d. A second run
    from there takes up what the first has left.
    """
    size = data.features.shape[1]
    lower = np.append(np.zeros(size), np.full(size, 1e-9))
    for _ in range(2):
        found = scipy.optimize.minimize(
            lambda z: size_of(z[:size], z[size:], data),
            start,
            method="SLSQP",
            bounds=[(low, None) for low in lower],
            constraints={"type": "ineq", "fun": lambda z: 1 - constraint(z[:size], z[size:], data)},
            options={"ftol": 1e-12, "maxiter": 1000},
        )
        c, d = np.split(np.maximum(found.x, lower), 2)
        start = np.concatenate([c, d * constraint(c, d, data)])
    return start[:size], start[size:]
