"""Training in several processes: the loop that Keras 3 lacks for `MultiWorkerMirroredStrategy`.

Keras 3's `fit` takes the batches of several processes apart as if they were those of several
devices, and fails. (Keras 2.15's does not; one loop serves both here.) What it would do otherwise
is done with the model's own `train_step` and the usual callbacks.
"""

from __future__ import annotations

import contextlib
from typing import Any, NamedTuple

import keras
import tensorflow as tf

# One that stops at another step than the others is not waited for, for ever.
_PATIENCE = tf.distribute.experimental.CommunicationOptions(timeout_seconds=600)


def are_several(strategy: tf.distribute.Strategy) -> bool:
    """Whether a strategy spans several processes."""
    resolver = getattr(strategy, "cluster_resolver", None)
    cluster = resolver.cluster_spec().as_dict() if resolver is not None else {}
    return sum(map(len, cluster.values())) > 1


class Part(NamedTuple):
    """Which of the replicas that train together a process has.

    Attributes:
        replicas: R, of all processes. first: the number of its first one. here: how many it has.
    """

    replicas: int
    first: int
    here: int

    @property
    def is_all(self) -> bool:
        """Whether there is one process."""
        return self.here == self.replicas


def part_of(strategy: tf.distribute.Strategy) -> Part:
    """The part that this process has in a strategy."""
    replicas, first = strategy.num_replicas_in_sync, 0
    if are_several(strategy):

        @tf.function(autograph=False)
        def numbers():
            return strategy.run(replica_number)

        first = int(strategy.experimental_local_results(numbers())[0])
    return Part(replicas, first, replicas_here(strategy))


def replica_number() -> tf.Tensor:
    """Of this replica among all, int32."""
    number = tf.distribute.get_replica_context().replica_id_in_sync_group
    return tf.cast(number, tf.int32)


def replicas_here(strategy: tf.distribute.Strategy) -> int:
    """How many replicas of a strategy this process has."""
    if are_several(strategy):
        return len(strategy.extended.worker_devices)
    return strategy.num_replicas_in_sync


def meet(strategy: tf.distribute.Strategy) -> None:
    """Until all processes are here: one that ended sooner would take from the others what they
    are still reading of the last sum."""

    @tf.function(autograph=False)
    def meeting():
        return strategy.run(
            lambda: tf.distribute.get_replica_context().all_reduce("SUM", tf.zeros([1]), _PATIENCE)
        )

    # Whoever loses this sum because another has left has all that it came for.
    with contextlib.suppress(tf.errors.OpError):
        meeting()


def own_batches(strategy: tf.distribute.Strategy, dataset: tf.data.Dataset):
    """A dataset of this process alone, as a strategy wants it: neither sharded nor rebatched."""
    options = tf.data.Options()
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.OFF
    return strategy.distribute_datasets_from_function(lambda _: dataset.with_options(options))


def fit(
    model: keras.Model,
    dataset: tf.data.Dataset,
    *,
    steps_per_epoch: int,
    epochs: int = 1,
    initial_epoch: int = 0,
    callbacks: Any = None,
    gathering: Any = None,
) -> keras.callbacks.History:
    """As `keras.Model.fit`, for a compiled model of such a strategy.

    Args:
        model: as in Keras. dataset: batches of this process; all processes step together.
        steps_per_epoch, epochs, initial_epoch, callbacks: as in Keras.
        gathering: a `Gathering` of the memory that draws the batches, None for none.
    Raises:
        ValueError: steps_per_epoch is not given.
    """
    if not steps_per_epoch:
        raise ValueError(
            "steps_per_epoch must be given in several processes, which all stop at the same step; "
            "got None."
        )
    strategy = model.distribute_strategy
    gathering = gathering or _Nothing()
    gathering.begin()
    batches = own_batches(strategy, dataset) if isinstance(dataset, tf.data.Dataset) else dataset
    step, iterator = _step(model, strategy), iter(batches)
    if not isinstance(callbacks, keras.callbacks.CallbackList):
        callbacks = keras.callbacks.CallbackList(
            callbacks, add_history=True, model=model, epochs=epochs, steps=steps_per_epoch
        )
    model.stop_training = False
    callbacks.on_train_begin()
    logs: dict[str, Any] = {}
    try:
        for epoch in range(initial_epoch, epochs):
            model.reset_metrics()
            callbacks.on_epoch_begin(epoch)
            for number in range(steps_per_epoch):
                callbacks.on_train_batch_begin(number)
                logs = {name: value.numpy() for name, value in step(iterator).items()}
                gathering.stepped()
                callbacks.on_train_batch_end(number, logs)
                if model.stop_training:
                    break
            # Before a callback saves what is known.
            gathering.gather()
            callbacks.on_epoch_end(epoch, logs)
            if model.stop_training:
                break
    finally:
        gathering.end()
    meet(strategy)
    callbacks.on_train_end(logs)
    return model.history


class _Nothing:
    """Where no memory draws."""

    def begin(self) -> None:
        """Nothing is gathered."""

    stepped = gather = end = begin


def _step(model: keras.Model, strategy: tf.distribute.Strategy):
    """A training step of all processes, and the logs of this one."""

    @tf.function(autograph=False)
    def step(iterator):
        logs = strategy.run(model.train_step, args=(iterator.get_next(),))
        return {name: strategy.experimental_local_results(value)[0] for name, value in logs.items()}

    return step
