"""Whose statistics batch normalization uses while its net is trained on drawn examples.

A converted layer is a plain Keras layer whose `call` asks first whether a way is in force:

* while a net's places are looked for (`places`), it says where it is and does as in inference;
* in a scoring pass (`Collected`) it normalizes by the statistics of the pre-sample, and notes them;
* in a training step (`Training`) it normalizes a drawn batch by the statistics of the pre-sample
  that it was drawn from, by a short average over batches, or by its own weighted ones, and
  gradients flow through its own weighted ones.

Behind dropout, or whatever else is random in training and not in inference, a pass in inference
does not tell what statistics a step has: there a drawn batch is normalized by the short average.

Outside of these it is Keras's own. The context variable and the patched `call` are here and nowhere
else.
"""

from __future__ import annotations

import collections
import contextlib
import contextvars
import inspect
import math
import types
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import keras
import tensorflow as tf

from tf_importance import graphs, normalization
from tf_importance.normalization import Statistics

# a of the short average: it is over some 30 batches.
_DECAY = 0.97
# How far statistics may be from the batch's own, in its standard deviations. Those of the step
# before: limits of batch renormalization (Ioffe 2017) on √(v/σ_w²), and on |m − μ_w|/σ_w.
_LARGEST_RATIO, _LARGEST_DISTANCE = 3.0, 5.0
# Those of an average: so many standard errors of the batch's own.
_ERRORS = 2.0
# What a batch of weights 0 counts in it, so that the first one is not divided by nothing.
_LEAST_WEIGHT = 1e-6

_way: contextvars.ContextVar[_Way | None] = contextvars.ContextVar("way", default=None)


class Place(NamedTuple):
    """A call of a layer in a pass, where training normalizes by the batch.

    Attributes:
        layer: converted. number: of the call among the layer's in one pass. channels: C.
        is_noisy: whether its inputs are random in training, behind dropout for example.
    """

    layer: keras.layers.Layer
    number: int
    channels: int
    is_noisy: bool = False


Places = tuple[Place, ...]


def size(places: Places) -> int:
    """How many numbers a pass tells of them: S."""
    return 2 * sum(place.channels for place in told_of(places))


def told_of(places: Places) -> Places:
    """Those whose statistics in training are those of a pass in inference."""
    return tuple(place for place in places if not place.is_noisy)


# Layers ---------------------------------------------------------------------------------------


def _call(layer: keras.layers.Layer, inputs, training=None, mask=None):
    """The `call` of a converted layer."""

    def of_keras(training):
        return type(layer).call(layer, inputs, training=training, mask=mask)

    way = _way.get()
    if way is None or not layer.trainable:
        return of_keras(training)
    number = way.calls[layer]
    way.calls[layer] += 1
    return way.outputs(layer, number, of_keras, inputs, training, mask)


class _Inlined:
    """The `call` of a layer that is a tf.function: part of the step's graph in a way.

    A function of its own has a trace of its own, which statistics and weights of another graph
    cannot enter and its own cannot leave.

    Args:
        layer: whose call it is. weighted: whether weights are in force.
    """

    def __init__(self, layer: keras.layers.Layer, weighted: Callable[[], bool]) -> None:
        self._function, self._weighted = layer.call, weighted
        # What TensorFlow has bound to the layer cannot be converted, what stands in its class can.
        function = inspect.getattr_static(layer, "call")
        python = function.python_function
        python = graphs.by_autograph(python) if function._autograph else python
        bound = "call" not in vars(layer)
        self._python = types.MethodType(python, layer) if bound else python

    def __call__(self, *args, **kwargs):
        apart = _way.get() is None and not self._weighted()
        return (self._function if apart else self._python)(*args, **kwargs)


def is_adapted(layer: keras.layers.Layer) -> bool:
    """Whether a layer is converted."""
    return getattr(layer.call, "__func__", None) is _call


def has_any(net: keras.Model) -> bool:
    """Whether a net has converted layers, as far as it has layers by now."""
    return any(map(is_adapted, net._flatten_layers()))


def adapt(layer: keras.layers.Layer) -> None:
    """Convert a layer that is Keras's own, or does in `call` what Keras's own does."""
    # A bound method: Keras 2 saves what looks like a layer's own.
    layer.call = types.MethodType(_call, layer)


def inline_calls(net: keras.Model, weighted: Callable[[], bool]) -> None:
    """Let a net's layers whose `call` is a tf.function be part of the step's graph.

    Args:
        weighted: whether weights are in force that a layer reads.
    """
    for layer in net._flatten_layers():
        if isinstance(layer.call, tf.types.experimental.GenericFunction):
            layer.call = _Inlined(layer, weighted)


# Ways -----------------------------------------------------------------------------------------


class _Way:
    """How converted layers normalize."""

    def __init__(self) -> None:
        self.calls: collections.Counter[keras.layers.Layer] = collections.Counter()

    @contextlib.contextmanager
    def in_force(self) -> Iterator[None]:
        token = _way.set(self)
        try:
            yield
        finally:
            _way.reset(token)

    def outputs(self, layer, number: int, of_keras: Callable, inputs, training, mask):
        """The outputs of a call.

        Args:
            number: of the call among the layer's. of_keras: training -> Keras's own outputs.
        """
        raise NotImplementedError


class _Looking(_Way):
    """Notes where training normalizes by the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.places: list[Place] = []
        self._graph = tf.compat.v1.get_default_graph()
        self._clean: set[str] = set()

    def outputs(self, layer, number, of_keras, inputs, training, mask):
        if training:
            _refuse_function(layer, self._graph)
            if tf.compat.v1.get_default_graph() is self._graph:
                channels = math.prod(layer.moving_mean.shape)
                noisy = graphs.is_random(inputs, self._clean)
                self.places.append(Place(layer, number, channels, noisy))
        return of_keras(False)


def _refuse_function(layer: keras.layers.Layer, outer: Any) -> None:
    graph = tf.compat.v1.get_default_graph()
    while graph is not outer and graph is not None:
        if type(graph).__name__ == "FuncGraph":
            raise ValueError(
                f"layer {layer.name!r} is called inside of a tf.function of the net's own, which "
                "keeps its trace from one kind of data to the next, so that its statistics can "
                "neither enter nor leave it. Take the tf.function off (the training step is "
                "compiled as a whole), or give ISModel(net, adapt_batch_normalization=False)."
            )
        graph = getattr(graph, "outer_graph", None)


def looking() -> contextlib.AbstractContextManager:
    """Within this context converted layers do as in inference."""
    return _Looking().in_force()


def places(model: keras.Model, inputs) -> Places:
    """Where a model's net normalizes by the batch in training.

    Frozen layers, and calls with `training=False`, do not; a loop or a branch of the net's own is
    not looked into, and a layer there uses its own weighted statistics.

    Args:
        model: an ISModel. inputs: a nest of [b, …] tensors or specs.
    Raises:
        ValueError: a layer is called inside of a tf.function of the net's own.
    """
    if not has_any(model.net):
        return ()
    specs = tf.nest.map_structure(lambda part: tf.TensorSpec(part.shape, part.dtype), inputs)
    found: list[Place] = []

    def passed(inputs):
        way = _Looking()
        with way.in_force():
            model(inputs, training=True)
        found.extend(way.places)

    with tf.init_scope():
        tf.function(passed, autograph=False).get_concrete_function(specs)
    return tuple(found)


class Collected(_Way):
    """The statistics of a pass in inference.

    Args:
        places: where. weights: [B] of the examples.
    """

    def __init__(self, places: Places, weights: tf.Tensor) -> None:
        super().__init__()
        self._places, self._weights = places, weights
        self._found: dict[tuple[keras.layers.Layer, int], Statistics] = {}

    def outputs(self, layer, number, of_keras, inputs, training, mask):
        if not any(place[:2] == (layer, number) for place in self._places):
            return of_keras(training)
        batch = normalization.rows(layer, inputs, self._weights, mask)
        own = normalization.own_statistics(layer, batch, of_all_replicas=False)
        self._found[layer, number] = own
        return normalization.normalized(layer, batch, own, own)

    def packed(self) -> tf.Tensor:
        """All that is told: [S]. Where inference does not pass, those of inference."""
        parts: list[tf.Tensor] = []
        for layer, number, *_ in told_of(self._places):
            own = self._found.get((layer, number))
            parts += normalization.moving(layer, tf.float32) if own is None else own
        return tf.concat([tf.cast(part, tf.float32) for part in parts] or [tf.zeros([0])], axis=0)


class Given(NamedTuple):
    """Statistics that a batch is normalized by.

    Attributes:
        places: where. packed: [S], as `Collected` has them. there: scalar bool, whether there are.
        of_the_step: whether they are of the net as it is in this step, and not of steps before.
    """

    places: Places
    packed: tf.Tensor
    there: tf.Tensor
    of_the_step: bool

    def unpacked(self) -> dict[tuple[keras.layers.Layer, int], Statistics]:
        """Raises: ValueError: they are those of other places."""
        if self.packed.shape[0] != size(self.places):
            raise ValueError(
                "layers were frozen or thawed since the dataset was made, which is scored without "
                "that; apply importance_sample to the dataset again."
            )
        told = told_of(self.places)
        sizes = [place.channels for place in told for _ in Statistics._fields]
        parts = iter(tf.split(self.packed, sizes) if sizes else [])
        return {place[:2]: Statistics(next(parts), next(parts)) for place in told}


class Averages(tf.Module):
    """Of each layer, importance-weighted statistics over the latest batches together.

    A batch counts by its weights, those before it less by the decay a with each step, so that no
    correction is needed at the start. State of training and not of the net: checkpoints have it,
    files of weights do not.
    """

    def __init__(self) -> None:
        super().__init__(name="statistics")
        self._layers: list[keras.layers.Layer] = []

    def taken_up(self, layer: keras.layers.Layer, own: Statistics, weight: tf.Tensor) -> Statistics:
        """Take up a batch's, of mean weight `weight`, and tell those of all."""
        state, channels = self._of(layer), own.mean.shape[0]
        mean, variance, total = tf.split(tf.cast(state, own.mean.dtype), [channels, channels, 1])
        kept, weight = _DECAY * total[0], tf.maximum(weight, _LEAST_WEIGHT)
        new = normalization.pooled(Statistics(mean, variance), kept, own, weight)
        packed = tf.concat([*new, [kept + weight]], axis=0)
        state.assign(tf.cast(packed, tf.float32))
        return new

    def _of(self, layer: keras.layers.Layer) -> tf.Variable:
        known = [id(one) for one in self._layers]
        number = known.index(id(layer)) if id(layer) in known else len(known)
        if number == len(known):
            with tf.init_scope():
                zeros = tf.zeros([2 * math.prod(layer.moving_mean.shape) + 1])
                state = tf.Variable(
                    zeros,
                    trainable=False,
                    name="average",
                    aggregation=tf.VariableAggregation.MEAN,
                )
            setattr(self, f"layer_{number}", state)
            self._layers.append(layer)
        return getattr(self, f"layer_{number}")


class Training(_Way):
    """A step on drawn examples.

    Args:
        weights: [b] importance weights.
        given: the pre-sample's, None where there is none.
        averages: of the latest batches.
        by_average: whether they are what is normalized by where there is no pre-sample; else the
            batch's own weighted statistics. In noisy places they always are, of drawn batches. A
            batch of weights 1 is uniform, and normalized by its own, as Keras does: a net that has
            just begun moves too fast for an average.
    """

    def __init__(
        self,
        weights: tf.Tensor,
        given: Given | None,
        averages: Averages,
        by_average: bool,
    ) -> None:
        super().__init__()
        self._weights, self._averages, self._by_average = weights, averages, by_average
        self._is_uniform = tf.reduce_all(weights == 1)
        self._there = None if given is None else given.there
        self._of_the_step = given is None or given.of_the_step
        self._given = {} if given is None else given.unpacked()
        self._noisy = {place[:2] for place in given.places if place.is_noisy} if given else set()

    def outputs(self, layer, number, of_keras, inputs, training, mask):
        if not training:
            return of_keras(training)
        batch = normalization.rows(layer, inputs, self._weights, mask)
        own = normalization.own_statistics(layer, batch)
        given = self._given_to(layer, number, own)
        by_itself = value, moved = self._by_itself(layer, own)
        if self._by_average:
            averaged = self._averaged(layer, own, given)
            value, moved = (_either(self._is_uniform, *two) for two in zip(by_itself, averaged))
        elif (layer, number) in self._noisy:
            averaged = self._averaged(layer, own, None)
            value, moved = (_either(self._there, *two) for two in zip(averaged, by_itself))
        if given is not None:
            value = _either(self._there, given, value)
            moved = _either(self._there, normalization.moved(layer, given), moved)
        normalization.set_moving(layer, moved)
        return normalization.normalized(layer, batch, own, value)

    def _given_to(self, layer, number: int, own: Statistics) -> Statistics | None:
        given = self._given.get((layer, number))
        if given is None:
            return None
        dtype = own.mean.dtype
        one, *sums = normalization.summed(layer, tf.ones([]), *given)
        given = Statistics(*(tf.cast(part / one, dtype) for part in sums))
        if self._of_the_step:
            return given
        return _limited(layer, given, own, _LARGEST_RATIO, _LARGEST_DISTANCE)

    def _by_itself(self, layer, own: Statistics) -> tuple[Statistics, Statistics]:
        """What to normalize by, and the moving averages then: the batch's own."""
        weights = tf.cast(self._weights, own.mean.dtype)
        return own, normalization.moved_weighted(layer, own, weights)

    def _averaged(
        self, layer, own: Statistics, given: Statistics | None
    ) -> tuple[Statistics, Statistics]:
        """The same by the average over batches, which takes up this one, or its pre-sample."""
        weights = tf.cast(self._weights, own.mean.dtype)
        mean_weight, newest = tf.reduce_mean(normalization.truncated(weights)), own
        if given is not None:
            newest = _either(self._there, given, own)
            mean_weight = tf.where(self._there, tf.ones_like(mean_weight), mean_weight)
        latest = self._averages.taken_up(layer, newest, mean_weight)
        value = _limited_to_errors(layer, latest, own, weights)
        return value, normalization.moved(layer, value)


def _either(condition: tf.Tensor | None, one: Statistics, other: Statistics) -> Statistics:
    """One if a condition holds, else the other."""
    known = None if condition is None else tf.get_static_value(condition)
    if known is not None:
        return one if known else other
    return Statistics(*(tf.where(condition, a, b) for a, b in zip(one, other)))


def _limited_to_errors(
    layer: keras.layers.Layer, old: Statistics, own: Statistics, weights: tf.Tensor
) -> Statistics:
    """Those of an average, no further from the batch's own than so few examples may be off.

    A net that moves fast is elsewhere by now, and one layer's error is the next one's input. Of
    N = (Σ w)²/Σ w² normal examples the mean has a standard error of σ/√N, and σ one of σ/√(2N).
    """
    weights = tf.cast(weights, own.mean.dtype)
    effective = tf.math.divide_no_nan(tf.reduce_sum(weights) ** 2, tf.reduce_sum(weights**2))
    error = _ERRORS * tf.math.rsqrt(tf.maximum(effective, 1.0))
    return _limited(layer, old, own, 1 + error / math.sqrt(2), error)


def _limited(
    layer: keras.layers.Layer, old: Statistics, own: Statistics, ratio: Any, distance: Any
) -> Statistics:
    """Statistics with √v from 1/ratio to ratio of the batch's own, and m a distance in it away."""
    variance = own.variance + layer.epsilon
    away, largest = distance * tf.sqrt(variance), ratio**2
    return Statistics(
        tf.clip_by_value(old.mean, own.mean - away, own.mean + away),
        tf.clip_by_value(
            old.variance, variance / largest - layer.epsilon, variance * largest - layer.epsilon
        ),
    )
