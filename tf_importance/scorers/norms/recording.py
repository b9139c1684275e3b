"""A forward pass that notes, for every use of a variable, what its gradient is made of."""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import keras
import tensorflow as tf

from tf_importance import compat
from tf_importance.scorers.norms.contributions import Contribution

# (layer, call, record, *args, **kwargs) -> the layer's outputs; see `registry.register`.
Handler = Callable[..., Any]


class Use(NamedTuple):
    """One use of variables by one call of a layer.

    Attributes:
        outputs: tensors through which alone the variables reach the loss.
        variables: the variables.
        contributions: (gradients of the outputs, *saved) -> a contribution per variable.
        saved: [B, …] tensors.
        steps: how many consecutive examples of this use are one of the model's, innermost first.
        batch_axis: of the outputs.
    """

    outputs: tuple[tf.Tensor, ...]
    variables: tuple[Any, ...]
    contributions: Callable[..., Sequence[Contribution | None]]
    saved: tuple[tf.Tensor, ...]
    steps: tuple[Any, ...]
    batch_axis: int


class Recorder:
    """Collects uses, and the variables that are read without one.

    Args:
        tape: records the forward pass; outputs of uses are watched by it.
        variables: those whose gradients are wanted.
    """

    def __init__(self, tape: tf.GradientTape, variables: Iterable[Any]) -> None:
        self.uses: list[Use] = []
        self.strays: set[int] = set()
        self._tape = tape
        self._names = {
            id(part.handle): id(variable)
            for variable in variables
            for part in compat.tensorflow_variables(variable)
        }
        self.is_unattended = False
        self._thread = threading.get_ident()
        self._graph = None if tf.executing_eagerly() else tf.compat.v1.get_default_graph()
        self._frames: list[tuple[tf.GradientTape, set[int]]] = []
        self._steps: tuple[Any, ...] = ()

    def __call__(
        self,
        outputs: tf.Tensor | Sequence[tf.Tensor],
        variables: Sequence[Any],
        contributions: Callable[..., Sequence[Contribution | None]],
        *saved: tf.Tensor,
        batch_axis: int = 0,
    ) -> Any:
        """Note that variables were used.

        Args:
            outputs: tensors through which alone the variables reach the loss in this use.
            variables: the variables, None among them for those that a layer does without.
            contributions: (gradients with respect to the outputs, *saved) -> a
                `Contribution` for each of the variables; all tensors in float32 or float64.
            saved: [B, …] tensors that it needs.
            batch_axis: of the outputs.
        Returns:
            The outputs.
        """
        flat = tuple(tf.nest.flatten(outputs))
        noted = {id(variable) for variable in variables if variable is not None}
        if self._frames:
            self._frames[-1][1].update(noted)
        if any(self._is_out_of_reach(output) for output in flat):
            self.strays |= noted
            return outputs
        for output in flat:
            self.watch(output)
        use = Use(flat, tuple(variables), contributions, saved, self._steps, batch_axis)
        self.uses.append(use)
        return outputs

    def watch(self, output: tf.Tensor) -> tf.Tensor:
        """Have the gradient of a tensor that is to be noted only after it was used."""
        if not self._is_out_of_reach(output):
            self._tape.watch(output)
        return output

    def wanted(self, layer: keras.layers.Layer) -> list[Any]:
        """Variables of a layer and the layers inside it that gradients are wanted of."""
        names = set(self._names.values())
        return [variable for variable in layer.weights if id(variable) in names]

    @contextlib.contextmanager
    def unattended(self) -> Iterator[None]:
        """Within: layers inside the one at hand run without their handlers."""
        before, self.is_unattended = self.is_unattended, True
        try:
            yield
        finally:
            self.is_unattended = before

    @contextlib.contextmanager
    def folding(self, steps) -> Iterator[None]:
        """Within: layers see `steps` consecutive examples for each one of the model."""
        self._steps = (steps, *self._steps)
        try:
            yield
        finally:
            self._steps = self._steps[1:]

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """Within: variables that are read by no use in the same `watching` become strays."""
        with contextlib.ExitStack() as stack:
            if self._frames:
                stack.enter_context(self._frames[-1][0].stop_recording())
            tape = stack.enter_context(tf.GradientTape())
            noted: set[int] = set()
            self._frames.append((tape, noted))
            try:
                yield
            finally:
                self._frames.pop()
        watched = [
            part
            for variable in tape.watched_variables()
            for part in compat.tensorflow_variables(variable)
        ]
        read = {self._names.get(id(part.handle)) for part in watched}
        self.strays |= {name for name in read if name is not None} - noted

    def is_foreign(self) -> bool:
        """Whether what runs now is another thread's, or traced into a graph that others use."""
        if self._thread != threading.get_ident():
            return True
        if self._graph is None:
            return not tf.executing_eagerly()
        return tf.compat.v1.get_default_graph() is not self._graph

    def _is_out_of_reach(self, tensor: tf.Tensor) -> bool:
        """Whether a tensor lies in a loop's or branch's graph, where no gradient is had."""
        if self._graph is None:
            return not isinstance(tensor, tf.__internal__.EagerTensor)
        return getattr(tensor, "graph", None) is not self._graph


@contextlib.contextmanager
def intercepted(
    handlers: Mapping[keras.layers.Layer, Handler], recorder: Recorder
) -> Iterator[None]:
    """Within: calls of these layers go through their handlers."""
    with contextlib.ExitStack() as stack:
        for layer, handler in handlers.items():
            handled = _handled(layer, layer.call, handler, recorder)
            stack.enter_context(replaced(layer, call=handled))
        with recorder.watching():
            yield


def _handled(layer, call: Callable, handler: Handler, recorder: Recorder) -> Callable:
    @functools.wraps(call)
    def handled(*args, **kwargs):
        if recorder.is_unattended:
            return call(*args, **kwargs)
        with recorder.watching():
            if recorder.is_foreign():
                # Reads what it reads, which makes strays of it.
                return call(*args, **kwargs)
            return handler(layer, call, recorder, *args, **kwargs)

    return handled


@contextlib.contextmanager
def replaced(layer: keras.layers.Layer, **attributes: Any) -> Iterator[None]:
    """Within: attributes of a layer have other values, past Keras's tracking of attributes."""
    own = {name: vars(layer)[name] for name in attributes if name in vars(layer)}
    for name, value in attributes.items():
        _set(layer, name, value)
    try:
        yield
    finally:
        for name in attributes:
            if name in own:
                _set(layer, name, own[name])
            else:
                object.__delattr__(layer, name)


def _set(layer: keras.layers.Layer, name: str, value: Any) -> None:
    object.__setattr__(layer, name, value)


def before_activation(
    layer: keras.layers.Layer, note: Callable[[tf.Tensor], tf.Tensor]
) -> contextlib.AbstractContextManager:
    """Within: `note` sees what a layer gives to its activation."""
    activation = layer.activation

    def noted(preactivation):
        preactivation = note(preactivation)
        return preactivation if activation is None else activation(preactivation)

    return replaced(layer, activation=noted)
