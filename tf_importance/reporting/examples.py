"""Which examples a net would draw most, and least, as it is now."""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tf_importance import estimate, random_access
from tf_importance.model import ISModel

_CHUNK = 256
# An array of fewer rows or columns is none that anybody would look at as an image.
_SMALLEST_IMAGE = 8
_LONGEST_TEXT, _MOST_NUMBERS = 160, 8
_BINS = 40
# Examples that are looked at.
LIMIT = 10_000


def described(
    model: keras.Model,
    examples: tuple[Any, Any],
    *,
    count: int = 12,
    show: Callable[[Any], Any] | None = None,
    class_names: Sequence[str] | None = None,
) -> dict[str, Any]:
    """The weights of examples, were they drawn now, and those of the least and the largest.

    Of a sampler with memory that draws from these very examples they are its own, 1/(n p_i). Else
    they are by scores: mean(Ĝ)/Ĝ_i, as `importance_sample` would have them of all at once.

    Args:
        model: compiled; an ISModel, or a plain one, whose scores are `upper_bound`'s.
        examples: (x, y), as `taken`. count: of those shown of each kind.
        show: makes of an example's input an image [h, w] or [h, w, c], or a text.
        class_names: by number.
    Returns:
        What `json` can write.
    """
    x, y = examples
    size = len(tf.nest.flatten(x)[0])
    scored, _ = estimate.with_scores(model)
    weights = _remembered(model, size)
    by = "memory" if weights is not None else "scores"
    if weights is None:
        weights = _by_scores(scored, x, y)
    order = np.argsort(weights, kind="stable")
    known = np.isfinite(weights) & (weights > 0)
    told: dict[str, Any] = {
        "examples": size,
        "by": by,
        "effective_sample_size": _effective(weights[known]),
        "histogram": _histogram(weights[known]),
    }
    for name, places in (("most", order[:count]), ("least", order[::-1][:count])):
        inputs, labels = random_access.rows(examples, places)
        outputs = scored(tf.nest.map_structure(tf.constant, inputs), training=False)
        told[name] = [
            {
                "index": int(index),
                "weight": float(weights[index]) if known[index] else None,
                "label": _class(_nth(labels, i), class_names),
                "prediction": _class(_nth(outputs, i), class_names),
                **_shown(_nth(inputs, i), show),
            }
            for i, index in enumerate(places)
        ]
    return told


def summarize(told: Mapping[str, Any], step: int) -> None:
    """For TensorBoard, within a writer: a histogram of the weights, and the most drawn images."""
    histogram = told["histogram"]
    middles = np.sqrt(np.multiply(histogram["edges"][1:], histogram["edges"][:-1]))
    weights = np.repeat(np.log10(middles), histogram["counts"])
    tf.summary.histogram("log10 of the importance weights", weights, step=step)
    for name in ("most", "least"):
        images = [one["image"] for one in told[name] if "image" in one]
        if images:
            pixels = [tf.io.decode_png(base64.b64decode(image), channels=3) for image in images]
            tf.summary.image(f"drawn {name}", tf.stack(pixels), step=step, max_outputs=len(pixels))


def taken(data: Any, limit: int) -> tuple[Any, Any]:
    """The first examples as (x, y), nests of arrays.

    Args:
        data: the same, a `tf.data.Dataset` of examples (x, y), or what has random access.
    Raises:
        TypeError: data is something else. ValueError: it has no examples.
    """
    check(data)
    if isinstance(data, tf.data.Dataset):
        x, y, *_ = random_access.read(data.take(limit), "examples")
        return x, y
    if random_access.is_numbered(data):
        return random_access.first(data, limit)
    x, y = tf.nest.map_structure(np.asarray, random_access.without_lists(data))
    return random_access.rows((x, y), slice(limit))


def check(data: Any) -> None:
    """Raises: TypeError: these are no examples (x, y), nor a dataset of some."""
    if isinstance(data, tf.data.Dataset):
        spec = data.element_spec
        if not isinstance(spec, tuple) or len(spec) < 2:
            raise TypeError(f"examples must be a dataset of single examples (x, y); got {spec}.")
        return
    if not (isinstance(data, tuple) and len(data) == 2 or random_access.is_numbered(data)):
        raise TypeError(
            "examples must be (x, y), nests of arrays, a tf.data.Dataset of examples (x, y), or "
            f"have random access; got {random_access.told(data)}."
        )


def _remembered(model: keras.Model, size: int) -> np.ndarray | None:
    """[n] by the memory that the model is trained by, where it is of these examples."""
    sampler = model.sampler if isinstance(model, ISModel) else None
    if sampler is None or sampler.num_examples != size or not sampler.tells_weights:
        return None
    if not bool(sampler.informed()):
        return None
    return np.asarray(sampler.weights_of(tf.range(size, dtype=tf.int64)), np.float64)


def _by_scores(model: ISModel, x: Any, y: Any) -> np.ndarray:
    batches = tf.data.Dataset.from_tensor_slices((x, y)).batch(_CHUNK)
    scorer = tf.function(lambda x, y: model.scorer(model, x, y), autograph=False)
    # A graph of it, of which TensorFlow does not warn that it is traced by each call of this.
    score = scorer.get_concrete_function(*batches.element_spec)
    scores = np.concatenate([np.asarray(score(*batch), np.float64) for batch in batches])
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.nanmean(scores) / scores


def _effective(weights: np.ndarray) -> float | None:
    """1/τ² of p ∝ 1/w: (Σ p)²/(n Σ p²)."""
    if not len(weights):
        return None
    proposal = 1 / weights
    return float(proposal.sum() ** 2 / (len(weights) * (proposal**2).sum()))


def _histogram(weights: np.ndarray) -> dict[str, list]:
    """Edges, growing by a factor, and how many weights lie between them."""
    if not len(weights):
        return {"edges": [0.5, 2.0], "counts": [0]}
    low, high = np.log10(weights.min()) - 0.05, np.log10(weights.max()) + 0.05
    edges = np.logspace(low, high, _BINS + 1)
    counts, _ = np.histogram(weights, edges)
    return {"edges": [float(edge) for edge in edges], "counts": [int(count) for count in counts]}


def _nth(nest: Any, place: int) -> Any:
    return tf.nest.map_structure(lambda part: np.asarray(part[place]), nest)


def _class(value: Any, names: Sequence[str] | None) -> str:
    """A label or an output, in short."""
    if tf.nest.is_nested(value):
        return ", ".join(_class(part, names) for part in tf.nest.flatten(value))
    if value.ndim == 1 and value.size > 1:
        value = value.argmax()
    if value.size != 1:
        return f"shape {value.shape}"
    number = value.reshape(()).item()
    if isinstance(number, bytes):
        return number.decode("utf-8", "replace")
    if names is not None and isinstance(number, int) and 0 <= number < len(names):
        return str(names[number])
    return f"{number:.3g}" if isinstance(number, float) else str(number)


def _shown(inputs: Any, show: Callable[[Any], Any] | None) -> dict[str, str]:
    """An example as an image, a base64 PNG, or as text."""
    seen = inputs if show is None else show(inputs)
    if isinstance(seen, str):
        return {"text": seen[:_LONGEST_TEXT]}
    if tf.nest.is_nested(seen):
        parts = tf.nest.flatten(seen)
        image = next((part for part in parts if _is_image(part)), None)
        return {"text": "; ".join(map(_text, parts))} if image is None else _png(image)
    seen = np.asarray(seen)
    return _png(seen) if _is_image(seen) else {"text": _text(seen)}


def _is_image(part: np.ndarray) -> bool:
    if part.dtype.kind not in "fiub":
        return False
    deep = part.ndim == 2 or (part.ndim == 3 and part.shape[-1] in (1, 3))
    return deep and min(part.shape[:2]) >= _SMALLEST_IMAGE


def _png(image: np.ndarray) -> dict[str, str]:
    image = image[..., None] if image.ndim == 2 else image
    image = np.nan_to_num(image.astype(np.float64))
    low, high = image.min(), image.max()
    pixels = np.uint8(255 * (image - low) / (high - low or 1.0))
    encoded = tf.io.encode_png(pixels).numpy()
    return {"image": base64.b64encode(encoded).decode("ascii")}


def _text(part: np.ndarray) -> str:
    values = np.ravel(part)[:_MOST_NUMBERS]
    if part.dtype.kind in "SO":
        told = " ".join(
            one.decode("utf-8", "replace") if isinstance(one, bytes) else str(one) for one in values
        )
        return told[:_LONGEST_TEXT]
    told = " ".join(f"{value:.3g}" for value in values)
    return f"{told} …" if np.size(part) > _MOST_NUMBERS else told
