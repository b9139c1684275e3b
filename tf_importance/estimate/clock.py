"""How long passes take on this machine."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

import tensorflow as tf

from tf_importance import element_specs, losses

_REPEATS = 5
now = time.perf_counter


class Clock:
    """Seconds of passes on this machine: medians of a few runs, each measured once.

    Args:
        model: an ISModel. pairs: dataset of examples (x, y). bar: moves on by each; None for none.
        patience: seconds for each median. What would take longer than that is run less often; and
            not at all where a smaller batch of it was: its time is taken to be in proportion.
    """

    def __init__(
        self, model, pairs: tf.data.Dataset, bar: Any = None, patience: float = math.inf
    ) -> None:
        self._model, self._bar, self._patience = model, bar, patience
        self._pairs = pairs.repeat()
        self._known: dict[str, dict[int, float]] = {"step": {}, "scoring": {}}

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

        return self._median("step", gradients, batch_size)

    def scoring_seconds(self, presample_size: int) -> float:
        """Of scoring B examples."""
        return self._median(
            "scoring",
            lambda inputs, labels: self._model.scorer(self._model, inputs, labels),
            presample_size,
        )

    def _median(self, kind: str, work: Callable, size: int) -> float:
        known = self._known[kind]
        if size not in known:
            measured = max((other for other in known if other < size), default=None)
            expected = 0.0 if measured is None else known[measured] * size / measured
            # A first run warms up, so there are two of them at least.
            known[size] = expected if 2 * expected > self._patience else self._timed(work, size)
            if self._bar is not None:
                self._bar.add(1)
        return known[size]

    def _timed(self, work: Callable, size: int) -> float:
        inputs, labels = next(iter(element_specs.batched(self._pairs, size)))
        # A graph of it, of which TensorFlow does not warn that it is traced for each size.
        function = tf.function(work, autograph=False).get_concrete_function(inputs, labels)
        times: list[float] = []
        while len(times) < _REPEATS + 2 and (len(times) < 2 or sum(times) < self._patience):
            start = now()
            # A value on the host is there when all work is done.
            function(inputs, labels).numpy()
            times.append(now() - start)
        timed = sorted(times[2:] or times[1:])
        return timed[len(timed) // 2]
