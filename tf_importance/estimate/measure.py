"""What a net has to gain as it is: moments of its examples, and what passes cost."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from tf_importance import element_specs, gain, keys, losses, plans, strata
from tf_importance.estimate import clock
from tf_importance.estimate.examples import weighted
from tf_importance.estimate.result import STRATA, GainEstimate, Prediction, Strata
from tf_importance.scorers import forward, last_layer
from tf_importance.scorers.upper_bound import of_a_pass

CHUNK = 256
_SMOOTHING_OF_SHARES = 0.1
# Strata of fewer examples than this on average are no classes.
_AT_LEAST = 8


class Question(NamedTuple):
    """What is asked of a net.

    Attributes:
        batch_sizes: b, to predict for. chunks: of 256 examples, to measure.
        smoothing: c. strata: a function (x, y) -> number; None for the labels.
        steps: of training, after which it is asked again. seconds: to answer in, infinite for any.
    """

    batch_sizes: Sequence[int]
    chunks: int
    smoothing: float
    strata: Callable | None
    steps: Sequence[int]
    seconds: float

    @property
    def menu(self) -> list[plans.Plan]:
        """The plans that are predicted."""
        sizes = self.batch_sizes
        return [plans.Plan(size, 1, factor * size) for size in sizes for factor in (2, 4, 12)]

    @property
    def rates(self) -> tuple[float, ...]:
        """Those of the menu, in order."""
        return tuple(sorted({plan.rate for plan in self.menu}))

    @property
    def work(self) -> int:
        """Pieces that a bar moves on by: chunks, what is timed, and steps."""
        timed = len(self.menu) + len(self.batch_sizes)
        return (1 + len(self.steps)) * self.chunks + timed + sum(self.steps[-1:])

    @property
    def patience_to_look(self) -> float:
        """Seconds for the chunks of one of the answers: a quarter of all for all of them."""
        return self.seconds / 4 / (1 + len(self.steps))

    @property
    def patience_to_time(self) -> float:
        """Seconds for each of the passes that are timed: a quarter of all for all of them."""
        return self.seconds / 4 / (len(self.menu) + len(self.batch_sizes))


class Seen(NamedTuple):
    """What a net has shown of some examples.

    Attributes:
        examples: how many. averages: of `_of_chunk`'s numbers.
        each: [2, n] of Ĝ and v². numbers: [n] strata; None where there are none.
    """

    examples: int
    averages: np.ndarray
    each: np.ndarray
    numbers: np.ndarray | None


def look(model, data: tf.data.Dataset, question: Question, bar) -> Seen:
    """Measure the net as it is.

    Args:
        model: an ISModel. data: of single examples. bar: moves on by each chunk.
    """
    batches = element_specs.batched(weighted(data), CHUNK, True)
    of_chunk = _of_chunk(model, gain.Sampling(question.rates, question.smoothing))
    # Called by itself each estimate's would count as traced anew, of which TensorFlow warns.
    measure = of_chunk.get_concrete_function(*batches.element_spec)
    chunks, averaged, each = [], [], []
    end = clock.now() + question.patience_to_look
    for chunk in batches.take(question.chunks):
        means, of_each = measure(*chunk)
        averaged.append(means.numpy())
        each.append(of_each.numpy())
        chunks.append(_numbers(question.strata, data.element_spec, *chunk[:2]))
        bar.add(1)
        if clock.now() > end:
            break
    if not averaged:
        raise ValueError(
            f"the gain needs {CHUNK} examples to be measured, and the dataset has fewer. Give more."
        )
    return Seen(
        len(averaged) * CHUNK,
        np.mean(averaged, axis=0),
        np.concatenate(each, axis=1),
        _strata(chunks, question),
    )


def scoring_costs(timed: clock.Clock, question: Question) -> list[float]:
    """What scoring costs in steps, for each plan of the menu."""
    steps = {size: timed.step_seconds(size) for size in question.batch_sizes}
    return [
        timed.scoring_seconds(plan.presample_size) / steps[plan.batch_size]
        for plan in question.menu
    ]


def answer(seen: Seen, question: Question, costs: Sequence[float]) -> GainEstimate:
    """What follows from it."""
    averages = seen.averages
    mean_square, square, score, square_per_score, mean_score, score_square, loss = averages[:7]
    moments = gain.Moments(
        *map(tf.constant, (max(mean_square, 0.0), square, score, square_per_score, averages[7:]))
    )
    rates = question.rates
    menu = zip(question.menu, costs)
    predictions = [_prediction(moments, rates, plan, cost) for plan, cost in menu]
    found = seen.numbers
    if found is not None:
        drawn = drawn_square_of(found, *seen.each)
        predictions += [_by_strata(moments, drawn, size) for size in question.batch_sizes]
    tau = float(np.sqrt(score_square) / mean_score) if mean_score > 0 else 1.0
    noise = max(square - mean_square, 0.0) / mean_square if mean_square > 0 else float("inf")
    return GainEstimate(
        examples=seen.examples,
        tau=tau,
        effective_sample_size=1 / tau**2,
        noise_scale=float(noise),
        predictions=tuple(predictions),
        loss=float(loss),
        strata=None
        if found is None
        else Strata(int(found.max()) + 1, int(np.bincount(found).min())),
    )


def _prediction(moments, rates, plan: plans.Plan, scoring_cost: float) -> Prediction:
    """What a plan does, if scoring its pre-sample costs so many steps."""
    rounding = moments.rounding_factor(rates.index(plan.rate))
    drawn = gain.drawn_square(moments, plan.batch_size, plan.rate, rounding)
    ratio = gain.gain_ratio(gain.uniform_square(moments, plan.batch_size), drawn)
    return Prediction(plan.batch_size, plan.presample_size, float(ratio), 1 + scoring_cost)


def _of_chunk(model, sampling: gain.Sampling) -> Any:
    """A function of a chunk: [A, U, S, Q, mean Ĝ, mean Ĝ², mean loss, D…], and [2, B] of Ĝ, v².

    An example's weight is a factor of its loss, and so of its gradient and of its score.
    """

    @tf.function(autograph=False)
    def moments(inputs, labels, weights):
        with forward.recorded() as passes:
            outputs = model(inputs, training=False)
        ones, sizes = tf.ones_like(weights), tf.abs(weights)
        scores = of_a_pass(model.scorer).from_forward(model.objective, labels, passes[-1]) * sizes
        seen = last_layer.gradient_squares(model.net, model.objective, labels, passes[-1], weights)
        squares = seen.per_example * weights**2
        found = gain.batch_moments(scores, squares, ones, seen.batch, sampling)
        of_each = losses.per_example_losses(model.objective, labels, outputs)
        loss = tf.reduce_mean(tf.cast(of_each, tf.float32) * weights)
        means = (tf.reduce_mean(scores), tf.reduce_mean(scores**2), loss)
        own = tf.stack([*found[:4], *means])
        return tf.concat([own, found.rounding], axis=0), tf.stack([scores, squares])

    return moments


# Strata -----------------------------------------------------------------------------------


def _numbers(given: Callable | None, spec: tuple, inputs: Any, labels: Any) -> np.ndarray | None:
    """[B] or [B, c], by which the strata of some examples are told; None of other labels."""
    if given is not None:
        return keys.number_of(given, spec)(inputs, labels).numpy()
    return None if tf.nest.is_nested(labels) else labels.numpy()


def _strata(parts: list[np.ndarray | None], question: Question) -> np.ndarray | None:
    """[n] the strata of the examples, from 0 on; None where there are no classes."""
    if any(part is None for part in parts):
        return None
    try:
        found = keys.of_labels(np.concatenate(parts))  # type: ignore[arg-type]
    except (TypeError, ValueError):
        # Labels may be of any kind; strata that are asked for were looked at before.
        return None
    numbers = np.unique(found, return_inverse=True)[1].reshape(-1)
    count = int(numbers.max()) + 1
    if count < 2 or (question.strata is None and count * _AT_LEAST > len(numbers)):
        return None
    return numbers


def drawn_square_of(numbers: np.ndarray, scores: np.ndarray, squares: np.ndarray) -> float:
    """V of draws by the shares that `samplers.Stratified` would come to.

    Args:
        numbers: [n] strata, from 0 on. scores: [n] Ĝ. squares: [n] v².
    """
    counts = np.bincount(numbers)
    prior = tf.constant(counts / len(numbers), tf.float32)
    of_scores, of_gradients = (
        tf.constant(np.bincount(numbers, weights=values) / counts, tf.float32)
        for values in (scores**2, squares)
    )
    shares = strata.neyman_shares(prior, of_scores, _SMOOTHING_OF_SHARES)
    return float(strata.drawn_square(prior, shares, of_gradients))


def _by_strata(moments: gain.Moments, drawn: float, batch_size: int) -> Prediction:
    mean_square = float(moments.mean_square)
    square = mean_square + max(drawn - mean_square, 0.0) / batch_size
    uniform = float(gain.uniform_square(moments, batch_size))
    ratio = gain.gain_ratio(tf.constant(uniform), tf.constant(square))
    return Prediction(batch_size, batch_size, float(ratio), 1.0, STRATA)
