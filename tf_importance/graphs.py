"""How TensorFlow runs what stands in a graph."""

from __future__ import annotations

import inspect
import itertools
import weakref
from collections.abc import Callable, Container, Iterator, Sequence
from typing import Any

import tensorflow as tf


def apart(function: Callable[[], Any]) -> Any:
    """What a function returns, called as one operation where it is a part of a graph.

    Of a branch of `tf.cond` that is not taken, TensorFlow visits all operations: many of them cost
    as much as a few that run.
    """
    if tf.executing_eagerly():
        return function()
    called = tf.function(function, autograph=False, experimental_attributes={"_noinline": True})
    return called()


def traced_once(function: Callable, signature: Sequence[tf.TensorSpec] | None = None) -> Callable:
    """A graph of the function for each choice of those arguments that are no tensors.

    TensorFlow warns of functions that are traced often by their code, and takes the same method of
    several objects, each traced once, for one of them.

    Args:
        signature: of its arguments, tensors all, where they have any shape.
    """
    compiled = tf.function(function, signature, autograph=False)
    graphs: dict[tuple, Callable] = {}

    def called(*args):
        chosen = tuple(argument for argument in args if not tf.is_tensor(argument))
        if chosen not in graphs:
            known = () if signature is not None else args
            graphs[chosen] = compiled.get_concrete_function(*known)
        return graphs[chosen](*args)

    return called


def as_it_stands(function: Callable) -> Callable:
    """Python that AutoGraph need not look at."""
    return tf.autograph.experimental.do_not_convert(function)


def weakly(function: Callable) -> Callable:
    """The function, for `tf.py_function`, which lets nothing go that it is given.

    Args:
        function: or a method; somebody else must hold it, or its object, while it is called.
    """
    known = weakref.WeakMethod if inspect.ismethod(function) else weakref.ref
    held = known(function)

    def called(*args):
        alive = held()
        assert alive is not None, "who asks for a batch holds the dataset"
        return alive(*args)

    return called


def by_autograph(function: Callable) -> Callable:
    """The function as AutoGraph has it, wherever it is called: as inside of a `tf.function`."""
    context = tf.__internal__.autograph.control_status_ctx()
    enabled = type(context)(status=type(context.status).ENABLED)
    return tf.__internal__.autograph.tf_convert(function, enabled, user_requested=True)


def upstream(tensor: tf.Tensor, known: Container[str] = ()) -> Iterator[tf.Operation]:
    """The operations that a tensor of a graph is computed by, its own first.

    Args:
        known: names of operations before which nothing is looked for.
    """
    waiting, seen = [tensor.op], {tensor.op.name}
    while waiting:
        operation = waiting.pop()
        yield operation
        for part in operation.inputs:
            if part.op.name not in seen and part.op.name not in known:
                seen.add(part.op.name)
                waiting.append(part.op)


def assigns(concrete) -> bool:
    """Whether a traced function, or one that it calls, changes a variable."""
    definition = concrete.graph.as_graph_def()
    called = (node for function in definition.library.function for node in function.node_def)
    changes = ("Assign", "ResourceScatter")
    return any(node.op.startswith(changes) for node in itertools.chain(definition.node, called))


def is_random(tensor: tf.Tensor, clean: set[str]) -> bool:
    """Whether random numbers have gone into a tensor of a graph.

    Args:
        clean: names of operations of which it is known that none have; more of them are added.
    """
    found = set()
    for operation in upstream(tensor, clean):
        if _draws(operation):
            return True
        found.add(operation.name)
    clean |= found
    return False


def _draws(operation: tf.Operation) -> bool:
    """Whether an operation, or a function that it calls, makes random numbers."""
    if any(name in operation.type for name in ("Random", "Multinomial")):
        return True
    graph = operation.graph
    for name in operation.op_def.attr:
        value = operation.get_attr(name.name) if name.type == "func" else None
        function = None if value is None else graph._get_function(value.name)
        definition = getattr(function, "cached_definition", None) or getattr(
            function, "definition", None
        )
        if definition is not None and any("Random" in node.op for node in definition.node_def):
            return True
    return False
