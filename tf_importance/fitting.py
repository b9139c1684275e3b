"""What `ISModel.fit` is given, under a sampler with memory: a source to draw from, or a refusal."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tf_importance import draws, history, marks, samplers

_SOURCES = (
    "give fit arrays, model.fit(x, y, batch_size=32), or what has random access, or a dataset of "
    "tfi.history_sample(source, sampler, batch_size); for a stream use tfi.importance_sample and "
    "no sampler"
)


def by_sampler(sampler: samplers.Sampler, given: dict[str, Any]) -> dict[str, Any]:
    """The arguments of `fit` with a dataset that the sampler draws in the place of its data.

    Args:
        sampler: the one that the model is compiled with.
        given: the arguments of `fit` by name.
    Raises:
        TypeError: the data have no random access. ValueError: an argument means nothing here.
    """
    x = given["x"]
    if marks.found(given["validation_data"]) is sampler:
        raise ValueError(
            f"validation_data is drawn by the {type(sampler).__name__} that the training draws by, "
            "and would take its examples; validate on the data as they are, validation_data=(x, y)."
        )
    if isinstance(x, tf.data.Dataset):
        if draws.is_drawn(x.element_spec):
            _refuse_other(sampler, marks.found(x))
            return given
        raise TypeError(
            f"the model is compiled with a {type(sampler).__name__}, which needs to know the "
            f"examples by number, and got a tf.data.Dataset of {x.element_spec}: {_SOURCES}."
        )
    if not given.get("shuffle", True):
        raise ValueError(
            "shuffle=False asks for the order of the data, and a sampler chooses its own; leave it "
            "out, or compile without a sampler."
        )
    given = dict(given)
    source = _source(sampler, given)
    batch_size = 32 if given["batch_size"] is None else given["batch_size"]
    batches = history.history_sample(source, sampler, batch_size)
    if given["steps_per_epoch"] is not None:
        batches = batches.repeat()
    if given["validation_batch_size"] is None:
        given["validation_batch_size"] = batch_size
    return {**given, "x": batches, "y": None, "batch_size": None, "sample_weight": None}


def _refuse_other(sampler: samplers.Sampler, drawing: samplers.Sampler | None) -> None:
    if drawing not in (None, sampler):
        raise ValueError(
            f"the dataset is drawn by one {type(drawing).__name__}, and the model is compiled with "
            f"another sampler, a {type(sampler).__name__}: the one that draws would never learn. "
            "Give history_sample and compile the same."
        )


def _source(sampler: samplers.Sampler, given: dict[str, Any]) -> Any:
    """Arrays (x, y) or (x, y, sample_weight), or an object with random access."""
    x, y = given["x"], given["y"]
    if y is None:
        has_access = hasattr(x, "__len__") and hasattr(x, "__getitem__")
        if isinstance(x, keras.utils.Sequence) or not has_access or _is_array(x):
            raise TypeError(
                f"the model is compiled with a {type(sampler).__name__}, which needs to know the "
                f"examples by number, and got x of type {type(x).__name__} and no y: {_SOURCES}."
            )
        for name in ("validation_split", "sample_weight", "class_weight"):
            _refuse(given, name, "arrays x and y")
        return x
    parts = [_arrays(x), _arrays(y)]
    weights = _weights(given, parts[1])
    if weights is not None:
        parts.append(weights)
    given["class_weight"] = None
    if given["validation_split"]:
        parts, held_out = _split(parts, given["validation_split"])
        given["validation_split"] = 0.0
        if given["validation_data"] is None:
            given["validation_data"] = held_out
    return tuple(parts)


def _refuse(given: dict[str, Any], name: str, needed: str) -> None:
    if given[name] is not None and not (np.isscalar(given[name]) and not given[name]):
        raise ValueError(f"{name} goes with {needed} only; got {name} of {type(given[name])}.")


def _is_array(x: Any) -> bool:
    return isinstance(x, (np.ndarray, tf.Tensor))


def _arrays(nest: Any) -> Any:
    """A nest of arrays, those of pandas as NumPy has them; a list is a nest."""
    return tf.nest.map_structure(
        lambda part: part if isinstance(part, tf.Tensor) else np.asarray(part), nest
    )


def _weights(given: dict[str, Any], labels: Any) -> np.ndarray | None:
    """[n] weights of the examples by sample_weight and class_weight, multiplied as Keras does."""
    weights, by_class = given["sample_weight"], given["class_weight"]
    if weights is not None:
        weights = np.asarray(weights, np.float32)
        if weights.ndim == 2 and weights.shape[1] == 1:
            weights = weights[:, 0]
        if weights.ndim != 1:
            raise ValueError(
                "a sampler draws examples, so sample_weight must have one number for each, shape "
                f"[n]; got shape {weights.shape}."
            )
    if by_class is None:
        return weights
    if tf.nest.is_nested(labels):
        raise ValueError("class_weight goes with labels of one output; give sample_weight.")
    classes = np.asarray(labels)
    several = classes.ndim > 1 and classes.shape[-1] > 1
    classes = classes.argmax(axis=-1) if several else classes.reshape(len(classes))
    factors = np.ones(int(classes.max()) + 1, np.float32)
    for label, factor in by_class.items():
        if label < len(factors):
            factors[int(label)] = factor
    return factors[classes.astype(int)] * (1.0 if weights is None else weights)


def _split(parts: list, share: float) -> tuple[list, tuple]:
    """The first examples, and the last ones that are held out, as Keras splits arrays."""
    size = len(tf.nest.flatten(parts)[0])
    kept = int(size * (1 - share))
    if not 0 < kept < size:
        raise ValueError(
            f"validation_split must leave examples on both sides; got {share} of {size} examples."
        )
    first, last = (
        tf.nest.map_structure(lambda part, cut=cut: part[cut], parts)
        for cut in (slice(kept), slice(kept, None))
    )
    return first, tuple(last)
