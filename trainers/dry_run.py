"""--dry_run: does it start, with which flags, and how long does a step take?"""

from __future__ import annotations

import time
import warnings

import keras
from absl import flags

from trainers import flags as trainer_flags
from trainers.sampling import Sampled

_STEPS = 2


class _Timed(keras.callbacks.Callback):
    """Seconds from the end of one step to the end of the next, so that the pipeline counts."""

    def __init__(self) -> None:
        super().__init__()
        self.seconds: list[float] = []

    def on_train_begin(self, logs=None) -> None:
        self._last = time.perf_counter()

    def on_train_batch_end(self, batch, logs=None) -> None:
        now = time.perf_counter()
        self.seconds.append(now - self._last)
        self._last = now


def report(settings: flags.FlagValues, prepared: Sampled) -> None:
    """Print the resolved flags, the net's size, and the seconds of the first and second step.

    Args:
        settings: the trainer's flags.
        prepared: the compiled model and its batches.
    """
    for name, value in sorted(trainer_flags.of_run(settings).items()):
        print(f"--{name}={value}")
    timed = _Timed()
    with warnings.catch_warnings():
        # In two steps few ways of drawing have begun.
        warnings.filterwarnings("ignore", "nothing was drawn")
        prepared.model.fit(
            prepared.batches,
            steps_per_epoch=_STEPS,
            verbose=0,
            shuffle=False,
            callbacks=[timed],
        )
    first, second = timed.seconds
    net = prepared.model.net
    print(f"net {net.name}: {net.count_params():,} parameters, input {net.input_shape[1:]}")
    print(f"first step, tracing included: {first:.3g} s; one step: {second:.3g} s")
