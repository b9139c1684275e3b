"""The pipeline and the training step against Algorithm 1 in NumPy and float64."""

import keras
import numpy as np
import tensorflow as tf

import tf_importance as tfi
from tests.reference import algorithm1

B, b, DECAY, RATE, THRESHOLD = 32, 8, 0.5, 0.5, 1.8


class Recorder(keras.callbacks.Callback):
    """τ after each step, and whether the step's batch was drawn."""

    def __init__(self, draws: tf.Variable):
        super().__init__()
        self._draws, self._before = draws, 0
        self.steps = []

    def on_train_batch_end(self, batch, logs=None):
        draws = int(self._draws)
        self.steps.append(algorithm1.Step(float(logs["tau"]), draws > self._before))
        self._before = draws


def at_points(points, row: tf.Variable):
    """A resampling by given points of the cumulative proposal, a row for each draw."""
    table = tf.constant(points, tf.float32)

    def resample(proposal, size, seed):
        cumulative = tf.cumsum(proposal) / tf.reduce_sum(proposal)
        indices = tf.searchsorted(cumulative, table[row.assign_add(1) - 1], side="right")
        weights = tf.gather(tfi.proposals.importance_weights(proposal), indices)
        return tfi.proposals.Draw(indices, weights)

    return resample


def test_the_pipeline_follows_algorithm_1(blobs):
    """Same draws, then the same τ and the same switch times, on and off again."""
    points, labels = blobs
    net = keras.Sequential([keras.Input((2,)), keras.layers.Dense(4)])
    model = tfi.ISModel(net, tau_decay=DECAY)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(RATE), loss)
    kernel, bias = net.get_weights()
    uniforms = np.random.default_rng(5).random((64, b)).astype(np.float32)
    row = tf.Variable(0)
    dataset = (
        tf.data.Dataset.from_tensor_slices((points, labels))
        .repeat(4)
        .apply(
            tfi.importance_sample(
                model, b, B, tau_threshold=THRESHOLD, resampling=at_points(uniforms, row), seed=0
            )
        )
    )
    recorder = Recorder(row)
    model.fit(dataset, callbacks=[recorder], verbose=0)

    draws = iter(uniforms)

    def draw(number, g):
        return np.searchsorted(np.cumsum(g), next(draws), side="right")

    shape = (64, B)
    groups = zip(np.tile(points, (4, 1)).reshape(*shape, 2), np.tile(labels, 4).reshape(shape))
    reference = algorithm1.SoftmaxRegression(kernel, bias)
    expected = algorithm1.train(reference, groups, b, THRESHOLD, DECAY, RATE, draw)

    switches = np.flatnonzero(np.diff([step.drawn for step in expected]))
    assert len(switches) >= 3, "the threshold must be crossed both ways"
    assert [step.drawn for step in recorder.steps] == [step.drawn for step in expected]
    found = [step.tau for step in recorder.steps]
    np.testing.assert_allclose(found, [step.tau for step in expected], rtol=2e-3)
    np.testing.assert_allclose(net.get_weights()[0], reference.kernel, rtol=5e-3, atol=1e-3)
