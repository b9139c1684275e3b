"""The same two lines under MirroredStrategy, by both dataset routes, on two logical CPUs."""

import itertools

import keras
import numpy as np
import pytest
import tensorflow as tf

import tf_importance as tfi
from tests.reference import equations

L = keras.layers
ROUTES = ["auto-sharded", "from function"]


NORMALIZATIONS = {
    "": None,
    "weighted": lambda: tfi.layers.BatchNormalization(momentum=0.97),
    "converted": lambda: L.BatchNormalization(momentum=0.97),
    "synchronized": lambda: L.BatchNormalization(momentum=0.97, synchronized=True),
}
# In every test run; all others by `make test-slow`.
QUICK = {("auto-sharded", "weighted"), ("from function", "converted")}


def model_in(strategy, learning_rate=0.2, batch_norm=None):
    with strategy.scope():
        layers = [L.Dense(8, activation="relu")]
        layers += [batch_norm()] if batch_norm else []
        net = keras.Sequential([keras.Input((2,)), *layers, L.Dense(4, activation="softmax")])
        model = tfi.ISModel(net)
        model.compile(
            keras.optimizers.SGD(learning_rate),
            "sparse_categorical_crossentropy",
            metrics=["accuracy"],
        )
    return model


def fed(strategy, route, model, data, batch_size, presample_size, **kwargs):
    """Batches for both replicas, batch_size examples in all."""
    per_replica = 2 if route == "from function" else 1

    def make(context=None):
        dataset = tf.data.Dataset.from_tensor_slices(data).repeat()
        if context is not None:
            dataset = dataset.shard(context.num_input_pipelines, context.input_pipeline_id)
        sample = tfi.importance_sample(
            model, batch_size // per_replica, presample_size // per_replica, **kwargs
        )
        return dataset.apply(sample)

    if route == "from function":
        return strategy.distribute_datasets_from_function(make)
    return make()


@pytest.mark.parametrize(
    "route, batch_norm",
    [
        pytest.param(*case, marks=() if case in QUICK else pytest.mark.slow)
        for case in itertools.product(ROUTES, NORMALIZATIONS)
    ],
)
def test_training_under_a_strategy(strategy, route, batch_norm, blobs):
    keras.utils.set_random_seed(1)
    model = model_in(strategy, 0.1, NORMALIZATIONS[batch_norm])
    # Without smoothing weights of hundreds occur, 900 in one run of 27, and may undo a training.
    data = fed(
        strategy, route, model, blobs, 16, 64, tau_threshold=1.1, smoothing=0.2, seed=0
    )
    before = model.evaluate(*blobs, batch_size=128, verbose=0)[0]
    history = model.fit(data, steps_per_epoch=60, epochs=3, verbose=0).history
    assert model.evaluate(*blobs, batch_size=128, verbose=0)[0] < 0.7 * before
    assert 0 < history["importance"][-1] <= 1
    assert 0 < history["ess"][-1] <= 1
    assert history["tau"][-1] > 1
    np.testing.assert_allclose(history["tau"][-1], tf.convert_to_tensor(model.tau), rtol=1e-5)
    assert history["fallbacks"][-1] == 0


@pytest.mark.parametrize("route", ROUTES)
def test_tau_is_the_mean_over_the_replicas(strategy, route, blobs):
    """Learning rate zero: each replica's estimate is eq. 26 of its half of the batch."""
    model = model_in(strategy, learning_rate=0.0)
    points, labels = blobs[0][:16], blobs[1][:16]
    data = fed(strategy, route, model, (points, labels), 16, 16, tau_threshold="never")
    model.fit(data, steps_per_epoch=1, verbose=0)
    deltas = np.asarray(model.net(points)) - np.eye(4)[labels]
    norms = np.linalg.norm(deltas, axis=1)
    expected = np.mean([equations.tau(norms[:8]), equations.tau(norms[8:])])
    np.testing.assert_allclose(tf.convert_to_tensor(model.tau), expected, rtol=1e-4)


def test_an_unbuilt_net_is_built_within_the_strategy(strategy, blobs):
    with strategy.scope():
        model = tfi.ISModel(keras.Sequential([L.Dense(4, activation="softmax")]))
        model.compile("sgd", "sparse_categorical_crossentropy")
    data = fed(strategy, "auto-sharded", model, blobs, 16, 64, tau_threshold=1.1)
    history = model.fit(data, steps_per_epoch=5, verbose=0).history
    assert np.isfinite(history["loss"][0])


@pytest.mark.slow
@pytest.mark.parametrize("weighted", [True, False], ids=["weighted", "negative control"])
@pytest.mark.parametrize("route", ROUTES)
def test_the_gradient_of_all_replicas_is_unbiased(strategy, route, weighted, blobs):
    """z-test on SGD's own step: parameters before, parameters after, over the learning rate."""
    points, labels = blobs[0][:64], blobs[1][:64]
    model = model_in(strategy)
    model.fit(
        fed(strategy, "auto-sharded", model, blobs, 32, 32, tau_threshold="never"),
        steps_per_epoch=60,
        verbose=0,
    )
    data = fed(strategy, route, model, (points, labels), 16, 64, tau_threshold="always", seed=0)
    if not weighted:
        unweight = lambda x, y, w: (x, y, tf.ones_like(w))  # noqa: E731
        if route == "from function":
            pytest.skip("a distributed dataset cannot be mapped")
        data = data.map(unweight)
    start = model.net.get_weights()
    with tf.GradientTape() as tape:
        outputs = model.net(points)
        loss = tf.reduce_mean(keras.losses.sparse_categorical_crossentropy(labels, outputs))
    parts = tape.gradient(loss, model.net.trainable_variables)
    truth = np.concatenate([np.ravel(part) for part in parts])
    class Restart(keras.callbacks.Callback):
        steps = []

        def on_train_batch_end(self, batch, logs=None):
            moved = [a - b for a, b in zip(start, self.model.net.get_weights())]
            self.steps.append(np.concatenate([np.ravel(m) for m in moved]) / 0.2)
            self.model.net.set_weights(start)

    Restart.steps = []
    model.fit(data, steps_per_epoch=400, verbose=0, callbacks=[Restart()])
    directions = np.random.default_rng(0).normal(size=(truth.size, 6))
    projected = (np.array(Restart.steps, np.float64) - truth) @ directions
    if route == "from function":
        # Halves alternate; a pair of steps sees all of the data.
        projected = projected.reshape(-1, 2, 6).mean(axis=1)
    z = projected.mean(axis=0) / (projected.std(axis=0, ddof=1) / np.sqrt(len(projected)))
    if weighted:
        assert np.abs(z).max() < 4.5
    else:
        assert np.abs(z).max() > 6


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.slow
def test_the_gain_under_a_strategy(strategy, route, blobs):
    """Both replicas measure it, one pipeline decides by it, and both take the same step."""
    with strategy.scope():
        net = keras.Sequential([keras.Input((2,)), L.Dense(4, activation="softmax")])
        model = tfi.ISModel(net)
        rate = tfi.schedules.GainAdapted(0.5)
        model.compile(keras.optimizers.SGD(rate), "sparse_categorical_crossentropy")
    switch = tfi.switches.Gain(step_seconds=1.0, scoring_seconds=0.01)
    data = fed(strategy, route, model, blobs, 16, 64, switch=switch, seed=0)
    history = model.fit(data, steps_per_epoch=100, epochs=2, verbose=0).history
    assert history["importance"][-1] > 0.2, "it must have been drawn from"
    moments, enough = model.meter.moments()
    assert bool(enough) and float(moments.square) > float(moments.mean_square) > -0.1
    assert 201 < float(tf.convert_to_tensor(rate.following)) < 400


def test_scoring_in_the_step_is_refused_under_a_strategy(strategy):
    with pytest.raises(ValueError, match="works on one replica.*2"):
        tfi.importance_sample(model_in(strategy), score_in="step")
