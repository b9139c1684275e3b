"""Will importance sampling help? The predicted gain of a net on data, before training by it."""

from __future__ import annotations

import contextlib
import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import keras
import tensorflow as tf

from tf_importance import arguments, compat, element_specs, fresh, proposals, schedules
from tf_importance.estimate import clock
from tf_importance.estimate.clock import Clock
from tf_importance.estimate.examples import single, weighted
from tf_importance.estimate.measure import CHUNK, Question, Seen, answer, look, scoring_costs
from tf_importance.estimate.result import GainEstimate, Prediction, Strata
from tf_importance.model import ISModel

__all__ = ["Clock", "GainEstimate", "Prediction", "Strata", "estimate_gain", "with_scores"]


def estimate_gain(
    model: keras.Model,
    dataset: Any,
    *,
    batch_sizes: Sequence[int] = (32, 128),
    examples: int = 4096,
    smoothing: float = 0.2,
    after: Sequence[int] = (),
    strata: Callable | None = None,
    seconds: float | None = 60.0,
    verbose: int = 1,
) -> GainEstimate:
    """Would importance sampling train this net faster on this data, as far as it is now?

        print(tfi.estimate_gain(model, (x, y), after=[300, 3000]))

    Measures the moments of the gain (`tf_importance.gain`) over some examples, in the space of
    the last layer's weights as training does, and how long forward and backward passes take
    here; predicts for each b what drawing it from 2b, 4b and 12b would do, systematically. Where
    labels are classes it predicts, too, what batches that have their share of each would do
    (`tf_importance.strata`), which scores nothing. The answer is that of the moment: an untrained
    net has little to gain on nearly all data. So ask a half-trained one, or let a copy of it be
    trained uniformly for some steps first, by `after`. (What `GainAdapted` can follow, a gain of 2
    under a constant learning rate, is not counted.)

    Args:
        model: a compiled keras.Model, an ISModel or not; its weights are left as they are.
        dataset: arrays `(x, y)` or `(x, y, sample_weight)`; a `tf.data.Dataset` of examples, or of
            batches, shuffled; a PyDataset; or what has random access, as for `history_sample`.
            Sample weights are factors of the gradients, as in training.
        batch_sizes: the b to predict for; the first one is also that of the steps of `after`.
        examples: how many to measure, at most; in chunks of 256. Where a class is rare more are
            needed: its gradients are known by a dozen or two of its examples.
        smoothing: c, as in `importance_sample`.
        after: numbers of steps, after each of which a copy of the net is measured again; by default
            none. A net that cannot be cloned is trained itself, and has its weights again behind.
        strata: a function `(x, y) -> number`, as in `samplers.Stratified`; by default the labels,
            where they are classes.
        seconds: to answer in, about; None for as long as it takes. A large net is measured on fewer
            examples, and timed on smaller batches. Where the time is over before the steps of
            `after` are made, the last answer is that of the steps there were, and the
            recommendation says so.
        verbose: 0 for no progress bar, as in Keras.
    Returns:
        A `GainEstimate`, which prints as a table.
    Raises:
        TypeError, ValueError: model or dataset do not fit, as for `importance_sample`; fewer than
            256 examples.
    """
    begun = clock.now()
    sizes = arguments.positive_integers("batch_sizes", batch_sizes)
    steps = sorted(arguments.positive_integers("after", after))
    if seconds is None:
        seconds = math.inf
    seconds = arguments.number("seconds", seconds, "positive", lambda value: value > 0)
    chunks = _chunks(examples)
    smoothing = proposals.checked_smoothing(smoothing, 0.2)
    if not sizes:
        raise ValueError("batch_sizes must name one size at least, such as [32]; got none.")
    model, optimizer = with_scores(model)
    data = single(model, dataset)
    element_specs.build(model, data.element_spec, lambda: next(iter(data.batch(1)))[0])
    question = Question(sizes, chunks, smoothing, strata, steps, seconds)
    bar = keras.utils.Progbar(question.work, verbose=verbose)
    looks = clock.now()
    seen = look(model, data, question, bar)
    looked = clock.now() - looks
    pairs = weighted(data).map(lambda x, y, weight: (x, y))
    costs = scoring_costs(Clock(model, pairs, bar, question.patience_to_time), question)
    trained = _trained(model, optimizer, data, question, begun + question.seconds - looked, bar)
    later = tuple(answer(then, question, costs)._replace(steps=count) for count, then in trained)
    # What the data or the time had too little for.
    bar.update(question.work, finalize=True)
    made = later[-1].steps if later else 0
    missed = tuple(count for count in steps if count > made)
    return answer(seen, question, costs)._replace(later=later, missed=missed)


def _chunks(examples: Any) -> int:
    """How many chunks these are."""
    if arguments.positive_integer("examples", examples) < CHUNK:
        raise ValueError(f"examples must be at least {CHUNK}, one chunk; got {examples}.")
    return examples // CHUNK


def _trained(
    model: ISModel, optimizer: Any, data: tf.data.Dataset, question: Question, end: float, bar
) -> Iterator[tuple[int, Seen]]:
    """A copy after so many steps of uniform training, as far as it gets until the end."""
    if not question.steps:
        return
    batches = element_specs.batched(data.repeat(), question.batch_sizes[0], drop_remainder=True)
    with _to_train(model, optimizer) as copy:
        made = 0
        for count in question.steps:
            if clock.now() > end:
                return
            steps = _Steps(end, bar)
            options = {"steps_per_epoch": count - made, "verbose": 0, "shuffle": None}
            if count > made:
                copy.fit(batches, callbacks=[steps], **options)
            made += steps.made
            yield made, look(copy, data, question, bar)
            if made < count:
                return


class _Steps(keras.callbacks.Callback):
    """Moves a bar on by steps, and ends training when the time is over."""

    def __init__(self, end: float, bar: Any) -> None:
        super().__init__()
        self.made, self._end, self._bar = 0, end, bar

    def on_train_batch_end(self, batch, logs=None) -> None:
        self._bar.add(batch + 1 - self.made)
        self.made = batch + 1
        if clock.now() > self._end:
            self.model.stop_training = True


def with_scores(model: Any) -> tuple[ISModel, Any]:
    """An ISModel around a plain net, compiled with the same loss, itself where it is one; and what
    it is trained by.
    """
    if not isinstance(model, keras.Model):
        raise TypeError(
            f"model must be a compiled keras.Model; got {arguments.named(model)}. Give the net "
            "itself, after net.compile(optimizer=..., loss=...)."
        )
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


@contextlib.contextmanager
def _to_train(model: ISModel, optimizer: Any) -> Iterator[ISModel]:
    """A copy that can be trained, by an optimizer of the same kind from its beginning on.

    A net that cannot be cloned is there itself, and what it was behind.
    """
    optimizer = compat.innermost(optimizer)
    config = optimizer.get_config()
    rate = compat.learning_rate(optimizer)
    if isinstance(rate, schedules.GainAdapted):
        rate = rate.given
    if isinstance(rate, keras.optimizers.schedules.LearningRateSchedule):
        config["learning_rate"] = rate
    loss, loss_weights = compat.compiled_loss(model)
    with contextlib.ExitStack() as stack:
        try:
            net = keras.models.clone_model(model.net)
            net.set_weights(model.net.get_weights())
        except Exception:  # Whatever a net of one's own does in its config.
            stack.enter_context(compat.kept(model.net))
            net = model.net
        copy = _around(net, scorer=model.scorer)
        copy.compile(type(optimizer).from_config(config), loss=loss, loss_weights=loss_weights)
        yield copy
