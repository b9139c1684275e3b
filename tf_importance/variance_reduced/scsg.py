"""Stochastically controlled stochastic gradient (Lei, Ju, Chen & Jordan 2017)."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tf_importance import compat
from tf_importance.arguments import number, one_of, positive_integer
from tf_importance.variance_reduced import base

GEOMETRIC = "geometric"


def large_batch(initial: int, growth_rate: float, stage: int) -> int:
    """B_j = ⌈B_0 · growth_rate^j⌉, the examples of the snapshot of stage j.

    Args:
        initial: B_0. growth_rate: at least 1. stage: j = 0, 1, …
    """
    return math.ceil(round(initial * growth_rate**stage, 6))


def geometric_steps(large_batch: int, batch_size: int, rng: np.random.Generator) -> int:
    """N_j ~ Geom(B_j/(B_j + b)): P(N = k) = γ^k (1 − γ), of mean B_j/b  (Algorithm 1).

    Args:
        large_batch: B_j. batch_size: b. rng: NumPy's generator.
    Returns:
        A number of steps, possibly 0.
    """
    # NumPy counts the trials up to the first success, itself included.
    return int(rng.geometric(batch_size / (large_batch + batch_size))) - 1


@keras.saving.register_keras_serializable(package="tf_importance")
class SCSG(base.VarianceReduced):
    """SCSG with mini-batches: SVRG whose snapshots take a large, growing batch of the data.

    Algorithm 1 of Lei et al. 2017. B_j is counted in whole batches of `data`, the last of which
    may carry it past B_j, and is at most a whole pass. Where Katharopoulos & Fleuret 2018
    (supplement 3) tune m, the number of steps of a stage, Lei et al. draw it: "geometric".

    Args:
        net: any keras.Model.
        data: dataset of batches, shuffled anew at each pass; endless or not.
        large_batch: B_0, the examples in the first snapshot's gradient.
        growth_rate: of the large batch from stage to stage, at least 1.
        inner_steps: m, or "geometric" for N_j ~ Geom(B_j/(B_j + b)).
        batch_size: b, for "geometric" only.
        seed: of the drawn N_j: stage j draws the same in every run with this seed.
    Raises:
        ValueError: an argument is out of range, or "geometric" without batch_size.
    """

    def __init__(
        self,
        net: keras.Model,
        data: tf.data.Dataset | None,
        *,
        large_batch: int,
        growth_rate: float = 1.0,
        inner_steps: int | str = GEOMETRIC,
        batch_size: int | None = None,
        seed: int = 0,
        **kwargs,
    ) -> None:
        self.large_batch = positive_integer("large_batch", large_batch)
        growth_rate = number(
            "growth_rate", growth_rate, "at least 1 and finite", lambda rate: 1 <= rate < math.inf
        )
        if inner_steps == GEOMETRIC:
            if batch_size is None:
                raise ValueError(
                    'batch_size must be given, b, for inner_steps="geometric"; got None.'
                )
            batch_size = positive_integer("batch_size", batch_size)
        elif isinstance(inner_steps, str):
            one_of("inner_steps", inner_steps, (GEOMETRIC,))
        else:
            inner_steps = positive_integer("inner_steps", inner_steps)
        super().__init__(net, data, **kwargs)
        self.growth_rate = growth_rate
        self.inner_steps = inner_steps
        self.batch_size: Any = batch_size
        self.seed = seed
        self._batches: Iterator | None = None

    def get_config(self) -> dict[str, Any]:
        names = ("large_batch", "growth_rate", "inner_steps", "batch_size", "seed")
        return {**super().get_config(), **{name: getattr(self, name) for name in names}}

    def take_snapshot(self) -> int:
        steps = 0
        # A stage of no steps changes nothing: its gradient is not computed.
        while not steps:
            steps = self._steps_of(int(compat.value(self.stage)))
            if not steps:
                self.stage.assign_add(1)
        return super().take_snapshot()

    def _stage_steps(self) -> int:
        # `stage` has been counted already.
        return self._steps_of(int(compat.value(self.stage)) - 1)

    def _steps_of(self, stage: int) -> int:
        if isinstance(self.inner_steps, int):
            return self.inner_steps
        rng = np.random.default_rng([self.seed, stage])
        return geometric_steps(self._large_batch(stage), self.batch_size, rng)

    def _large_batch(self, stage: int) -> int:
        return large_batch(self.large_batch, self.growth_rate, stage)

    def _stream(self) -> Iterator:
        """The next batches of the data, until B_j examples or a whole pass."""
        if self._batches is None:
            self._batches = iter(self.data.repeat())
        wanted = self._large_batch(int(compat.value(self.stage)))
        passed = int(self.data.cardinality())
        most = passed if passed > 0 else math.inf
        taken, count = 0, 0
        while count < wanted and taken < most:
            batch = next(self._batches, None)
            if batch is None:
                return
            taken, count = taken + 1, count + len(tf.nest.flatten(batch)[0])
            yield batch

    def _checked_steps_per_execution(self) -> int:
        steps = super()._checked_steps_per_execution()
        drawn = not isinstance(self.inner_steps, int)
        if steps > 1 and (drawn or self.inner_steps % steps):
            raise ValueError(
                "inner_steps must be a number and a multiple of steps_per_execution, since "
                f"snapshots are taken between executions; got {self.inner_steps} and {steps}."
            )
        return steps
