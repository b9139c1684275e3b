"""Balanced data and nets that several benchmarks compare methods on.

TFDS's data come from the --data_dir of the program that asks for them.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import keras
import numpy as np
import tensorflow as tf
from absl import flags

from trainers import nets

FLAGS = flags.FLAGS
L = keras.layers


class Data(NamedTuple):
    """Arrays, and what becomes of an example, or of a batch of them, on its way."""

    x: np.ndarray
    y: np.ndarray
    x_test: np.ndarray
    y_test: np.ndarray
    change: Callable[[tf.Tensor], tf.Tensor] | None = None


def digits() -> Data:
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    x = (x / 16).astype(np.float32).reshape(-1, 8, 8, 1)
    return Data(x[:1437], y[:1437].astype(np.int32), x[1437:], y[1437:].astype(np.int32))


@functools.cache
def from_tfds(name: str) -> Data:
    import tensorflow_datasets as tfds

    load = functools.partial(
        tfds.load,
        name,
        batch_size=-1,
        as_supervised=True,
        data_dir=FLAGS.data_dir,
        download=not FLAGS.short,
    )
    parts = [tfds.as_numpy(load(split=split)) for split in ("train", "test")]
    (x, y), (x_test, y_test) = [
        ((images / 255).astype(np.float32), labels.astype(np.int32)) for images, labels in parts
    ]
    return Data(x, y, x_test, y_test)


def first(data: Data, count: int) -> Data:
    return data._replace(x=data.x[:count], y=data.y[:count])


def relabelled(data: Data, share: float) -> Data:
    """A share of the training labels at random."""
    rng = np.random.default_rng(0)
    wrong = rng.random(len(data.y)) < share
    labels = np.where(wrong, rng.integers(10, size=len(data.y)), data.y)
    return data._replace(y=labels.astype(np.int32))


def constant_norms() -> Data:
    """Labels that are coin tosses, ±1, of inputs that say nothing: all gradients alike."""
    rng = np.random.default_rng(0)
    x, x_test = np.ones([4096, 16], np.float32), np.ones([512, 16], np.float32)
    return Data(x, rng.integers(2, size=4096), x_test, rng.integers(2, size=512))


def second_half(data: Data) -> Data:
    """Classes 5 to 9 as 0 to 4."""
    keep, keep_test = data.y >= 5, data.y_test >= 5
    return Data(data.x[keep], data.y[keep] - 5, data.x_test[keep_test], data.y_test[keep_test] - 5)


def pixels(data: Data) -> Data:
    """Images as sequences of pixels in one fixed random order."""
    order = np.random.default_rng(0).permutation(math.prod(data.x.shape[1:]))

    def sequence(x):
        return x.reshape(len(x), -1)[:, order, np.newaxis]

    return data._replace(x=sequence(data.x), x_test=sequence(data.x_test))


def mlp(data: Data, units=(256, 256), classes=10) -> keras.Model:
    hidden = [L.Dense(width, activation="relu") for width in units]
    return keras.Sequential([keras.Input(data.x.shape[1:]), L.Flatten(), *hidden, L.Dense(classes)])


def cnn(data: Data) -> keras.Model:
    return nets.build("cnn", data.x.shape[1:], 10)


def lstm(data: Data) -> keras.Model:
    return keras.Sequential([keras.Input(data.x.shape[1:]), L.LSTM(32), L.Dense(10)])


def resnet_8(data: Data) -> keras.Model:
    return nets.wide_resnet.wide_resnet(data.x.shape[1:], 10, depth=10, width=1)


@functools.cache
def _body(shape: tuple[int, ...]) -> list[np.ndarray]:
    """Weights of a net that has learned the first half of the classes."""
    data = from_tfds("mnist")
    keep = data.y < 5
    keras.utils.set_random_seed(0)
    net = nets.build("cnn", shape, 5)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    net.compile(keras.optimizers.SGD(0.1, momentum=0.9), loss)
    net.fit(data.x[keep], data.y[keep], batch_size=64, epochs=1, verbose=0)
    return net.get_weights()


def pretrained(data: Data) -> keras.Model:
    net = nets.build("cnn", data.x.shape[1:], 5)
    fresh = net.get_weights()
    net.set_weights([*_body(data.x.shape[1:])[:-2], *fresh[-2:]])
    return net


sgd = keras.optimizers.SGD
heavy_ball = functools.partial(keras.optimizers.SGD, momentum=0.9)
adam = keras.optimizers.Adam
