"""A net's weights as bytes: names, shapes and dtypes as JSON, then the raw numbers.

Layout, little-endian: `TFIP`, format (uint32), length of the header (uint32), the header, and the
weights one after the other. To read it runs no code, whoever wrote it.
"""

from __future__ import annotations

import hashlib
import json
import math
import struct
from typing import NamedTuple

import keras
import numpy as np
import tensorflow as tf

from tf_importance import compat

_MAGIC = b"TFIP"
_FORMAT = 1
_PREFIX = struct.Struct("<4sII")


class Snapshot(NamedTuple):
    """Weights of a net at one time.

    Attributes:
        names: of the weights. values: theirs, in the order of `net.weights`.
    """

    names: list[str]
    values: list[np.ndarray]


def snapshot(net: keras.Model) -> Snapshot:
    """All weights of a net, non-trainable ones included: scoring needs these too."""
    names = [getattr(weight, "path", weight.name) for weight in net.weights]
    return Snapshot(names, [compat.value(weight).numpy() for weight in net.weights])


def pack(taken: Snapshot) -> bytes:
    """A snapshot as bytes."""
    described = [
        {"name": name, "shape": list(value.shape), "dtype": tf.as_dtype(value.dtype).name}
        for name, value in zip(*taken)
    ]
    header = json.dumps({"weights": described}).encode()
    parts = [np.ascontiguousarray(value).tobytes() for value in taken.values]
    return b"".join([_PREFIX.pack(_MAGIC, _FORMAT, len(header)), header, *parts])


def unpack(blob: bytes) -> Snapshot:
    """The snapshot that was packed.

    Raises:
        ValueError: these bytes are none.
    """
    described, start = _header(blob)
    names, values = [], []
    for weight in described:
        dtype = np.dtype(tf.as_dtype(weight["dtype"]).as_numpy_dtype)
        count = math.prod(weight["shape"])
        end = start + count * dtype.itemsize
        if end > len(blob):
            raise ValueError(f"weights end after {len(blob)} bytes where {end} are described.")
        values.append(np.frombuffer(blob, dtype, count, start).reshape(weight["shape"]))
        names.append(weight["name"])
        start = end
    if start != len(blob):
        raise ValueError(f"{len(blob) - start} bytes follow after the last weight.")
    return Snapshot(names, values)


def _header(blob: bytes) -> tuple[list[dict], int]:
    try:
        magic, version, length = _PREFIX.unpack_from(blob)
        described = json.loads(blob[_PREFIX.size : _PREFIX.size + length])["weights"]
        sound = all(map(_is_sound, described))
    # JSON that is nested too deeply ends in a RecursionError.
    except (struct.error, ValueError, TypeError, KeyError, RecursionError):
        raise ValueError("these bytes are no weights of tf_importance.") from None
    if magic != _MAGIC or version != _FORMAT or not sound:
        raise ValueError("these bytes are no weights of tf_importance, or of another format.")
    return described, _PREFIX.size + length


def _is_sound(weight: dict) -> bool:
    """Whether a weight's description is one, of numbers."""
    dtype, shape = tf.as_dtype(weight["dtype"]), weight["shape"]
    return (
        isinstance(weight["name"], str)
        and dtype.is_numpy_compatible
        and dtype not in (tf.string, tf.resource, tf.variant)
        and isinstance(shape, list)
        and all(type(size) is int and size >= 0 for size in shape)
    )


def assign(net: keras.Model, taken: Snapshot) -> None:
    """Give a net the weights of a snapshot.

    Raises:
        ValueError: they are those of another net.
    """
    here = [(tuple(weight.shape), _dtype(weight)) for weight in net.weights]
    there = [(value.shape, tf.as_dtype(value.dtype).name) for value in taken.values]
    if here != there:
        raise ValueError(
            f"weights of {there[:4]}… do not fit net {net.name!r} of {here[:4]}…: give all roles "
            "the same net."
        )
    for weight, value in zip(net.weights, taken.values):
        weight.assign(value)


def digest(net: keras.Model) -> str:
    """What nets of the same weights, by order, shape, dtype and trainability, have in common."""
    # Asked of the net: Keras 2 does not tell a weight that its layer was frozen.
    trained = {id(weight) for weight in net.trainable_weights}
    described = [
        [list(weight.shape), _dtype(weight), id(weight) in trained] for weight in net.weights
    ]
    return hashlib.blake2b(json.dumps(described).encode(), digest_size=8).hexdigest()


def _dtype(weight) -> str:
    return tf.as_dtype(weight.dtype).name
