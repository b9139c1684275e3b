"""Will importance sampling help? The predicted gain of a net on data, before training by it."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import keras
import tensorflow as tf

from tf_importance import arguments, element_specs, fresh, gain, losses, plans
from tf_importance.scorers import forward, last_layer
from tf_importance.scorers.upper_bound import of_a_pass

_CHUNK = 256
_REPEATS = 5
# Below this a prediction is within its own error of no speedup at all.
_WORTHWHILE = 1.1


class Prediction(NamedTuple):
    """What drawing a batch of b from every pre-sample of B would do.

    Attributes:
        batch_size: b. presample_size: B.
        gain: r, progress of a step over that of a uniform one, its learning rate times r.
        cost: seconds of a step over those of a uniform one, without overlap.
    """

    batch_size: int
    presample_size: int
    gain: float
    cost: float

    @property
    def speedup(self) -> float:
        """Predicted progress per second over uniform sampling: gain/cost."""
        return self.gain / self.cost


class GainEstimate(NamedTuple):
    """The numbers of `estimate_gain`; `str` of it is a table.

    Attributes:
        examples: how many were measured.
        tau: τ, the factor by which importance sampling raises the effective batch size.
        effective_sample_size: 1/τ², the share of the examples that carry the gradient.
        noise_scale: (U − A)/A, the batch size at which noise and mean gradient are equal.
        predictions: for each size asked for.
    """

    examples: int
    tau: float
    effective_sample_size: float
    noise_scale: float
    predictions: tuple[Prediction, ...]

    @property
    def best(self) -> Prediction:
        """The prediction of the largest speedup."""
        return max(self.predictions, key=lambda prediction: prediction.speedup)

    @property
    def recommendation(self) -> str:
        """What to do, in a sentence."""
        best = self.best
        if best.speedup < _WORTHWHILE:
            return (
                "Train uniformly for now: importance sampling would not be faster at any of these "
                "sizes. A Gain switch finds out when that changes."
            )
        return (
            f"Draw {best.batch_size} from pre-samples of {best.presample_size}: "
            f"about {best.speedup:.1f} times as fast, with a learning rate that follows the gain."
        )

    def __str__(self) -> str:
        lines = [
            f"{self.examples} examples: τ {self.tau:.2f}, effective sample size "
            f"{self.effective_sample_size:.0%}, noise scale {self.noise_scale:.0f}",
            "",
            f"{'b':>6} {'B':>6} {'gain':>6} {'cost':>6} {'speedup':>8}",
        ]
        for p in self.predictions:
            lines.append(
                f"{p.batch_size:>6} {p.presample_size:>6} "
                f"{p.gain:>6.2f} {p.cost:>6.2f} {p.speedup:>8.2f}"
            )
        return "\n".join([*lines, "", self.recommendation])


def estimate_gain(
    model: keras.Model,
    dataset: tf.data.Dataset,
    *,
    batch_sizes: Sequence[int] = (32, 128),
    examples: int = 4096,
    smoothing: float = 0.2,
) -> GainEstimate:
    """Would importance sampling train this net faster on this data, as far as it is now?

        print(tfi.estimate_gain(model, dataset))

    Measures the moments of the gain (`tf_importance.gain`) over some examples, in the space of
    the last layer's weights as training does, and how long forward and backward passes take
    here; predicts for each b what drawing it from 2b, 4b and 12b would do, systematically. The
    answer is that of the moment: ask a half-trained model. An untrained one has little to gain
    on nearly all data. (What `GainAdapted` can follow, a gain of 2 under a constant learning
    rate, is not counted.)

    Args:
        model: a compiled ISModel; its weights are left as they are.
        dataset: unbatched (x, y), as for `importance_sample`; shuffled.
        batch_sizes: the b to predict for.
        examples: how many to measure, at most; in chunks of 256.
        smoothing: c, as in `importance_sample`.
    Returns:
        A `GainEstimate`, which prints as a table.
    Raises:
        TypeError, ValueError: model or dataset do not fit, as for `importance_sample`; fewer than
            256 examples.
    """
    fresh.check_model(model)
    sizes = [arguments.positive_integer("batch_sizes", size) for size in batch_sizes]
    chunks = arguments.positive_integer("examples", examples) // _CHUNK
    spec = element_specs.checked(model, dataset)
    element_specs.build(model, spec, lambda: next(iter(dataset.batch(1)))[0])
    pairs = dataset.map(lambda x, y, *rest: (x, y)).batch(_CHUNK, drop_remainder=True)
    menu = [plan for size in sizes for plan in _menu(size)]
    rates = sorted({plan.rate for plan in menu})
    sampling = gain.Sampling(tuple(rates), smoothing)
    measure = _chunk_moments(model, sampling)
    found = [measure(*chunk) for chunk in pairs.take(max(chunks, 1))]
    if not found:
        raise ValueError(
            f"the gain is measured on {_CHUNK} examples at least, and the dataset has fewer."
        )
    averages = [sum(float(part[i]) for part in found) / len(found) for i in range(len(found[0]))]
    mean_square, *others = map(tf.constant, averages[:4])
    moments = gain.Moments(
        tf.maximum(mean_square, 0.0), others[0], others[1], others[2], tf.constant(averages[6:])
    )
    tau = (averages[5] ** 0.5) / averages[4] if averages[4] > 0 else 1.0
    clock = _Clock(model, pairs)
    steps = {size: clock.step_seconds(size) for size in sizes}
    costs = [clock.scoring_seconds(plan.presample_size) / steps[plan.batch_size] for plan in menu]
    predictions = tuple(_prediction(moments, rates, plan, cost) for plan, cost in zip(menu, costs))
    noise = tf.math.divide_no_nan(moments.square - moments.mean_square, moments.mean_square)
    return GainEstimate(
        examples=len(found) * _CHUNK,
        tau=tau,
        effective_sample_size=1 / tau**2,
        noise_scale=float(noise) if float(moments.mean_square) > 0 else float("inf"),
        predictions=predictions,
    )


def _menu(batch_size: int) -> list[plans.Plan]:
    return [plans.Plan(batch_size, 1, factor * batch_size) for factor in (2, 4, 12)]


def _prediction(moments, rates, plan: plans.Plan, scoring_cost: float) -> Prediction:
    """What a plan does, if scoring its pre-sample costs so many steps."""
    rounding = moments.rounding_factor(rates.index(plan.rate))
    drawn = gain.drawn_square(moments, plan.batch_size, plan.rate, rounding)
    ratio = gain.gain_ratio(gain.uniform_square(moments, plan.batch_size), drawn)
    return Prediction(plan.batch_size, plan.presample_size, float(ratio), 1 + scoring_cost)


def _chunk_moments(model, sampling: gain.Sampling):
    """A function of a chunk: A, U, S, Q, mean Ĝ, mean Ĝ², D…"""

    @tf.function(autograph=False)
    def moments(inputs, labels):
        with forward.recorded() as passes:
            model(inputs, training=False)
        size = tf.shape(tf.nest.flatten(inputs)[0])[0]
        weights = tf.ones([size])
        scores = of_a_pass(model.scorer).from_forward(model.objective, labels, passes[-1])
        squares = last_layer.gradient_squares(
            model.net, model.objective, labels, passes[-1], weights
        )
        found = gain.batch_moments(scores, squares.per_example, weights, squares.batch, sampling)
        own = tf.stack([*found[:4], tf.reduce_mean(scores), tf.reduce_mean(scores**2)])
        return tf.concat([own, found.rounding], axis=0)

    return moments


class _Clock:
    """Seconds of passes on this machine: medians of a few runs."""

    def __init__(self, model, pairs: tf.data.Dataset) -> None:
        self._model = model
        self._pairs = pairs.unbatch().repeat()

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
        function = tf.function(work, autograph=False)
        inputs, labels = next(iter(self._pairs.batch(size)))
        times = []
        for _ in range(_REPEATS + 2):
            start = time.perf_counter()
            # A value on the host is there when all work is done.
            function(inputs, labels).numpy()
            times.append(time.perf_counter() - start)
        return sorted(times[2:])[_REPEATS // 2]
