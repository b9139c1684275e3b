"""What one training step does beside Keras's own: it draws where it is asked to, weights, and sees.

    weights ← those of the batch, times what a sampler's limits scale its losses by
    Keras's own weighted step
    τ ← the bias-corrected average of √mean(w Ĝ²) / mean(w Ĝ)
    one row into the sampler's journal

All of it reads the forward pass that Keras's step makes anyhow. Nothing is learned or decided here.
"""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import keras
import tensorflow as tf

from tf_importance import (
    batch_statistics,
    compat,
    draws,
    fresh,
    gain,
    graphs,
    layers,
    losses,
    processes,
    proposals,
    robust,
    variance,
)
from tf_importance.scorers import base, forward, last_layer
from tf_importance.scorers.upper_bound import of_a_pass, upper_bound

_current: contextvars.ContextVar[Step | None] = contextvars.ContextVar("step", default=None)


def current() -> Step | None:
    """The step that is being made, None between steps."""
    return _current.get()


class Monitors(NamedTuple):
    """What the steps of an epoch have seen, and the memory of τ's average, which no epoch ends.

    Attributes:
        ess: Σ 1/τ² over the steps. steps: how many had usable scores.
        max_weight: the largest.
        memory: a^k after k steps of τ's average.
    """

    ess: tf.Tensor
    steps: tf.Tensor
    max_weight: tf.Tensor
    memory: tf.Tensor


class Counts(NamedTuple):
    """What left the pipelines in an epoch.

    Attributes:
        drawn, uniform: batches. fallbacks: pre-samples that were used uniformly.
        before: the share of drawn ones in the latest epoch that had any. It is this epoch's too
            until a block is planned: one may be longer than an epoch.
    """

    drawn: tf.Tensor
    uniform: tf.Tensor
    fallbacks: tf.Tensor
    before: tf.Tensor

    def share(self) -> tf.Tensor:
        batches = self.drawn + self.uniform
        return tf.where(batches > 0, tf.math.divide_no_nan(self.drawn, batches), self.before)


class Batch(NamedTuple):
    """What a step trains on.

    Attributes:
        inputs, labels: nests of [b, …]. weights: [b], of the losses of the examples.
    """

    inputs: Any
    labels: Any
    weights: tf.Tensor


class Step:
    """One training step of an ISModel, while TensorFlow traces it.

    Args:
        model: the ISModel.
        data: a batch as the dataset has it.
        drawing: how the dataset is drawn (`marks.Drawing`), None for a plain one.
        class_weighted: whether Keras multiplies class weights into the weights.
    """

    def __init__(self, model, data, drawing, class_weighted: bool = False) -> None:
        self.model, self.drawing = model, drawing
        self.presample: fresh.Scored | None = None
        self.places: batch_statistics.Places | None = None
        self.is_group: tf.Tensor | None = None
        # [b] How often an example of the batch is expected among b draws from the pre-sample.
        self.counts: tf.Tensor | None = None
        if draws.is_group(data):
            data = self._drawn(data)
        self.data, told = draws.split(data)
        if told is not None and told.indices is not None and model.sampler is None:
            raise ValueError(
                f"the dataset is one of history_sample, and model {model.name!r} is compiled "
                "without its sampler, which would learn nothing; give "
                "model.compile(…, sampler=sampler)."
            )
        if told is None and model.sampler is not None and not model.sampler.num_examples:
            raise ValueError(
                f"the {type(model.sampler).__name__} that model {model.name!r} is compiled with "
                "has drawn no batch yet, and this one is plain: train by fit(x, y), or on the "
                "batches of history_sample; or compile without a sampler."
            )
        self.told = told
        _, self.labels, weights = keras.utils.unpack_x_y_sample_weight(self.data)
        by_example = isinstance(weights, tf.Tensor) and weights.shape.rank == 1
        self.weights: tf.Tensor | None = weights if by_example else None
        remembered = told is not None and told.indices is not None
        self.unbiased = self._unbiased()
        self.is_drawn = drawing is not None or remembered
        self.moves_logits = remembered and model.sampler.moves_logits
        self.has_scale = (
            class_weighted
            or (drawing is not None and drawing.sample_weighted)
            or (told is not None and told.importance is not None)
        )
        self.mean_weight = self._mean_weight()
        self.gain: tf.Tensor | None = None
        self.scores: tf.Tensor | None = None
        self.is_written_down = False

    def __call__(self, keras_step: Callable[[Any], dict]) -> dict[str, Any]:
        """Make Keras's step on the batch, and see what there is to see. Returns the logs."""
        self.gain = self._advance()
        with self._in_force(), layers.importance_weights(self._of_statistics()):
            with self._normalized(), forward.recorded() as passes:
                logs = keras_step(self.data)
        return {**logs, **self._seen(passes)}

    @contextlib.contextmanager
    def observed(self) -> Iterator[Batch]:
        """A step of somebody else's on the batch, within this context, is seen as Keras's is."""
        self.gain = self._advance()
        inputs, *_ = self.data
        weights = self.weights
        if weights is None:
            size = tf.shape(tf.nest.flatten(self.labels)[0])[:1]
            weights = tf.ones(size)
        with self._in_force(), layers.importance_weights(self._of_statistics()):
            with self._normalized(), forward.recorded() as passes:
                yield Batch(inputs, self.labels, weights)
                if not self.is_written_down:
                    self._written_down(inputs, self.labels, weights)
        self._seen(passes)

    @contextlib.contextmanager
    def _in_force(self) -> Iterator[None]:
        token = _current.set(self)
        try:
            yield
        finally:
            _current.reset(token)

    # Before Keras's step --------------------------------------------------------------------

    def _drawn(self, data: tuple) -> tuple:
        """A batch of b from a group of B; one that has b already as it is."""
        way = self.drawing.fresh if self.drawing is not None else None
        if way is None:
            raise ValueError(
                "the steps are to score the examples of this dataset, and nothing says how. Train "
                f"model {self.model.name!r} on the dataset itself, or on what tf.data made of it."
            )
        inputs, labels, told = data
        told = dict(told)
        seed, weights = told.pop("seed")[0], told["weight"]
        group = fresh.Group((inputs, told), labels, weights, told.get("importance", weights))

        def drawn():
            scored = way.scored(group._replace(inputs=inputs))
            batch, positions = way.drawn_or_first(group, scored, seed)
            if self.drawing.unusable is not None:
                self._tell_unusable(numbered, scored.usable)
            counts = way.batch_size * tf.gather(scored.proposal, positions)
            return batch, scored, counts

        def as_it_is():
            cut = tf.nest.map_structure(lambda part: part[: way.batch_size], group)
            # As many scores as there are, though they are b here: XLA compiles both ways for
            # each size.
            nothing = tf.zeros_like(weights)
            statistics = tf.zeros([batch_statistics.size(places)])
            # As many as of B equal ones.
            counts = tf.fill([way.batch_size], way.batch_size / (self.drawing.row_size or 1))
            return cut, fresh.Scored(nothing, nothing, tf.constant(True), statistics), counts

        self.places = places = batch_statistics.places(self.model, inputs)
        self.is_group = tf.shape(weights)[0] > way.batch_size
        remembers = self.drawing.sampler is not None
        if not remembers:
            # A stream's pre-sample may be no larger than a batch, and a batch as large as that.
            numbered, self.is_group, seed = seed, seed[1] > 0, tf.stack([seed[0], 0])
        always = (weights.shape[0] or 0) > way.batch_size or self.drawing.row_size == way.batch_size
        if remembers and always:
            self.is_group = tf.constant(True)
            batch, self.presample, self.counts = drawn()
        else:
            batch, self.presample, self.counts = tf.cond(
                self.is_group, lambda: graphs.apart(drawn), as_it_is
            )
        for part in tf.nest.flatten(batch):
            # What is known of both ways costs the step nothing.
            part.set_shape([way.batch_size, *part.shape[1:]])
        inputs, of_batch = batch.inputs
        of_batch = {**of_batch, "weight": batch.weights}
        if "importance" in told:
            of_batch["importance"] = batch.importance
        if "gain" in told:
            of_batch["gain"] = tf.where(self.presample.usable, of_batch["gain"], 1.0)
        return inputs, batch.labels, of_batch

    def _tell_unusable(self, seed: tf.Tensor, usable: tf.Tensor) -> None:
        """For the pipeline, whether this pre-sample could not be drawn from.

        Args:
            seed: [2] of the pre-sample: its group's number, plus its place there; that place, from
                1 on.
        """
        seed, told = tf.cast(seed, tf.int64), self.drawing.unusable
        here = tf.equal(tf.range(told.shape[0], dtype=tf.int64), seed[1] - 1) & ~usable
        told.assign(tf.where(here, seed[0] - (seed[1] - 1), told))

    def _advance(self) -> tf.Tensor | None:
        """Begin a step of a learning rate that follows the gain; the gain of the batch."""
        told, schedule = self.told, self.model.schedule
        ratio = None
        if told is not None and told.gain is not None:
            ratio = tf.reduce_mean(told.gain)
        if schedule is not None:
            schedule.advance(1.0 if ratio is None else ratio)
        return ratio

    def _unbiased(self) -> tf.Tensor | None:
        """[b] importance weights 1/(n p_i); None where the sampler's own are these."""
        told, sampler = self.told, self.model.sampler
        if told is None or told.memory is None or sampler is None or not sampler.is_biased:
            return None
        if self.counts is None:
            return told.memory
        way = self.drawing.fresh
        return told.memory * way.batch_size / (self.drawing.row_size * self.counts)

    def _mean_weight(self) -> tf.Tensor | None:
        """E|w| where it is not 1, by a bias-corrected average as τ's, this batch included."""
        if not (self.is_drawn and self.has_scale) or self.weights is None:
            return None
        memory = Monitors(*tf.unstack(compat.value(self.model.monitors))).memory
        mean = compat.value(self.model.mean_weight)
        batch = tf.reduce_mean(tf.abs(tf.cast(self._unbiased_weights(), tf.float32)))
        mean += self._share(memory * self.model.tau_decay) * (batch - mean)
        self.model.mean_weight.assign(mean)
        return mean

    def _of_statistics(self) -> tf.Tensor | None:
        """Weights of expectation 1, for batch normalization and metrics; None for plain batches."""
        weights = self._unbiased_weights()
        if not self.is_drawn or self.mean_weight is None:
            return weights if self.is_drawn else None
        return tf.math.divide_no_nan(weights, self.mean_weight)

    @property
    def may_draw(self) -> bool:
        """Whether batches like this one are drawn, now or later."""
        switch = self.drawing.switch if self.drawing is not None else None
        return switch is None or switch.may_draw

    def weights_of_metrics(self) -> tuple[tf.Tensor, Any]:
        """Those of `metrics`, [b], and of `weighted_metrics`: a user's are in the latter alone.

        Where both are one number for each example, as with class weights, both have it.
        """
        both, told = self._of_statistics(), self.told
        if told is None or told.importance is None:
            return both, both
        drawn = told.importance if self.unbiased is None else self.unbiased
        if told.elements is None:
            own = tf.math.divide_no_nan(self.weights, told.importance)
            return drawn, drawn * tf.cast(own, drawn.dtype)
        return drawn, tf.nest.map_structure(
            lambda part: compat.for_inner_axes(drawn, part.shape.rank) * tf.cast(part, drawn.dtype),
            told.elements,
        )

    def _unbiased_weights(self) -> tf.Tensor | None:
        """The weights, with 1/(n p_i) in the place of a sampler's own."""
        told, weights = self.told, self.weights
        if self.unbiased is None or told is None or weights is None:
            return weights
        own = told.weight if told.importance is None else told.importance
        return weights * tf.math.divide_no_nan(self.unbiased, own)

    def _normalized(self):
        """Whose statistics batch normalization uses for this batch."""
        weights, told = self._of_statistics(), self.told
        if not self.is_drawn or weights is None:
            return contextlib.nullcontext()
        places = self.places
        if places is None:
            places = batch_statistics.places(self.model, self.data[0])
        if not places:
            return contextlib.nullcontext()
        if told is not None and told.importance is not None:
            weights = told.importance if self.unbiased is None else self.unbiased
        given = None
        if self.presample is not None:
            there = self.is_group
            given = batch_statistics.Given(places, self.presample.statistics, there, True)
        elif told is not None and told.statistics is not None:
            there, packed = told.statistics[0, 0] > 0, told.statistics[0, 1:]
            given = batch_statistics.Given(places, packed, there, False)
        by_average = self.drawing is not None and self.drawing.averages_statistics
        if told is not None and told.indices is not None:
            by_average = self.model.sampler.averages_statistics
        averages = self.model.statistics
        return batch_statistics.Training(weights, given, averages, by_average).in_force()

    # Between the forward and the backward pass ----------------------------------------------

    def outputs_of_loss(self, outputs):
        """The net's outputs, or the logits that a sampler moves: what losses and scores are of."""
        if not self.moves_logits:
            return outputs
        if self.model.schedule is not None:
            raise ValueError(
                "the gain is that of weighted batches, and correction='log_odds' has no weights; "
                "give a learning rate that does not follow it, or correction='weights'."
            )
        shift = self.model.sampler.logit_shift(self.model.objective.loss, outputs)
        return forward.moved(tf.cast(shift, outputs.dtype))

    def weights_of_loss(self, inputs, labels, outputs, weights: tf.Tensor):
        """What the losses are weighted by: [b], or a nest of [b, 1, …] like the outputs.

        Args:
            inputs, labels, outputs: nests of [b, …].
            weights: [b] as Keras has them, class weights included.
        """
        if self.moves_logits and self.told is not None:
            # What is left of them is the user's.
            drawn = self.told.weight if self.told.importance is None else self.told.importance
            weights = tf.math.divide_no_nan(weights, tf.cast(drawn, weights.dtype))
        weights = self._written_down(inputs, labels, weights)
        objective = self.model.objective
        mean_weight = None
        if self.is_drawn:
            mean_weight = tf.constant(1.0) if self.mean_weight is None else self.mean_weight
        if self.told is None or self.told.elements is None:
            return losses.weights_if_scorable(objective, labels, outputs, weights, mean_weight)
        own = tf.math.divide_no_nan(self.told.importance, self.told.weight)
        by_output = losses.weights_by_output(
            objective, labels, outputs, weights * tf.cast(own, weights.dtype), mean_weight
        )
        return losses.times_elements(by_output, self.told.elements, objective.output_names)

    def _written_down(self, inputs, labels, weights: tf.Tensor) -> tf.Tensor:
        """One row in the sampler's journal; the weights, scaled where the sampler limits scores."""
        told, passed = self.told, forward.latest()
        if told is None or told.row is None or passed is None:
            return weights
        self.is_written_down = True
        scores = tf.stop_gradient(self._own_scores(inputs, labels, passed))
        drawn, factors = told.weight, None
        if told.importance is not None:
            drawn = told.importance
            factors = tf.abs(tf.math.divide_no_nan(told.weight, drawn))
            scores *= factors
        if told.limit is not None:
            scales = tf.stop_gradient(robust.limited(scores, told.limit))
            weights *= tf.cast(scales, weights.dtype)
            factors = scales if factors is None else factors * scales
        squares = self._squares(labels, passed, tf.cast(weights, tf.float32))
        of_each = squares.per_example if factors is None else squares.per_example * factors**2
        unbiased, batch_square = drawn, squares.batch
        if self.unbiased is not None:
            unbiased = self.unbiased
            fully = weights * tf.math.divide_no_nan(unbiased, drawn)
            batch_square = self._squares(labels, passed, tf.cast(fully, tf.float32)).batch
        presampled, replicas = self._presampled(), _replicas()
        of_uniform = gain.uniform_square_by(of_each, unbiased, batch_square, presampled, replicas)
        of_drawn = squares.batch
        if replicas > 1:
            mean_square = gain.mean_square_by(of_each, drawn, of_drawn, presampled)
            of_drawn = gain.joint_square(of_drawn, mean_square, replicas)
        sampler = self.model.sampler
        mean = tf.reduce_mean(drawn) if sampler.is_normalized else tf.constant(1.0)
        sampler.journal.write(told.row[0], self._of_row(scores), [of_uniform, of_drawn, mean])
        return weights

    def _presampled(self) -> gain.Presampled | None:
        """How the batch was drawn from a pre-sample; None where the step drew none."""
        told, counts = self.told, self.counts
        if counts is None or told is None:
            return None
        way, weights = self.drawing.fresh, self.unbiased
        if weights is None:
            weights = told.weight if told.importance is None else told.importance
        fractions = counts - tf.floor(counts)
        variances = tf.math.divide_no_nan(fractions * (1 - fractions), counts)
        if way.resample is not proposals.systematic:
            variances = tf.ones_like(counts)
        size = self.drawing.row_size
        return gain.Presampled(size, weights * size / way.batch_size * counts, variances)

    def _of_row(self, scores: tf.Tensor) -> tf.Tensor:
        """The scores of a row: the batch's, or those of the pre-sample that it was drawn from."""
        if self.presample is None:
            return scores
        width, of_all = self.drawing.row_size, self.presample.scores
        scores = tf.cond(self.is_group, lambda: of_all, lambda: scores)
        return tf.ensure_shape(tf.pad(scores, [[0, width - tf.shape(scores)[0]]]), [width])

    def _own_scores(self, inputs, labels, passed: forward.Forward) -> tf.Tensor:
        """[b] by the model's scorer; once, where it reads the step's pass."""
        model = self.model
        if isinstance(model.scorer, base.OutputScorer):
            return self._scores_of_pass(labels, passed)
        # A pass of its own, which must not be taken for the step's.
        with forward.recorded():
            return tf.cast(model.scorer(model, inputs, labels), tf.float32)

    def _scores_of_pass(self, labels, passed: forward.Forward) -> tf.Tensor:
        if self.scores is None:
            scorer = of_a_pass(self.model.scorer)
            scores = scorer.from_forward(self.model.objective, labels, passed)
            self.scores = tf.stop_gradient(scores)
        return self.scores

    def _squares(self, labels, passed: forward.Forward, weights) -> last_layer.GradientSquares:
        return last_layer.gradient_squares(
            self.model.net, self.model.objective, labels, passed, weights
        )

    # After Keras's step ---------------------------------------------------------------------

    def _seen(self, passes: list[forward.Forward]) -> dict[str, tf.Tensor]:
        """τ and the monitors, brought up to date; what they say, for the logs."""
        model = self.model
        tau = compat.value(model.tau)
        monitors = Monitors(*tf.unstack(compat.value(model.monitors)))
        if self.presample is not None:
            self._count(tf.cast(~self.presample.usable, tf.float32))
        if model.objective.loss is not None and passes:
            try:
                scores = self._scores_of_pass(self.labels, passes[-1])
                self._measure(passes[-1], scores)
                self._tell_strata(scores)
            except losses.Unscorable:
                # Keras trains on such a loss; importance sampling was refused at its start.
                if self.is_drawn:
                    raise
            else:
                tau, monitors = self._updated(tau, monitors, scores)
                model.tau.assign(tau)
        model.monitors.assign(tf.stack(monitors))
        return self._logs(tau, monitors)

    def _count(self, unusable: tf.Tensor) -> None:
        """What became of this batch; a memory's pipeline has counted it as drawn.

        Args:
            unusable: 1 for a pre-sample whose scores are none, else 0.
        """
        drawn, uniform = -unusable, unusable
        if self.drawing.sampler is None:
            drawn = tf.cast(self.is_group, tf.float32) - unusable
            uniform = 1 - drawn
        self.model.count(drawn=drawn, uniform=uniform, fallbacks=unusable)

    @property
    def _of_strata(self) -> tf.Tensor | None:
        """[b] what strata weigh the examples by; None without strata."""
        told = self.told
        return None if told is None or told.stratum is None else told.memory

    def _tell_strata(self, scores: tf.Tensor) -> None:
        """Of each stratum, what scores its examples have: by these its share is learned."""
        told, of_strata = self.told, self._of_strata
        if told is None or told.stratum is None or of_strata is None:
            return
        importance = told.weight if told.importance is None else told.importance
        sizes = tf.math.divide_no_nan(importance, of_strata)
        rows = (part[tf.newaxis] for part in (told.stratum, scores, sizes))
        with self._behind_the_pipeline():
            self.drawing.reservoirs.scores.take_up(*rows)

    def _estimate(self, scores: tf.Tensor) -> tf.Tensor:
        """τ of this batch, NaN where its scores are unusable.

        Of drawn batches with weights the importance-weighted estimate; else that of the scores as
        they are, times a user's weights. With strata it is τ of what they give, by which a
        pre-sample of theirs is to be judged.
        """
        sizes = self._unbiased_weights()
        of_strata = self._of_strata
        if of_strata is not None:
            scores, sizes = scores * of_strata, tf.math.divide_no_nan(sizes, of_strata)
        if sizes is not None and (self.has_scale or not self.is_drawn):
            sizes = tf.abs(sizes)
        if sizes is not None and not self.is_drawn:
            scores, sizes = scores * tf.cast(sizes, scores.dtype), None
        estimate = variance.estimated_batch_increase(scores, sizes, self.mean_weight)
        # Of scores that are all 0, or one of which is not finite, it is not finite.
        if of_a_pass(self.model.scorer) is upper_bound:
            return estimate  # Norms are not negative.
        return tf.where(tf.reduce_min(scores) >= 0, estimate, float("nan"))

    def _updated(
        self, tau: tf.Tensor, monitors: Monitors, scores: tf.Tensor
    ) -> tuple[tf.Tensor, Monitors]:
        """τ ← τ + (1−a)/(1−a^k) (estimate − τ), step k; unusable scores leave it alone."""
        estimate = self._estimate(scores)
        known = tf.math.is_finite(estimate)
        memory = monitors.memory * tf.where(known, self.model.tau_decay, 1.0)
        tau = tf.where(known, tau + self._share(memory) * (estimate - tau), tau)
        # Small drawn batches can estimate a τ below 1, which no population has.
        fraction = tf.where(known, 1 / tf.maximum(estimate, 1.0) ** 2, 0.0)
        largest = 1.0 if self.weights is None else tf.reduce_max(self.weights)
        return tau, Monitors(
            ess=monitors.ess + fraction,
            steps=monitors.steps + tf.cast(known, tf.float32),
            max_weight=tf.maximum(monitors.max_weight, tf.cast(largest, tf.float32)),
            memory=memory,
        )

    def _share(self, memory: tf.Tensor) -> tf.Tensor:
        """How much the newest value counts in a bias-corrected average; memory is a^k."""
        return (1 - self.model.tau_decay) / (1 - memory)

    def _measure(self, passed: forward.Forward, scores: tf.Tensor) -> None:
        """Take this batch up in the averages of the gain's moments, where somebody asks."""
        meter = self.drawing.meter if self.drawing is not None else None
        if meter is None or self.weights is None:
            return
        told, weights = self.told, tf.cast(self.weights, tf.float32)
        importance = weights
        if told is not None and told.importance is not None:
            importance = tf.cast(told.importance, tf.float32)
        memory = told.memory if told is not None and told.memory is not None else 1.0

        def moments(mean_score) -> tuple[gain.Moments, tf.Tensor]:
            sample_weights = tf.abs(tf.math.divide_no_nan(weights, importance))
            squares = self._squares(self.labels, passed, weights)
            found = gain.batch_moments(
                sample_weights * scores,
                sample_weights**2 * squares.per_example,
                importance,
                squares.batch,
                meter.sampling,
                mean_score(importance * sample_weights * scores),
                memory,
            )
            return found, squares.batch

        undrawn = 1.0 if self._of_strata is None else memory
        if self.is_group is not None and self.drawing.sampler is None:
            drawn = self.is_group
        else:
            # A memory draws batches that are no groups.
            drawn = tf.reduce_any(importance != undrawn)
            drawn = drawn if self.is_group is None else drawn | self.is_group
        meter.measure(self.model.optimizer.iterations, drawn, moments)

    def _behind_the_pipeline(self):
        """Variables that the pipeline writes are read after it has handed over the batch."""
        batch = [part for part in tf.nest.flatten(self.data) if part is not None]
        return tf.control_dependencies(batch)

    def _logs(self, tau: tf.Tensor, monitors: Monitors) -> dict[str, tf.Tensor]:
        with self._behind_the_pipeline():
            counts = Counts(*tf.unstack(tf.identity(compat.value(self.model.counts))))
            of_the_pipeline: dict[str, tf.Tensor] = {}
            if self.model.sampler is not None:
                of_the_pipeline |= self.model.sampler.logs()
            if self._of_strata is not None:
                of_the_pipeline["rare_share"] = tf.identity(self.drawing.reservoirs.rare_share)
        logs = {
            "tau": tau,
            "ess": tf.math.divide_no_nan(monitors.ess, monitors.steps),
            "importance": counts.share(),
            "max_weight": monitors.max_weight,
            "fallbacks": counts.fallbacks,
            **of_the_pipeline,
        }
        if self.gain is not None:
            logs["gain"] = self.gain
        if processes.are_several(self.model.distribute_strategy):
            return logs
        return compat.logs_of_a_replica(logs)


def _replicas() -> int:
    """R, of whose gradients a step takes the mean."""
    return tf.distribute.get_strategy().num_replicas_in_sync
