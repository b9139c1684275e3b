"""The remembered way: batches of examples that a sampler with memory draws from a source."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

from tf_importance import arguments, samplers

_EXPLANATION = (
    "source must be (x, y), each an array or a nest of arrays of the same length; or have random "
    "access: a TFDS data source (tfds.data_source), or any object with __len__ and __getitem__ "
    "that gives (x, y)"
)


def history_sample(
    source: Any, sampler: samplers.Sampler, batch_size: int = 32, *, seed: int | None = None
) -> tf.data.Dataset:
    """Batches `(x, y, {"weight": w, "index": i})` drawn by a sampler with memory.

        sampler = tfi.samplers.RAIS(len(x))
        model.compile("sgd", loss, sampler=sampler)
        model.fit(tfi.history_sample((x, y), sampler, 128), epochs=20)

    The model's training step hands the scores of each batch back to the sampler, which draws the
    next one by them. Indices, and with them the draws' state, live in the sampler: a new
    iteration, or one after a checkpoint was restored, goes on where the last one was.

    A pass is ⌈n/b⌉ batches, whichever examples these are; `.repeat()` has no end. Augmentation
    goes behind it: `.map(lambda x, y, drawn: (augment(x), y, drawn))` on whole batches.

    Without a seed one batch is drawn ahead of the training step. With a seed nothing runs
    ahead, and a run repeats exactly; so it does after a restore in the midst of an epoch. (A
    `.map` with `num_parallel_calls` or a `.prefetch` behind it does run ahead: batches are then
    drawn by scores a few steps old, which costs a little variance and no bias, and repeat no
    longer.)

    Args:
        source: `(x, y)`, nests of arrays, which TensorFlow gathers from; or random access to
            examples `(x, y)`, or `{"image": x, "label": y}` as TFDS has them, which Python reads.
        sampler: of `tfi.samplers`, for as many examples as the source has.
        batch_size: b.
        seed: makes the draws repeatable.
    Returns:
        A dataset of static batch size.
    Raises:
        TypeError: the source has no random access, or sampler is none.
        ValueError: sizes do not fit.
    """
    if not isinstance(sampler, samplers.Sampler):
        raise TypeError(f"sampler must be one of tfi.samplers; got {sampler!r}.")
    batch_size = arguments.positive_integer("batch_size", batch_size)
    size, gather = opened(source)
    if size != sampler.num_examples:
        raise ValueError(
            f"sampler was made for num_examples={sampler.num_examples}, and the source has {size}."
        )
    sampler.check_batch_size(batch_size)
    sampler.attach(gather)
    chosen = int(np.random.SeedSequence().generate_state(1)[0]) if seed is None else seed

    @tf.autograph.experimental.do_not_convert
    def batch(_):
        drawn = sampler.draw(batch_size, chosen)
        inputs, labels = tf.nest.map_structure(
            lambda part: tf.ensure_shape(part, [batch_size, *part.shape[1:]]),
            gather(drawn.indices),
        )
        return inputs, labels, {"weight": drawn.weights, "index": drawn.indices}

    batches = tf.data.Dataset.range(-(-size // batch_size)).map(batch)
    batches = batches if seed is not None else batches.prefetch(1)
    return batches.with_options(_options(seed))


def opened(source: Any) -> tuple[int, Callable[[tf.Tensor], tuple[Any, Any]]]:
    """The number of examples of a source, and a function from indices [b] to (x, y).

    Raises:
        TypeError: the source has no random access. ValueError: it is empty, or of no such form.
    """
    if isinstance(source, tf.data.Dataset):
        raise TypeError(
            f"a tf.data.Dataset has no random access; got {source!r}. {_EXPLANATION}. For TFDS: "
            'tfds.data_source(name, split="train").'
        )
    if isinstance(source, tuple):
        return _arrays(source)
    if not (hasattr(source, "__len__") and hasattr(source, "__getitem__")):
        raise TypeError(f"{_EXPLANATION}; got {source!r}.")
    return _random_access(source)


def _arrays(source: tuple) -> tuple[int, Callable]:
    if len(source) != 2:
        raise ValueError(
            f"{_EXPLANATION}; got a tuple of {len(source)}. Sample weights are not supported "
            "here: multiply them into the loss."
        )
    tensors = tf.nest.map_structure(tf.convert_to_tensor, source)
    flat = tf.nest.flatten(tensors)
    lengths = {tensor.shape[0] if tensor.shape.rank else None for tensor in flat}
    if len(lengths) != 1 or None in lengths or 0 in lengths:
        shapes = [tuple(tensor.shape) for tensor in flat]
        raise ValueError(f"{_EXPLANATION}; got arrays of shapes {shapes}.")

    def gather(indices):
        return tf.nest.map_structure(lambda tensor: tf.gather(tensor, indices), tensors)

    return len(flat[0]), gather


def _random_access(source: Any) -> tuple[int, Callable]:
    size = operator.index(len(source))
    if size == 0:
        raise ValueError(f"{_EXPLANATION}; got one of length 0.")
    example = _pair(source[0])
    first = tf.nest.map_structure(np.asarray, example)
    specs = tf.nest.map_structure(lambda part: tf.TensorSpec(part.shape, part.dtype), first)
    fetch = getattr(source, "__getitems__", None)

    def rows(indices):
        numbers = [int(index) for index in indices]
        examples = fetch(numbers) if fetch else [source[number] for number in numbers]
        flat = [tf.nest.flatten(_pair(one)) for one in examples]
        return [np.stack(part) for part in zip(*flat)]

    def gather(indices):
        flat = tf.nest.flatten(specs)
        parts = tf.numpy_function(rows, [indices], [spec.dtype for spec in flat], stateful=False)
        for part, spec in zip(parts, flat):
            part.set_shape([indices.shape[0], *spec.shape])
        return tf.nest.pack_sequence_as(specs, parts)

    return size, gather


def _pair(example: Any) -> tuple[Any, Any]:
    """(x, y) of one example."""
    if isinstance(example, dict) and {"image", "label"} <= set(example):
        return example["image"], example["label"]
    if isinstance(example, (tuple, list)) and len(example) == 2:
        return example[0], example[1]
    raise ValueError(f"{_EXPLANATION}; got an example {_shortened(example)}.")


def _shortened(example: Any) -> str:
    text = repr(example)
    return text if len(text) < 200 else f"{text[:200]}…"


def _options(seed: int | None) -> tf.data.Options:
    options = tf.data.Options()
    # The sampler's variables are in the model's checkpoints already.
    options.experimental_external_state_policy = tf.data.experimental.ExternalStatePolicy.IGNORE
    if seed is not None:
        # tf.data would draw ahead of the training step, and what by becomes a race.
        options.experimental_optimization.inject_prefetch = False
    return options
