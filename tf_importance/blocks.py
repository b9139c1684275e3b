"""Blocks of batches that a sampler with memory plans at once, and an iteration over them."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable
from typing import Any

import tensorflow as tf

from tf_importance import samplers
from tf_importance.draws import Draws

# Bytes of examples that are gathered at once, about.
_GATHERED_AT_ONCE = 1 << 26
_numbers = itertools.count(1)


class Blocks:
    """Batches of a source in an order that its sampler plans, K at a time.

    A new iteration goes on behind the last batch that was trained on: what was planned and not
    trained on comes again. (Unless the last one was read to its end, as in `.repeat()`, which may
    read ahead of the steps.)

    Between blocks Python calls compiled functions, so that a new iteration has nothing to optimize:
    TensorFlow optimizes the graph of a pipeline each time, which takes longer than a hundred steps.

    Args:
        sampler: built. gather: examples by indices. batch_size: b. block: K.
        length: batches in a pass. seed: integer; by default the sampler's own.
        lagging: whether the last block may be in training still when the next is planned.
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
    ) -> None:
        self._sampler, self._gather, self._seed = sampler, gather, seed
        self._batch_size, self._block, self._length = batch_size, block, length
        # One batch is ready and the next is being made while a step is not done.
        self._lag = max(block, 2) if lagging else 0
        examples = tf.nest.flatten(gather(tf.zeros([1], tf.int64)))
        size = sum(part.shape.num_elements() * part.dtype.size for part in examples)
        self._at_once = max(1, min(block, _GATHERED_AT_ONCE // max(size * batch_size, 1)))
        # The next batch to read, None before the first, and its place in the pass.
        self._next: int | None = None
        self._place = 0
        self._number = next(_numbers)
        sampler.journal.make_room(batch_size)
        sampler.datasets.add(self)

    def dataset(self) -> tf.data.Dataset:
        """A pass."""
        parts = tf.data.Dataset.range(self._length)
        parts = parts.map(tf.autograph.experimental.do_not_convert(self._part))
        # The last part ends where the pass does; the next would plan what nobody asks for.
        batches = parts.unbatch().take(self._length)
        return batches.apply(tf.data.experimental.assert_cardinality(self._length))

    def rewind(self) -> None:
        """The next iteration goes on behind what was trained on, whatever was read."""
        self._next = None

    # In the pipeline ------------------------------------------------------------------------

    def _part(self, number: tf.Tensor) -> tuple[Any, Any, dict[str, tf.Tensor]]:
        """Some batches of a block, stacked: [k, b, …]."""
        types = [tf.int64, *(tf.float32,) * (len(Draws._fields) - 1), tf.int64]
        *parts, rows = tf.py_function(self._read, [number], types)
        draws = Draws(*(tf.ensure_shape(part, [None, self._batch_size]) for part in parts))
        told = {
            "weight": draws.weights,
            "index": draws.indices,
            "row": tf.ensure_shape(rows, [None, self._batch_size]),
            "gain": draws.gains,
        }
        if self._sampler.has_limits:
            told["limit"] = draws.limits
        examples = self._gather(tf.reshape(draws.indices, [-1]))
        inputs, labels, *weights = tf.nest.map_structure(self._in_batches, examples)
        if weights:
            told |= {"weight": weights[0] * draws.weights, "importance": draws.weights}
        return inputs, labels, told

    def _in_batches(self, part: tf.Tensor) -> tf.Tensor:
        """[k b, …] as [k, b, …]."""
        shape = tf.concat([[-1, self._batch_size], tf.shape(part)[1:]], axis=0)
        return tf.ensure_shape(tf.reshape(part, shape), [None, self._batch_size, *part.shape[1:]])

    # In Python ------------------------------------------------------------------------------

    def _read(self, number: tf.Tensor) -> list[tf.Tensor]:
        """What is planned of the next batches, [k, b] each, and their numbers; part `number`."""
        sampler = self._sampler
        if int(number) == 0:
            self._start()
        if sampler.reader != self._number:
            raise ValueError(
                f"two datasets draw by one {type(sampler).__name__} at the same time, for example "
                "one for training and one for validation; give each a sampler of its own."
            )
        assert self._next is not None, "an iteration starts with part 0"
        if self._next >= int(sampler.draws):
            self._plan()
        left = int(sampler.draws) - self._next, self._length - self._place
        end = self._next + min(self._at_once, *left)
        draws, rows = sampler.planned(self._next, end, self._batch_size)
        self._place += end - self._next
        self._next = end
        return [*draws, rows]

    def _start(self) -> None:
        """A new iteration."""
        sampler, journal = self._sampler, self._sampler.journal
        sampler.reader = self._number
        if int(journal.batch_size) != self._batch_size:
            self._resize()
        trained, planned = int(sampler.steps), int(sampler.draws)
        repeats = self._next is not None and self._place == self._length
        if not repeats:
            # What is planned is kept for so many batches.
            there = planned - trained <= journal.batches(self._batch_size)
            self._next = trained if there else planned
        self._place = 0

    def _resize(self) -> None:
        """From now on batches are of another size: what was planned and not trained on is not."""
        sampler, before = self._sampler, int(self._sampler.journal.batch_size)
        if before:
            self._learn(int(sampler.steps), before)
        sampler.position.assign_sub((sampler.draws - sampler.steps) * before)
        sampler.journal.forget(self._batch_size)

    def _plan(self) -> None:
        sampler = self._sampler
        if not sampler.follows_training:
            self._learn(int(sampler.draws) - self._lag, self._batch_size)
        sampler.tend()
        sampler.put_plan(self._block, self._batch_size, self._seed)

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
