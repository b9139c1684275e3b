"""The fresh way: score examples by the net as it is, smooth, draw, gather, weight.

One way for whoever draws: the pipeline from a pre-sample of its stream, and the training step from
one that is handed to it whole.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import keras
import tensorflow as tf

from tf_importance import batch_statistics, compat, graphs, proposals, scorers
from tf_importance.arguments import meant, named, one_of
from tf_importance.scorers import base, forward


class Group(NamedTuple):
    """A pre-sample, or batches of it stacked: nests of [B, …] or [k, b, …].

    Attributes:
        inputs, labels: nests.
        weights: what the loss is weighted by: a user's sample weights times `importance`.
        importance: the part of them that sampling has multiplied into them, 1 unless drawn.
    """

    inputs: Any
    labels: Any
    weights: tf.Tensor
    importance: tf.Tensor

    @property
    def size(self) -> tf.Tensor:
        """Number of examples."""
        return tf.shape(self.importance)[0]


def sizes(tensor: tf.Tensor) -> list[int | tf.Tensor]:
    """Of each axis, as a number where it is known: a graph is the smaller for it."""
    known = tensor.shape.as_list()
    return [tf.shape(tensor)[axis] if size is None else size for axis, size in enumerate(known)]


def group_of(elements: tuple) -> Group:
    """A batch of (x, y) or (x, y, sample_weight) as a group."""
    size = sizes(tf.nest.flatten(elements[0])[0])[0]
    weights = tf.cast(elements[2], tf.float32) if len(elements) == 3 else tf.ones([size])
    return Group(elements[0], elements[1], weights, tf.ones([size]))


def mean_weights(elements: Any) -> tf.Tensor:
    """[B] means of |w| over all that a nest of [B, …] weights of each example."""
    means = []
    for part in tf.nest.flatten(elements):
        size = sizes(part)[0]
        means.append(tf.reduce_mean(tf.reshape(tf.abs(tf.cast(part, tf.float32)), [size, -1]), 1))
    return tf.add_n(means) / len(means)


def of_static_size(group: Group, size: int) -> Group:
    """The same with its number of examples written down."""

    def sized(part: tf.Tensor) -> tf.Tensor:
        known = part.shape[0] == size
        return part if known else tf.ensure_shape(part, [size, *part.shape[1:]])

    return tf.nest.map_structure(sized, group)


def whole(group: Group, batch_size: int) -> Group:
    """Lines 12–13 of Algorithm 1: B/b uniform batches."""

    def cut(part: tf.Tensor) -> tf.Tensor:
        return tf.reshape(part, [-1, batch_size, *sizes(part)[1:]])

    return tf.nest.map_structure(cut, group)


def short(group: Group, batch_size: int, means: bool) -> Group:
    """The uniform batches of a group of any size, the last one filled up.

    Examples of weight 0 fill it; the others' weights are scaled by b/(their number), so that the
    batch's weighted mean is the mean over those that are there.

    Args:
        group: of any number of examples. batch_size: b.
        means: whether the loss is a mean over the batch; else nothing is scaled.
    """
    size = group.size
    count = -(-size // batch_size)
    positions = tf.range(count * batch_size)
    filled = _gathered(group, tf.minimum(positions, size - 1))
    rest = size - (count - 1) * batch_size
    scale = tf.cast(batch_size / rest, tf.float32) if means else 1.0
    in_last = positions >= (count - 1) * batch_size
    factor = tf.where(positions < size, tf.where(in_last, scale, 1.0), 0.0)
    return whole(_reweighted(filled, factor), batch_size)


class Scored(NamedTuple):
    """A pre-sample's fresh scores.

    Attributes:
        scores: [B] Ĝ.
        proposal: [B] g ∝ worth + c mean(worth), worth = |w| Ĝ and w the weights that the examples
            come with; uniform where the scores are unusable.
        usable: scalar bool.
        statistics: [S] of its batch normalization, S = 0 for a net that has none.
    """

    scores: tf.Tensor
    proposal: tf.Tensor
    usable: tf.Tensor
    statistics: tf.Tensor


class Way(NamedTuple):
    """How batches are drawn by fresh scores (Katharopoulos & Fleuret 2018, lines 6–9).

    Attributes:
        score: (x, y, importance) -> `Scores`; two that compare equal score alike.
        smoothing: c ≥ 0.
        resample: of `proposals`.
        batch_size: b.
    """

    score: Callable[..., Scores]
    smoothing: float
    resample: proposals.Resampling
    batch_size: int

    def scored(self, presample: Group) -> Scored:
        """Score a pre-sample."""
        scores, statistics = self.score(presample.inputs, presample.labels, presample.importance)
        worth = scores * tf.abs(presample.weights)
        usable = proposals.usable(worth)
        smooth = proposals.smooth(worth, self.smoothing * tf.reduce_mean(worth))
        # In a loop of one's own this may be within a tape.
        proposal = tf.stop_gradient(proposals.normalize(tf.where(usable, smooth, 0.0)))
        return Scored(scores, proposal, usable, statistics)

    def positions(self, proposal: tf.Tensor, seed: tf.Tensor, draws: int = 1) -> proposals.Draw:
        """Draw R batches of b: [R, b] each.

        All R b examples are drawn at once, so that systematic draws of several batches do not
        repeat each other, and dealt out in turns: batch j gets the draws j, j + R, j + 2R, …, which
        for systematic ones are systematic again. The batches then leave in random order, which
        makes each of them unbiased by itself.

        Args:
            proposal: [B] g. seed: [2] integers. draws: R.
        """
        draw = self.resample(proposal, draws * self.batch_size, seed)
        if draws == 1:
            return proposals.Draw(*(part[tf.newaxis] for part in draw))
        order = tf.random.experimental.stateless_shuffle(tf.range(draws), seed)
        in_turns = [tf.transpose(tf.reshape(part, [self.batch_size, draws])) for part in draw]
        return proposals.Draw(*(tf.gather(part, order) for part in in_turns))

    def drawn(
        self, presample: Group, proposal: tf.Tensor, seed: tf.Tensor, draws: int = 1
    ) -> tuple[Group, tf.Tensor]:
        """R batches of b from a pre-sample, weighted, and their places in it: [R, b, …] each."""
        positions, weights = self.positions(proposal, seed, draws)
        return _reweighted(_gathered(presample, positions), weights), positions


    def drawn_or_first(
        self, presample: Group, scored: Scored, seed: tf.Tensor
    ) -> tuple[Group, tf.Tensor]:
        """A batch of b, and its places; the first b as they are where scores are unusable."""
        draw = self.positions(scored.proposal, seed)
        first = tf.range(self.batch_size, dtype=draw.indices.dtype)
        positions = tf.where(scored.usable, draw.indices[0], first)
        weights = tf.where(scored.usable, draw.weights[0], 1.0)
        return _reweighted(_gathered(presample, positions), weights), positions


def _gathered(nest, positions: tf.Tensor):
    return tf.nest.map_structure(lambda part: tf.gather(part, positions), nest)


def taken(group: Group, positions: tf.Tensor, factors: tf.Tensor) -> Group:
    """Some of its examples, weighted: [B] factors of all of them, by their positions."""
    return _gathered(_reweighted(group, factors), positions)


def _reweighted(group: Group, factor: tf.Tensor) -> Group:
    return group._replace(weights=group.weights * factor, importance=group.importance * factor)


# Scorers ----------------------------------------------------------------------------------


class Scores(NamedTuple):
    """What a scoring pass gives.

    Attributes:
        values: [B] float32. statistics: [S] as in `Scored`.
    """

    values: tf.Tensor
    statistics: tf.Tensor


@dataclasses.dataclass(frozen=True)
class Score:
    """A scorer of a model, as a function of (x, y, importance).

    Batch normalization uses the statistics of the examples in its pass; a scorer that does not read
    a pass of the model's has a pass made for them beside it. Without `collects` there are none.
    """

    scorer: Callable[[Any, Any, Any], tf.Tensor]
    model: keras.Model
    collects: bool = True

    def __call__(self, inputs, labels, importance) -> Scores:
        places = batch_statistics.places(self.model, inputs) if self.collects else ()
        if not places:
            values = self.scorer(self.model, inputs, labels)
            return Scores(tf.cast(values, tf.float32), tf.zeros([0]))
        collected = batch_statistics.Collected(places, importance)
        with collected.in_force():
            passed = forward.of(self.model, inputs)
        if isinstance(self.scorer, base.OutputScorer):
            values = self.scorer.from_forward(self.model.objective, labels, passed)
        else:
            values = self.scorer(self.model, inputs, labels)
        return Scores(tf.cast(values, tf.float32), collected.packed())


def check_model(model: Any) -> None:
    """Refuse a model whose examples have no scores.

    Raises:
        TypeError: it is not an ISModel. ValueError: it is not compiled with a loss.
    """
    check_is_model(model)
    check_loss(model, model.objective.loss)


def check_is_model(model: Any) -> None:
    """Refuse what is no ISModel; one that will be compiled later, with its sampler, is one.

    Raises:
        TypeError: it is not an ISModel.
    """
    if not isinstance(model, keras.Model) or not hasattr(model, "objective"):
        raise TypeError(
            f"model must be a tfi.ISModel; got {named(model)}. Wrap the net: "
            "model = tfi.ISModel(net); model.compile(...)."
        )


def check_loss(model: keras.Model, loss: Any) -> None:
    """Raises: ValueError: the loss that a model is compiled with is none."""
    if loss is None:
        raise ValueError(
            f"model {model.name!r} is not compiled with a loss, so its examples have no scores; "
            "call model.compile(optimizer=..., loss=...) first."
        )


def check_scorer(scorer: Any) -> None:
    """Raises: TypeError: it is no function of (model, x, y)."""
    if callable(scorer) and not isinstance(scorer, type):
        return
    close = meant(scorer, scorers.BY_NAME).replace("'", "") if isinstance(scorer, str) else ""
    raise TypeError(
        "scorer must be a callable (model, x, y) -> [B], such as tfi.scorers.loss; got "
        f"{named(scorer)}.{close.replace('mean ', 'mean tfi.scorers.')}"
    )


def check(score: Any, jit_compile: bool | str) -> None:
    """Refuse what `compiled` cannot take.

    Raises:
        TypeError: score is not callable. ValueError: jit_compile is out of range.
    """
    check_scorer(score)
    one_of("jit_compile", jit_compile, (True, False, "auto"))


def _refuse_updates(model, inputs) -> None:
    """Raises: ValueError: a pass in inference changes weights, as scoring would once more.

    States of random numbers, which Keras's own recurrent layers draw in vain, are none.
    """
    weights = list(map(compat.tensorflow_variable, compat.numeric(model.net.weights)))
    before = [tf.identity(variable) for variable in weights]
    zeros = tf.nest.map_structure(
        lambda leaf: tf.zeros([size or 1 for size in leaf.shape], leaf.dtype), inputs
    )
    with compat.kept(model.net):
        try:
            model(zeros, training=False)
        except Exception:  # Of a net that zeros are nothing for.
            return
        after = [tf.identity(variable) for variable in weights]
    if any(a.numpy().tobytes() != b.numpy().tobytes() for a, b in zip(before, after)):
        raise ValueError(
            f"a layer of net {model.net.name!r} changes a variable in its pass (assign, or a "
            "metric's update), also in inference, so that scoring would change it once more. Let "
            "it do so where call is told training=True; or draw by a memory, which scores nothing."
        )


def compiled(score: Score, spec: tuple, presample_size: int, jit_compile: bool | str) -> Callable:
    """The scorer as a function of (x, y, importance), traced once, run where the weights are."""
    model = score.model
    device = compat.device(model)
    accelerated = "GPU" in device or "TPU" in device
    function = tf.function(
        score, autograph=False, jit_compile=accelerated if jit_compile == "auto" else jit_compile
    )
    batched = tf.nest.map_structure(
        lambda leaf: tf.TensorSpec([presample_size, *leaf.shape], leaf.dtype), spec[:2]
    )
    importance = tf.TensorSpec([presample_size], tf.float32)
    try:
        scores = function.get_concrete_function(*batched, importance).structured_outputs.values
    except Exception as error:  # A user's code may raise anything.
        raise ValueError(
            f"scorer {named(score.scorer)} and the compiled loss {named(model.objective.loss)} "
            "cannot be computed for each example of the dataset, as they must be; got inputs "
            f"{spec[0]}, labels {spec[1]}: {error}"
        ) from error
    if graphs.assigns(function.get_concrete_function(*batched, importance)):
        _refuse_updates(model, batched[0])
    if not scores.shape.is_compatible_with([presample_size]):
        raise ValueError(
            f"scorer {score.scorer!r} must return one score for each example, shape "
            f"[{presample_size}]; got shape {scores.shape}."
        )

    def scored(inputs, labels, importance):
        # XLA cannot read weights that live on another device than the pipeline's.
        with tf.device(device if accelerated else None):
            return function(inputs, labels, importance)

    return scored
