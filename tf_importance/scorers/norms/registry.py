"""Which handler takes which layer."""

from __future__ import annotations

import types
from collections.abc import Callable
from typing import NamedTuple

import keras

from tf_importance.scorers.norms.recording import Handler


class Entry(NamedTuple):
    """A registered handler.

    Attributes:
        handler: takes calls of the layer.
        method: how it works, in a few words.
        suits: whether it can take this very layer.
    """

    handler: Handler
    method: str
    suits: Callable[[keras.layers.Layer], bool]


_entries: dict[str, Entry] = {}


def register(
    *layers: type | str,
    method: str = "",
    suits: Callable[[keras.layers.Layer], bool] = lambda layer: True,
) -> Callable[[Handler], Handler]:
    """Register how a layer's variables get their gradients: a decorator.

        @tfi.scorers.norms.register(Scale)
        def scale(layer, call, record, inputs):
            outputs = call(inputs)
            return record(
                outputs, [layer.gamma],
                lambda deltas, x: [Direct(unbroadcast(deltas * x, layer.gamma.shape))], inputs)

    The handler stands in for the layer's `call`: it gets the layer, the `call` it stands for,
    a `record` (a `Recorder`) and the call's arguments, and returns its outputs.
    Each variable that it reads must be in a `record`. It also takes subclasses, but not those
    that override what takes part in a call.

    Args:
        layers: classes, or their full dotted names where importing them would be too much.
        method: how it works, in a few words, for `coverage`.
        suits: whether it can take a layer; others of the class are left to the fallback.
    """

    def decorator(handler: Handler) -> Handler:
        for layer in layers:
            name = layer if isinstance(layer, str) else _name(layer)
            _entries[name] = Entry(handler, method or handler.__name__.replace("_", " "), suits)
        return handler

    return decorator


def entry_of(layer: keras.layers.Layer) -> Entry | None:
    """The entry of a layer's class, None where nobody registered one that suits."""
    for parent in type(layer).__mro__:
        entry = _entries.get(_name(parent))
        if entry is not None:
            return entry if _computes_as(type(layer), parent) and entry.suits(layer) else None
    return None


# What a subclass may have of its own and still compute the same.
_HARMLESS = {
    *("__init__", "build", "get_config", "from_config", "add_weight"),
    *("compute_output_shape", "compute_output_spec"),
}


def _computes_as(layer: type, parent: type) -> bool:
    """Whether a subclass overrides nothing of its parent that takes part in its call."""
    below = layer.__mro__[: layer.__mro__.index(parent)]
    functions = (types.FunctionType, property, classmethod, staticmethod)
    return not any(
        isinstance(value, functions) and name not in _HARMLESS and hasattr(parent, name)
        for each in below
        for name, value in vars(each).items()
    )


def _name(layer: type) -> str:
    return f"{layer.__module__}.{layer.__qualname__}"
