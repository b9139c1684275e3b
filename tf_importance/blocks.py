"""Blocks of batches that a sampler with memory plans at once, and an iteration over them."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable
from typing import Any

import tensorflow as tf

from tf_importance import fresh, graphs, processes, samplers
from tf_importance.draws import Draws
from tf_importance.marks import Drawing

# Bytes of examples that are gathered at once, about.
_GATHERED_AT_ONCE = 1 << 26
# Steps that a strategy is ahead of the training, at most.
_READ_AHEAD = 8
_numbers = itertools.count(1)


class Blocks:
    """Batches of a source in an order that its sampler plans, K at a time.

    A new iteration goes on behind the last batch that was trained on: what was planned and not
    trained on comes again. (Unless the last one was read to its end, as in `.repeat()`, which may
    read ahead of the steps.)

    Between blocks Python calls compiled functions, so that a new iteration has nothing to optimize:
    TensorFlow optimizes the graph of a pipeline each time, which takes longer than a hundred steps.

    Under a strategy of R replicas a batch of the dataset is R planned ones, one behind the other:
    the strategy gives each replica its own. In several processes all of them are planned by each,
    and those of its own replicas are its dataset, one by one, as such a strategy takes them.

    Args:
        sampler: built. gather: examples by indices. batch_size: b, of a replica. block: K.
        length: batches in a pass. seed: integer; by default the sampler's own.
        lagging: whether the last block may be in training still when the next is planned.
        drawing: what the step must know of the batches.
        part: which of the replicas this process has.
    """

    def __init__(
        self,
        sampler: samplers.Sampler,
        gather: Callable[[tf.Tensor], tuple[Any, ...]],
        batch_size: int,
        block: int,
        length: int,
        seed: int | None,
        lagging: bool,
        drawing: Drawing,
        part: processes.Part,
    ) -> None:
        self._sampler, self._gather, self._seed = sampler, gather, seed
        self._batch_size, self._block, self._length = batch_size, block, length
        self._drawing, self._sizes = drawing, sampler.sizes(batch_size)
        # Of examples in a row of the journal.
        self._width, self._differ = max(self._sizes), len(set(self._sizes)) > 1
        self._part_of_all, self._replicas = part, part.replicas
        replicas = self._replicas
        # One batch is ready and the next is being made while a step is not done. A strategy reads
        # further ahead, and a seed does not keep it from that.
        ahead = 2 if replicas == 1 else _READ_AHEAD * replicas
        self._lag = max(block, ahead) if lagging or replicas > 1 else 0
        examples = tf.nest.flatten(gather(tf.zeros([1], tf.int64)))
        size = sum(part.shape.num_elements() * part.dtype.size for part in examples)
        at_once = min(block, _GATHERED_AT_ONCE // max(size * self._width, 1))
        self._at_once = max(1, at_once // replicas) * replicas
        # The next batch to read, None before the first, and its place in the pass.
        self._next: int | None = None
        self._place = 0
        self._number = next(_numbers)
        sampler.journal.make_room(self._width, replicas)
        sampler.datasets.add(self)

    def dataset(self) -> tf.data.Dataset:
        """A pass."""
        length = self._length // self._replicas
        if not self._part_of_all.is_all:
            length *= self._part_of_all.here
        parts = tf.data.Dataset.range(length)
        parts = parts.map(graphs.as_it_stands(self._part))
        # The last part ends where the pass does; the next would plan what nobody asks for.
        batches = parts.unbatch().take(length)
        return batches.apply(tf.data.experimental.assert_cardinality(length))

    def rewind(self) -> None:
        """The next iteration goes on behind what was trained on, whatever was read."""
        self._next = None

    def expect(self, batches: int) -> None:
        """Told by `fit` how many batches it will train on."""
        self._sampler.expect(batches)

    # In the pipeline ------------------------------------------------------------------------

    def _part(self, number: tf.Tensor) -> tuple[Any, Any, dict[str, tf.Tensor]]:
        """Some batches of a block, stacked: [k, b, …]."""
        types = [tf.int64, *(tf.float32,) * 4, tf.int64]
        read = tf.py_function(graphs.weakly(self._read), [number], types)
        size = None if self._differ else self._width
        indices, weights, limits, gains, memory, rows = (
            tf.ensure_shape(self._own(part), [None, size]) for part in read
        )
        told = {"weight": weights, "index": indices, "row": rows, "gain": gains}
        if self._sampler.has_limits:
            told["limit"] = limits
        if self._drawing.meter is not None or self._sampler.is_biased:
            told["memory"] = memory
        if self._drawing.fresh is not None:
            told["seed"] = self._seeds(rows)
        examples = self._gather(tf.reshape(indices, [-1]))
        inputs, labels, *own = tf.nest.map_structure(
            lambda part: _in_batches(part, tf.shape(indices), size), examples
        )
        if own:
            told |= {"weight": own[0] * weights, "importance": weights}
        if self._replicas == 1 or not self._part_of_all.is_all:
            return inputs, labels, told
        return tf.nest.map_structure(self._joined, (inputs, labels, told))

    def _own(self, planned: tf.Tensor) -> tf.Tensor:
        """[k, b] of all replicas, those of this process."""
        part = self._part_of_all
        if part.is_all:
            return planned
        size = tf.shape(planned)[1]
        by_replica = tf.reshape(planned, [-1, part.replicas, size])
        return tf.reshape(by_replica[:, part.first : part.first + part.here], [-1, size])

    def _joined(self, part: tf.Tensor) -> tf.Tensor:
        """[k, b, …] as [k/R, R b, …]."""
        count, size, *inner = fresh.sizes(part)
        joined = tf.reshape(part, [count // self._replicas, self._replicas * size, *inner])
        known = None if self._differ else self._replicas * self._width
        return tf.ensure_shape(joined, [None, known, *part.shape[2:]])

    def _seeds(self, rows: tf.Tensor) -> tf.Tensor:
        """[k, b, 2] for the draws in the steps; XLA draws by 32-bit seeds only."""
        seed = self._sampler.seed if self._seed is None else self._seed
        pairs = tf.stack([tf.fill(tf.shape(rows), tf.cast(seed, tf.int64)), rows], axis=-1)
        return tf.bitcast(tf.cast(pairs, tf.uint32), tf.int32)

    # In Python ------------------------------------------------------------------------------

    def _read(self, number: tf.Tensor) -> list[tf.Tensor]:
        """What is planned of the next batches, [k, b] each, and their numbers; part `number`.

        All are of one size, since no part is of two blocks.
        """
        sampler = self._sampler
        if int(number) == 0:
            self._start()
        if sampler.journal.reader != self._number:
            raise ValueError(
                f"two datasets draw by one {type(sampler).__name__} at the same time, for example "
                "one for training and one for validation; give each a sampler of its own."
            )
        assert self._next is not None, "an iteration starts with part 0"
        first, planned = self._next, None
        if first >= int(sampler.draws):
            planned = self._plan()
        end = first + min(self._at_once, int(sampler.draws) - first, self._length - self._place)
        if planned is None or end < first + self._block:
            planned = sampler.planned(first, end, self._width)
        draws, rows = planned
        parts = [*draws.of_examples, rows]
        if self._differ:
            # Those from the first on that have its size; blocks begin anywhere. What replicas
            # train on together has one size.
            sizes = [self._sizes[kind] for kind in draws.kinds.numpy()]
            count = next((i for i, size in enumerate(sizes) if size != sizes[0]), len(sizes))
            parts, end = [part[:count, : sizes[0]] for part in parts], first + count
        self._place += end - first
        self._next = end
        return parts

    def _start(self) -> None:
        """A new iteration."""
        sampler, journal = self._sampler, self._sampler.journal
        journal.reader = self._number
        repeats = self._next is not None and self._place == self._length
        if int(journal.batch_size) != self._width or not (repeats or self._are_joint()):
            self._resize()
        trained, planned = int(sampler.steps), int(sampler.draws)
        if not repeats:
            # What is planned is kept for so many batches.
            there = planned - trained <= journal.batches(self._width)
            self._next = trained if there else planned
        self._place = 0

    def _are_joint(self) -> bool:
        """Whether what was trained on, and what is planned beyond it, are batches of R."""
        numbers = int(self._sampler.steps), int(self._sampler.draws)
        return all(number % self._replicas == 0 for number in numbers)

    def _resize(self) -> None:
        """From now on batches are others: what was planned and not trained on is not.

        They are of another size, or of another number of replicas.
        """
        sampler, before = self._sampler, int(self._sampler.journal.batch_size)
        if before:
            self._learn(int(sampler.steps), before)
        sampler.position.assign_sub((sampler.draws - sampler.steps) * before)
        sampler.journal.forget(self._width, self._replicas)

    def _plan(self) -> tuple[Draws, tf.Tensor]:
        sampler = self._sampler
        if not sampler.follows_training:
            end = int(sampler.draws) - self._lag
            if not self._part_of_all.is_all:
                self._wait_for(end)
            self._learn(end, self._width)
        sampler.tend()
        # Uniform batches among pre-samples are of another size.
        compares = sampler.compares and (self._differ or self._width == self._batch_size)
        return sampler.put_plan(self._block, self._batch_size, self._seed, compares)

    def _wait_for(self, end: int) -> None:
        """Until what all processes saw before batch number `end` is here."""
        gathering = self._sampler.journal.gathering
        if gathering is None:
            raise ValueError(
                f"in several processes a {type(self._sampler).__name__} draws in `fit` only, which "
                "brings together what all of them see. Train by model.fit."
            )
        gathering.wait_for(end)

    def _learn(self, end: int, batch_size: int) -> None:
        """Take up what was seen before batch number `end`."""
        late = int(self._sampler.journal.late)
        self._sampler.take_up(end, batch_size)
        if late == 0 and int(self._sampler.journal.late) > 0:
            warnings.warn(
                f"batches of {type(self._sampler).__name__} are read more than {self._lag} steps "
                "ahead of the training, or left out of it: later ones are planned without what the "
                "steps on them see. The log `late` counts how often.",
                stacklevel=2,
            )


def _in_batches(part: tf.Tensor, shape: tf.Tensor, size: int | None) -> tf.Tensor:
    """[k b, …] as [k, b, …]."""
    stacked = tf.reshape(part, tf.concat([shape, tf.shape(part)[1:]], axis=0))
    return tf.ensure_shape(stacked, [None, size, *part.shape[1:]])
