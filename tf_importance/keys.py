"""Which stratum an example is in, as users say it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from tf_importance.arguments import named

_AT_ONCE = 4_096
_REMEDY = (
    "strata must be whole numbers, one for each example: an array [n], or a function (x, y) -> "
    "number that is called with one example and gives a scalar or [1]"
)


def whole_numbers(values: Any) -> np.ndarray:
    """[n] int64 of an array [n] or [n, 1] of whole numbers.

    Raises:
        TypeError, ValueError: it is none.
    """
    array = np.asarray(values)
    if array.ndim == 2 and array.shape[1] == 1:
        array = array[:, 0]
    if array.ndim != 1 or not len(array):
        raise ValueError(f"{_REMEDY}; got an array of shape {np.shape(values)}.")
    if array.dtype.kind not in "biuf":
        raise TypeError(f"{_REMEDY}; got an array of {array.dtype}.")
    is_whole = array.dtype.kind != "f" or (np.isfinite(array) & (array == np.rint(array))).all()
    if not is_whole:
        raise ValueError(f"{_REMEDY}; got numbers that are not whole, {named(array)}.")
    return array.astype(np.int64)


def of_all(strata: Callable | None, gather: Callable, size: int) -> np.ndarray:
    """[n] int64, the strata of all examples of a source.

    Args:
        strata: a function of one example, None for its label.
        gather: examples by indices. size: n.
    Raises:
        TypeError, ValueError: what comes of it is no whole number.
    """
    parts = []
    example = gather(tf.zeros([1], tf.int64))
    spec = tf.nest.map_structure(lambda part: tf.TensorSpec(part.shape[1:], part.dtype), example)
    of_one = None if strata is None else number_of(strata, spec)
    for first in range(0, size, _AT_ONCE):
        inputs, labels, *_ = gather(tf.range(first, min(first + _AT_ONCE, size), dtype=tf.int64))
        parts.append(_labels(labels) if of_one is None else of_one(inputs, labels).numpy())
    return of_labels(np.concatenate(parts))


def of_labels(labels: np.ndarray) -> np.ndarray:
    """[n] int64 of labels [n], [n, 1], or [n, c] of 0 and 1, of which the rarest counts.

    Raises:
        TypeError, ValueError: they are no whole numbers.
    """
    alone = labels.ndim == 1 or labels.shape[1:] == (1,)
    return whole_numbers(labels) if alone else _rarest(labels)


def number_of(strata: Callable, spec: tuple) -> Callable:
    """A function from nests (x, y) of [B, …] to [B] int64, of one from an example to its number.

    Args:
        strata: as users give it. spec: (x, y, …) of one example.
    Raises:
        TypeError, ValueError: it is no function, or what it gives is no whole number.
    """
    if not callable(strata):
        raise TypeError(f"{_REMEDY}; got {named(strata)}.")

    def of_one(example):
        return _number(strata(*example))

    @tf.function(autograph=False)
    def of_batch(inputs, labels):
        return tf.vectorized_map(of_one, (inputs, labels))

    # Of an example alone: what is wrong with it is said before a batch hides it.
    tf.function(lambda *example: of_one(example), autograph=False).get_concrete_function(*spec[:2])
    return of_batch


def _number(value: Any) -> tf.Tensor:
    """What a user's function gave, as a scalar int64."""
    number = tf.convert_to_tensor(value)
    if number.shape.rank is None or number.shape.num_elements() != 1 or number.shape.rank > 1:
        raise ValueError(f"{_REMEDY}; the function gave {number.dtype.name} {number.shape}.")
    if not (number.dtype.is_integer or number.dtype.is_bool):
        raise TypeError(
            f"{_REMEDY}; the function gave {number.dtype.name}. Cast what is a whole number: "
            "strata=lambda x, y: tf.cast(y, tf.int64)."
        )
    return tf.cast(tf.reshape(number, []), tf.int64)


def _labels(labels: Any) -> np.ndarray:
    """[B] or [B, c] of the labels of some examples."""
    if tf.nest.is_nested(labels):
        raise ValueError(f"{_REMEDY}; the labels are of several parts. Give strata a function.")
    return labels.numpy()


def _rarest(labels: np.ndarray) -> np.ndarray:
    """[n] which of its labels, given as zeros and ones [n, c], an example counts to: the rarest.

    0 for none, else the label's number + 1.
    """
    if labels.ndim != 2 or not np.isin(labels, (0, 1)).all():
        raise ValueError(
            f"{_REMEDY}; the labels have shape {labels.shape} and are not all 0 or 1. Give strata "
            "a function."
        )
    order = np.argsort(labels.sum(axis=0), kind="stable")
    has = labels[:, order] > 0
    return np.where(has.any(axis=1), order[has.argmax(axis=1)] + 1, 0).astype(np.int64)


def shares_of(given: Mapping[int, float], found: np.ndarray, prior: np.ndarray) -> np.ndarray:
    """[S] shares by what a user has fixed; those not named divide the rest as they do the data.

    Raises:
        ValueError: a stratum is not there, or shares do not fit together.
    """
    unknown = [key for key in given if key not in found]
    if unknown:
        raise ValueError(
            f"shares must name strata that are there, {named(found.tolist()[:20])}; got {unknown}."
        )
    shares = np.array([given.get(int(key), np.nan) for key in found], np.float64)
    fixed = ~np.isnan(shares)
    left = 1 - shares[fixed].sum()
    if not (shares[fixed] > 0).all() or (left <= 0 if (~fixed).any() else abs(left) > 1e-6):
        raise ValueError(
            "shares must be positive, and sum to 1 where all strata are named and to less where "
            f"not; got {dict(given)} of strata {found.tolist()[:20]}."
        )
    shares[~fixed] = left * prior[~fixed] / max(prior[~fixed].sum(), np.finfo(float).tiny)
    return shares
