"""What was planned and what steps saw of it: two rings, kept by the numbers of the batches.

The pipeline plans a block of batches and writes it down; each training step writes one row; before
a later block is planned the pipeline reads the rows that are finished. All go by the batches'
numbers, so what is learned does not depend on who was faster, and a training that is resumed in the
midst of a block finds the rest of it here.
"""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from tf_importance import compat
from tf_importance.draws import Draws, Seen

# Numbers in a ring: rows of 227 batches of 32, of 4 batches of 2,000.
_CAPACITY = 8_192
# In a row before the scores: how often the ring was filled before, and the moments.
_HEAD = 4


class Journal(tf.Module):
    """Plans and rows of the latest batches, all of b examples.

    Attributes:
        batch_size: variable, b of what the rings hold; 0 as long as they are empty.
        indices, weights, limits, gains, memory, kinds: [C] rings of what was planned.
        rows: [C] ring of what steps saw.
        reader: number of the dataset that reads what is planned.
        planned, trained, learned: variables; how many batches were planned, were trained on, and
            were taken up by the sampler.
        late: variable, how many blocks were planned without all that they wait for, and how many
            batches were never trained on.
        gathering: the `Gathering` of a training in several processes, that brings rows together;
            None where there is none.
    """

    def __init__(self) -> None:
        super().__init__(name="journal")
        self.reader = 0
        self.gathering: Any = None
        self.batch_size = _variable(tf.constant(0, tf.int64), "batch_size")
        self.planned = _variable(tf.constant(0, tf.int64), "planned")
        self.trained = _variable(tf.constant(0, tf.int64), "trained")
        self.learned = _variable(tf.constant(0, tf.int64), "learned")
        self.late = _variable(tf.constant(0, tf.int64), "late")
        self._make(_CAPACITY)

    def _make(self, capacity: int) -> None:
        self.capacity = capacity
        self.indices = _variable(tf.zeros([capacity], tf.int64), "indices")
        self.weights = _variable(tf.zeros([capacity]), "weights")
        self.limits = _variable(tf.zeros([capacity]), "limits")
        self.gains = _variable(tf.zeros([capacity]), "gains")
        self.memory = _variable(tf.zeros([capacity]), "memory")
        self.kinds = _variable(tf.zeros([capacity], tf.int32), "kinds")
        self.rows = _variable(tf.zeros([capacity]), "rows")

    def make_room(self, batch_size: int, replicas: int = 1) -> None:
        """Make larger rings, empty ones, where two batches of b of each replica do not fit."""
        if self.batches(batch_size) < 2 * replicas:
            with compat.unmirrored():
                self._make(2 * replicas * (batch_size + _HEAD))

    def batches(self, batch_size):
        """Of how many batches of b the rings hold the latest."""
        return self.capacity // (batch_size + _HEAD)

    # The step -----------------------------------------------------------------------------

    def write(self, number: tf.Tensor, scores: tf.Tensor, moments) -> None:
        """What the step on a batch saw.

        Args:
            number: scalar int64. scores: [b]. moments: three scalars.
        """
        size = scores.shape[0]
        if size is None:
            size = tf.shape(scores, tf.int64)[0]
        kept, width = self.batches(size), size + _HEAD
        row = tf.concat([tf.stack(moments), scores], axis=0)
        with tf.device(self.rows.device):
            row = tf.concat([_lap(number, kept)[tf.newaxis], row], axis=0)
            places = number % kept * width + tf.range(width, dtype=tf.int64)
            self.rows.scatter_update(tf.IndexedSlices(row, places))
            # Of several replicas each writes the row of its own batch.
            self.trained.assign(tf.maximum(number + 1, self.trained))

    # The pipeline -------------------------------------------------------------------------

    def put(self, draws: Draws) -> tf.Tensor:
        """The next block that was planned, [K, b]; the numbers of its batches."""
        count, size = draws.indices.shape
        first = tf.convert_to_tensor(self.planned)
        numbers = first + tf.range(count, dtype=tf.int64)
        self._put(numbers, draws, size)
        self.planned.assign(first + count)
        return numbers

    def _put(self, numbers: tf.Tensor, draws: Draws, size: int) -> None:
        places = tf.reshape(self._places(numbers, size), [-1])
        for ring, values in zip(self._rings(), draws.of_examples):
            ring.scatter_update(tf.IndexedSlices(tf.reshape(values, [-1]), places))
        self.kinds.scatter_update(tf.IndexedSlices(draws.kinds, numbers % self.batches(size)))

    def forget(self, batch_size: int, replicas: int = 1) -> None:
        """Begin anew behind the last batch that was trained on, with batches of b.

        The number of the next one is a multiple of that of the replicas.
        """
        following = -(-tf.identity(self.trained) // replicas) * replicas
        for number in (self.trained, self.planned, self.learned):
            number.assign(following)
        self.batch_size.assign(batch_size)

    def plans(self, numbers: tf.Tensor, batch_size) -> Draws:
        """What was planned of batches [M]: [M, b]."""
        places = self._places(numbers, batch_size)
        kinds = tf.gather(self.kinds, numbers % self.batches(batch_size))
        return Draws._make([*(tf.gather(ring, places) for ring in self._rings()), kinds])

    def rows_of(self, numbers: tf.Tensor, batch_size) -> tf.Tensor:
        """What was written of batches [M], or is there in its place: [M, width]."""
        return tf.gather(self.rows, self._row_places(numbers, batch_size))

    def take(self, numbers: tf.Tensor, rows: tf.Tensor, draws: Draws, batch_size: int) -> None:
        """Rows and plans of batches [M] that other processes have."""
        self._put(numbers, draws, batch_size)
        places = tf.reshape(self._row_places(numbers, batch_size), [-1])
        self.rows.scatter_update(tf.IndexedSlices(tf.reshape(rows, [-1]), places))

    def finished(self, end: tf.Tensor, batch_size) -> tuple[Draws, Seen]:
        """Of the batches before `end` those that are trained on and not learned, in their order.

        They count as learned from now on. Where steps are not done yet, their rows come with a
        later block; that is late, and so is a batch that was passed over.
        """
        kept = self.batches(batch_size)
        learned, trained = tf.convert_to_tensor(self.learned), tf.convert_to_tensor(self.trained)
        there = tf.maximum(tf.minimum(end, trained), learned)
        numbers = tf.range(tf.maximum(learned, trained - kept), there)
        rows = self.rows_of(numbers, batch_size)
        done = tf.equal(rows[:, 0], _lap(numbers, kept))
        passed_over = there - learned - tf.reduce_sum(tf.cast(done, tf.int64))
        self.late.assign_add(passed_over + tf.cast(end > there, tf.int64))
        self.learned.assign(there)
        rows = tf.boolean_mask(rows, done)
        draws = self.plans(tf.boolean_mask(numbers, done), batch_size)
        return draws, Seen(rows[:, _HEAD:], rows[:, 1:_HEAD])

    def _rings(self) -> tuple[tf.Variable, ...]:
        return self.indices, self.weights, self.limits, self.gains, self.memory

    def _places(self, numbers: tf.Tensor, batch_size) -> tf.Tensor:
        first = numbers % self.batches(batch_size) * batch_size
        return first[:, tf.newaxis] + tf.range(batch_size, dtype=tf.int64)

    def _row_places(self, numbers: tf.Tensor, batch_size) -> tf.Tensor:
        width = batch_size + _HEAD
        first = numbers % self.batches(batch_size) * width
        return first[:, tf.newaxis] + tf.range(width, dtype=tf.int64)


def _lap(number: tf.Tensor, kept) -> tf.Tensor:
    """How often the ring was filled before this batch, and 1: what marks its row as its own."""
    return tf.cast(number // kept + 1, tf.float32)


def _variable(initial, name: str) -> tf.Variable:
    return tf.Variable(initial, trainable=False, name=name)
