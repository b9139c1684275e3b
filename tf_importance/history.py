"""The remembered way: batches of examples that a sampler with memory draws from a source."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf

from tf_importance import (
    arguments,
    element_specs,
    groups,
    pipeline,
    proposals,
    random_access,
    samplers,
    scorers,
    scoring,
)


def history_sample(
    source: Any,
    sampler: samplers.Sampler,
    batch_size: int = 32,
    *,
    presample_size: int | None = None,
    model: keras.Model | None = None,
    scorer: scorers.Scorer | None = None,
    resampling: str | proposals.Resampling = "systematic",
    smoothing: float = 0.2,
    seed: int | None = None,
    jit_compile: bool | str = "auto",
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

    With a presample_size memory and fresh scores work together: the sampler draws B examples by
    p, the model as it is now scores them, b of them are drawn by g_j ∝ Ĝ_j/(n p_j), and the
    weights multiply, 1/(n p_j) · 1/(B g_j): unbiased still. All B scores go back to the sampler.
    A fresh pre-sample alone gains at most B/b of a uniform batch; one that memory has chosen
    can gain more.

    Without a seed one batch is drawn ahead of the training step, but for `Oracle` and where there
    are pre-samples. With a seed nothing runs ahead, and a run repeats exactly; so it does after a
    restore in the midst of an epoch. (A `.map` with `num_parallel_calls` or a `.prefetch` behind
    it does run ahead: batches are then drawn by scores a few steps old, which costs a little
    variance and no bias, and repeat no longer.)

    Args:
        source: `(x, y)`, nests of arrays, which TensorFlow gathers from; or random access to
            examples `(x, y)`, or `{"image": x, "label": y}` as TFDS has them, which Python reads.
        sampler: of `tfi.samplers`, for as many examples as the source has.
        batch_size: b.
        presample_size: B ≥ b; None for no fresh scores.
        model: the ISModel that scores pre-samples, compiled and built.
        scorer: `(model, x, y) -> [B]` for pre-samples; by default the model's.
        resampling, smoothing, jit_compile: of pre-samples, as in `importance_sample`.
        seed: makes the draws repeatable.
    Returns:
        A dataset of static batch size. With a presample_size the dict has `"place"` and
        `"presample"` too, by which the step tells the sampler of all B.
    Raises:
        TypeError: the source has no random access, sampler is none, model is no ISModel.
        ValueError: sizes do not fit.
    """
    if not isinstance(sampler, samplers.Sampler):
        raise TypeError(f"sampler must be one of tfi.samplers; got {sampler!r}.")
    batch_size = arguments.positive_integer("batch_size", batch_size)
    size, gather = random_access.opened(source)
    if size != sampler.num_examples:
        raise ValueError(
            f"sampler was made for num_examples={sampler.num_examples}, and the source has {size}."
        )
    drawn_size = batch_size if presample_size is None else presample_size
    sampler.check_batch_size(arguments.positive_integer("presample_size", drawn_size))
    sampler.attach(gather)
    chosen = int(np.random.SeedSequence().generate_state(1)[0]) if seed is None else seed

    def examples(count: int) -> tuple[Any, Any, samplers.Draw]:
        drawn = sampler.draw(count, chosen)
        inputs, labels = tf.nest.map_structure(
            lambda part: tf.ensure_shape(part, [count, *part.shape[1:]]),
            gather(drawn.indices),
        )
        return inputs, labels, drawn

    def remembered(_):
        inputs, labels, drawn = examples(batch_size)
        return inputs, labels, {"weight": drawn.weights, "index": drawn.indices}

    batch = remembered
    if presample_size is not None:
        rescore = _Rescored(
            _scored(model, scorer, gather, presample_size, batch_size, jit_compile),
            proposals.resampling_of(resampling),
            proposals.checked_smoothing(smoothing, 0.0),
            batch_size,
        )

        def rescored(_):
            drawn = examples(presample_size)
            # Each batch has a number of its own, in whichever pass.
            return rescore(*drawn, tf.stack([tf.cast(chosen, tf.int64), sampler.draws + 0]))

        batch = rescored
    batches = tf.data.Dataset.range(-(-size // batch_size)).map(
        tf.autograph.experimental.do_not_convert(batch)
    )
    # Fresh scores are there to be those of the step: the learning rate follows the gain.
    ahead = seed is None and sampler.may_draw_ahead and presample_size is None
    batches = batches.prefetch(1) if ahead else batches
    return batches.with_options(pipeline.options(ahead))


class _Rescored(NamedTuple):
    """From a pre-sample that memory has drawn to a batch."""

    score: Callable[[Any, Any], tf.Tensor]
    resample: proposals.Resampling
    smoothing: float
    batch_size: int

    def __call__(self, inputs, labels, drawn: samplers.Draw, seed: tf.Tensor):
        scores = self.score(inputs, labels)
        # What an example is worth to a batch drawn from this pre-sample: w Ĝ.
        worth = groups.smoothed(scores * drawn.weights, self.smoothing)
        draw = self.resample(proposals.normalize(worth), self.batch_size, seed)
        of_batch = {
            "weight": tf.gather(drawn.weights, draw.indices) * draw.weights,
            "index": tf.gather(drawn.indices, draw.indices),
            "place": draw.indices,
            "presample": {
                "index": drawn.indices,
                "weight": drawn.weights,
                "score": scores,
            },
        }
        chosen = tf.nest.map_structure(
            lambda part: tf.gather(part, draw.indices), (inputs, labels)
        )
        return (*chosen, of_batch)


def _scored(model, scorer, gather, presample_size: int, batch_size: int, jit_compile):
    """The scorer, compiled for pre-samples."""
    scoring.check_model(model)
    if presample_size < batch_size:
        raise ValueError(
            f"presample_size must be at least batch_size; got {presample_size} and {batch_size}."
        )
    score = model.scorer if scorer is None else scorer
    scoring.check(score, jit_compile)
    example = gather(tf.zeros([1], tf.int64))
    spec = tf.nest.map_structure(lambda part: tf.TensorSpec(part.shape[1:], part.dtype), example)
    element_specs.build(model, spec, lambda: example[0])
    return scoring.compiled(model, score, spec, presample_size, jit_compile)
