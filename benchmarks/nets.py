"""The nets that benchmarks measure: ten classes, logits."""

from __future__ import annotations

import functools

import keras

from trainers.nets import preactivation_resnet, wide_resnet

L = keras.layers
VOCABULARY = 5000


def mlp() -> keras.Model:
    """4 × 2048, permutation-invariant SVHN's (Alain et al. 2015) but for its inputs."""
    dense = [L.Dense(2048, activation="relu") for _ in range(4)]
    return keras.Sequential([keras.Input((784,)), *dense, L.Dense(10)])


def small_cnn() -> keras.Model:
    """Two convolutions on 28 × 28."""
    convolutions = [L.Conv2D(16, 3, activation="relu"), L.MaxPooling2D(), L.Conv2D(32, 3)]
    top = [L.ReLU(), L.MaxPooling2D(), L.Flatten(), L.Dense(64, activation="relu"), L.Dense(10)]
    return keras.Sequential([keras.Input((28, 28, 1)), *convolutions, *top])


def wrn_28_2() -> keras.Model:
    """Wide ResNet on 32 × 32 (Zagoruyko & Komodakis 2016)."""
    return wide_resnet.wide_resnet((32, 32, 3), 10)


def resnet_18() -> keras.Model:
    """ResNet-18 on 32 × 32, pre-activated (He et al. 2016)."""
    return preactivation_resnet.resnet18((32, 32, 3), 10)


def _recurrent(layer) -> keras.Model:
    return keras.Sequential([keras.Input((100, 16)), layer(128), L.Dense(10)])


def transformer() -> keras.Model:
    """Encoder of four layers: width 128, four heads, 64 tokens."""
    tokens = keras.Input((64,), dtype="int32")
    hidden = L.Embedding(VOCABULARY, 128)(tokens)
    for _ in range(4):
        attended = L.MultiHeadAttention(4, 32)(hidden, hidden)
        hidden = L.LayerNormalization()(hidden + attended)
        fed = L.Dense(128)(L.Dense(512, activation="relu")(hidden))
        hidden = L.LayerNormalization()(hidden + fed)
    return keras.Model(tokens, L.Dense(10)(L.GlobalAveragePooling1D()(hidden)))


NETS = {
    "mlp": mlp,
    "small_cnn": small_cnn,
    "wrn_28_2": wrn_28_2,
    "resnet_18": resnet_18,
    "lstm": functools.partial(_recurrent, L.LSTM),
    "gru": functools.partial(_recurrent, L.GRU),
    "transformer": transformer,
}
