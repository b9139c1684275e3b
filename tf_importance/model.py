"""ISModel: a Keras model around a net, trained on drawn and weighted examples."""

from __future__ import annotations

import contextlib
import functools
import inspect
import warnings
from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

from tf_importance import (
    compat,
    draws,
    epochs,
    fitting,
    gain,
    groups,
    layers,
    losses,
    processes,
    proposals,
    samplers,
    scorers,
    switches,
    variance,
)
from tf_importance.samplers import feedback, state
from tf_importance.scorers import forward, last_layer
from tf_importance.scorers.upper_bound import of_a_pass

_SCORER_PREFIX = "tfi.scorers."
# The newest step's share in the averages of the gain's moments, as in RAIS.
_GAIN_SMOOTHING = 0.01
# Steps to have been measured before a gain is spoken of.
_GAIN_STEPS = 25
# One in so many steps on uniform batches is measured, and every one on a drawn batch.
_GAIN_EVERY = 4
# Rates ρ at which rounding is measured, at most.
_MOST_RATES = 16


def _signed_as(method: Callable) -> Callable:
    """Show a Keras method's signature, which differs between versions, as one's own."""
    return functools.wraps(method, assigned=(), updated=())


def _arguments(method: Callable, *args, **kwargs) -> dict[str, Any]:
    """Arguments of a call to a Keras method by name, defaults included."""
    bound = inspect.signature(method).bind(*args, **kwargs)
    bound.apply_defaults()
    given = {name: value for name, value in bound.arguments.items() if name != "self"}
    given.update(given.pop("kwargs", {}))
    return given


@keras.saving.register_keras_serializable(package="tf_importance")
class ISModel(keras.Model):
    """A net trained by importance sampling; otherwise the net's plain Keras model.

    `train_step` takes `(x, y, weight)` as `importance_sample` emits it, makes an ordinary
    weighted Keras step, and updates τ from the scores of the step's own forward pass:

        τ ← the bias-corrected average of √mean(w Ĝ²) / mean(w Ĝ)

    which for w = 1 is line 17 of Algorithm 1 (Katharopoulos & Fleuret 2018), and for drawn
    batches its importance-weighted estimate. The average is bias-corrected: after k steps
    the estimate of step j weighs a^(k−j) (1−a)/(1−a^k), so τ starts at the first estimate
    and not near zero. A batch whose scores are unusable leaves τ alone.

    Fed by a plain dataset it trains exactly as the net would. The training logs add `tau`;
    `ess`, the effective sample size as a fraction, mean of 1/τ² of the steps; `importance`,
    the share of drawn among the batches that left the pipeline; `max_weight`, under a strategy
    its mean over the replicas; and `fallbacks`, the number of pre-samples used uniformly
    because their scores were unusable. All but `tau` start anew with every epoch.

    Under importance sampling `metrics` as well as `weighted_metrics` are weighted during
    training, so both estimate what uniform sampling would show. Evaluation is plain Keras.

    Where the learning rate follows the gain (`tfi.schedules.GainAdapted`) or the pipeline's switch
    asks for it, the steps also measure the moments that the gain ratio is made of (`tfi.gain`),
    one in four on uniform batches and each on a drawn one; `gain` of the batch joins the logs.

    Compiled with a sampler, it takes the batches of `history_sample`: the scores of the step's
    forward pass go back to the sampler, `gain` joins the logs, and a learning rate of
    `tfi.schedules.GainAdapted` follows it. A `tf.train.Checkpoint` of the model holds the
    sampler's state, and so does a weights file, where it is loaded into a model compiled with a
    sampler for as many examples.

    Args:
        net: any keras.Model, built or not. It stays usable by itself, with the same weights.
        scorer: what τ is measured with and `importance_sample` scores with by default. In
            the step an `OutputScorer` reads the step's own forward pass; for any other,
            which would need passes of its own, `upper_bound` stands in.
        tau_decay: a in [0, 1), the decay of τ's average (a_τ in Algorithm 1).
    Attributes:
        tau: variable, the bias-corrected τ; 0 before the first step.
        sampler: the one it is compiled with, or None.
    Raises:
        TypeError: net is not a keras.Model, or is an ISModel.
        ValueError: tau_decay is not in [0, 1).
    """

    def __init__(
        self,
        net: keras.Model,
        *,
        scorer: scorers.Scorer = scorers.upper_bound,
        tau_decay: float = 0.9,
        **kwargs,
    ) -> None:
        if not isinstance(net, keras.Model) or isinstance(net, ISModel):
            raise TypeError(f"net must be a keras.Model and not an ISModel; got {net!r}.")
        if not callable(scorer):
            raise TypeError(f"scorer must be a callable (model, x, y) -> [B]; got {scorer!r}.")
        if not 0 <= tau_decay < 1:
            raise ValueError(f"tau_decay must be in [0, 1); got {tau_decay}.")
        kwargs.setdefault("name", f"importance_{net.name}")
        super().__init__(**kwargs)
        self.net = net
        self.scorer = scorer
        self.tau_decay = tau_decay
        self.objective = losses.Objective(None)
        names = getattr(net, "output_names", None)
        if names:
            self.output_names = names
        # Added as weights: a plain tf.Variable is not saved by Keras 3.
        self.tau = self._state("tau")
        # a^k after k steps of τ's average.
        self._tau_memory = self._state("tau_memory", initial=1.0)
        # E[w], which is 1 unless sample or class weights are multiplied into the weights.
        self._mean_weight = self._state("mean_weight", initial=1.0)
        # Few and small: every variable that a step reads costs as much as a small layer.
        self._counts = self._state("counts", size=3)  # drawn, uniform, fallbacks
        # Σ 1/τ², steps, largest weight, unusable scores of the steps' own
        self._monitors = self._state("monitors", size=4)
        # 1 − a^k, what they are moments of, then A, U, S, Q, R of the gain and F at each rate.
        self._gain_moments = self._state("gain_moments", size=7 + _MOST_RATES)
        self._gain_of: gain.Sampling | None = None
        self._draw: groups.StepDraw | None = None
        self._sampled = False
        self._sample_weighted = False
        self._expects_drawn = False
        self._weights_have_scale = False
        self._warned = False
        self._feedback: feedback.Feedback | None = None
        self._schedule = None
        compat.track(self, "sampler", None)
        self._warn_of_batch_normalization()

    def _state(self, name: str, *, size: int | None = None, initial: float = 0.0):
        return self.add_weight(
            name=name,
            shape=() if size is None else (size,),
            dtype="float32",
            initializer=keras.initializers.Constant(initial),
            trainable=False,
            aggregation=compat.MEAN_OVER_REPLICAS,
        )

    # Plain Keras --------------------------------------------------------------------------

    def call(self, inputs, training=None):
        """The net's outputs; `training` reaches the net through Keras's call context."""
        return forward.run(self.net, inputs)

    @_signed_as(keras.Model.compile)
    def compile(self, *args, sampler: samplers.Sampler | None = None, **kwargs):
        """As `keras.Model.compile`.

        Args:
            sampler: of `tfi.samplers`, what `history_sample` draws this model's batches by.
        Raises:
            TypeError: sampler is none.
            ValueError: a loss divides by the sum of the weights (reduction
                "mean_with_sample_weight"), which biases importance sampling; or a sampler
                under a strategy of several replicas.
        """
        given = _arguments(keras.Model.compile, self, *args, **kwargs)
        losses.refuse_biased_reductions(given["loss"])
        if self._sampled and given["loss"] != self.objective.loss:
            warnings.warn(
                f"model {self.name!r} is compiled with another loss than the one that its "
                "datasets are scored by; apply importance_sample to the dataset again.",
                stacklevel=2,
            )
        super().compile(*args, **kwargs)
        names = getattr(self.net, "output_names", None)
        self.objective = losses.Objective(given["loss"], given["loss_weights"], names)
        self._use(sampler)

    def _use(self, sampler: samplers.Sampler | None) -> None:
        """Give what the steps see to a sampler, and the gain to a learning rate that follows it."""
        samplers.check(sampler, processes.replicas_here(self.distribute_strategy))
        if sampler is not None:
            sampler.bind(self)
        schedule = compat.learning_rate(self.optimizer)
        schedule = schedule if hasattr(schedule, "advance") else None
        if schedule is not None:
            accumulated = getattr(self.optimizer, "gradient_accumulation_steps", None) or 1
            if accumulated > 1:
                raise ValueError(
                    "a learning rate that follows the gain moves on with every step, and this "
                    f"optimizer makes one of {accumulated}; leave out gradient_accumulation_steps."
                )
            schedule.suit(self.optimizer)
        compat.track(self, "sampler", sampler)
        compat.track(self, "_schedule", schedule)
        self._feedback = None if sampler is None else feedback.Feedback(sampler, schedule)

    @property
    def follows_gain(self) -> bool:
        """Whether the learning rate is one that follows the gain (`tfi.schedules`)."""
        return self._schedule is not None

    def compile_from_config(self, config) -> None:
        """Compile as a saved model was; Keras does so only for its own `compile`."""
        self.compile(**keras.saving.deserialize_keras_object(config))
        if self.optimizer is not None and self.built:
            self.optimizer.build(self.trainable_variables)

    @_signed_as(keras.Model.fit)
    def fit(self, *args, **kwargs):
        """As `keras.Model.fit`.

        Without steps_per_epoch an epoch is one pass over the dataset, however many batches
        importance sampling makes of it.

        Raises:
            ValueError: class_weight for a dataset that has weights already, where this
                version of Keras cannot multiply the two.
        """
        given = _arguments(keras.Model.fit, self, *args, **kwargs)
        try:
            return self._fit(given)
        except BaseException:
            if self.sampler is not None:
                # What ended the training is said, and not what this may find as well.
                with contextlib.suppress(Exception):
                    self.sampler.end()
            raise

    def _fit(self, given: dict[str, Any]):
        if self.sampler is not None:
            given = fitting.by_sampler(self.sampler, given)
        spec = getattr(given["x"], "element_spec", None)
        if self.sampler is not None and draws.is_drawn(spec):
            self.sampler.rewind()
            if self.sampler.follows_training or not draws.is_planned(spec):
                given["callbacks"] = feedback.with_maintenance(given["callbacks"], self.sampler)
        weighted = isinstance(spec, tuple) and len(spec) == 3
        multiplies = not compat.KERAS_3 and not isinstance(spec and spec[-1], dict)
        if given["class_weight"] is not None and weighted and not multiplies:
            raise ValueError(
                "Keras takes no class_weight beside the weights of a dataset, and "
                "importance_sample's have them. Give the class weights as sample weights "
                "before it: dataset.map(lambda x, y: (x, y, tf.gather(class_weights, y)))"
                ".apply(importance_sample(model)); they then count in the scores as well."
            )
        self._expect(
            drawn=self._sampled and spec is not None,
            sample_weighted=self._sample_weighted or given["class_weight"] is not None,
        )
        if processes.are_several(self.distribute_strategy):
            return self._fit_in_several_processes(given)
        last, epoch = given["epochs"], given["initial_epoch"]
        varies = epochs.length_varies(given["x"], given["steps_per_epoch"])
        if not (varies and self._expects_drawn and epoch < last):
            return super().fit(**given)
        if getattr(self.optimizer, "use_ema", False):
            raise ValueError(
                "an optimizer with use_ema=True overwrites the weights at the end of each "
                "epoch of a dataset whose length is unknown; give dataset.repeat() and "
                "steps_per_epoch."
            )
        del given["epochs"], given["initial_epoch"]
        training = epochs.OneTraining(given.pop("callbacks"), self, given["verbose"], last)
        stopped = False
        while epoch < last and not stopped:
            with warnings.catch_warnings():
                # Keras 3 warns at the end of every pass whose length it did not know.
                warnings.filterwarnings("ignore", "Your input ran out of data")
                super().fit(epochs=epoch + 1, initial_epoch=epoch, callbacks=training, **given)
            stopped = self.stop_training
            epoch = max(epoch + 1, compat.take_restored_epoch(self))
        training.finish()
        return self.history

    def _fit_in_several_processes(self, given: dict[str, Any]):
        if given["validation_data"] is not None or given["validation_split"]:
            raise ValueError(
                "fit in several processes takes no validation data; evaluate by a callback."
            )
        taken = ("steps_per_epoch", "epochs", "initial_epoch", "callbacks")
        return processes.fit(self, given["x"], **{name: given[name] for name in taken})

    def export(self, filepath, *args, **kwargs):
        """Write a SavedModel of the net alone: it loads without this package."""
        return self.net.export(filepath, *args, **kwargs)

    def get_config(self) -> dict[str, Any]:
        name = getattr(self.scorer, "__name__", "")
        known = scorers.BY_NAME.get(name) is self.scorer
        return {
            "net": keras.saving.serialize_keras_object(self.net),
            "scorer": _SCORER_PREFIX + name
            if known
            else keras.saving.serialize_keras_object(self.scorer),
            "tau_decay": self.tau_decay,
            "name": self.name,
        }

    @classmethod
    def from_config(cls, config, custom_objects=None) -> ISModel:
        config = dict(config)
        net = keras.saving.deserialize_keras_object(config.pop("net"), custom_objects)
        scorer = config.pop("scorer")
        if isinstance(scorer, str) and scorer.startswith(_SCORER_PREFIX):
            scorer = scorers.BY_NAME[scorer.removeprefix(_SCORER_PREFIX)]
        else:
            scorer = keras.saving.deserialize_keras_object(scorer, custom_objects)
        return cls(net, scorer=scorer, **config)

    def save_own_variables(self, store) -> None:
        """τ and counters, and the state of the sampler and of the schedule if there are any."""
        super().save_own_variables(store)
        state.save(self._remembered(), store)

    def load_own_variables(self, store) -> None:
        """The inverse; a sampler's state in the file is left out where there is no sampler.

        Raises:
            ValueError: the sampler is another one, or does not know for how many examples it is.
        """
        super().load_own_variables(state.without(store))
        if self.sampler is not None and not self.sampler.num_examples:
            state.refuse("sampler", type(self.sampler).__name__, store)
        state.load(self._remembered(), store)

    def _remembered(self) -> dict[str, tf.Module]:
        """What is neither net nor optimizer and belongs into a resumed training, by name."""
        sampler = self.sampler if self.sampler is not None and self.sampler.num_examples else None
        modules = {"sampler": sampler, "schedule": getattr(self, "_schedule", None)}
        return {name: module for name, module in modules.items() if module is not None}

    def build_from_config(self, config) -> None:
        """The net is built by its own config; there is nothing else to build."""
        if self.net.built:
            self.built = True
        else:
            super().build_from_config(config)

    def reset_metrics(self) -> None:
        super().reset_metrics()
        self._counts.assign(tf.zeros([3]))
        self._monitors.assign(tf.zeros([4]))

    # Importance sampling ------------------------------------------------------------------

    def expect_drawn_examples(
        self,
        sample_weighted: bool,
        gain_of: gain.Sampling | None = None,
        switch: switches.Switch | None = None,
        draw: groups.StepDraw | None = None,
    ) -> None:
        """Take the weights of datasets as importance weights from now on.

        `importance_sample` calls it. Until then weights are a user's sample weights, which
        Keras keeps out of `metrics` and of batch normalization. Arrays given to `fit` stay
        plain data.

        Args:
            sample_weighted: whether a user's sample weights are multiplied into them.
            gain_of: where steps are to measure the gain, that of what.
            switch: the pipeline's, to be checkpointed with the model.
            draw: what draws batches from the groups that the steps get.
        """
        if draw is not self._draw:
            self._draw, self.train_function = draw, None
        compat.track(self, "switch", switch)
        self._measure_gain_of(gain_of)
        self._sampled = True
        self._sample_weighted = sample_weighted
        self._expect(drawn=True, sample_weighted=sample_weighted)
        self._warn_of_batch_normalization()

    def _expect(self, drawn: bool, sample_weighted: bool) -> None:
        """What the weights of the coming steps are; a trace for other ones is dropped."""
        if (drawn, sample_weighted) != (self._expects_drawn, self._weights_have_scale):
            self._expects_drawn, self._weights_have_scale = drawn, sample_weighted
            self.train_function = None

    def _measure_gain_of(self, sampling: gain.Sampling | None) -> None:
        if sampling is not None and len(sampling.rates) > _MOST_RATES:
            raise ValueError(
                f"at most {_MOST_RATES} sampling rates can be compared; got {sampling.rates}."
            )
        if sampling != self._gain_of:
            self._gain_of, self.train_function = sampling, None

    def gain_moments(self) -> tuple[gain.Moments, tf.Tensor]:
        """The moments of the gain as averaged over the latest steps, and whether there are enough.

        Steps measure them once `importance_sample` wants to know the gain.
        """
        state = _if_of(self._gain_of, compat.value(self._gain_moments))
        enough = state[0] > 1 - (1 - _GAIN_SMOOTHING) ** _GAIN_STEPS
        moments = tf.math.divide_no_nan(state[2:], state[0])
        rates = () if self._gain_of is None else self._gain_of.rates
        mean_square, square, score, square_per_score, remembered = tf.unstack(moments[:5])
        rounding = moments[5 : 5 + len(rates)]
        found = gain.Moments(mean_square, square, score, square_per_score, rounding, remembered)
        return found, enough

    def largest_gain(self) -> tf.Tensor:
        """The gain ratio that the learning rate can follow in the coming step."""
        return tf.constant(1e6) if self._schedule is None else self._schedule.largest_gain()

    def count(self, drawn=0.0, uniform=0.0, fallbacks=0.0) -> None:
        """Add to the epoch's numbers of drawn and uniform batches, and of fallbacks.

        `importance_sample` calls it as batches leave.
        """
        self._counts.assign_add(tf.stack([drawn, uniform, fallbacks]))

    def make_train_function(self, force=False):
        if self.train_function is None or force:
            super().make_train_function(force)
            compat.make_train_function_direct(self)
        return self.train_function

    def train_step(self, data):
        """A Keras training step, then τ from the same forward pass."""
        unusable = None
        if draws.is_group(data):
            if self._draw is None:
                raise ValueError(
                    "the steps are to score the examples of this dataset, and another pipeline "
                    f"was made for model {self.name!r} since; make the dataset anew."
                )
            data, unusable = self._draw(data)
        data, told = draws.split(data)
        indices = None if told is None else told.indices
        if indices is not None and self.sampler is None:
            raise ValueError(
                f"the dataset is one of history_sample, and model {self.name!r} is compiled "
                "without its sampler, which would learn nothing; give "
                "model.compile(…, sampler=sampler)."
            )
        _, labels, weights = keras.utils.unpack_x_y_sample_weight(data)
        if not isinstance(weights, tf.Tensor) or weights.shape.rank != 1:
            weights = None
        expects_drawn = self._expects_drawn or indices is not None
        drawn = weights if expects_drawn else None
        has_scale = self._weights_have_scale or (told is not None and told.importance is not None)
        gain_of_batch = None if told is None or told.gain is None else tf.reduce_mean(told.gain)
        if self._schedule is not None and (gain_of_batch is not None or indices is None):
            self._schedule.advance(1.0 if gain_of_batch is None else gain_of_batch)
        if drawn is not None and has_scale:
            drawn = tf.math.divide_no_nan(drawn, self._tracked_mean_weight(weights))
        with (
            layers.importance_weights(drawn),
            feedback.drawn(told),
            forward.recorded() as passes,
        ):
            logs = super().train_step(data)
        tau, monitors = compat.value(self.tau), compat.value(self._monitors)
        if unusable is not None:
            monitors += tf.cast(unusable, tf.float32) * [0.0, 0.0, 0.0, 1.0]
            self._monitors.assign(monitors)
        if self.objective.loss is not None and passes:
            try:
                scores = self._scores(labels, passes[-1])
                estimate, largest = self._estimate(scores, weights, expects_drawn)
                if self._gain_of is not None and expects_drawn and weights is not None:
                    self._measure_gain(labels, passes[-1], scores, weights, told, self._gain_of)
            except losses.Unscorable:
                # Keras trains on such a loss; importance sampling was refused at its start.
                if expects_drawn:
                    raise
            else:
                tau = self._updated_tau(tau, estimate)
                monitors = self._updated_monitors(monitors, estimate, largest)
        logs = {**logs, **self._logs(tau, monitors, data)}
        if gain_of_batch is not None:
            logs["gain"] = gain_of_batch
        return logs

    def test_step(self, data):
        """A Keras evaluation step; batches of `history_sample` count by their weights."""
        return super().test_step(draws.split(data)[0])

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        # Keras 3 builds a model by a look at a whole batch.
        weights = sample_weight = draws.weight_of(sample_weight)
        by_example = isinstance(weights, tf.Tensor) and weights.shape.rank == 1
        if by_example and self._feedback is not None:
            sample_weight = weights = self._feedback(self, x, y, weights)
        if by_example and self.objective.loss is not None:
            drawn = layers.current_weights() is not None
            mean_weight = compat.value(self._mean_weight) if drawn else None
            try:
                sample_weight = losses.weights_by_output(
                    self.objective, y, y_pred, weights, mean_weight
                )
            except losses.Unscorable:
                if drawn:
                    raise
        kwargs = {"training": training} if compat.COMPUTE_LOSS_TAKES_TRAINING else {}
        return super().compute_loss(x, y, y_pred, sample_weight, **kwargs)

    def compute_metrics(self, x, y, y_pred, sample_weight=None):
        weights = layers.current_weights()
        if weights is None:
            sample_weight = draws.weight_of(sample_weight)
            return super().compute_metrics(x, y, y_pred, sample_weight)
        compat.update_all_metrics(self, y, y_pred, weights)
        return self.get_metrics_result()

    def _tracked_mean_weight(self, weights) -> tf.Tensor:
        """E|w| by the same bias-corrected average as τ's, this batch included."""
        memory = compat.value(self._tau_memory) * self.tau_decay
        mean = compat.value(self._mean_weight)
        batch = tf.reduce_mean(tf.abs(tf.cast(weights, tf.float32)))
        mean += self._gain(memory) * (batch - mean)
        self._mean_weight.assign(mean)
        return mean

    def _scores(self, labels, passed: forward.Forward) -> tf.Tensor:
        scorer = of_a_pass(self.scorer)
        return tf.stop_gradient(scorer.from_forward(self.objective, labels, passed))

    def _measure_gain(self, labels, passed, scores, weights, told, sampling) -> None:
        """Take this batch up in the averages of the gain's moments."""
        weights = tf.cast(weights, tf.float32)
        known = told is not None and told.importance is not None
        of_sampling = tf.cast(told.importance, tf.float32) if known else weights
        remembers = told is not None and told.memory is not None
        memory = told.memory if remembers else 1.0
        state = compat.value(self._gain_moments)
        due = tf.cast(self.optimizer.iterations, tf.int32) % _GAIN_EVERY == 0
        self._gain_moments.assign(
            tf.cond(
                due | tf.reduce_any(of_sampling != 1.0),
                lambda: self._averaged(
                    state, labels, passed, scores, weights, of_sampling, sampling, memory
                ),
                lambda: state,
            )
        )

    def _averaged(
        self,
        state: tf.Tensor,
        labels,
        passed: forward.Forward,
        scores: tf.Tensor,
        weights: tf.Tensor,
        of_sampling: tf.Tensor,
        sampling: gain.Sampling,
        memory: tf.Tensor | float,
    ) -> tf.Tensor:
        """The averages with this batch; without it, where it is not finite."""
        state = _if_of(sampling, state)
        sample_weights = tf.abs(tf.math.divide_no_nan(weights, of_sampling))
        squares = last_layer.gradient_squares(self.net, self.objective, labels, passed, weights)
        moments = gain.batch_moments(
            sample_weights * scores,
            sample_weights**2 * squares.per_example,
            of_sampling,
            squares.batch,
            sampling,
            _mean_score(state, of_sampling * sample_weights * scores, sampling.smoothing),
            memory,
        )
        missing = [0.0] * (_MOST_RATES - len(sampling.rates))
        newest = tf.concat(
            [
                [1.0, _mark(sampling)],
                tf.stack([*moments[:4], moments.remembered]),
                moments.rounding,
                missing,
            ],
            axis=0,
        )
        known = tf.reduce_all(tf.math.is_finite(newest))
        return tf.where(known, state + _GAIN_SMOOTHING * (newest - state), state)

    def _estimate(self, scores, weights, drawn: bool):
        """τ of this batch, NaN where its scores are unusable, and the largest weight."""
        weights = tf.ones_like(scores) if weights is None else tf.cast(weights, scores.dtype)
        sizes = tf.abs(weights)
        if drawn:
            scale = compat.value(self._mean_weight) if self._weights_have_scale else 1.0
            estimate = variance.estimated_batch_increase(scores, sizes, scale)
        else:
            scores *= sizes
            estimate = variance.estimated_batch_increase(scores, tf.ones_like(scores))
        known = proposals.usable(scores) & tf.math.is_finite(estimate) & (estimate > 0)
        return tf.where(known, estimate, float("nan")), tf.reduce_max(weights)

    def _gain(self, memory: tf.Tensor) -> tf.Tensor:
        """How much the newest value counts in a bias-corrected average; memory is a^k."""
        return (1 - self.tau_decay) / (1 - memory)

    def _updated_tau(self, tau, estimate):
        """τ ← τ + (1−a)/(1−a^k) (estimate − τ): the bias-corrected average, step k."""
        known = tf.math.is_finite(estimate)
        memory = compat.value(self._tau_memory)
        memory = tf.where(known, memory * self.tau_decay, memory)
        tau = tf.where(known, tau + self._gain(memory) * (estimate - tau), tau)
        self.tau.assign(tau)
        self._tau_memory.assign(memory)
        return tau

    def _updated_monitors(self, monitors, estimate, largest):
        total, steps, maximum, fallbacks = tf.unstack(monitors)
        known = tf.math.is_finite(estimate)
        # Small drawn batches can estimate a τ below 1, which no population has.
        fraction = tf.where(known, 1 / tf.maximum(estimate, 1.0) ** 2, 0.0)
        steps += tf.cast(known, tf.float32)
        largest = tf.maximum(maximum, largest)
        monitors = tf.stack([total + fraction, steps, largest, fallbacks])
        self._monitors.assign(monitors)
        return monitors

    def _logs(self, tau, monitors, data) -> dict[str, tf.Tensor]:
        total, steps, maximum, in_steps = tf.unstack(monitors)
        # The pipeline counts a batch before it hands it over: read the counts after that.
        batch = [part for part in tf.nest.flatten(data) if part is not None]
        with tf.control_dependencies(batch):
            counts = tf.identity(compat.value(self._counts))
        drawn, uniform, fallbacks = tf.unstack(counts)
        logs = {
            "tau": tau,
            "ess": tf.math.divide_no_nan(total, steps),
            "importance": tf.math.divide_no_nan(drawn, drawn + uniform),
            "max_weight": maximum,
            "fallbacks": fallbacks + in_steps,
        }
        if self.sampler is not None:
            logs |= self.sampler.logs()
        if processes.are_several(self.distribute_strategy):
            return logs
        return compat.logs_of_a_replica(logs)

    def _warn_of_batch_normalization(self) -> None:
        found = layers.ordinary_batch_normalizations(self.net)
        if found and not self._warned:
            self._warned = True
            names = ", ".join(layer.name for layer in found)
            warnings.warn(
                f"net {self.net.name!r} has ordinary batch normalization ({names}), which "
                "would learn the statistics of the drawn examples instead of the data's. "
                "Convert it first, weights kept: "
                "tfi.layers.weight_batch_normalization(net).",
                stacklevel=3,
            )


def _mean_score(state: tf.Tensor, weighted_scores: tf.Tensor, smoothing: float) -> tf.Tensor:
    """mean(Ĝ) of the gain's averages, this batch included."""
    before = state[4] / (1 + smoothing)
    total = before + _GAIN_SMOOTHING * (tf.reduce_mean(weighted_scores) - before)
    return total / (state[0] + _GAIN_SMOOTHING * (1 - state[0]))


def _mark(sampling: gain.Sampling | None) -> float:
    """A number that tells ways of drawing apart, whose moments must not be mixed."""
    if sampling is None:
        return 0.0
    return 1.0 + sum(rate * (i + 1) for i, rate in enumerate(sampling.rates)) + sampling.smoothing


def _if_of(sampling: gain.Sampling | None, state: tf.Tensor) -> tf.Tensor:
    """The averages of the gain's moments; none where they are of another way of drawing."""
    same = tf.abs(state[1] - _mark(sampling) * state[0]) <= 1e-4 * state[0]
    return tf.where(same, state, tf.zeros_like(state))
