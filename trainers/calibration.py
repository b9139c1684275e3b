"""How good predicted probabilities are: log loss, average precision, calibration error.

All take logits [n, K], labels [n] and weights [n] of the examples, which give classes the shares
that they have where the net is used.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import scipy.optimize
import scipy.special
import sklearn.metrics

_BINS = 15


class Reliability(NamedTuple):
    """Examples sorted by what is predicted, in bins of equal weight.

    Attributes:
        predicted: mean probability. observed: share of positives. weight: share of all; [bins].
    """

    predicted: np.ndarray
    observed: np.ndarray
    weight: np.ndarray


def log_loss(logits: np.ndarray, labels: np.ndarray, weights: np.ndarray) -> float:
    """−Σ w log p(label) / Σ w, in nats."""
    log_probabilities = scipy.special.log_softmax(logits.astype(np.float64), axis=1)
    return float(np.average(-log_probabilities[np.arange(len(labels)), labels], weights=weights))


def average_precision(logits: np.ndarray, labels: np.ndarray, weights: np.ndarray) -> float:
    """Area under precision over recall, the mean over all classes but the commonest.

    Of two classes it is the rare one's.
    """
    probabilities = scipy.special.softmax(logits.astype(np.float64), axis=1)
    return _mean_over_rare(
        lambda k: sklearn.metrics.average_precision_score(
            labels == k, probabilities[:, k], sample_weight=weights
        ),
        labels,
        weights,
    )


def calibration_error(logits: np.ndarray, labels: np.ndarray, weights: np.ndarray) -> float:
    """Expected calibration error, Σ_bins |mean predicted − share observed| times the bin's weight.

    In bins of equal weight (Nixon et al. 2019, "Measuring calibration in deep learning"): in bins
    of equal width nearly all predictions of a rare class are in the first. The mean over all
    classes but the commonest.
    """

    def of_class(k: int) -> float:
        found = reliability(logits, labels, weights, k)
        return float(np.sum(found.weight * np.abs(found.predicted - found.observed)))

    return _mean_over_rare(of_class, labels, weights)


def reliability(
    logits: np.ndarray, labels: np.ndarray, weights: np.ndarray, positive: int, bins: int = _BINS
) -> Reliability:
    """Predicted probabilities of a class beside how often it was there.

    Args:
        logits, labels, weights: as of all here. positive: the class. bins: at most.
    """
    predicted = scipy.special.softmax(logits.astype(np.float64), axis=1)[:, positive]
    order = np.argsort(predicted, kind="stable")
    predicted, observed, weights = predicted[order], (labels == positive)[order], weights[order]
    passed = np.cumsum(weights, dtype=np.float64)
    of_bin = np.minimum((passed - weights / 2) / passed[-1] * bins, bins - 1).astype(int)
    totals = np.bincount(of_bin, weights, bins)
    there = totals > 0
    sums = (np.bincount(of_bin, weights * values, bins) for values in (predicted, observed))
    means = [total[there] / totals[there] for total in sums]
    return Reliability(*means, weight=totals[there] / totals.sum())


def fitted(logits: np.ndarray, labels: np.ndarray, weights: np.ndarray):
    """Calibrate logits afterwards: z ← a z + b, a scalar and b: [K] of the least log loss.

    Temperature and bias (Guo et al. 2017, section 4.2), for losses whose minimum is not at the
    probabilities, such as focal loss.

    Args:
        logits, labels, weights: of a validation set.
    Returns:
        A function of logits.
    """
    logits = logits.astype(np.float64)
    targets = np.eye(logits.shape[1])[labels]
    weights = weights / np.sum(weights)

    def value_and_gradient(parameters):
        scale, shift = np.exp(parameters[0]), parameters[1:]
        moved = scale * logits + shift
        value = weights @ (scipy.special.logsumexp(moved, axis=1) - np.sum(targets * moved, axis=1))
        by_logit = weights[:, np.newaxis] * (scipy.special.softmax(moved, axis=1) - targets)
        return value, np.array([scale * np.sum(by_logit * logits), *by_logit.sum(axis=0)])

    start = np.zeros(1 + logits.shape[1])
    found = scipy.optimize.minimize(value_and_gradient, start, jac=True, method="L-BFGS-B").x
    return lambda others: np.exp(found[0]) * others + found[1:]


def _mean_over_rare(of_class, labels: np.ndarray, weights: np.ndarray) -> float:
    """The mean of a function over the classes that are there, but for the commonest."""
    totals = np.bincount(labels, weights)
    rare = [k for k in range(len(totals)) if totals[k] > 0 and k != np.argmax(totals)]
    return float(np.mean([of_class(k) for k in rare])) if rare else float("nan")
