"""Weights as bytes: they come back as they were, and nothing else is taken for them."""

import json
import pickle
import struct

import keras
import numpy as np
import pytest
import tensorflow as tf

from tf_importance.distributed import parameters


def net(units=4, **options):
    layers = [keras.layers.Dense(units), keras.layers.BatchNormalization()]
    return keras.Sequential([keras.Input((3,)), *layers], **options)


def test_weights_come_back_bit_for_bit():
    here, there = net(), net()
    for weight in here.weights:
        weight.assign(np.random.default_rng(1).normal(size=weight.shape))
    blob = parameters.pack(parameters.snapshot(here))
    parameters.assign(there, parameters.unpack(blob))
    for mine, theirs in zip(here.get_weights(), there.get_weights()):
        np.testing.assert_array_equal(mine, theirs)
    assert len(here.weights) == 6, "the statistics of batch normalization are among them"


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64", "int32", "bool"])
def test_every_dtype(dtype):
    value = tf.cast([[0, 1, 2]], dtype).numpy()
    empty = np.zeros([0, 3], value.dtype)
    taken = parameters.unpack(parameters.pack(parameters.Snapshot(["a", "b"], [value, empty])))
    assert taken.values[0].dtype == value.dtype and taken.values[1].shape == (0, 3)
    np.testing.assert_array_equal(taken.values[0], value)


def test_bytes_that_are_none_are_refused():
    blob = parameters.pack(parameters.snapshot(net()))
    header = blob.replace(b'"float32"', b'"string" ')
    for bad in (
        *(b"", b"TFIP", blob[:-1], blob[: len(blob) // 2], blob + b"x", blob[:20], b"x" + blob[1:]),
        *(
            header,
            pickle.dumps([1.0]),
            blob.replace(b"[3, 4]", b"[3,-4]"),
            blob[:4] + b"\2" + blob[5:],
        ),
    ):
        with pytest.raises(ValueError, match="weights|bytes"):
            parameters.unpack(bad)


@pytest.mark.parametrize(
    "change",
    [
        *({"shape": shape} for shape in ({}, "", [True], [-1], [1.0], [2**200, 0], [1] * 99, None)),
        *({"shape": [2**62, 2**62]}, {"shape": [10**9, 10**9]}, {"name": None}),
        *({"dtype": dtype} for dtype in ("object", "string_ref", "resource_ref", [], None, "x")),
    ],
)
def test_descriptions_that_are_none_are_refused(change):
    one = {"name": "a", "shape": [1], "dtype": "float32", **change}
    with pytest.raises(ValueError):
        parameters.unpack(described(json.dumps({"weights": [one]}).encode()))


@pytest.mark.parametrize(
    "header",
    [
        *(b"[" * 100_000, b'{"weights": ' + b"[" * 100_000, b"\xff", b"1" * 10_000, b"", b"null"),
        *(b'{"weights": {"a": 1}}', b'{"weights": [null]}', b'{"weights": [[1]]}'),
    ],
)
def test_headers_that_are_none_are_refused(header):
    with pytest.raises(ValueError, match="no weights"):
        parameters.unpack(described(header))


def described(header):
    return struct.pack("<4sII", b"TFIP", 1, len(header)) + header + bytes(8)


def test_weights_of_another_net_are_refused():
    taken = parameters.snapshot(net())
    with pytest.raises(ValueError, match="same net"):
        parameters.assign(net(units=5), taken)


def test_digests_tell_nets_apart():
    frozen = net()
    frozen.layers[0].trainable = False
    assert parameters.digest(net()) == parameters.digest(net(name="other"))
    assert len({parameters.digest(n) for n in (net(), net(units=5), frozen)}) == 3
