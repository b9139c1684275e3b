"""Nets from every family of layers, by name: functions that build them, for small inputs."""

import functools

import keras
import tensorflow as tf

from tf_importance import compat

L = keras.layers
VOCABULARY = 7


def net(shape, *layers, dtype=None, top=(L.Flatten, lambda: L.Dense(3))) -> keras.Model:
    """A functional net of the layers, which are functions, with a classifier of three on top."""
    inputs = keras.Input(shape, dtype=dtype)
    hidden = inputs
    for layer in (*layers, *top):
        hidden = layer()(hidden)
    return keras.Model(inputs, hidden)


def of(kind, *args, **kwargs):
    return functools.partial(kind, *args, **kwargs)


class Scale(L.Layer):
    """A layer that nobody registered."""

    def build(self, input_shape):
        self.scale = self.add_weight(shape=(input_shape[-1],), initializer="ones", name="scale")

    def call(self, inputs):
        return inputs * self.scale


class OwnCell(L.Layer):
    """A recurrent cell that nobody registered, with a layer inside that somebody did."""

    def __init__(self):
        super().__init__()
        self.state_size = self.output_size = 4
        self.inside = L.Dense(4)

    def build(self, input_shape):
        self.inside.build((None, input_shape[-1]))
        self.recurrent = self.add_weight(shape=(4, 4), name="recurrent")
        self.built = True

    def call(self, inputs, states):
        kernel = tf.convert_to_tensor(self.recurrent)
        state = tf.tanh(self.inside(inputs) + tf.matmul(tf.nest.flatten(states)[0], kernel))
        return state, [state]


class Transposed(L.Layer):
    """Uses another layer's kernel behind its back, besides a variable of its own."""

    def __init__(self, other):
        super().__init__()
        self.other = other

    def build(self, input_shape):
        self.bias = self.add_weight(shape=(self.other.kernel.shape[0],), name="bias")

    def call(self, inputs):
        return tf.matmul(inputs, tf.transpose(tf.convert_to_tensor(self.other.kernel))) + self.bias


class Subclassed(keras.Model):
    """With layers in a list, a model inside, and a variable of its own."""

    def __init__(self):
        super().__init__()
        self.first, self.last = L.Dense(4), L.Dense(3)
        self.hidden = [L.Dense(4), net((4,), of(L.Dense, 4), top=())]
        self.scale = self.add_weight(shape=(4,), initializer="ones", name="scale")

    def call(self, inputs):
        hidden = self.first(inputs) * self.scale
        for layer in self.hidden:
            hidden = tf.nn.tanh(layer(hidden))
        return self.last(hidden)


class Normalized(keras.Model):
    """Normalizes by the statistics of the batch, whatever it is told."""

    def __init__(self):
        super().__init__()
        self.normalization, self.last = L.BatchNormalization(), L.Dense(3)

    def call(self, inputs):
        return self.last(self.normalization(inputs, training=True))


class Looped(keras.Model):
    """Calls a layer in a loop of TensorFlow's, out of reach."""

    def __init__(self):
        super().__init__()
        self.inside, self.last = L.Dense(4), L.Dense(3)

    def call(self, inputs):
        # Builds the layer outside of the loop.
        hidden = self.inside(inputs)
        hidden = tf.while_loop(
            lambda step, _: step < 3,
            lambda step, hidden: (step + 1, tf.nn.tanh(self.inside(hidden))),
            (0, hidden),
        )[1]
        return self.last(hidden)


def subclassed(kind):
    model = kind()
    model(tf.zeros((2, 4), keras.backend.floatx()))
    return model


def tied():
    inputs = keras.Input((4,))
    dense = L.Dense(3)
    return keras.Model(inputs, L.Dense(3)(Transposed(dense)(dense(inputs))))


def twice(shape, layer):
    inputs = keras.Input(shape)
    hidden = layer(layer(inputs))
    return keras.Model(inputs, L.Dense(3)(L.Flatten()(hidden)))


def transformer():
    inputs = keras.Input((6, 4))
    attended = L.MultiHeadAttention(2, 3)(inputs, inputs)
    hidden = L.LayerNormalization()(L.Add()([inputs, attended]))
    return keras.Model(inputs, L.Dense(3)(L.GlobalAveragePooling1D()(hidden)))


def attention(layer):
    inputs = keras.Input((6, 4))
    hidden = layer([L.Dense(4)(inputs), inputs])
    return keras.Model(inputs, L.Dense(3)(L.Flatten()(hidden)))


def masked(layer):
    tokens = keras.Input((6,), dtype="int32")
    hidden = layer(L.Embedding(VOCABULARY, 4, mask_zero=True)(tokens))
    return keras.Model(tokens, L.Dense(3)(hidden))


def encoder_decoder():
    inputs = keras.Input((5, 3))
    _, *states = L.LSTM(4, return_state=True)(inputs)
    hidden = L.LSTM(4, return_sequences=True)(inputs, initial_state=states)
    return keras.Model(inputs, L.Dense(3)(L.Flatten()(hidden)))


def tied_embedding():
    tokens = keras.Input((6,), dtype="int32")
    table = keras.layers.ReversibleEmbedding(VOCABULARY, 4, logit_soft_cap=3.0)
    hidden = table(L.Dense(4)(table(tokens)), reverse=True)
    return keras.Model(tokens, L.Dense(3)(L.Flatten()(hidden)))


def adapted():
    """A Dense layer whose kernel has got a low-rank adapter."""
    inputs, dense = keras.Input((4,)), L.Dense(5)
    model = keras.Model(inputs, L.Dense(3)(dense(inputs)))
    dense.enable_lora(2)
    return model


# Those whose gradients are taken example by example, with a warning.
BY_EXAMPLE = {
    "unregistered": of(net, (6, 4), of(L.Dense, 4), Scale),
    "own cell": of(net, (4, 4), lambda: L.RNN(OwnCell())),
    "a kernel used behind its layer's back": tied,
    "subclassed": of(subclassed, Subclassed),
    "in a loop": of(subclassed, Looped),
    "additive attention": lambda: attention(L.AdditiveAttention()),
}

FAMILIES = {
    "dense": of(net, (5,), of(L.Dense, 4, "relu")),
    "dense over time": of(net, (6, 5), of(L.Dense, 4, "relu")),
    "dense, no bias": of(net, (6, 5), of(L.Dense, 4, use_bias=False)),
    "einsum": of(net, (6, 4), of(L.EinsumDense, "btd,dhe->bthe", (6, 2, 3), bias_axes="he")),
    "einsum in blocks": of(net, (6, 4), of(L.EinsumDense, "btd,de->btde", (6, 4, 2))),
    "einsum with an ellipsis": of(net, (2, 3, 4), of(L.EinsumDense, "...x,xy->...y", 5)),
    "conv": of(
        net,
        (8, 8, 3),
        of(L.Conv2D, 4, 3, activation="relu"),
        of(L.Conv2D, 5, (3, 2), strides=2, padding="same"),
        of(L.Conv2D, 4, 2, dilation_rate=2),
    ),
    "conv of many channels": of(net, (4, 4, 16), of(L.Conv2D, 32, 3, padding="same")),
    "conv 1D": of(
        net,
        (9, 3),
        of(L.Conv1D, 4, 3, padding="causal", dilation_rate=2),
        of(L.Conv1D, 6, 3, strides=2, padding="same"),
    ),
    "conv 3D": of(
        net, (5, 5, 4, 2), of(L.Conv3D, 3, 2, padding="same"), of(L.Conv3D, 2, 2, strides=2)
    ),
    "transposed conv": of(
        net,
        (4, 4, 3),
        of(L.Conv2DTranspose, 4, 3, strides=2, padding="same", activation="tanh"),
        of(L.Conv2DTranspose, 2, 3, strides=2),
    ),
    "transposed conv 1D": of(net, (4, 3), of(L.Conv1DTranspose, 4, 3, strides=2)),
    "transposed conv 3D": of(net, (3, 3, 2, 3), of(L.Conv3DTranspose, 4, 3, strides=2)),
    "depthwise conv": of(
        net, (6, 6, 3), of(L.DepthwiseConv2D, 3, strides=2, depth_multiplier=2, padding="same")
    ),
    "depthwise conv 1D": of(net, (6, 3), of(L.DepthwiseConv1D, 3, depth_multiplier=2)),
    "separable conv": of(
        net, (6, 6, 3), of(L.SeparableConv2D, 5, 3, depth_multiplier=2, activation="relu")
    ),
    "separable conv 1D": of(
        net, (6, 3), of(L.SeparableConv1D, 5, 3, padding="same", dilation_rate=2)
    ),
    "layer normalization": of(
        net,
        (6, 4),
        of(L.Dense, 4),
        L.LayerNormalization,
        of(L.LayerNormalization, axis=[1, 2]),
        of(L.LayerNormalization, scale=False),
    ),
    "group normalization": of(
        net, (6, 4), of(L.Dense, 4), of(L.GroupNormalization, 2), L.UnitNormalization
    ),
    "batch normalization": of(
        net,
        (6, 4),
        of(L.Dense, 4),
        L.BatchNormalization,
        of(L.BatchNormalization, axis=1, scale=False),
    ),
    "parametric relu": of(
        net, (6, 4), of(L.Dense, 4), L.PReLU, of(L.PReLU, shared_axes=[1])
    ),
    "lstm": of(net, (6, 4), of(L.LSTM, 5, return_sequences=True), of(L.LSTM, 3)),
    "gru": of(
        net,
        (6, 4),
        of(L.GRU, 5, return_sequences=True, go_backwards=True),
        of(L.GRU, 3, reset_after=False, go_backwards=True),
    ),
    "simple rnn": of(
        net, (6, 4), of(L.SimpleRNN, 5, return_sequences=True), of(L.SimpleRNN, 3, use_bias=False)
    ),
    "cells": of(net, (6, 4), lambda: L.RNN(L.LSTMCell(3), return_sequences=True, unroll=True)),
    "stacked cells": of(
        net,
        (6, 4),
        lambda: L.RNN([L.LSTMCell(3), L.GRUCell(4)], return_sequences=True, go_backwards=True),
        lambda: L.RNN([L.SimpleRNNCell(3), L.GRUCell(4)]),
    ),
    "stacked cells, states": encoder_decoder,
    "bidirectional": of(
        net, (6, 4), lambda: L.Bidirectional(L.LSTM(3, return_sequences=True))
    ),
    "time distributed": of(
        net,
        (3, 5, 5, 2),
        lambda: L.TimeDistributed(L.Conv2D(3, 3, activation="relu")),
        lambda: L.TimeDistributed(net((3, 3, 3), of(L.Dense, 4), L.LayerNormalization, top=())),
    ),
    "masked lstm": lambda: masked(L.LSTM(4)),
    "masked bidirectional gru": lambda: masked(L.Bidirectional(L.GRU(4))),
    "attention": transformer,
    "dense layer called twice": lambda: twice((4,), L.Dense(4, activation="tanh")),
    "conv layer called twice": lambda: twice((5, 5, 4), L.Conv2D(4, 3, padding="same")),
    "normalization called twice": lambda: twice((6, 4), L.LayerNormalization()),
    "unknown length": of(
        net,
        (None, 4),
        of(L.Conv1D, 5, 3, strides=2, padding="same"),
        of(L.LSTM, 3, return_sequences=True),
        of(L.Dense, 4),
        top=(L.GlobalAveragePooling1D, of(L.Dense, 3)),
    ),
    "one time step": of(net, (1, 4), of(L.LSTM, 3, return_sequences=True), of(L.GRU, 2)),
    "1 x 1 kernel": of(net, (3, 3, 2), of(L.Conv2D, 3, 1), of(L.Conv2D, 2, 1, strides=2)),
    **BY_EXAMPLE,
}
if compat.KERAS_3:
    FAMILIES |= {
        "grouped conv": of(net, (6, 6, 4), of(L.Conv2D, 6, 3, groups=2, padding="same")),
        "grouped-query attention": lambda: attention_to_itself(L.GroupQueryAttention(4, 4, 2)),
        "rms normalization": of(net, (6, 4), of(L.Dense, 4), L.RMSNormalization),
        "tied embedding": tied_embedding,
        "adapter": adapted,
    }
    BY_EXAMPLE["adapter"] = adapted


def attention_to_itself(layer):
    inputs = keras.Input((6, 4))
    return keras.Model(inputs, L.Dense(3)(L.Flatten()(layer(inputs, inputs))))
