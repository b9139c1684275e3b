"""Which layer of a model is handled how."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import keras

from tf_importance.scorers.norms import fallback, registry
from tf_importance.scorers.norms.recording import Handler

_BY_EXAMPLE = "one example at a time"


class Row(NamedTuple):
    """How the gradients of one layer's variables are had.

    Attributes:
        layer: its name.
        kind: its class's name.
        variables: how many it has of its own.
        method: in a few words.
        is_fallback: whether nobody registered a handler for it.
    """

    layer: str
    kind: str
    variables: int
    method: str
    is_fallback: bool


class Coverage(tuple[Row, ...]):
    """Rows, which print as a table."""

    def __str__(self) -> str:
        cells = [("layer", "class", "variables", "method")]
        cells += [(row.layer, row.kind, str(row.variables), row.method) for row in self]
        widths = [max(len(line[column]) for line in cells) for column in range(4)]
        lines = ["  ".join(c.ljust(w) for c, w in zip(line, widths)).rstrip() for line in cells]
        return "\n".join([lines[0], "-" * (sum(widths) + 6), *lines[1:]])


def coverage(model: keras.Model) -> Coverage:
    """A table of the layers that have trainable variables, and how their gradients are had.

        print(tfi.scorers.norms.coverage(model))

    Args:
        model: a built keras.Model.
    """
    rows = []
    for layer, own in _layers(model, model.trainable_variables):
        if own:
            entry = _entry(layer, model)
            method = _BY_EXAMPLE if entry is None else entry.method
            rows.append(Row(layer.name, type(layer).__name__, len(own), method, entry is None))
    return Coverage(rows)


def handlers(
    model: keras.Model, variables: Sequence[Any]
) -> dict[keras.layers.Layer, Handler]:
    """The handlers of those layers that variables are in.

    Args:
        model: a built keras.Model.
        variables: those whose gradients are wanted.
    """
    wanted = {id(variable) for variable in variables}
    found = {}
    for layer, own in _layers(model, variables):
        entry = registry.entry_of(layer)
        if entry is not None and any(id(variable) in wanted for variable in layer.weights):
            found[layer] = entry.handler
        elif own:
            found[layer] = fallback.handler(own)
    return found


def _entry(layer: keras.layers.Layer, model: keras.Model) -> registry.Entry | None:
    """The entry of a layer, or of the recurrent layer whose cell it is."""
    for outer in model._flatten_layers():
        if isinstance(outer, keras.layers.RNN) and layer in _inside(outer):
            return registry.entry_of(layer) and registry.entry_of(outer)
    return registry.entry_of(layer)


def _layers(
    model: keras.Model, variables: Iterable[Any]
) -> Iterator[tuple[keras.layers.Layer, list[Any]]]:
    """All layers, and those of the variables that each has itself, not in a layer inside it."""
    wanted = {id(variable) for variable in variables}
    for layer in model._flatten_layers():
        inside = {id(weight) for inner in _inside(layer) for weight in inner.weights}
        own = [weight for weight in layer.weights if id(weight) in wanted - inside]
        yield layer, own


def _inside(layer: keras.layers.Layer) -> list[keras.layers.Layer]:
    return [inner for inner in layer._flatten_layers() if inner is not layer]
