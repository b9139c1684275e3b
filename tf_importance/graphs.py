"""How TensorFlow runs what stands in a graph."""

from __future__ import annotations

import inspect
import weakref
from collections.abc import Callable
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
