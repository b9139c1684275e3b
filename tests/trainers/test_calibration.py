"""Log loss, average precision and calibration error against slow truths."""

from __future__ import annotations

import math

import numpy as np
import pytest

from trainers import calibration


def _logits(probabilities) -> np.ndarray:
    """Of two classes, the second with these probabilities."""
    p = np.asarray(probabilities, float)
    return np.stack([np.log(1 - p), np.log(p)], axis=1)


@pytest.fixture
def examples() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(60, 3)) * 2
    return logits, rng.integers(3, size=60), rng.exponential(size=60)


def test_log_loss_is_the_weighted_mean(examples):
    logits, labels, weights = examples
    expected = 0.0
    for z, y, w in zip(logits, labels, weights):
        expected -= w * math.log(math.exp(z[y]) / sum(map(math.exp, z)))
    assert calibration.log_loss(*examples) == pytest.approx(expected / weights.sum(), rel=1e-9)


def test_logits_that_no_exponential_holds_have_a_loss():
    huge = np.array([[0.0, 1e4]])
    assert calibration.log_loss(huge, np.array([0]), np.ones(1)) == pytest.approx(1e4)


def test_average_precision_is_that_of_repeated_examples():
    """A weight is what so many equal examples are."""
    p = np.array([0.9, 0.8, 0.7, 0.4, 0.2])
    labels, weights = np.array([1, 0, 1, 0, 0]), np.array([1, 3, 1, 2, 4])
    times = [np.repeat(part, weights, axis=0) for part in (_logits(p), labels)]
    mine = calibration.average_precision(_logits(p), labels, weights)
    assert mine == pytest.approx(calibration.average_precision(*times, np.ones(weights.sum())))
    # Precision 1 at half of the recall, 2 of 5 at the rest.
    assert mine == pytest.approx(0.5 * 1 + 0.5 * 2 / 5)


def test_the_mean_is_over_all_classes_but_the_commonest(examples):
    logits, labels, _ = examples
    of_each = []
    for k in range(3):
        order = np.argsort(-np.exp(logits[:, k]) / np.exp(logits).sum(axis=1))
        hits = labels[order] == k
        of_each.append(np.mean((np.cumsum(hits) / np.arange(1, 61))[hits]))
    rare = [k for k in range(3) if k != np.bincount(labels).argmax()]
    expected = np.mean([of_each[k] for k in rare])
    assert calibration.average_precision(logits, labels, np.ones(60)) == pytest.approx(expected)


def test_calibration_error_of_what_is_true_and_of_what_is_twice_too_much():
    p = np.repeat([0.01, 0.04, 0.1], 1000)
    # Every hundredth, 25th and tenth.
    labels = (np.concatenate([np.arange(1000) % every for every in (100, 25, 10)]) == 5).astype(int)
    error = calibration.calibration_error
    assert error(_logits(p), labels, np.ones(3000)) == pytest.approx(0, abs=1e-2)
    found = calibration.reliability(_logits(p), labels, np.ones(3000), 1, bins=3)
    np.testing.assert_allclose(found.predicted, [0.01, 0.04, 0.1], rtol=1e-6)
    np.testing.assert_allclose(found.observed, [0.01, 0.04, 0.1], rtol=1e-6)
    twice = calibration.reliability(_logits(2 * p), labels, np.ones(3000), 1, bins=3)
    np.testing.assert_allclose(twice.predicted, 2 * twice.observed, rtol=1e-6)
    # Negative control: what is twice too much is off by the mean.
    assert error(_logits(2 * p), labels, np.ones(3000)) > 0.04


def test_bins_have_equal_weight_and_none_is_lost(examples):
    logits, labels, weights = examples
    found = calibration.reliability(logits, labels, weights, 1, bins=5)
    assert found.weight.sum() == pytest.approx(1)
    np.testing.assert_allclose(found.weight, 0.2, atol=weights.max() / weights.sum())
    mean = np.average(labels == 1, weights=weights)
    assert found.weight @ found.observed == pytest.approx(mean)


def test_the_fit_finds_scale_and_shift():
    """Of labels that are drawn by true logits, which somebody scaled and shifted."""
    rng = np.random.default_rng(1)
    true = rng.normal(size=(20_000, 2)) * 1.5 + [2.0, 0.0]
    p = 1 / (1 + np.exp(true[:, 0] - true[:, 1]))
    labels = (rng.random(20_000) < p).astype(int)
    moved, weights = true / 3 - [0.5, -0.5], np.ones(20_000)
    fitted = calibration.fitted(moved, labels, weights)
    best = calibration.log_loss(true, labels, weights)
    assert calibration.log_loss(moved, labels, weights) > best + 0.02
    assert calibration.log_loss(fitted(moved), labels, weights) == pytest.approx(best, abs=5e-4)


def test_nothing_rare_has_no_precision():
    one_class = np.zeros(4, int)
    assert math.isnan(calibration.average_precision(_logits([0.1] * 4), one_class, np.ones(4)))
