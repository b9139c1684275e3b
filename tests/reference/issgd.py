"""Alain et al. 2015, transcribed literally in NumPy and float64."""

from __future__ import annotations

import numpy as np


def trace_of_covariance(gradients, scores) -> float:
    """Tr Σ(q) of the estimator g(x_n) / (N ω_n), n ~ ω, from its definition: no algebra."""
    gradients, scores = np.asarray(gradients, np.float64), np.asarray(scores, np.float64)
    probabilities = scores / scores.sum()
    possible = probabilities > 0
    estimates = gradients[possible] / (len(gradients) * probabilities[possible, None])
    mean = probabilities[possible] @ estimates
    return float(probabilities[possible] @ np.sum((estimates - mean) ** 2, axis=1))


def loss_weights(scores, drawn) -> np.ndarray:
    """What the losses of the drawn examples are multiplied by, section 4.1."""
    scores = np.asarray(scores, np.float64)
    return scores.mean() / scores[drawn]


def entropy(probabilities) -> float:
    """H of a distribution, in nats."""
    positive = probabilities[probabilities > 0]
    return float(-np.sum(positive * np.log(positive)))
