"""How long passes take on this machine."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import tensorflow as tf

from tf_importance import element_specs, losses

_REPEATS = 5


class Clock:
    """Seconds of passes on this machine: medians of a few runs.

    Args:
        model: an ISModel. pairs: dataset of examples (x, y). bar: moves on by each; None for none.
    """

    def __init__(self, model, pairs: tf.data.Dataset, bar: Any = None) -> None:
        self._model, self._bar = model, bar
        self._pairs = pairs.repeat()

    def step_seconds(self, batch_size: int) -> float:
        """Of a forward and a backward pass of b, nothing applied."""
        model = self._model

        def gradients(inputs, labels):
            with tf.GradientTape() as tape:
                # In inference mode, which leaves moving statistics and seeds alone.
                outputs = model(inputs, training=False)
                loss = tf.reduce_mean(losses.per_example_losses(model.objective, labels, outputs))
            found = tape.gradient(loss, model.trainable_variables)
            known = [tf.convert_to_tensor(part) for part in found if part is not None]
            return tf.add_n([tf.reduce_sum(part) for part in known])

        return self._median(gradients, batch_size)

    def scoring_seconds(self, presample_size: int) -> float:
        """Of scoring B examples."""
        return self._median(
            lambda inputs, labels: self._model.scorer(self._model, inputs, labels), presample_size
        )

    def _median(self, work: Callable, size: int) -> float:
        inputs, labels = next(iter(element_specs.batched(self._pairs, size)))
        # A graph of it, of which TensorFlow does not warn that it is traced for each size.
        function = tf.function(work, autograph=False).get_concrete_function(inputs, labels)
        times = []
        for _ in range(_REPEATS + 2):
            start = time.perf_counter()
            # A value on the host is there when all work is done.
            function(inputs, labels).numpy()
            times.append(time.perf_counter() - start)
        if self._bar is not None:
            self._bar.add(1)
        return sorted(times[2:])[_REPEATS // 2]
