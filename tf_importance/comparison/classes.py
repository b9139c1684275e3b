"""Classes as a net predicts them: log probabilities, whatever the form of its outputs."""

from __future__ import annotations

from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf

_LOSSES = {
    "sparse_categorical_crossentropy": keras.losses.SparseCategoricalCrossentropy,
    "categorical_crossentropy": keras.losses.CategoricalCrossentropy,
    "binary_crossentropy": keras.losses.BinaryCrossentropy,
}
# What leaves a cross-entropy the log loss of the label.
_PLAIN = {"label_smoothing": 0, "ignore_class": None, "axis": -1}
_LEAST = 1e-7


class Head(NamedTuple):
    """How outputs and labels stand for classes.

    Attributes:
        classes: K. from_logits: whether outputs are logits, or probabilities.
        one_hot: whether labels are.
    """

    classes: int
    from_logits: bool
    one_hot: bool

    def labels(self, y: Any) -> np.ndarray:
        """[n] class numbers."""
        y = np.asarray(y)
        return y.argmax(axis=-1) if self.one_hot else np.rint(y).astype(np.int64).reshape(-1)

    def log_probabilities(self, outputs: tf.Tensor) -> tf.Tensor:
        """[b, K] of a net's outputs [b, K], or [b, 1] where there are two classes."""
        outputs = tf.convert_to_tensor(outputs)
        if outputs.shape[-1] == 1:
            if not self.from_logits:
                outputs = tf.clip_by_value(outputs, _LEAST, 1 - _LEAST)
                outputs = tf.math.log(outputs) - tf.math.log1p(-outputs)
            pair = [tf.math.log_sigmoid(-outputs), tf.math.log_sigmoid(outputs)]
            return tf.concat(pair, axis=-1)
        if not self.from_logits:
            outputs = tf.math.log(tf.clip_by_value(outputs, _LEAST, 1.0))
        return tf.nn.log_softmax(outputs)


def head_of(loss: Any, y: np.ndarray, units: int | None) -> Head | None:
    """The classes of a net of one output; None where its loss is no plain cross-entropy of them.

    Args:
        loss: as compiled. y: labels [n], [n, 1] or [n, K]. units: of the output.
    """
    if isinstance(loss, str):
        kind = _LOSSES.get(loss)
    else:
        kind = type(loss) if type(loss) in _LOSSES.values() else None
    config: dict[str, Any] = {} if kind is None or isinstance(loss, str) else loss.get_config()
    plain = all(config.get(name, value) == value for name, value in _PLAIN.items())
    if kind is None or not plain or units is None or tf.nest.is_nested(y):
        return None
    one_hot = kind is keras.losses.CategoricalCrossentropy
    if kind is keras.losses.BinaryCrossentropy and units != 1:
        return None
    numbers = np.asarray(y, np.float64)
    if not one_hot and (numbers.size != len(numbers) or not np.all(numbers == np.rint(numbers))):
        return None
    return Head(2 if units == 1 else units, bool(config.get("from_logits")), one_hot)


def log_loss(log_probabilities: np.ndarray, labels: np.ndarray) -> float:
    """−mean log p(label), in nats."""
    return float(-np.mean(log_probabilities[np.arange(len(labels)), labels]))


def moved(log_probabilities: np.ndarray, shift: np.ndarray) -> np.ndarray:
    """Log probabilities ∝ p e^shift."""
    logits = np.asarray(log_probabilities, np.float64) + shift
    logits -= logits.max(axis=1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))


def temperature(log_probabilities: np.ndarray, labels: np.ndarray) -> float:
    """The factor of the logits that makes the log loss least (Guo et al. 2017, section 4.2)."""
    factors = np.exp(np.linspace(-2, 2, 81))
    losses = [log_loss(moved(f * log_probabilities, np.zeros(1)), labels) for f in factors]
    return float(factors[np.argmin(losses)])


def average_precision(log_probabilities: np.ndarray, labels: np.ndarray) -> float:
    """Area under precision over recall, the mean over all classes but the commonest."""
    counts = np.bincount(labels)
    rare = [k for k in np.flatnonzero(counts) if k != counts.argmax()]
    found = []
    for k in rare:
        order = np.argsort(-log_probabilities[:, k], kind="stable")
        is_k = labels[order] == k
        precision = np.cumsum(is_k) / np.arange(1, len(labels) + 1)
        found.append(precision[is_k].mean())
    return float(np.mean(found)) if found else float("nan")
