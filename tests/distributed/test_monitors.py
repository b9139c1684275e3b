"""Equations 6 to 9 against brute force, and smoothing to an entropy."""

import numpy as np
import pytest
import tensorflow as tf

import tf_importance as tfi
from tests.distributed.conftest import N, score_all
from tests.reference import issgd
from tf_importance import distributed, stores, variance
from tf_importance.distributed import mirror, monitors


def problem(seed):
    rng = np.random.default_rng(seed)
    gradients = rng.normal(size=(30, 4)) * rng.gamma(0.5, 1.0, size=(30, 1))
    return gradients, np.linalg.norm(gradients, axis=1), np.sum(gradients.mean(axis=0) ** 2)


@pytest.mark.parametrize("seed", range(5))
def test_equations_6_to_9_are_the_variance_of_the_estimate(seed):
    gradients, norms, square = problem(seed)
    rng = np.random.default_rng(seed + 100)
    stale = norms * rng.lognormal(sigma=0.7, size=30) + 0.01
    wanted = {
        "stale": issgd.trace_of_covariance(gradients, stale),
        "ideal": issgd.trace_of_covariance(gradients, norms),
        "uniform": issgd.trace_of_covariance(gradients, np.ones(30)),
    }
    found = {
        "stale": variance.covariance_trace(tf.constant(norms), tf.constant(stale), square),
        "ideal": variance.ideal_covariance_trace(tf.constant(norms), square),
        "uniform": variance.uniform_covariance_trace(tf.constant(norms), square),
    }
    for name, value in wanted.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-10)
    assert wanted["ideal"] <= wanted["stale"] and wanted["ideal"] <= wanted["uniform"]
    # Negative control: weights that have nothing to do with the norms.
    random = rng.gamma(0.2, 1.0, 30) + 1e-3
    assert issgd.trace_of_covariance(gradients, random) > wanted["uniform"]


def test_scores_of_an_earlier_training_are_in_no_trace():
    mirror = distributed.mirror.Mirror(4, distributed.Staleness())

    def merge(version, scores):
        found = np.zeros(4, stores.RECORD)
        found["version"], found["score"] = version, scores
        mirror.merge(0, found, 0.0)

    merge(3, [100, 100, 100, 100])
    mirror.first_version = 5
    assert np.isnan(mirror.known().scores).all()
    merge([3, 3, 5, 6], [100, 100, 1, 3])
    traces = distributed.covariances(mirror.known(), {"stale": 0.0})
    assert traces["ideal"] == 2.0 and np.isnan(traces["stale"])
    merge([3, 3, 6, 7], [100, 100, 2, 4])
    np.testing.assert_array_equal(mirror.known().previous, [np.nan, np.nan, 1, 3])


def test_a_gradient_that_is_never_drawn_has_no_finite_variance():
    trace = variance.covariance_trace(tf.constant([1.0, 0.0]), tf.constant([0.0, 1.0]))
    assert np.isinf(trace)
    assert variance.covariance_trace(tf.constant([1.0, 0.0]), tf.constant([1.0, 0.0])) == 0.25


@pytest.mark.parametrize("fraction", [0.5, 0.8, 0.95, 0.999])
@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_adaptive_smoothing_reaches_its_entropy(fraction, scale):
    scores = scale * np.random.default_rng(0).lognormal(sigma=6, size=500).astype(np.float32)
    constant = distributed.TargetEntropy(fraction)(scores)
    smoothed = scores.astype(np.float64) + constant
    reached = issgd.entropy(smoothed / smoothed.sum()) / np.log(500)
    np.testing.assert_allclose(reached, fraction, atol=1e-6)
    # Negative control: half of it does not.
    half = scores.astype(np.float64) + constant / 2
    assert issgd.entropy(half / half.sum()) / np.log(500) < fraction - 1e-5


def test_what_is_smooth_enough_is_left_alone():
    smoothing = distributed.TargetEntropy(0.9)
    for scores in (np.ones(50), np.zeros(50), np.zeros(0), np.ones(1)):
        assert smoothing(scores.astype(np.float32)) == 0.0
    for bad in (0.0, 1.0, -1.0, float("nan")):
        with pytest.raises(ValueError, match="fraction"):
            distributed.TargetEntropy(bad)
    with pytest.raises(ValueError, match="smoothing"):
        distributed.Constant(-1.0)


def test_the_monitor_reports_what_brute_force_finds(data, make_model, meeting, store_clock):
    """Stale scores by parameters some steps old, as a seeded delay gives them."""
    model = make_model()
    store = meeting("master")
    sampler = distributed.Master(N, model, store, smoothing=0.01, shard_size=32)
    worker = distributed.Worker(make_model(), data, meeting("worker"), shard_size=32)
    monitor = distributed.Monitor(sampler, batches=3, batch_size=16)
    monitor.set_model(model)
    tfi.history_sample(data, sampler, 8)
    sampler._start = lambda: None
    sampler.begin()
    gradients = []
    for _ in range(2):
        sampler._snapshot()
        sampler.exchange.once()
        score_all(worker)
        sampler.exchange.once()
        gradients.append(per_example_gradients(model, *data))
        for weight in model.net.weights:
            weight.assign(np.random.default_rng(3).normal(size=weight.shape))
    old, new = (np.linalg.norm(g, axis=1) for g in gradients)
    store_clock.jump(7)
    numbers = monitor.numbers()
    # The constant part, ‖g_TRUE‖², is an upper bound and the same in all.
    bound = numbers["mean_gradient"] ** 2
    assert bound > 0
    true = np.sum(gradients[1].mean(axis=0) ** 2)
    constant = numbers["smoothing"]
    for name, scores in (("stale", old + constant), ("ideal", new), ("uniform", np.ones(N))):
        wanted = issgd.trace_of_covariance(gradients[1], scores) + true - bound
        found = numbers[f"sqrt_trace_{name}"] ** 2
        np.testing.assert_allclose(found, max(wanted, 0), rtol=1e-3, atol=1e-3)
    assert numbers["sqrt_trace_ideal"] <= numbers["sqrt_trace_stale"]
    assert numbers["sqrt_trace_drawn"] == pytest.approx(numbers["sqrt_trace_stale"]), "all count"
    assert numbers["usable"] == 1 and numbers["staleness_50"] == pytest.approx(7, abs=0.02)


def test_what_is_drawn_is_not_what_would_be_if_all_counted():
    """Of 17 % with a fresh score: by the mean of the others it is hardly better than uniform."""
    rng = np.random.default_rng(0)
    size = 3000
    norms = rng.gamma(0.6, 1.0, size)
    old = norms * np.exp(0.1 * rng.normal(size=size))
    usable = rng.random(size) < 0.17
    known = mirror.Known(norms, old, usable, np.ones(size), np.ones(size))
    traces = monitors.covariances(known, {"stale": 0.01})
    by_mean = monitors.drawn_trace(known, 0.01, leaves_out=False)
    left_out = monitors.drawn_trace(known, 0.01, leaves_out=True)
    proposal = np.where(usable, old, old[usable].mean()) + 0.01
    # eq. 6: (1/n Σ ω̃)(1/n Σ ‖g‖²/ω̃).
    for found, chosen in ((by_mean, np.ones(size, bool)), (left_out, usable)):
        expected = proposal[chosen].mean() * (norms[chosen] ** 2 / proposal[chosen]).mean()
        assert found == pytest.approx(np.sqrt(expected), rel=1e-6)
    assert left_out == pytest.approx(traces["stale"], rel=0.1)
    assert by_mean > 0.85 * traces["uniform"] > 1.2 * left_out
    nothing = known._replace(usable=np.zeros(size, bool))
    assert np.isnan(monitors.drawn_trace(nothing, 0.01, leaves_out=True))


def per_example_gradients(model, x, y) -> np.ndarray:
    rows = []
    for index in range(len(x)):
        with tf.GradientTape() as tape:
            logits = model.net(x[index : index + 1])
            loss = tf.nn.sparse_softmax_cross_entropy_with_logits(y[index : index + 1], logits)
        gradients = tape.gradient(loss, model.net.trainable_variables)
        rows.append(np.concatenate([np.ravel(g) for g in gradients]))
    return np.array(rows, np.float64)
