"""Trainings that a benchmark makes once and keeps in a file, and what several of them train on."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

# The first fields of a run say which it is.
_KEYS = 5


class Runs:
    """The runs of one kind, kept in a file; each is made once.

    Args:
        path: of the file, a line for each. kind: a NamedTuple; its first five fields are the key.
        make: key -> run; None where none is to be made. told: what is printed of a new one.
    """

    def __init__(
        self,
        path: pathlib.Path,
        kind: Any,
        make: Callable[..., Any] | None,
        told: Callable[[Any], str],
    ) -> None:
        self._path, self._make, self._told = path, make, told
        lines = path.read_text().splitlines() if path.exists() else []
        self._found = {run[:_KEYS]: run for run in (kind(**json.loads(line)) for line in lines)}

    def __iter__(self) -> Iterator[Any]:
        return iter(self._found.values())

    def get(self, *of) -> Any:
        """The run, made now where it is not there."""
        if of not in self._found:
            assert self._make is not None, "runs are to be made"
            run = self._found[of] = self._make(*of)
            with self._path.open("a") as file:
                file.write(json.dumps(run._asdict()) + "\n")
            print(f"  {self._told(run)}", flush=True)
        return self._found[of]


def equal_scores(model, x, y):
    """A scorer by which all examples are drawn alike."""
    # Programs that read runs alone need no TensorFlow.
    import tensorflow as tf

    del model, y
    return tf.ones(tf.shape(x)[:1])


def largest_sums(examples: int) -> tuple[np.ndarray, np.ndarray, np.random.Generator]:
    """20 numbers, and which of 5 sums of them is the largest; and the generator that made them."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(examples, 20)).astype(np.float32)
    return x, (x @ rng.normal(size=(20, 5))).argmax(1), rng
