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
    batch_statistics,
    compat,
    datasets,
    draws,
    fitting,
    fresh,
    gain,
    layers,
    losses,
    metrics,
    processes,
    samplers,
    schedules,
    scorers,
)
from tf_importance import step as steps
from tf_importance.arguments import named, number
from tf_importance.meter import Meter
from tf_importance.samplers import state
from tf_importance.scorers import forward

_SCORER_PREFIX = "tfi.scorers."


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


# What an ISModel does itself, and would not ask the net for.
_OWN = ("train_step", "test_step", "compute_loss", "compute_metrics")


def _refuse_own_methods(net: keras.Model) -> None:
    """Raises: ValueError: the net has a training of its own, which would not be called."""
    for name in _OWN:
        kind = compat.definer(type(net), name)
        if not kind.__module__.startswith(("keras.", "tensorflow.")):
            raise ValueError(
                f"net {net.name!r} of class {kind.__name__} has a {name} of its own, which an "
                "ISModel would not call: it makes Keras's step, weighted. Give the loss and the "
                "metrics to compile, by example, and ISModel a net without that method; or draw "
                "in a training loop of your own."
            )


@keras.saving.register_keras_serializable(package="tf_importance")
class ISModel(keras.Model):
    """A net trained by importance sampling; otherwise the net's plain Keras model.

        model = tfi.ISModel(net)
        model.compile("sgd", loss)
        model.fit(dataset.apply(tfi.importance_sample(model)))     # by fresh scores, or
        model.compile("sgd", loss, sampler=tfi.samplers.RAIS())
        model.fit(x, y)                                            # by remembered ones

    A training step is Keras's own, weighted; then τ, the factor by which importance sampling would
    raise the effective batch size, is updated from the scores of the step's forward pass:

        τ ← the bias-corrected average of √mean(w Ĝ²) / mean(w Ĝ)

    which for w = 1 is line 17 of Algorithm 1 (Katharopoulos & Fleuret 2018), and for drawn
    batches its importance-weighted estimate. The average is bias-corrected: after k steps
    the estimate of step j weighs a^(k−j) (1−a)/(1−a^k), so τ starts at the first estimate
    and not near zero. A batch whose scores are unusable leaves τ alone.

    How a dataset's batches are drawn is found at the dataset, or in the batch: each trains as it
    was asked to, and a plain one exactly as the net would. The training logs add `tau`; `ess`, the
    effective sample size as a fraction, mean of 1/τ² of the steps; `importance`, the share of drawn
    among the batches that left the pipeline; `max_weight`, under a strategy its mean over the
    replicas; `fallbacks`, the number of pre-samples used uniformly because their scores were
    unusable; and, where it is known, `gain`, the gain ratio of the batch. All but `tau` and `gain`
    start anew with every epoch, `importance` once batches have left the pipeline in it. With a
    progress bar `fit` ends by a line that says how much was drawn; where nothing was, a warning
    says why.

    Under importance sampling `metrics` as well as `weighted_metrics` are weighted during
    training, so both estimate what uniform sampling would show: as in Keras, sample weights count
    in the latter only. Evaluation is plain Keras.

    A `tf.train.Checkpoint` of the model holds the states of its sampler, its switch and its
    learning rate; a weights file those of the sampler and the learning rate, where it is loaded
    into a model compiled with a sampler for as many examples.

    Args:
        net: any keras.Model, built or not. It stays usable by itself, with the same weights.
        scorer: what τ is measured with and `importance_sample` scores with by default. In
            the step an `OutputScorer` reads the step's own forward pass; for any other,
            which would need passes of its own, `upper_bound` stands in.
        tau_decay: a in [0, 1), the decay of τ's average (a_τ in Algorithm 1).
        adapt_batch_normalization: whether the net's batch normalization is to use the data's
            statistics where examples are drawn (`tfi.layers.adapt_batch_normalization`).
    Attributes:
        tau: variable, the bias-corrected τ; 0 before the first step.
        datasets: those that were made for it, and which of them its steps are on.
        sampler: the one it is compiled with, or None.
        schedule: its learning rate, where that follows the gain; else None.
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
        adapt_batch_normalization: bool = True,
        **kwargs,
    ) -> None:
        if not isinstance(net, keras.Model) or isinstance(net, ISModel):
            raise TypeError(
                f"net must be a keras.Model and not an ISModel; got {named(net)}. Give the plain "
                "net: of an ISModel it is model.net."
            )
        fresh.check_scorer(scorer)
        tau_decay = number("tau_decay", tau_decay, "in [0, 1)", lambda decay: 0 <= decay < 1)
        kwargs.setdefault("name", f"importance_{net.name}")
        # Not the global policy: the net keeps its own, and its loss scaling.
        kwargs.setdefault("dtype", net.dtype_policy)
        super().__init__(**kwargs)
        _refuse_own_methods(net)
        self.net = net
        self.scorer = scorer
        self.tau_decay = tau_decay
        self.objective = losses.Objective(None)
        names = getattr(net, "output_names", None)
        if names:
            self.output_names = names
        # Added as weights: a plain tf.Variable is not saved by Keras 3. Few and small: every
        # variable that a step reads costs as much as a small layer.
        self.tau = self._state("tau", [])
        # E[w], which is 1 unless sample or class weights are multiplied into the weights.
        self.mean_weight = self._state("mean_weight", [], 1.0)
        self.counts = self._state("counts", [4])
        self.monitors = self._state("monitors", [4], steps.Monitors(0.0, 0.0, 0.0, memory=1.0))
        compat.untracked(self, "datasets", datasets.Datasets(self))
        compat.untracked(self, "_meters", {})
        for name in ("sampler", "schedule"):
            compat.track(self, name, None)
        compat.track(self, "statistics", batch_statistics.Averages())
        compat.untracked(self, "_adapts", adapt_batch_normalization)
        compat.untracked(self, "_warned", False)
        self.adapt_batch_normalization()
        # A net that has its weights is a model that has them: they can be loaded.
        self.built = net.built

    def _state(self, name: str, shape: list[int], initial: float | tuple = 0.0):
        return self.add_weight(
            name=name,
            shape=shape,
            dtype="float32",
            initializer=lambda shape, **_: tf.broadcast_to(tf.constant(initial), shape),
            trainable=False,
            aggregation=compat.MEAN_OVER_REPLICAS,
        )

    # Training -----------------------------------------------------------------------------

    @_signed_as(keras.Model.compile)
    def compile(self, *args, sampler: samplers.Sampler | None = None, **kwargs):
        """As `keras.Model.compile`.

        Args:
            sampler: of `tfi.samplers`; draws what `fit` gets, or a `history_sample`.
        Raises:
            TypeError: sampler is none.
            ValueError: a loss divides by the sum of the weights (reduction
                "mean_with_sample_weight"), which biases importance sampling; or a sampler
                that serves one replica, under a strategy of several.
        """
        given = _arguments(keras.Model.compile, self, *args, **kwargs)
        losses.refuse_biased_reductions(given["loss"])
        super().compile(*args, **kwargs)
        names = getattr(self.net, "output_names", None)
        self.objective = losses.Objective(given["loss"], given["loss_weights"], names)
        strategy = self.distribute_strategy
        here = processes.replicas_here(strategy)
        samplers.check(sampler, here, strategy.num_replicas_in_sync)
        if sampler is not None:
            sampler.bind(self)
        compat.track(self, "sampler", sampler)
        compat.track(self, "schedule", schedules.followed_by(self, self.optimizer))

    def compile_from_config(self, config) -> None:
        """Compile as a saved model was; Keras does so only for its own `compile`."""
        self.compile(**keras.saving.deserialize_keras_object(config))
        if self.optimizer is not None and self.built:
            self.optimizer.build(self.trainable_variables)

    @_signed_as(keras.Model.fit)
    def fit(self, *args, **kwargs):
        """As `keras.Model.fit`; see `tf_importance.fitting` for what differs.

        Without steps_per_epoch an epoch is one pass over the dataset, however many batches
        importance sampling makes of it.

        Raises:
            TypeError, ValueError: the data are not this model's, or cannot be drawn as it is asked.
        """
        given = _arguments(keras.Model.fit, self, *args, **kwargs)
        return fitting.fit(self, super().fit, given)

    def make_train_function(self, force=False):
        self.datasets.refuse_several()
        if self.train_function is None or force:
            super().make_train_function(force)
            compat.make_train_function_direct(self)
        return self.train_function

    def train_step(self, data):
        """A Keras training step, then τ from the same forward pass: `tf_importance.step`.

        Raises:
            ValueError: in a loop of one's own, where the model's datasets are drawn differently.
        """
        self.datasets.refuse_several()
        return steps.Step(self, data, *self.datasets.expected)(super().train_step)

    def observe(self, data) -> contextlib.AbstractContextManager[steps.Batch]:
        """For a training loop of one's own: what this model's pipelines must know of a step.

            for batch in batches:
                with tf.GradientTape() as tape, model.observe(batch) as (x, y, weights):
                    loss = tf.reduce_mean(weights * losses_of(y, model(x, training=True)))
                optimizer.apply(tape.gradient(loss, model.trainable_variables), …)

        From the pass that is made within, τ, the gain and the memory of a sampler are brought up to
        date, as by `fit`, and a learning rate that follows the gain moves on; where the step is to
        score, it draws. One pass of the model for each batch. A `compute_loss(x, y, outputs,
        weights)` of this model within also scales losses down where a sampler has limits.

        Args:
            data: a batch as the dataset has it.
        Returns:
            A context of (x, y, weights), weights [b].
        Raises:
            ValueError: the model's datasets are drawn differently, or its sampler needs `fit`.
        """
        self.datasets.refuse_several()
        if self.sampler is not None and self.sampler.follows_training:
            raise ValueError(
                f"a {type(self.sampler).__name__} exchanges scores in `fit` only; train by fit."
            )
        return steps.Step(self, data, *self.datasets.expected).observed()

    def test_step(self, data):
        """A Keras evaluation step; batches of `history_sample` count by their weights."""
        return super().test_step(draws.split(data)[0])

    def call(self, inputs, training=None):
        """The net's outputs; `training` reaches the net through Keras's call context."""
        return forward.run(self.net, inputs, training)

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        # Keras 3 builds a model by a look at a whole batch.
        weights, step = draws.weight_of(sample_weight), steps.current()
        if isinstance(weights, tf.Tensor) and weights.shape.rank == 1:
            if step is None:
                drawn = layers.current_weights() is not None
                mean = compat.value(self.mean_weight) if drawn else None
                weights = losses.weights_if_scorable(self.objective, y, y_pred, weights, mean)
            else:
                y_pred = step.outputs_of_loss(y_pred)
                weights = step.weights_of_loss(x, y, y_pred, weights)
        kwargs = {"training": training} if compat.COMPUTE_LOSS_TAKES_TRAINING else {}
        return super().compute_loss(x, y, y_pred, weights, **kwargs)

    def compute_metrics(self, x, y, y_pred, sample_weight=None):
        step = steps.current()
        if step is None or layers.current_weights() is None:
            sample_weight = draws.weight_of(sample_weight)
            return super().compute_metrics(x, y, y_pred, sample_weight)
        metrics.update(self, y, y_pred, *step.weights_of_metrics(), step.may_draw)
        return self.get_metrics_result()

    def reset_metrics(self) -> None:
        super().reset_metrics()
        latest = steps.Counts(*tf.unstack(compat.value(self.counts)))
        self.counts.assign(tf.stack(steps.Counts(0.0, 0.0, 0.0, latest.share())))
        memory = steps.Monitors(*tf.unstack(compat.value(self.monitors))).memory
        self.monitors.assign(tf.stack(steps.Monitors(0.0, 0.0, 0.0, memory)))

    @_signed_as(keras.Model.summary)
    def summary(self, *args, **kwargs) -> None:
        """The net's, and what importance sampling keeps beside it, by name."""
        given = _arguments(keras.Model.summary, self, *args, **kwargs)
        self.net.summary(*args, **kwargs)
        kept = "tau, mean_weight, counts, monitors"
        lines = [f"Importance sampling of {self.name!r}: {kept} (10 numbers, not trained)"]
        if self.sampler is not None:
            lines.append(f"Sampler: {self.sampler!r}")
        if self.schedule is not None:
            lines.append(f"Learning rate: {self.schedule!r}")
        for line in lines:
            (given["print_fn"] or print)(line)

    # What datasets and samplers ask of it ---------------------------------------------------

    def meter_of(self, sampling: gain.Sampling) -> Meter:
        """What averages the moments of this model's gradients for a way of drawing."""
        if sampling not in self._meters:
            with self.distribute_strategy.scope():
                self._meters[sampling] = Meter(sampling)
        return self._meters[sampling]

    def count(self, drawn=0.0, uniform=0.0, fallbacks=0.0) -> None:
        """Add to the epoch's numbers of drawn and uniform batches, and of fallbacks.

        Pipelines call it as batches leave, and steps that draw.
        """
        # The variable itself, since Keras 3 adds by a reading and a writing, which may be apart.
        counts = compat.tensorflow_variable(self.counts)
        counts.assign_add(tf.stack([drawn, uniform, fallbacks, 0.0]))

    def adapt_batch_normalization(self) -> None:
        """Convert the layers that the net has by now, and say so; or warn of them once."""
        if not self._adapts:
            layers.inline_calls(self.net)
            compat.untracked(self, "_warned", self._warned or layers.warned_of_ordinary(self.net))
            return
        found = layers.adapted(self.net)
        if found:
            layers.told_of_adapted(self.net, found)

    @property
    def follows_gain(self) -> bool:
        """Whether the learning rate is one that follows the gain (`tfi.schedules`)."""
        return self.schedule is not None

    def largest_gain(self) -> tf.Tensor:
        """The gain ratio that the learning rate can follow in the coming step."""
        return tf.constant(1e6) if self.schedule is None else self.schedule.largest_gain()

    # Files --------------------------------------------------------------------------------

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
            "adapt_batch_normalization": self._adapts,
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

    def save(self, filepath, *args, **kwargs):
        """Keras's own, but for HDF5, whose format has no place for a net in a model.

        Raises:
            ValueError: the file is one of HDF5.
        """
        if str(filepath).endswith((".h5", ".hdf5")) or kwargs.get("save_format") == "h5":
            raise ValueError(
                f"an ISModel is not saved as HDF5; got {filepath}. Save it as .keras, or its net "
                "alone, model.net.save(…), which is a plain Keras model."
            )
        return super().save(filepath, *args, **kwargs)

    def build_from_config(self, config) -> None:
        """The net is built by its own config; there is nothing else to build."""
        if self.net.built:
            self.built = True
        else:
            super().build_from_config(config)

    def save_own_variables(self, store) -> None:
        """τ and counters, and the state of the sampler and of the schedule if there are any."""
        super().save_own_variables(store)
        state.save(self._remembered(), store)

    def load_own_variables(self, store) -> None:
        """The inverse; warns of a sampler's state in the file where there is no sampler.

        One that does not know yet for how many examples it is gets it once it does.

        Raises:
            ValueError: the sampler is another one.
        """
        super().load_own_variables(state.without(store))
        state.load(self._remembered(), store)
        sampler = self.sampler
        later = {} if "sampler" in self._remembered() else state.of("sampler", store)
        if sampler is not None and later:
            sampler.restore_by(lambda: state.load({"sampler": sampler}, later))
        elif later and getattr(self, "optimizer", None) is not None:  # Loaded to be trained.
            warnings.warn(
                "the file holds the state of a sampler, and this model has no sampler, so that fit "
                "draws nothing. To go on as it was: model.compile(model.optimizer, model.loss, "
                "sampler=...) with such a sampler, then model.load_weights(file).",
                stacklevel=2,
            )

    def _remembered(self) -> dict[str, tf.Module]:
        """What is neither net nor optimizer and belongs into a resumed training, by name."""
        sampler = self.sampler if self.sampler is not None and self.sampler.num_examples else None
        modules = {"sampler": sampler, "schedule": self.schedule}
        return {name: module for name, module in modules.items() if module is not None}
