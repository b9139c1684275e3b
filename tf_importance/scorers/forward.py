"""A forward pass with what the scorers need from it: the outputs and their pre-activations."""

from __future__ import annotations

import contextlib
import contextvars
import inspect
import threading
from collections.abc import Callable, Hashable, Iterator
from typing import Any, NamedTuple

import keras
import tensorflow as tf


class Head(NamedTuple):
    """One output of the net as activation(preactivation).

    Attributes:
        preactivation: [B, …] z of the last layer (eq. 10), before its activation.
        activation: the function that makes the output of it.
    """

    preactivation: tf.Tensor
    activation: Callable[[tf.Tensor], tf.Tensor]


class Forward(NamedTuple):
    """Outputs of a forward pass.

    Attributes:
        outputs: the net's outputs, a nest of [B, …] tensors.
        heads: a `Head` for each of the flattened outputs.
    """

    outputs: Any
    heads: list[Head]


class _Noted(NamedTuple):
    """A head, and the output that it made: kept, since a freed tensor's id may come again."""

    output: tf.Tensor
    head: Head


def identity(preactivation: tf.Tensor) -> tf.Tensor:
    """The activation of a net that ends without one."""
    return preactivation


# Output activations that leave a trace of one operation in the graph, whoever called them:
# a layer, keras.ops, or tf.nn in a subclassed net.
_OPERATIONS: dict[str, Callable[[tf.Tensor], tf.Tensor]] = {
    "Softmax": keras.activations.softmax,
    "Sigmoid": keras.activations.sigmoid,
    "Tanh": tf.tanh,
    "Relu": tf.nn.relu,
    "Softplus": tf.nn.softplus,
    "Exp": tf.exp,
    "LogSoftmax": tf.nn.log_softmax,
}

_RESHAPES = ("Reshape", "Squeeze", "ExpandDims", "Identity", "Transpose", "Cast")

_seen: contextvars.ContextVar[dict | None] = contextvars.ContextVar("activations", default=None)
_forward: contextvars.ContextVar[list | None] = contextvars.ContextVar("forward", default=None)


@contextlib.contextmanager
def recorded() -> Iterator[list[Forward]]:
    """Collect a `Forward` for each call of an ISModel within the context."""
    passes: list[Forward] = []
    token = _forward.set(passes)
    try:
        yield passes
    finally:
        _forward.reset(token)


def latest() -> Forward | None:
    """The last pass that `recorded` has collected, None where there is none."""
    passes = _forward.get()
    return passes[-1] if passes else None


def moved(shift: tf.Tensor) -> tf.Tensor:
    """Add to the logits that the latest pass ends with, in the pass too.

    Returns:
        The moved logits.
    """
    passes = _forward.get()
    assert passes, "there is a pass"
    outputs, (head,) = passes[-1]
    passes[-1] = Forward(
        outputs + shift, [head._replace(activation=lambda z: head.activation(z) + shift)]
    )
    return passes[-1].outputs


def run(net: keras.Model, inputs, training: bool | None = None) -> Any:
    """Call a net; inside `recorded`, note its outputs and their pre-activations.

    Args:
        training: for a net whose `call` must be told; others have it of Keras's call context.
    """
    passes = _forward.get()
    must_be_told = _training_of(net)
    told = {"training": bool(training)} if must_be_told else {}
    if passes is None:
        return net(inputs, **told)
    with _watched.activations_of(net) as seen:
        outputs = net(inputs, **told)
    flat = tf.nest.flatten(outputs)
    for output in flat:
        if not isinstance(output, tf.Tensor):
            raise TypeError(
                "a net's outputs must be dense tensors, or dicts, lists or tuples of them, to be "
                f"scored; got {type(output).__name__}. Let the net return the parameters of a "
                "distribution as tensors, and build it in the loss; turn ragged and sparse outputs "
                "into dense ones, with a mask or sample weights for what is padding."
            )
    passes.append(Forward(outputs, [_head(out, seen) for out in flat]))
    return outputs


def _training_of(net: keras.Model) -> bool:
    """Whether a net's `call` has an argument `training` without a default."""
    try:
        parameter = inspect.signature(net.call).parameters.get("training")
    except (TypeError, ValueError):
        return False
    return parameter is not None and parameter.default is parameter.empty


def of(model: keras.Model, inputs) -> Forward:
    """One forward pass of an ISModel in inference mode.

    Args:
        model: an ISModel.
        inputs: a nest of [B, …] tensors.
    """
    with recorded() as passes:
        model(inputs, training=False)
    return passes[-1]


def structure(net: keras.Model) -> list[Any]:
    """What a trace of a net depends on: its layers, their activations, its weights."""
    layers = list(net._flatten_layers())
    activations = [getattr(layer, "activation", None) for layer in layers]
    return [*layers, *activations, *net.weights]


def _head(output: tf.Tensor, seen: dict[Hashable, _Noted]) -> Head:
    """The head of an output: noted on its way or read off the graph, else the output itself.

    Operations after the activation that only change the output's shape or type are undone on
    the way back and done again by the head's activation.
    """
    after: list[Callable[[tf.Tensor], tf.Tensor]] = []
    tensor = output
    while True:
        noted = seen.get(_key(tensor))
        if noted is not None:
            return Head(noted.head.preactivation, _then(noted.head.activation, after))
        if tf.executing_eagerly():
            return Head(output, identity)
        operation = tensor.op
        if operation.type in _OPERATIONS:
            activation = _OPERATIONS[operation.type]
            return Head(operation.inputs[0], _then(activation, after))
        if operation.type not in _RESHAPES:
            return Head(output, identity)
        after.append(_again(operation))
        tensor = operation.inputs[0]


def _again(operation: tf.Operation) -> Callable[[tf.Tensor], tf.Tensor]:
    """What an operation that keeps the values does, as a function of its input."""
    result = operation.outputs[0]
    if operation.type == "Cast":
        return lambda tensor: tf.cast(tensor, result.dtype)
    if operation.type == "Transpose":
        return lambda tensor: tf.transpose(tensor, operation.inputs[1])
    return lambda tensor: tf.reshape(tensor, tf.shape(result))


def _then(activation: Callable, after: list[Callable]) -> Callable:
    """An activation and, in the net's order, what came after it."""
    if not after:
        return activation

    def composed(preactivation):
        tensor = activation(preactivation)
        for operation in reversed(after):
            tensor = operation(tensor)
        return tensor

    return composed


def _key(tensor: tf.Tensor) -> Hashable:
    """Names a tensor: in a graph by its name there, in eager mode by itself."""
    if isinstance(tensor, tf.__internal__.EagerTensor):
        return id(tensor)
    return id(tensor.graph), tensor.name


class _Watched:
    """Notes what goes in and out of the activations of a net's layers.

    The layers' `activation` attributes are replaced while anybody looks, and restored when
    the last one leaves: threads (one for each replica of a strategy) may look at once.
    """

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._watchers: dict[int, int] = {}
        self._originals: dict[int, list[tuple[keras.layers.Layer, Callable]]] = {}

    @contextlib.contextmanager
    def activations_of(self, net: keras.Model) -> Iterator[dict[Hashable, _Noted]]:
        seen: dict[Hashable, _Noted] = {}
        token = _seen.set(seen)
        try:
            self._enter(net)
            yield seen
        finally:
            self._leave(net)
            _seen.reset(token)

    def _enter(self, net: keras.Model) -> None:
        with self._lock:
            self._watchers[id(net)] = self._watchers.get(id(net), 0) + 1
            if self._watchers[id(net)] == 1:
                replaced = self._originals[id(net)] = []
                for layer in _activated_layers(net):
                    original = layer.activation
                    # One that cannot be set may still be read off the graph.
                    with contextlib.suppress(AttributeError):
                        layer.activation = _noting(original)
                        replaced.append((layer, original))

    def _leave(self, net: keras.Model) -> None:
        with self._lock:
            self._watchers[id(net)] -= 1
            if not self._watchers[id(net)]:
                del self._watchers[id(net)]
                for layer, activation in self._originals.pop(id(net)):
                    layer.activation = activation


_watched = _Watched()


def _noting(activation: Callable) -> Callable:
    def noted(preactivation):
        output = activation(preactivation)
        seen = _seen.get()
        if seen is not None:
            seen[_key(output)] = _Noted(output, Head(preactivation, activation))
        return output

    return noted


def _activated_layers(net: keras.Model) -> list[keras.layers.Layer]:
    """Layers whose activation may make an output: not those inside a recurrent layer."""
    inside: set[int] = set()
    for layer in net._flatten_layers():
        if isinstance(layer, keras.layers.RNN):
            inside.update(id(inner) for inner in layer._flatten_layers())
    return [
        layer
        for layer in net._flatten_layers()
        if id(layer) not in inside
        and callable(getattr(layer, "activation", None))
        and not isinstance(layer.activation, keras.layers.Layer)
        and layer.activation is not keras.activations.linear
    ]
