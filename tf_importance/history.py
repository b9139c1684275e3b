"""The remembered way: batches of examples that a sampler with memory draws from a source."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf

from tf_importance import (
    arguments,
    blocks,
    element_specs,
    groups,
    marks,
    pipeline,
    plans,
    proposals,
    random_access,
    remembered,
    samplers,
    scorers,
    scoring,
    switches,
)


def history_sample(
    source: Any,
    sampler: samplers.Sampler,
    batch_size: int = 32,
    *,
    block: int | None = None,
    presample_size: int | None = None,
    switch: switches.Gain | None = None,
    model: keras.Model | None = None,
    scorer: scorers.Scorer | None = None,
    resampling: str | proposals.Resampling = "systematic",
    smoothing: float = 0.2,
    seed: int | None = None,
    jit_compile: bool | str = "auto",
) -> tf.data.Dataset:
    """Batches `(x, y, {"weight": w, "index": i, …})` drawn by a sampler with memory.

        sampler = tfi.samplers.RAIS()
        model.compile("sgd", loss, sampler=sampler)
        model.fit(tfi.history_sample((x, y), sampler, 128), epochs=20)

    Batches are planned in blocks of K. The training step writes the scores that it sees to the
    sampler's journal. Before a block is planned, the sampler takes up what was seen on all blocks
    but the last one, so that a batch is drawn without what the K to 2K − 1 batches before it saw.
    It does not matter how far a `prefetch` behind this lets the reader run ahead, up to K batches.
    Beyond that, batches are planned by what is there, and what comes late is learned later; the log
    `late` counts how often. With K = 1 and a seed a batch is drawn by all that was seen before it.

    The state of the draws lives in the sampler: a new iteration, or one after a checkpoint was
    restored, goes on behind the last batch that was trained on, in the midst of a block too.

    A pass is ⌈n/b⌉ batches, whichever examples these are; `.repeat()` has no end. Augmentation
    goes behind it: `.map(lambda x, y, drawn: (augment(x), y, drawn))` on whole batches.

    With a presample_size memory and fresh scores work together: the sampler draws B examples by
    p, the model as it is now scores them, b of them are drawn by g_j ∝ Ĝ_j/(n p_j), and the
    weights multiply, 1/(n p_j) · 1/(B g_j): unbiased still. All B scores go back to the sampler.
    A fresh pre-sample alone gains at most B/b of a uniform batch; one that memory has chosen
    can gain more.

    With a switch, `tfi.switches.Gain()`, memory is used while it pays: every 8 batches are uniform
    ones (passes over the data, weights 1), or memory's, or, with a presample_size, memory's
    rescored, whichever its measured gain and its measured cost make the fastest. Memory learns
    once it may pay, and is tried out before it is judged; a sixth of what it draws are the
    examples next in a pass, which bounds the weights. See docs/does-it-pay.md. The step then
    scores and draws, so that scores are its own, and the learning rate follows the gain that was
    predicted. Until memory has something to draw by, its pre-samples are uniform ones, as in
    `importance_sample`.

        model.compile(keras.optimizers.SGD(tfi.schedules.GainAdapted(0.1)), loss, sampler=sampler)
        model.fit(tfi.history_sample(
            (x, y), sampler, 32, presample_size=96, switch=tfi.switches.Gain(), model=model))

    Without a seed one batch is made ready ahead of the training step, but for `Oracle` and where
    there are pre-samples without a switch. With a seed nothing runs ahead, and a run repeats
    exactly; so it does after a restore in the midst of an epoch. (Not under a switch that measures
    its costs: give it `step_seconds` and `scoring_seconds`.)

    Args:
        source: `(x, y)`, nests of arrays, which TensorFlow gathers from; or random access to
            examples `(x, y)`, or `{"image": x, "label": y}` as TFDS has them, which Python reads.
        sampler: of `tfi.samplers`, for as many examples as the source has.
        batch_size: b.
        block: K, batches that are planned at once. By default as many as have a sixteenth of the
            examples, 32 at most; 1 for pre-samples and under a switch.
        presample_size: B ≥ b; None for no fresh scores.
        switch: decides whether to use memory; for a sampler that tells the probability of any
            example, which is `RAIS`. By default it is always used.
        model: the ISModel that scores pre-samples, or that the switch measures, compiled.
        scorer: `(model, x, y) -> [B]` for pre-samples; by default the model's, and under a switch
            none but that: uniform batches are remembered by it.
        resampling, smoothing, jit_compile: of pre-samples, as in `importance_sample`; under a
            switch what memory draws is smoothed, too.
        seed: makes the draws repeatable.
    Returns:
        A dataset of static batch size. With a presample_size the dict has `"place"` and
        `"presample"` too, by which the step tells the sampler of all B. Under a switch it has
        `"memory"`, `"remember"` and `"gain"` instead; with a presample_size also `"seed"`, and
        batches are of b examples or of B, from which the step draws.
    Raises:
        TypeError: the source has no random access, sampler or switch is none, model is no ISModel.
        ValueError: sizes do not fit, or the sampler is none that a switch can weigh.
    """
    if not isinstance(sampler, samplers.Sampler):
        raise TypeError(f"sampler must be one of tfi.samplers; got {sampler!r}.")
    batch_size = arguments.positive_integer("batch_size", batch_size)
    size, gather = random_access.opened(source)
    sampler.build(size)
    drawn_size = batch_size if presample_size is None else presample_size
    sampler.check_batch_size(arguments.positive_integer("presample_size", drawn_size))
    sampler.attach(gather)
    chosen = int(np.random.SeedSequence().generate_state(1)[0]) if seed is None else seed
    examples = _Examples(gather, sampler, chosen, seed is None and sampler.may_draw_ahead)
    redrawing = _Redrawing(
        batch_size,
        drawn_size,
        proposals.resampling_of(resampling),
        proposals.checked_smoothing(smoothing, 0.0),
    )
    if switch is not None:
        _check_switch(switch, sampler, batch_size, presample_size)
    plain = switch is None and presample_size is None
    if not plain and isinstance(source, tuple) and len(source) == 3:
        raise ValueError(
            "sample weights go with memory alone; leave out presample_size and switch, or the "
            "weights."
        )
    score = None
    if switch is not None or presample_size is not None:
        score = _scored(model, scorer, gather, drawn_size, batch_size, jit_compile)
    if switch is not None:
        batch = _switched(switch, model, scorer, examples, redrawing)
    elif score is not None:
        batch = _Rescored(examples, score, redrawing)
    else:
        return _in_blocks(examples, batch_size, block, size, seed)
    batches = tf.data.Dataset.range(-(-size // batch_size)).map(
        tf.autograph.experimental.do_not_convert(batch)
    )
    # Fresh scores are there to be those of the step, since the learning rate follows the gain;
    # under a switch the step makes them itself.
    fresh = presample_size is not None and switch is None
    ahead = examples.ahead and not fresh
    batches = batches.prefetch(1) if ahead else batches
    return marks.put(batches.with_options(pipeline.options(ahead)), sampler)


class _Examples(NamedTuple):
    """A source, and the sampler that draws from it."""

    gather: Callable[[tf.Tensor], tuple[Any, Any]]
    sampler: samplers.Sampler
    seed: int
    ahead: bool

    def drawn(self, count: int) -> tuple[Any, Any, samplers.Draw]:
        """The sampler's next examples."""
        drawn = self.sampler.draw(count, self.seed)
        return (*self.at(drawn.indices), drawn)

    def at(self, indices: tf.Tensor) -> tuple[Any, Any]:
        """Those at indices, of static shape."""
        return tf.nest.map_structure(
            lambda part: tf.ensure_shape(part, [*indices.shape, *part.shape[1:]]),
            self.gather(indices),
        )


class _Redrawing(NamedTuple):
    """How a batch of b is drawn from a pre-sample of B."""

    batch_size: int
    presample_size: int
    resample: proposals.Resampling
    smoothing: float


def _in_blocks(
    examples: _Examples, batch_size: int, block: int | None, size: int, seed: int | None
) -> tf.data.Dataset:
    """Batches that memory draws."""
    sampler, largest = examples.sampler, examples.sampler.largest_block(batch_size)
    block = largest if block is None else arguments.positive_integer("block", block)
    if block > largest:
        raise ValueError(
            f"{type(sampler).__name__} for {size} examples plans blocks of {largest} batches of "
            f"{batch_size} at most; got block={block}."
        )
    planned = blocks.Blocks(
        sampler,
        examples.gather,
        batch_size,
        block,
        -(-size // batch_size),
        seed,
        lagging=examples.ahead or block > 1,
    )
    batches = planned.dataset()
    batches = batches.prefetch(1) if examples.ahead else batches
    # No further prefetch of tf.data's own: a block waits for no more than it has to.
    return marks.put(batches.with_options(pipeline.options(ahead=False)), sampler)


class _Rescored(NamedTuple):
    """Batches drawn by fresh scores from pre-samples that memory has drawn."""

    examples: _Examples
    score: Callable[[Any, Any], tf.Tensor]
    redrawing: _Redrawing

    def __call__(self, _):
        batch_size, presample_size, resample, smoothing = self.redrawing
        inputs, labels, drawn = self.examples.drawn(presample_size)
        scores = self.score(inputs, labels)
        # What an example is worth to a batch drawn from this pre-sample: w Ĝ.
        worth = groups.smoothed(scores * drawn.weights, smoothing)
        # Each batch has a number of its own, in whichever pass.
        number = self.examples.sampler.draws + 0
        seed = tf.stack([tf.cast(self.examples.seed, tf.int64), number])
        draw = resample(proposals.normalize(worth), batch_size, seed)
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
        chosen = tf.nest.map_structure(lambda part: tf.gather(part, draw.indices), (inputs, labels))
        return (*chosen, of_batch)


def _switched(switch, model, scorer, examples: _Examples, redrawing: _Redrawing):
    """Batches of what a switch decides, of which the step scores the pre-samples."""
    if scorer is not None and scorer is not model.scorer:
        raise ValueError(
            "under a switch uniform batches are remembered by the model's scorer, and pre-samples "
            f"must be too; got {scorer!r}. Give it to the model: ISModel(net, scorer=…)."
        )
    batch_size, presample_size, resample, smoothing = redrawing
    rescored = presample_size > batch_size
    menu = plans.remembered(batch_size, presample_size if rescored else None, remembered.AT_ONCE)
    systematic = resample is proposals.systematic
    setting = switches.Setting(model, menu.group_size, menu.plans, systematic, smoothing)
    switch.open(setting)
    switches.warn_unless_followed(switch, model)
    score = functools.partial(model.scorer, model)
    in_step = groups.StepDraw(score, smoothing, resample, batch_size)
    batches = remembered.Batches(setting, switch, examples.sampler, examples.at, examples.seed)
    model.expect_drawn_examples(
        sample_weighted=False,
        gain_of=setting.sampling,
        switch=switch,
        draw=in_step if rescored else None,
    )
    return batches


def _check_switch(switch, sampler, batch_size: int, presample_size: int | None) -> None:
    if not isinstance(switch, switches.Gain):
        raise TypeError(
            f"switch must be a tfi.switches.Gain, or None to use memory always; got {switch!r}."
        )
    if type(sampler).weights_of is samplers.Sampler.weights_of:
        raise ValueError(
            "a switch weighs memory by the probability of any example, which only "
            f"tfi.samplers.RAIS tells; got {type(sampler).__name__}."
        )
    if presample_size is not None and presample_size <= batch_size:
        raise ValueError(
            "under a switch presample_size must be larger than batch_size, or None for no fresh "
            f"scores; got {presample_size} and {batch_size}."
        )
    if batch_size < 2:
        raise ValueError(
            "a Gain switch tells noise from the mean gradient by pairs of examples, and needs "
            f"batches of 2 at least; got {batch_size}."
        )


def _scored(model, scorer, gather, presample_size: int, batch_size: int, jit_compile):
    """The scorer, compiled for pre-samples; the model is built."""
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
