"""One memory for several processes: what each saw of its own batches is brought together.

Every process plans the batches of all R replicas, and trains on those of its own. Once a block,
between two steps, the rows of all are added up, each process giving its own and zeros for the
others; with them what it had planned, so that all learn what was trained on, whatever they would
have planned in the other's place. A reader that is ahead waits for the rows that its next block is
planned by.
"""

from __future__ import annotations

import threading

import tensorflow as tf

from tf_importance.draws import Draws
from tf_importance.marks import Drawing
from tf_importance.processes import meet, part_of, replica_number


class Gathering:
    """Of one training, in each of its processes.

    Args:
        strategy: of the processes. drawing: of the dataset, whose sampler plans for all of them;
            rows are gathered every K steps, those of a block.
    Raises:
        ValueError: by `begin`, where the samplers differ.
    """

    def __init__(self, strategy: tf.distribute.Strategy, drawing: Drawing) -> None:
        self._strategy, self._sampler, self._every = strategy, drawing.sampler, drawing.block
        self._journal, self._seed = drawing.sampler.journal, drawing.seed
        self._part = part_of(strategy)
        # Rows before this are here, of all.
        self._gathered, self._steps, self._ended = 0, 0, False
        self._moved = threading.Condition()
        self._compiled = tf.function(self._bring_together, autograph=False)

    # Where the steps are -----------------------------------------------------------------

    def begin(self) -> None:
        """All begin behind the same batch, and plan by the seed of the first process."""
        journal, sampler, replicas = self._journal, self._sampler, self._part.replicas
        size = int(journal.batch_size)
        trained = -(-int(journal.trained) // replicas) * replicas
        learned = min(int(journal.learned), trained)
        state = {
            "number of examples": sampler.num_examples,
            "batch size": size,
            "number of batches": trained,
            "number of rows": learned,
            "block": self._every,
            "seed": -1 if self._seed is None else self._seed,
        }
        seed, *states = self._told([int(sampler.seed), *state.values()])
        for name, values in zip(state, states):
            if len(set(values)) > 1:
                meet(self._strategy)
                raise ValueError(
                    f"the samplers of the processes differ: the {name} of each replica is "
                    f"{values}. Give all processes the same data, sizes and seed, and restore all "
                    "of them from one checkpoint."
                )
        sampler.seed.assign(seed[0])
        # Readers had been ahead by as much as they liked.
        sampler.position.assign_sub((int(journal.planned) - trained) * size)
        journal.planned.assign(trained)
        journal.trained.assign(trained)
        self._gathered = max(learned, trained - int(journal.batches(size)))
        self._bring_up_to(trained)
        journal.gathering = self

    def stepped(self) -> None:
        """A step was made."""
        self._steps += 1
        if self._steps >= self._every:
            self.gather()

    def gather(self) -> None:
        """Bring together what steps have written since the last time."""
        if self._steps:
            end = self._gathered + self._steps * self._part.replicas
            self._steps = 0
            self._journal.trained.assign(end)
            self._bring_up_to(end)

    def end(self) -> None:
        """Nobody waits any longer."""
        with self._moved:
            self._ended = True
            self._moved.notify_all()
        self._journal.gathering = None

    # In the pipeline ---------------------------------------------------------------------

    def wait_for(self, number: int) -> None:
        """Until all that was seen before a batch is here.

        Raises:
            RuntimeError: the training ended.
        """
        with self._moved:
            self._moved.wait_for(lambda: self._gathered >= number or self._ended)
            if self._gathered < number:
                raise RuntimeError("the training ended, and nobody plans for it any more.")

    # -------------------------------------------------------------------------------------

    def _bring_up_to(self, end: int) -> None:
        count = self._every * self._part.replicas
        size = int(self._journal.batch_size)
        while self._gathered < end:
            last = min(self._gathered + count, end)
            numbers = tf.constant([self._gathered, last], tf.int64)
            self._compiled(numbers, count, size)
            with self._moved:
                self._gathered = last
                self._moved.notify_all()

    def _bring_together(self, numbers: tf.Tensor, count: int, batch_size: int) -> None:
        """The rows of so many batches from the first number on, those before the last one."""
        first, end = tf.unstack(numbers)
        of_all = first + tf.range(count, dtype=tf.int64)
        journal, part = self._journal, self._part
        places = of_all % part.replicas - part.first
        own = (of_all < end) & (places >= 0) & (places < part.here)
        indices, *plans, kinds = journal.plans(of_all, batch_size)
        rows, kinds = journal.rows_of(of_all, batch_size), tf.cast(kinds, tf.float32)

        def added_up():
            # Several replicas of a process would add up what it has.
            mine = own & tf.equal(replica_number(), part.first)
            context = tf.distribute.get_replica_context()
            # Tensors that are added up together have one type.
            floats = [_where(mine, each) for each in (rows, kinds, *plans)]
            added = context.all_reduce("SUM", floats)
            return context.all_reduce("SUM", _where(mine, indices)), *added

        indices, rows, kinds, *plans = (
            self._strategy.experimental_local_results(each)[0][: end - first]
            for each in self._strategy.run(added_up)
        )
        draws = Draws._make([indices, *plans, tf.cast(kinds, tf.int32)])
        journal.take(of_all[: end - first], rows, draws, batch_size)

    def _told(self, values: list[int]) -> list[list[int]]:
        """Of each value what the replicas have; those of one process have the same."""

        def told():
            here = tf.one_hot(replica_number(), self._part.replicas, dtype=tf.int64)
            each = tf.constant(values, tf.int64)[:, tf.newaxis] * here
            return tf.distribute.get_replica_context().all_reduce("SUM", each)

        found = self._strategy.run(tf.function(told, autograph=False))
        return self._strategy.experimental_local_results(found)[0].numpy().tolist()


def _where(mask: tf.Tensor, values: tf.Tensor) -> tf.Tensor:
    """Rows [M, …] where a mask [M] is true, and zeros elsewhere."""
    mask = tf.reshape(mask, [-1, *[1] * (values.shape.rank - 1)])
    return tf.where(mask, values, tf.zeros_like(values))
