"""Will importance sampling help? The predicted gain of a net on data, before training by it."""

from __future__ import annotations

import functools
import time
import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import keras
import tensorflow as tf

from tf_importance import (
    arguments,
    compat,
    element_specs,
    fresh,
    gain,
    losses,
    plans,
    schedules,
)
from tf_importance.model import ISModel
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
    """The numbers of `estimate_gain`; it prints as a table.

    Attributes:
        examples: how many were measured.
        tau: τ, the factor by which importance sampling raises the effective batch size.
        effective_sample_size: 1/τ², the share of the examples that carry the gradient.
        noise_scale: (U − A)/A, the batch size at which noise and mean gradient are equal.
        predictions: for each size asked for.
        loss: the mean loss of these examples.
        steps: how many steps a copy of the net was trained for before.
        later: the same after more steps.
    """

    examples: int
    tau: float
    effective_sample_size: float
    noise_scale: float
    predictions: tuple[Prediction, ...]
    loss: float = float("nan")
    steps: int = 0
    later: tuple[GainEstimate, ...] = ()

    @property
    def best(self) -> Prediction:
        """The prediction of the largest speedup."""
        return max(self.predictions, key=lambda prediction: prediction.speedup)

    @property
    def recommendation(self) -> str:
        """What to do, in a sentence or two."""
        best = self.best
        if best.speedup >= _WORTHWHILE:
            said = (
                f"Draw {best.batch_size} from pre-samples of {best.presample_size}: "
                f"about {best.speedup:.1f} times as fast, with a learning rate that follows the "
                "gain."
            )
        else:
            said = (
                "Train uniformly for now: importance sampling would not be faster at any of these "
                "sizes. A Gain switch finds out when that changes."
            )
        faster = [one for one in self.later if one.best.speedup >= _WORTHWHILE]
        if faster:
            most = max(faster, key=lambda one: one.best.speedup)
            said += (
                f" After {most.steps:,} steps, at a loss of {most.loss:.3g}, it would be "
                f"{most.best.speedup:.1f} times as fast."
            )
        elif self.later:
            said += f" It would not be after {self.later[-1].steps:,} steps either."
        return said

    def __repr__(self) -> str:
        return str(self)

    def __str__(self) -> str:
        tables = [one._table() for one in (self, *self.later)]
        return "\n\n".join([*tables, self.recommendation])

    def _table(self) -> str:
        after = f"after {self.steps:,} steps, " if self.steps else ""
        lines = [
            f"{after}loss {self.loss:.3g}, {self.examples} examples: τ {self.tau:.2f}, effective "
            f"sample size {self.effective_sample_size:.0%}, noise scale {self.noise_scale:.0f}",
            "",
            f"{'b':>6} {'B':>6} {'gain':>6} {'cost':>6} {'speedup':>8}",
        ]
        for p in self.predictions:
            lines.append(
                f"{p.batch_size:>6} {p.presample_size:>6} "
                f"{p.gain:>6.2f} {p.cost:>6.2f} {p.speedup:>8.2f}"
            )
        return "\n".join(lines)


def estimate_gain(
    model: keras.Model,
    dataset: Any,
    *,
    batch_sizes: Sequence[int] = (32, 128),
    examples: int = 4096,
    smoothing: float = 0.2,
    after: Sequence[int] = (),
    verbose: int = 1,
) -> GainEstimate:
    """Would importance sampling train this net faster on this data, as far as it is now?

        print(tfi.estimate_gain(model, (x, y), after=[300, 3000]))

    Measures the moments of the gain (`tf_importance.gain`) over some examples, in the space of
    the last layer's weights as training does, and how long forward and backward passes take
    here; predicts for each b what drawing it from 2b, 4b and 12b would do, systematically. The
    answer is that of the moment: an untrained net has little to gain on nearly all data. So ask a
    half-trained one, or let a copy of it be trained uniformly for some steps first, by `after`.
    (What `GainAdapted` can follow, a gain of 2 under a constant learning rate, is not counted.)

    Args:
        model: a compiled keras.Model, an ISModel or not; its weights are left as they are.
        dataset: unbatched (x, y), shuffled, as for `importance_sample`; or arrays (x, y).
        batch_sizes: the b to predict for; the first one is also that of the steps of `after`.
        examples: how many to measure, at most; in chunks of 256.
        smoothing: c, as in `importance_sample`.
        after: numbers of steps, after each of which a copy of the net is measured again, as long as
            it can be cloned; by default none.
        verbose: 0 for no progress bar, as in Keras.
    Returns:
        A `GainEstimate`, which prints as a table.
    Raises:
        TypeError, ValueError: model or dataset do not fit, as for `importance_sample`; fewer than
            256 examples.
    """
    sizes = [arguments.positive_integer("batch_sizes", size) for size in batch_sizes]
    steps = sorted(arguments.positive_integer("after", count) for count in after)
    chunks = arguments.positive_integer("examples", examples) // _CHUNK
    if isinstance(dataset, tuple):
        dataset = _shuffled(dataset)
    model, optimizer = with_scores(model)
    spec = element_specs.checked(model, dataset)
    element_specs.build(model, spec, lambda: next(iter(dataset.batch(1)))[0])
    pairs = dataset.map(lambda x, y, *rest: (x, y))
    of_each = max(chunks, 1) + 4 * len(sizes)
    bar = keras.utils.Progbar((1 + len(steps)) * of_each + sum(steps[-1:]), verbose=verbose)
    measured = functools.partial(_measured, sizes=sizes, chunks=chunks, smoothing=smoothing)
    found = measured(model, pairs, bar=bar)
    later: list[GainEstimate] = []
    copy = _copied(model, optimizer) if steps else None
    made = 0
    for count in steps:
        assert copy is not None, "there is one"
        batches = pairs.repeat().batch(sizes[0], drop_remainder=True)
        moved = keras.callbacks.LambdaCallback(on_train_batch_end=lambda batch, logs: bar.add(1))
        copy.fit(batches, steps_per_epoch=count - made, verbose=0, shuffle=None, callbacks=[moved])
        made = count
        later.append(measured(copy, pairs, bar=bar)._replace(steps=count))
    return found._replace(later=tuple(later))


def _shuffled(data: tuple) -> tf.data.Dataset:
    made = tf.data.Dataset.from_tensor_slices(data)
    return made.shuffle(int(made.cardinality()), seed=0, reshuffle_each_iteration=False)


def with_scores(model: Any) -> tuple[ISModel, Any]:
    """An ISModel around a plain net, compiled with the same loss, itself where it is one; and what
    it is trained by.
    """
    if not isinstance(model, keras.Model):
        raise TypeError(f"model must be a compiled keras.Model; got {arguments.named(model)}.")
    if isinstance(model, ISModel):
        fresh.check_model(model)
        return model, model.optimizer
    loss, loss_weights = compat.compiled_loss(model)
    fresh.check_loss(model, loss)
    made = _around(model)
    made.compile(optimizer="sgd", loss=loss, loss_weights=loss_weights)
    return made, model.optimizer


def _around(net: keras.Model, **options) -> ISModel:
    """An ISModel that leaves the net's batch normalization as it is: nothing is drawn."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return ISModel(net, adapt_batch_normalization=False, **options)


def _copied(model: ISModel, optimizer: Any) -> ISModel:
    """A copy that can be trained, by an optimizer of the same kind from its beginning on.

    Raises:
        ValueError: the net cannot be cloned.
    """
    optimizer = compat.innermost(optimizer)
    try:
        net = keras.models.clone_model(model.net)
        net.set_weights(model.net.get_weights())
    except Exception as error:  # Whatever a net of one's own does in its config.
        raise ValueError(
            f"net {model.net.name!r} cannot be cloned ({type(error).__name__}); train it yourself "
            "and ask again, without after=…."
        ) from error
    config = optimizer.get_config()
    rate = compat.learning_rate(optimizer)
    if isinstance(rate, schedules.GainAdapted):
        rate = rate.given
    if isinstance(rate, keras.optimizers.schedules.LearningRateSchedule):
        config["learning_rate"] = rate
    copy = _around(net, scorer=model.scorer)
    loss, loss_weights = compat.compiled_loss(model)
    copy.compile(type(optimizer).from_config(config), loss=loss, loss_weights=loss_weights)
    return copy


def _measured(
    model: ISModel, pairs: tf.data.Dataset, *, sizes: list[int], chunks: int, smoothing: float, bar
) -> GainEstimate:
    """What the net has to gain as it is."""
    menu = [plan for size in sizes for plan in _menu(size)]
    rates = sorted({plan.rate for plan in menu})
    measure = _chunk_moments(model, gain.Sampling(tuple(rates), smoothing))
    found = []
    for chunk in pairs.batch(_CHUNK, drop_remainder=True).take(max(chunks, 1)):
        found.append(measure(*chunk))
        bar.add(1)
    if not found:
        raise ValueError(
            f"the gain needs {_CHUNK} examples to be measured, and the dataset has fewer."
        )
    averages = [sum(float(part[i]) for part in found) / len(found) for i in range(len(found[0]))]
    mean_square, *others = map(tf.constant, averages[:4])
    moments = gain.Moments(
        tf.maximum(mean_square, 0.0), others[0], others[1], others[2], tf.constant(averages[7:])
    )
    tau = (averages[5] ** 0.5) / averages[4] if averages[4] > 0 else 1.0
    clock = Clock(model, pairs, bar)
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
        loss=averages[6],
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
    """A function of a chunk: A, U, S, Q, mean Ĝ, mean Ĝ², mean loss, D…"""

    @tf.function(autograph=False)
    def moments(inputs, labels):
        with forward.recorded() as passes:
            outputs = model(inputs, training=False)
        size = tf.shape(tf.nest.flatten(inputs)[0])[0]
        weights = tf.ones([size])
        scores = of_a_pass(model.scorer).from_forward(model.objective, labels, passes[-1])
        squares = last_layer.gradient_squares(
            model.net, model.objective, labels, passes[-1], weights
        )
        found = gain.batch_moments(scores, squares.per_example, weights, squares.batch, sampling)
        loss = tf.reduce_mean(losses.per_example_losses(model.objective, labels, outputs))
        means = (tf.reduce_mean(scores), tf.reduce_mean(scores**2), tf.cast(loss, tf.float32))
        own = tf.stack([*found[:4], *means])
        return tf.concat([own, found.rounding], axis=0)

    return moments


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
        inputs, labels = next(iter(self._pairs.batch(size)))
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
