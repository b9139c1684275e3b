"""Features of examples beside those of their norms (Johnson & Guestrin 2018, section 6)."""

from __future__ import annotations

import numpy as np
import tensorflow as tf

_ROWS_AT_ONCE = 1 << 16


class SideFeatures:
    """Features that are fixed for each example, or that its next visit will have.

    A draw needs the features of all examples, so what is random about a visit counts only if it
    is settled before: as a function of the example and of how often it was visited. The paper's
    "magnitude of the random crop offset" is one, where the augmentation takes its random
    numbers from the same two.

    Args:
        given: an [n] or [n, m] array of finite numbers ≥ 0; or a function of TensorFlow
            operations, (indices [b] int64, visits [b] int32) -> [b] or [b, m] of such numbers.
            Where one is not finite or negative later on, 0 stands for it.
        num_examples: n.
    Attributes:
        count: m.
        first: [n, m] those of the first visits.
    Raises:
        ValueError: an array of another size, or numbers that are not finite or negative.
    """

    def __init__(self, given, num_examples: int) -> None:
        if callable(given):
            self._of_visits = lambda indices, visits: _sound(_columns(given(indices, visits)))
            self.first = _checked(_of_all(given, num_examples), num_examples)
        else:
            self.first = _checked(np.asarray(given, np.float32), num_examples)
            rows = tf.constant(self.first)
            self._of_visits = lambda indices, visits: tf.gather(rows, indices)
        self.count = self.first.shape[1]

    def __call__(self, indices: tf.Tensor, visits: tf.Tensor) -> tf.Tensor:
        """Those of examples [b] that were visited so often [b]: [b, m]."""
        return tf.ensure_shape(self._of_visits(indices, visits), [None, self.count])


def _columns(values):
    return values[:, np.newaxis] if len(values.shape) == 1 else values


def _of_all(function, num_examples: int) -> np.ndarray:
    """[n, …] of the first visit of all examples."""
    parts = []
    for first in range(0, num_examples, _ROWS_AT_ONCE):
        indices = tf.range(first, min(first + _ROWS_AT_ONCE, num_examples), dtype=tf.int64)
        values = function(indices, tf.zeros_like(indices, tf.int32))
        parts.append(np.asarray(values, np.float32))
    return np.concatenate(parts)


def _sound(values: tf.Tensor) -> tf.Tensor:
    values = tf.cast(values, tf.float32)
    return tf.where(tf.math.is_finite(values) & (values >= 0), values, 0.0)


def _checked(values: np.ndarray, num_examples: int) -> np.ndarray:
    if values.ndim not in (1, 2) or len(values) != num_examples:
        raise ValueError(
            f"features must have a row for each of the {num_examples} examples, shape [n] or "
            f"[n, m]; got shape {values.shape}."
        )
    if not (np.isfinite(values) & (values >= 0)).all():
        raise ValueError(
            "features must be finite and not negative, since the estimates ⟨c, s⟩ and ⟨d, s⟩ "
            f"have c, d ≥ 0; got values from {values.min()} to {values.max()}. Shift them, or "
            "give their positive and negative parts."
        )
    return _columns(values)
