"""The equations of variance against their literal transcriptions."""

import math

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.reference import equations
from tf_importance import proposals, variance

SCORES = st.lists(st.floats(0.0009765625, 1000.0), min_size=2, max_size=50)


@given(SCORES)
@settings(deadline=None, max_examples=60)
def test_tau_is_equation_26(scores):
    proposal = proposals.normalize(tf.constant(scores, tf.float64))
    tau = variance.equivalent_batch_increase(proposal)
    np.testing.assert_allclose(tau, equations.tau(scores), rtol=1e-6)
    np.testing.assert_allclose(
        len(scores) / variance.effective_sample_size(proposal), tau**2, rtol=1e-9
    )


@given(SCORES)
@settings(deadline=None, max_examples=60)
def test_the_estimate_from_uniform_examples_is_equation_26(scores):
    scores = tf.constant(scores, tf.float64)
    estimate = variance.estimated_batch_increase(scores, tf.ones_like(scores))
    np.testing.assert_allclose(estimate, equations.tau(scores.numpy()), rtol=1e-6)


def test_the_estimate_from_drawn_examples_is_that_of_the_population():
    """In expectation numerator and denominator are the population's: by all draws of one."""
    scores = np.array([0.2, 1.0, 5.0])
    g = np.array([0.5, 0.2, 0.3])
    weights = 1 / (3 * g)
    np.testing.assert_allclose(np.sum(g * weights * scores**2), np.mean(scores**2))
    drawn = np.repeat(np.arange(3), (g * 1000).round().astype(int))
    estimate = variance.estimated_batch_increase(
        tf.constant(scores[drawn]), tf.constant(weights[drawn])
    )
    np.testing.assert_allclose(estimate, equations.tau(scores), rtol=1e-6)


@pytest.mark.parametrize("scale", [1.0, 10.0])
def test_the_estimate_ignores_the_scale_of_sample_weights(scale):
    scores = tf.constant([1.0, 2.0, 4.0])
    weights = scale * tf.constant([1.0, 2.0, 0.5])
    estimate = variance.estimated_batch_increase(scores, weights, tf.reduce_mean(weights))
    counted = np.repeat([1.0, 2.0, 4.0], [2, 4, 1])
    np.testing.assert_allclose(estimate, equations.tau(counted), rtol=1e-6)


def test_variance_reduction_is_the_difference_of_variances():
    gradients = np.random.default_rng(0).normal(size=(16, 5)) * np.arange(1, 17)[:, None]
    norms = np.linalg.norm(gradients, axis=1)
    reduction = variance.variance_reduction(tf.constant(norms))
    np.testing.assert_allclose(reduction, equations.variance_reduction(gradients), rtol=1e-9)


@pytest.mark.parametrize("presample_size, batch_size", [(640, 128), (128, 32), (48, 16)])
def test_thresholds(presample_size, batch_size):
    cost = (presample_size + 3 * batch_size) / (3 * batch_size)
    guaranteed = variance.guaranteed_threshold(presample_size, batch_size)
    assert guaranteed == pytest.approx(cost)
    assert variance.break_even_threshold(presample_size, batch_size) == pytest.approx(cost**0.5)
    tau = variance.presample_break_even_threshold(presample_size, batch_size)
    kappa = variance.presample_batch_increase(tau, presample_size, batch_size)
    np.testing.assert_allclose(kappa, cost, rtol=1e-5)


def test_a_small_presample_never_breaks_even():
    assert variance.presample_break_even_threshold(48, 32) == math.inf
    assert variance.presample_break_even_threshold(64, 32) < math.inf


def test_the_papers_thresholds():
    """Section 4.4: "2.33 (equation 26)" for 128/32; section 4.3: 2 for 48/16."""
    assert variance.guaranteed_threshold(128, 32) == pytest.approx(2.333, abs=1e-3)
    assert variance.guaranteed_threshold(48, 16) == pytest.approx(2)


def test_speedup_and_variance_limits():
    assert variance.maximum_speedup(640, 128) == pytest.approx(1920 / 1024)
    assert variance.maximum_speedup(10**9, 1) == pytest.approx(3, rel=1e-6)
    assert variance.maximum_variance_reduction(4, 2) == pytest.approx(1 / 4 - 1 / 16)


@pytest.mark.parametrize("batch_size", [4, 16])
def test_kappa_is_the_variance_of_drawing_from_a_presample(batch_size):
    """Monte Carlo: Var of the mean of b drawn from B, against that of b uniform draws."""
    rng = np.random.default_rng(0)
    population = rng.lognormal(sigma=1.2, size=200_000) * rng.choice([-1, 1], size=200_000)
    presample_size, repeats = 32, 40_000
    groups = rng.choice(population, size=(repeats, presample_size))
    norms = np.abs(groups)
    g = norms / norms.sum(axis=1, keepdims=True)
    cumulative = np.cumsum(g, axis=1)
    points = rng.random((repeats, batch_size))
    indices = (points[:, :, None] > cumulative[:, None, :]).sum(axis=2).clip(max=31)
    drawn = np.take_along_axis(groups / (presample_size * g), indices, axis=1).mean(axis=1)
    uniform_variance = np.var(population) / batch_size
    measured = uniform_variance / np.var(drawn)
    # τ of a pre-sample is biased low by its size; κ speaks of that pre-sample's moments.
    tau = np.sqrt(np.mean(norms**2) / np.mean(norms.mean(axis=1) ** 2))
    kappa = variance.presample_batch_increase(tau, presample_size, batch_size).numpy()
    exact = 1 / (1 / kappa - 1 / presample_size)
    np.testing.assert_allclose(measured, exact, rtol=0.04)
    assert kappa < measured
