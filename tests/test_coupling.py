"""Nets that couple the examples of a batch are refused, and no others."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import tf_importance as tfi
from tests.cases import quick
from tf_importance import compat, coupling

L = keras.layers
X = np.random.default_rng(0).normal(size=(256, 6)).astype("float32")
Y = np.random.default_rng(1).normal(size=(256, 3)).astype("float32")


class Own(L.Layer):
    """A batch normalization by hand, which keeps its averages."""

    def build(self, shape):
        self.average = self.add_weight(
            name="average", shape=(shape[-1],), trainable=False, initializer="zeros"
        )

    def call(self, inputs, training=None):
        if not training:
            return inputs - tf.convert_to_tensor(self.average)
        mean = tf.reduce_mean(inputs, axis=0)
        self.average.assign(0.9 * tf.convert_to_tensor(self.average) + 0.1 * mean)
        return inputs - mean


class OfTheBatch(L.Layer):
    def call(self, inputs):
        return inputs / (1 + tf.reduce_max(tf.abs(inputs), axis=0))


class Standardized(L.Dense):
    """Weight standardization (Qiao et al. 2019), of the kernel alone."""

    def call(self, inputs):
        kernel = tf.convert_to_tensor(self.kernel)
        mean, variance = tf.nn.moments(kernel, axes=[0], keepdims=True)
        return inputs @ ((kernel - mean) / tf.sqrt(variance + 1e-5))


class Subclassed(keras.Model):
    def __init__(self, couples):
        super().__init__()
        self.couples, self.drop, self.head = couples, L.Dropout(0.5), L.Dense(3)

    def call(self, inputs, training=None):
        if self.couples:
            inputs = tf.nn.softmax(inputs, axis=0)
        return self.head(self.drop(inputs, training=training))


def net_of(*layers):
    return keras.Sequential([keras.Input((6,)), *layers, L.Dense(3)])


def of_operations():
    inputs = keras.Input((6,))
    return keras.Model(inputs, L.Dense(3)(inputs - keras.ops.mean(inputs, axis=0)))


COUPLED = {
    "own batch normalization": lambda: net_of(Own()),
    "maximum": lambda: net_of(OfTheBatch()),
    "softmax over axis 0": lambda: net_of(L.Softmax(axis=0)),
    "lambda": lambda: net_of(L.Lambda(lambda x: x - tf.reduce_mean(x, axis=0))),
    "subclassed": lambda: Subclassed(True),
    "inside": lambda: net_of(keras.Sequential([L.Dense(4), OfTheBatch()])),
}


class Shifted(L.Layer):
    """The first example is its own, and each other one has its neighbour's."""

    def call(self, inputs):
        return inputs - tf.concat([inputs[:1], inputs[:-1]], axis=0)


def over_examples(values):
    return tf.nn.softmax(values, axis=0)


COUPLED |= {
    "of neighbours": lambda: net_of(Shifted()),
    "activation": lambda: net_of(L.Dense(4, activation=over_examples)),
    "activation layer": lambda: net_of(L.Dense(4), L.Activation(over_examples)),
}
APART = {
    "activation": lambda: net_of(L.Dense(4, activation=lambda z: z * tf.sigmoid(z))),
    "group": lambda: net_of(L.GroupNormalization(2)),
    "layer": lambda: net_of(L.LayerNormalization()),
    "unit": lambda: net_of(L.UnitNormalization()),
    "batch": lambda: net_of(Standardized(8), L.BatchNormalization()),
    "weighted batch": lambda: net_of(Standardized(8), tfi.layers.BatchNormalization()),
    "weight standardization": lambda: net_of(Standardized(8), L.Dropout(0.5)),
    "subclassed": lambda: Subclassed(False),
}

if compat.KERAS_3:
    COUPLED["operations"] = of_operations
    # Keras 2.15 cannot train its own.
    APART["spectral"] = lambda: net_of(L.SpectralNormalization(L.Dense(6)))


def compiled(net, sampler=None):
    model = tfi.ISModel(net)
    model.compile(keras.optimizers.SGD(0.01), "mse", sampler=sampler)
    return model


def pairs():
    return tf.data.Dataset.from_tensor_slices((X, Y))


@pytest.mark.parametrize("name", COUPLED)
def test_coupled_examples_are_refused(name):
    with pytest.raises(ValueError, match="couples the examples of a batch"):
        pairs().apply(tfi.importance_sample(compiled(COUPLED[name]()), 16, 64))
    # Built or not.
    with pytest.raises(ValueError, match="couples the examples of a batch"):
        compiled(COUPLED[name](), tfi.samplers.RAIS()).fit(X, Y, batch_size=16, verbose=0)
    # Plain data train as Keras would.
    compiled(COUPLED[name]()).fit(X, Y, batch_size=16, verbose=0)


@pytest.mark.parametrize("name", quick(APART, "layer", "unit", "weighted batch"))
def test_others_are_not(name):
    model = compiled(APART[name]())
    data = pairs().apply(tfi.importance_sample(model, 16, 64, tau_threshold="always"))
    assert np.isfinite(model.fit(data, verbose=0).history["loss"][0])


def test_it_is_found_under_a_strategy_too(strategy):
    with strategy.scope():
        model = compiled(COUPLED["maximum"]())
        with pytest.raises(ValueError, match="couples the examples of a batch"):
            pairs().apply(tfi.importance_sample(model, 16, 64))


class Ids(keras.Model):
    """Reads one of its inputs."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def call(self, inputs):
        return self.net(inputs["x"])


def test_it_is_found_beside_strings_too():
    rows = {"id": np.array([f"row {i}" for i in range(256)]), "x": X}
    data = tf.data.Dataset.from_tensor_slices((rows, Y))
    with pytest.raises(ValueError, match="couples the examples of a batch"):
        data.apply(tfi.importance_sample(compiled(Ids(COUPLED["maximum"]())), 16, 64))
    model = compiled(Ids(net_of()))
    data.apply(tfi.importance_sample(model, 16, 64))


def test_variables_are_what_they_were():
    net = net_of(Standardized(8), L.Dropout(0.5), L.BatchNormalization())
    model = compiled(net)
    before = [np.array(value) for value in net.variables]
    coupling.refuse(model, tf.TensorSpec([6]))
    assert net in coupling._checked
    for a, b in zip(before, net.variables):
        np.testing.assert_array_equal(a, b)


def test_nets_of_keras_layers_are_not_tried():
    model = compiled(net_of(L.BatchNormalization(), L.ReLU()))
    coupling.refuse(model, tf.TensorSpec([6]))
    assert model.net not in coupling._checked


@pytest.mark.parametrize("way", ["stream", "memory"])
def test_a_stateful_layer_is_refused_by_name(way):
    sequences = np.zeros((32, 4, 5), "float32")
    layers = [
        keras.Input(batch_shape=(8, 4, 5)),
        L.GRU(4, stateful=True, name="carries"),
        L.Dense(3),
    ]
    if not compat.KERAS_3:
        layers[0] = L.InputLayer(batch_input_shape=(8, 4, 5))
    model = tfi.ISModel(keras.Sequential(layers))
    sampler = tfi.samplers.Proportional() if way == "memory" else None
    model.compile("sgd", "mse", sampler=sampler)
    data = sequences, np.zeros((32, 3), "float32")
    with pytest.raises(ValueError, match="'carries' is stateful.*stateful=False"):
        if sampler:
            model.fit(*data, batch_size=8, verbose=0)
        else:
            stream = tf.data.Dataset.from_tensor_slices(data)
            stream.apply(tfi.importance_sample(model, 8, 16, tau_threshold="always"))
