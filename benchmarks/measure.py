"""Side-by-side timing in one process: interleaved rounds, ratios within a round, medians."""

from __future__ import annotations

import datetime
import json
import os
import pathlib
import platform
import statistics
import time
from collections.abc import Callable, Mapping

import keras
import numpy as np
import tensorflow as tf


class EpochTimer(keras.callbacks.Callback):
    """Seconds of an epoch, from its first batch's end to its last one's, per step."""

    def __init__(self) -> None:
        super().__init__()
        self._ends: list[float] = []

    def on_train_batch_end(self, batch, logs=None) -> None:
        self._ends.append(time.perf_counter())

    @property
    def seconds_per_step(self) -> float:
        return (self._ends[-1] - self._ends[0]) / (len(self._ends) - 1)


def fit_seconds(model: keras.Model, dataset: tf.data.Dataset, steps: int) -> float:
    """Seconds per step of one epoch of `fit`, its start excluded."""
    timer = EpochTimer()
    model.fit(dataset, steps_per_epoch=steps, verbose=0, shuffle=False, callbacks=[timer])
    return timer.seconds_per_step


def call_seconds(function: Callable[[], object], repeats: int) -> float:
    """Seconds per call of a function."""
    start = time.perf_counter()
    for _ in range(repeats):
        function()
    return (time.perf_counter() - start) / repeats


def interleaved(
    variants: Mapping[str, Callable[[], float]], rounds: int, say: Callable[[str], None]
) -> list[dict[str, float]]:
    """Time every variant once a round, after one round that warms up and does not count."""
    results = []
    for number in range(rounds + 1):
        order = list(variants.items())
        # Turning the order around spreads what a neighbour on the machine takes.
        results.append({n: f() for n, f in (order if number % 2 else order[::-1])})
        if number:
            times = ", ".join(f"{n} {1e3 * results[-1][n]:.2f} ms" for n in variants)
            say(f"round {number}/{rounds}: {times}")
    return results[1:]


def scoring_cost(
    step: Callable[[], object], forward: Callable[[], object], repeats: int, rounds: int
) -> float:
    """Seconds of a forward pass over those of a step: the median over the rounds."""
    found = interleaved(
        {
            "step": lambda: call_seconds(step, repeats),
            "forward": lambda: call_seconds(forward, repeats),
        },
        rounds=rounds,
        say=lambda line: None,
    )
    return statistics.median(one["forward"] / one["step"] for one in found)


def summary(ratios: list[float]) -> dict[str, float]:
    """Median and quartiles."""
    low, median, high = np.percentile(ratios, [25, 50, 75])
    return {
        "median": round(float(median), 4),
        "quartiles": [round(float(q), 4) for q in (low, high)],
    }


def write(path: str, result: dict) -> None:
    """Write a result with the day and the versions it was measured with."""
    versions = {
        "python": platform.python_version(),
        "tensorflow": tf.__version__,
        "keras": keras.__version__,
        "cpus": os.cpu_count(),
    }
    date = datetime.datetime.now(datetime.timezone.utc).date().isoformat()
    target = pathlib.Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(json.dumps({"date": date, "versions": versions, **result}, indent=2) + "\n")
