"""Gradient norms where a model does what handlers do not expect: exact, or an error."""

import threading

import keras
import numpy as np
import pytest
import tensorflow as tf

import tf_importance as tfi
from tests.scorers.norms.batches import assert_exact, batch, compiled
from tests.scorers.norms.families import VOCABULARY, net, of, subclassed

L = keras.layers
pytestmark = pytest.mark.filterwarnings("ignore:layer", "ignore:variables")


def squared(model, x, y, **kwargs):
    return tfi.per_example_gradient_norms(model, x, y, per_variable=True, **kwargs)


class Called(keras.Model):
    """A Dense layer and what is done around it."""

    def __init__(self, around):
        super().__init__()
        self.dense, self.last, self._around = L.Dense(4), L.Dense(3), around

    def call(self, inputs):
        return self.last(self._around(self.dense, inputs))


def siamese(dense, inputs):
    both = dense(tf.concat([inputs, 2 * inputs], axis=0))
    first, second = tf.split(both, 2, axis=0)
    return first * second


@pytest.mark.parametrize(
    "around",
    {
        "turned around": lambda dense, x: tf.reverse(dense(tf.reverse(x, [0])), [0]),
        "folded": lambda dense, x: tf.reshape(dense(tf.reshape(x, [-1, 2])), [-1, 8]),
        "siamese": siamese,
    }.items(),
    ids=lambda item: item[0],
)
def test_layers_whose_first_axis_is_not_the_batch(around):
    model = subclassed(lambda: Called(around[1]))
    x, y = batch(compiled(model), size=4)
    assert_exact(squared(model, x, y), model, x, y, 1e-5)


@pytest.mark.slow
def test_a_traced_call_stays_trainable():
    """Handlers leave nothing behind in a graph that training uses later."""

    class Traced(keras.Model):
        def __init__(self):
            super().__init__()
            self.lstm, self.last = L.LSTM(4), L.Dense(3)
            self.lstm.build((None, 5, 3))
            self.last.build((None, 4))

        @tf.function
        def call(self, inputs):
            return self.last(self.lstm(inputs))

    model = Traced()
    x = tf.constant(np.random.default_rng(0).normal(size=(4, 5, 3)), tf.float32)
    y = tf.constant([0, 1, 2, 0])
    model(x[:1])
    compiled(model)
    assert_exact(squared(model, x, y), model, x, y, 1e-5)
    with tf.GradientTape() as tape:
        loss = model.loss(y, model(x))
    assert None not in tape.gradient(loss, model.trainable_variables)


def test_a_subclass_that_overrides_a_part_of_its_call():
    class Standardized(L.Conv2D):
        def convolution_op(self, inputs, kernel):
            kernel = tf.convert_to_tensor(kernel)
            mean, variance = tf.nn.moments(kernel, [0, 1, 2], keepdims=True)
            return super().convolution_op(inputs, (kernel - mean) / tf.sqrt(variance + 1e-3))

    model = compiled(net((5, 5, 2), of(Standardized, 3, 2)))
    x, y = batch(model)
    assert_exact(squared(model, x, y), model, x, y, 1e-5)


def test_a_loss_that_reads_variables():
    model = compiled(net((4,), of(L.Dense, 4)))
    kernel = model.layers[1].kernel

    def loss(labels, outputs):
        penalty = tf.reduce_mean(tf.matmul(outputs, tf.convert_to_tensor(kernel)[:3]) ** 2, axis=-1)
        return penalty + tf.reduce_mean(outputs**2, axis=-1)

    x, y = batch(model)
    y = tf.one_hot(y, 3)
    assert_exact(squared(model, x, y, loss=loss), model, x, y, 1e-5, loss=loss)


@pytest.mark.parametrize(
    "layers",
    [
        lambda: [L.LSTM(4, return_sequences=True), L.TimeDistributed(L.Dense(3))],
        lambda: [L.TimeDistributed(L.Dense(4)), L.GRU(3)],
    ],
    ids=["masked time distributed", "time distributed before a mask's end"],
)
def test_masks_pass_time_distributed(layers):
    tokens = keras.Input((6,), dtype="int32")
    hidden = L.Embedding(VOCABULARY, 4, mask_zero=True)(tokens)
    for layer in layers():
        hidden = layer(hidden)
    model = compiled(keras.Model(tokens, L.Dense(3)(L.Flatten()(hidden))))
    x, y = batch(model)
    assert_exact(squared(model, x, y), model, x, y, 1e-5)


@pytest.mark.parametrize("layer", [of(L.Dense, 4), of(L.LSTM, 4)], ids=["dense", "lstm"])
def test_activations_that_are_layers_with_weights(layer):
    model = compiled(net((5, 4), lambda: layer(activation=L.PReLU())))
    x, y = batch(model)
    first = squared(model, x, y)
    assert_exact(first, model, x, y, 1e-5)
    assert len(first) == len(model.trainable_variables)


def test_an_attribute_that_is_called_net():
    class WithNet(keras.Model):
        def __init__(self):
            super().__init__()
            self.net = [L.Dense(4), L.Dense(3)]

        def call(self, inputs):
            return self.net[1](self.net[0](inputs))

    model = subclassed(WithNet)
    x, y = batch(compiled(model))
    assert_exact(squared(model, x, y), model, x, y, 1e-5)


def test_variables_that_are_not_trainable_when_asked_for():
    model = compiled(net((4,), L.BatchNormalization))
    x, y = batch(model)
    wanted = [model.layers[1].moving_mean]
    norms = squared(model, x, y, variables=wanted)
    assert np.all(np.array(norms) > 0)


def test_a_coupling_model_is_refused_every_time():
    model = compiled(net((4,), lambda: L.Lambda(lambda x: x - tf.reduce_mean(x, axis=0))))
    for _ in range(2):
        with pytest.raises(ValueError, match="couples the examples"):
            squared(model, *batch(model))


def test_a_stateful_layer_is_refused():
    inputs = keras.Input((3, 2), batch_size=4)
    model = compiled(keras.Model(inputs, L.Dense(3)(L.LSTM(2, stateful=True)(inputs))))
    x, y = tf.ones((4, 3, 2)), tf.constant([0, 1, 2, 0])
    with pytest.raises(ValueError, match="stateful"):
        squared(model, x, y)


def test_threads_wait_for_each_other():
    model = compiled(net((4,), of(L.Dense, 4)))
    x, y = batch(model)
    expected, found = np.array(squared(model, x, y)), []

    def run():
        found.extend(np.array(squared(model, x, y)) for _ in range(5))

    threads = [threading.Thread(target=run) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 15
    for each in found:
        np.testing.assert_allclose(each, expected, rtol=1e-5)


def test_chunks_under_xla():
    model = compiled(net((6, 4), of(L.Dense, 5), of(L.LSTM, 3)))
    x, y = batch(model)
    function = tf.function(
        lambda x, y: squared(model, x, y, memory_limit=200), jit_compile=True, autograph=False
    )
    assert_exact(function(x, y), model, x, y, 2e-5)


def test_variables_of_a_strategy():
    strategy = tf.distribute.MirroredStrategy(["CPU:0"])
    with strategy.scope():
        model = compiled(net((4,), of(L.Dense, 4)))
        x, y = batch(model)
        norms = tfi.per_example_gradient_norms(model, x, y)
    np.testing.assert_allclose(norms, tfi.per_example_gradient_norms(model, x, y), rtol=1e-5)


def test_a_cell_called_by_itself():
    class Stepping(keras.Model):
        def __init__(self):
            super().__init__()
            self.cell, self.last = L.GRUCell(4), L.Dense(3)

        def call(self, inputs):
            state = tf.zeros_like(inputs)
            for _ in range(3):
                _, state = self.cell(inputs, state)
            return self.last(tf.nest.flatten(state)[0])

    model = subclassed(Stepping)
    x, y = batch(compiled(model))
    assert_exact(squared(model, x, y), model, x, y, 1e-5)
