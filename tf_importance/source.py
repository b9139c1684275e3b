"""The remembered way: batches of examples that a sampler with memory draws from a source."""

from __future__ import annotations

import dataclasses
from typing import Any

import keras
import tensorflow as tf

from tf_importance import (
    arguments,
    blocks,
    compat,
    element_specs,
    fresh,
    marks,
    processes,
    proposals,
    random_access,
    samplers,
    scorers,
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

    Under a strategy of several replicas, in one process or several, compile the model first. Each
    replica has draws and rows of its own, and there is one memory, which learns from all of them.
    In several processes each gives the whole source.

    A pass is ⌈n/b⌉ batches, whichever examples these are; `.repeat()` has no end. Augmentation
    goes behind it: `.map(lambda x, y, drawn: (augment(x), y, drawn))` on whole batches.

    With a presample_size memory and fresh scores work together: short for a sampler
    `tfi.samplers.Fresh(presample_size, over=sampler)`. With a switch, `tfi.switches.Gain()`, memory
    is used while it pays: short for `tfi.samplers.Switched`. Both say there what they do, and need
    the model, which may be compiled with either, or with the sampler whose memory they use.

        model.compile(keras.optimizers.SGD(tfi.schedules.GainAdapted(0.1)), loss, sampler=sampler)
        model.fit(tfi.history_sample(
            (x, y), sampler, 32, presample_size=96, switch=tfi.switches.Gain(), model=model))

    Without a seed one batch is made ready ahead of the training step, but for `Oracle`. With a seed
    nothing runs ahead, and a run repeats exactly; so it does after a restore in the midst of an
    epoch. (Not under a switch that measures its costs: give it `step_seconds` and
    `scoring_seconds`.)

    Args:
        source: `(x, y)`, nests of arrays, which TensorFlow gathers from; or random access to
            examples `(x, y)`, or `{"image": x, "label": y}` as TFDS has them, which Python reads.
        sampler: of `tfi.samplers`, for as many examples as the source has.
        batch_size: b; under a strategy that of all replicas of the process together.
        block: K, batches that are planned at once. By default as many as have an eighth of the
            examples, 32 at most; larger ones are drawn by older scores. Under a switch 1, 2, 4, 8.
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
        A dataset of batches of b examples, or of pre-samples from which the steps draw b: with
        `"seed"` in the dict.
    Raises:
        TypeError: the source has no random access, sampler or switch is none, model is no ISModel.
        ValueError: sizes do not fit, or the sampler is none that a switch can weigh.
    """
    samplers.refuse_other(sampler)
    batch_size = arguments.positive_integer("batch_size", batch_size)
    size, gather = random_access.opened(source)
    if switch is not None or presample_size is not None:
        fresh.check_model(model)
        sampler = _composed(sampler, presample_size, switch, scorer, resampling, smoothing)
        sampler.bind(model)
    sampler.build(size)
    part = _part(sampler)
    sampler.replicas = replicas = part.replicas
    if batch_size % part.here:
        raise ValueError(
            f"batch_size is of all {part.here} replicas of a process together, and must be a "
            f"multiple of their number; got {batch_size}."
        )
    batch_size //= part.here
    sampler.check_batch_size(batch_size)
    sampler.attach(gather)
    largest = max(1, sampler.largest_block(batch_size) // replicas)
    if block is None:
        block = max(1, sampler.default_block(batch_size) // replicas)
    if arguments.positive_integer("block", block) > largest:
        raise ValueError(
            f"block must be {largest} at most for a {type(sampler).__name__} of {size} examples "
            f"and batches of {batch_size * replicas}; got {block}."
        )
    drawing = sampler.drawing(batch_size)
    drawing = dataclasses.replace(drawing, replicas=replicas, block=block, seed=seed)
    if drawing.fresh is not None:
        if isinstance(source, tuple) and len(source) == 3:
            raise ValueError(
                "sample weights go with memory alone; leave out presample_size and switch, or the "
                "weights."
            )
        _check_scorer(sampler, batch_size, drawing, gather, jit_compile)
    if drawing.model is not None:
        drawing.model.datasets.adopt(drawing)
    ahead = seed is None and sampler.may_draw_ahead
    planned = blocks.Blocks(
        sampler,
        gather,
        batch_size,
        block * replicas,
        -(-size // (batch_size * replicas)) * replicas,
        seed,
        lagging=ahead or block > 1,
        drawing=drawing,
        part=part,
    )
    batches = planned.dataset()
    batches = batches.prefetch(1) if ahead else batches
    # No further prefetch of tf.data's own: a block waits for no more than it has to.
    return marks.put(batches.with_options(compat.data_options(ahead=False)), drawing)


def _part(sampler: samplers.Sampler) -> processes.Part:
    """Which of the replicas that train on what a sampler draws this process has."""
    model = sampler.trained_model
    if model is None:
        return processes.Part(1, 0, 1)
    if sampler.spans_processes:
        return processes.part_of(model.distribute_strategy)
    here = processes.replicas_here(model.distribute_strategy)
    return processes.Part(here, 0, here)


def _composed(
    sampler: samplers.Sampler,
    presample_size: int | None,
    switch: switches.Gain | None,
    scorer: scorers.Scorer | None,
    resampling: str | proposals.Resampling,
    smoothing: float,
) -> samplers.Sampler:
    """The sampler that the arguments of `history_sample` stand for."""
    rescored = None
    if presample_size is not None:
        rescored = samplers.Fresh(
            presample_size, sampler, smoothing=smoothing, resampling=resampling, scorer=scorer
        )
    if switch is None:
        assert rescored is not None, "there is something to compose"
        return rescored
    if not isinstance(switch, switches.Gain):
        remedy = arguments.to_be_made(switch, "tfi.switches", [switches.Gain])
        raise TypeError(
            "switch must be a tfi.switches.Gain, or None to use memory always; got "
            f"{arguments.named(switch)}.{remedy}"
        )
    members = [samplers.Uniform(), sampler, *([] if rescored is None else [rescored])]
    return samplers.Switched(members, by=switch, smoothing=smoothing)


def _check_scorer(
    sampler: samplers.Sampler, batch_size: int, drawing: marks.Drawing, gather, jit_compile
) -> None:
    """Find out here, and not in the midst of the first step, that pre-samples can be scored."""
    score = drawing.fresh.score
    fresh.check(score.scorer, jit_compile)
    example = gather(tf.zeros([1], tf.int64))
    spec = tf.nest.map_structure(lambda part: tf.TensorSpec(part.shape[1:], part.dtype), example)
    element_specs.build(drawing.model, spec, lambda: example[0])
    fresh.compiled(score, spec, sampler.row_size(batch_size), jit_compile)
