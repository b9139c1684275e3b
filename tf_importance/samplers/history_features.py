"""Features of an example's past norms (Johnson & Guestrin 2018, section 6)."""

from __future__ import annotations

import numpy as np
import tensorflow as tf

AVERAGED = (1, 2, 4, 8, 16)
SPREAD = tuple(length for length in AVERAGED if length >= 4)
LENGTH = max(AVERAGED)
# Averages, variances, standard deviations.
COUNT = len(AVERAGED) + 2 * len(SPREAD)
# Marks a place of the history that no visit has filled.
EMPTY = -1.0


def of_history(history: tf.Tensor) -> tf.Tensor:
    """Moving averages of the last 1, 2, 4, 8, 16 norms; variances, deviations from 4 on.

    With fewer visits than a length, of those there are; all 0 before the first visit.
    Differences to the newest norm are taken first, so that equal norms have no variance.

    Args:
        history: [b, LENGTH] the newest norm first, `EMPTY` where none is.
    Returns:
        [b, COUNT], non-negative.
    """
    there = tf.cast(history >= 0, history.dtype)
    newest = tf.maximum(history[:, :1], 0.0)
    shifted = (history - newest) * there
    columns = tf.concat([shifted, shifted**2, there], axis=1)
    sums = tf.linalg.matmul(columns, tf.constant(_WINDOWS, history.dtype))
    averages, squares, counts = tf.split(sums, [len(AVERAGED), len(SPREAD), len(AVERAGED)], axis=1)
    averages = tf.math.divide_no_nan(averages, counts)
    inner = len(AVERAGED) - len(SPREAD)
    squares = tf.math.divide_no_nan(squares, counts[:, inner:])
    variances = tf.maximum(squares - averages[:, inner:] ** 2, 0.0)
    averages = tf.maximum(averages + newest, 0.0)
    return tf.concat([averages, variances, tf.sqrt(variances)], axis=1)


def pushed(history: tf.Tensor, norms: tf.Tensor) -> tf.Tensor:
    """Histories [b, LENGTH] with newer norms [b] in front and the oldest forgotten."""
    return tf.concat([norms[:, tf.newaxis], history[:, :-1]], axis=1)


def _windows() -> np.ndarray:
    """Sums of the first norms, of the first squares, and their numbers, by one product."""
    place = np.arange(LENGTH)[:, np.newaxis]
    averaged, spread = (place < np.array(lengths) for lengths in (AVERAGED, SPREAD))
    windows = np.zeros([3 * LENGTH, 2 * len(AVERAGED) + len(SPREAD)], np.float32)
    windows[:LENGTH, : len(AVERAGED)] = averaged
    windows[LENGTH : 2 * LENGTH, len(AVERAGED) : -len(AVERAGED)] = spread
    windows[2 * LENGTH :, -len(AVERAGED) :] = averaged
    return windows


_WINDOWS = _windows()
