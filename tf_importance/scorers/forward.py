"""A forward pass with what the scorers need from it: the outputs and their pre-activations."""

from __future__ import annotations

import contextlib
import contextvars
import threading
from collections.abc import Callable, Iterator
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


def run(net: keras.Model, inputs) -> Any:
    """Call a net; inside `recorded`, note its outputs and their pre-activations."""
    passes = _forward.get()
    if passes is None:
        return net(inputs)
    with _watched.activations_of(net) as seen:
        outputs = net(inputs)
    passes.append(Forward(outputs, [_head(out, seen) for out in tf.nest.flatten(outputs)]))
    return outputs


def of(model: keras.Model, inputs) -> Forward:
    """One forward pass of an ISModel in inference mode.

    Args:
        model: an ISModel.
        inputs: a nest of [B, …] tensors.
    """
    with recorded() as passes:
        model(inputs, training=False)
    return passes[-1]


def _head(output: tf.Tensor, seen: dict[int, tuple[tf.Tensor, Head]]) -> Head:
    """The head of an output: seen on its way, read off the graph, or the output itself."""
    if id(output) in seen:
        return seen[id(output)][1]
    if not tf.executing_eagerly():
        activation = _OPERATIONS.get(output.op.type)
        if activation is not None:
            return Head(output.op.inputs[0], activation)
    return Head(output, identity)


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
    def activations_of(self, net: keras.Model) -> Iterator[dict[int, tuple[tf.Tensor, Head]]]:
        seen: dict[int, tuple[tf.Tensor, Head]] = {}
        token = _seen.set(seen)
        self._enter(net)
        try:
            yield seen
        finally:
            self._leave(net)
            _seen.reset(token)

    def _enter(self, net: keras.Model) -> None:
        with self._lock:
            self._watchers[id(net)] = self._watchers.get(id(net), 0) + 1
            if self._watchers[id(net)] == 1:
                layers = _activated_layers(net)
                self._originals[id(net)] = [(layer, layer.activation) for layer in layers]
                for layer in layers:
                    layer.activation = _noting(layer.activation)

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
            # The output is kept as well: a freed tensor's id may come again.
            seen[id(output)] = (output, Head(preactivation, activation))
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
