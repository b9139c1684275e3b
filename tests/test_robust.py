"""The uncertainty set: Proposition 4.1 and (PT) against generic solvers, and their laws."""

import numpy as np
import pytest
import scipy.optimize
import tensorflow as tf

from tests.reference import rais
from tf_importance import robust


def training_set(size=80, features=4, noise=0.3, seed=0) -> robust.TrainingSet:
    """Norms that are about linear in the features, with noise that grows with them."""
    rng = np.random.default_rng(seed)
    s = np.concatenate([rng.gamma(1.0, 1.0, [size, features - 1]), np.ones([size, 1])], axis=1)
    v = np.abs(s @ rng.gamma(1.0, 1.0, features) * (1 + noise * rng.normal(size=size)))
    weights = rng.gamma(4.0, 0.25, size)
    return robust.TrainingSet(s, v, weights, s.mean(axis=0) * 1.1)


@pytest.mark.parametrize("size", [1, 2, 7])
def test_proposition_4_1_solves_the_robust_counterpart(size):
    rng = np.random.default_rng(size)
    estimates, uncertainties = rng.gamma(2.0, 1.0, size), rng.gamma(2.0, 0.1, size)
    found = robust.worst_case_norms(tf.constant(estimates), tf.constant(uncertainties))
    np.testing.assert_allclose(found, rais.worst_case(estimates, uncertainties), rtol=1e-4)
    # Negative control: the estimates alone are not the worst case.
    assert found.numpy().sum() > estimates.sum() * 1.01


def test_without_uncertainty_the_estimates_are_the_worst_case():
    found = robust.worst_case_norms(tf.constant([1.0, 2.0]), tf.zeros([2]))
    np.testing.assert_array_equal(found, [1.0, 2.0])


@pytest.mark.parametrize("seed", range(3))
def test_the_trained_set_is_the_optimum_that_slsqp_finds(seed):
    data = training_set(seed=seed)
    c, d = robust.train(data)
    start = np.concatenate([np.ones(4), np.full(4, 3.0)])
    theirs = rais.train(data, start)
    for found in ((c, d), theirs):
        assert rais.constraint(*found, data) == pytest.approx(1, rel=1e-6)
    mine, others = rais.size_of(c, d, data), rais.size_of(*theirs, data)
    # SLSQP may stop a little short; we must not.
    assert mine <= others * (1 + 1e-4)
    assert mine == pytest.approx(others, rel=2e-2)
    # Negative control: another estimate, scaled to the same constraint, is larger.
    other = 1.05 * c
    assert rais.size_of(other, d * rais.constraint(other, d, data), data) > others * (1 + 1e-4)


def test_the_trained_set_satisfies_the_kkt_conditions():
    """Of (PT): ∇size + μ∇constraint = ν, ν ≥ 0, ν·(c, d) = 0, constraint = 1."""
    data = training_set(size=400)
    c, d = robust.train(data)

    def gradient(function):
        return scipy.optimize.approx_fprime(
            np.concatenate([c, d]), lambda z: function(z[:4], z[4:], data), 1e-7
        )

    of_size, of_constraint = gradient(rais.size_of), gradient(rais.constraint)
    # μ from the ray of d, along which the size grows by itself and the constraint falls by 1.
    multiplier = rais.size_of(c, d, data)
    slack = of_size + multiplier * of_constraint
    scale = np.abs(of_size).max() + multiplier * np.abs(of_constraint).max()
    assert np.all(slack > -5e-3 * scale)
    assert np.all(np.abs(slack * np.concatenate([c, d])) < 5e-3 * scale)
    # Negative control: another set is not stationary.
    c, d = c + 0.3, d
    assert not np.all(
        np.abs((gradient(rais.size_of) + multiplier * gradient(rais.constraint)) * [*c, *d])
        < 5e-3 * scale
    )


def test_gradient_and_hessian_are_the_derivatives():
    data = training_set()
    point = np.random.default_rng(0).gamma(2.0, 0.5, 8)
    gradient, hessian = robust.derivatives(point, data)
    by_differences = scipy.optimize.approx_fprime(point, robust.objective, 1e-7, data)
    np.testing.assert_allclose(gradient, by_differences, rtol=1e-4, atol=1e-4)
    rows = [
        scipy.optimize.approx_fprime(point, lambda z, k=k: robust.derivatives(z, data)[0][k], 1e-6)
        for k in range(8)
    ]
    np.testing.assert_allclose(hessian, rows, rtol=1e-3, atol=1e-3)


def test_the_objective_is_convex_along_any_line():
    data, rng = training_set(), np.random.default_rng(0)
    for _ in range(50):
        a, b = rng.gamma(1.0, 1.0, [2, 8]) + 1e-3
        middle = robust.objective((a + b) / 2, data)
        assert middle <= (robust.objective(a, data) + robust.objective(b, data)) / 2 + 1e-9


def test_units_of_norms_and_features_do_not_matter():
    data = training_set()
    c, d = robust.train(data)
    scales = np.array([1e-3, 7.0, 1e4, 1.0])
    scaled = robust.TrainingSet(
        data.features * scales, 50 * data.norms, data.weights, data.mean_features * scales
    )
    other_c, other_d = robust.train(scaled)
    np.testing.assert_allclose(scaled.features @ other_c, 50 * data.features @ c, rtol=1e-3)
    np.testing.assert_allclose(scaled.features @ other_d, 2500 * data.features @ d, rtol=1e-2)


def test_where_it_starts_does_not_matter():
    data = training_set(size=300)
    start = robust.UncertaintySet(*np.random.default_rng(0).random([2, 4]))
    cold, warm = robust.train(data), robust.train(data, start)
    sizes = [rais.size_of(*found, data) for found in (cold, warm)]
    assert sizes[0] == pytest.approx(sizes[1], rel=1e-4)


@pytest.mark.parametrize("seed", range(3))
def test_features_that_are_nearly_the_same_are_no_obstacle(seed):
    """Averages of norms that hardly vary; the optimum is the one that L-BFGS-B comes to."""

    def visits(noise):
        norms = 1 + noise * np.abs(rng.normal(size=[1500, 17]))
        averages = np.stack([norms[:, 1 : 1 + n].mean(axis=1) for n in (1, 2, 4, 8, 16)], axis=1)
        variances = np.stack([norms[:, 1 : 1 + n].var(axis=1) for n in (4, 8, 16)], axis=1)
        s = np.concatenate([averages, variances, variances**0.5, np.ones([1500, 1])], axis=1)
        return robust.TrainingSet(s, norms[:, 0], np.ones(1500), s.mean(axis=0))

    rng = np.random.default_rng(seed)
    data = visits(0.05)
    c, d = robust.train(data, robust.train(visits(0.2), smallest_estimate=1e-3), 1e-3)
    lower = np.append(np.zeros(23), 1e-9)
    theirs = scipy.optimize.minimize(
        lambda z: (robust.objective(z, data), robust.derivatives(z, data)[0]),
        np.concatenate([c, d * rais.size_of(c, d, data) ** -0.5]),
        jac=True,
        method="L-BFGS-B",
        bounds=[(low, None) for low in lower],
        options={"ftol": 1e-13, "gtol": 1e-12, "maxcor": 30, "maxiter": 3000, "maxfun": 3000},
    )
    # At the optimum A + B = 2√(A·B), and ours has B = 1.
    assert 2 * rais.size_of(c, d, data) ** 0.5 <= theirs.fun * (1 + 1e-3)


def test_more_noise_makes_a_larger_set():
    sizes = [robust.train(training_set(noise=noise)).d.sum() for noise in (0.1, 0.3, 0.6)]
    assert sizes == sorted(sizes)


@pytest.mark.parametrize("norms", [np.zeros(80), np.full(80, np.nan)])
def test_nothing_is_learned_from_nothing(norms):
    assert robust.train(training_set()._replace(norms=norms)) is None
    assert robust.train(training_set()._replace(weights=np.zeros(80))) is None


def test_equal_norms_are_estimated_exactly():
    data = training_set()._replace(norms=np.full(80, 3.0))
    c, d = robust.train(data)
    np.testing.assert_allclose(data.features @ c, 3.0, rtol=1e-2)
    assert np.all(np.isfinite(d)) and np.all(d >= 0)


def test_the_smallest_estimate_is_a_share_of_the_mean_norm():
    data = training_set()
    c, _ = robust.train(data, smallest_estimate=0.5)
    assert c[-1] >= 0.5 * np.average(data.norms, weights=data.weights) * (1 - 1e-9)


def test_outliers_are_scaled_until_their_surprise_is_the_threshold():
    estimates, uncertainties = tf.constant([1.0, 1.0, 1.0, 0.0]), tf.constant([0.1, 0.1, 0.1, 0.0])
    norms = tf.constant([1.5, 50.0, 0.0, 9.0])
    scales = robust.outlier_scales(estimates, uncertainties, norms, 100.0)
    assert scales.numpy()[[0, 2, 3]].tolist() == [1, 1, 1]
    assert robust.surprise(estimates, uncertainties, norms)[1] > 100
    after = robust.surprise(estimates, uncertainties, norms * scales)
    assert float(after[1]) == pytest.approx(100, rel=1e-4)
