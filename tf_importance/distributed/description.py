"""What the processes of a run must agree on, taken from a model and its data."""

from __future__ import annotations

import hashlib
import json
import re
from typing import Any

import numpy as np
import tensorflow as tf

from tf_importance import losses, samplers, scorers, stores
from tf_importance.distributed import parameters

_EXAMPLES = 256


def describe(
    model: Any,
    gather: samplers.base.Gather,
    num_examples: int,
    scorer: scorers.Scorer,
    shard_size: int = 0,
) -> stores.Description:
    """Describe a run.

    Args:
        model: a compiled ISModel; its net is built here if it is not yet.
        gather: the data. num_examples: n. scorer: what scores it.
        shard_size: as in `stores.Description`.
    Raises:
        ValueError: the model is not compiled with a loss.
    """
    if model.objective.loss is None:
        raise ValueError(f"compile model {model.name!r} with a loss before it is shared.")
    if not model.net.built or not model.net.weights:
        inputs, _ = gather(tf.zeros([1], tf.int64))
        model(inputs, training=False)
    return stores.Description(
        num_examples=num_examples,
        loss=loss_name(model.objective),
        scorer=getattr(scorer, "__name__", type(scorer).__name__),
        dtype=str(getattr(model.net, "compute_dtype", "float32")),
        model=parameters.digest(model.net),
        data=fingerprint(gather, num_examples),
        shard_size=shard_size,
    )


def loss_name(objective: losses.Objective) -> str:
    """A compiled loss as text that is the same in all processes."""
    named = tf.nest.map_structure(_one_name, objective.loss)
    return _text([named, objective.loss_weights])


def _one_name(loss: Any) -> str | None:
    if loss is None or isinstance(loss, str):
        return loss
    config = loss.get_config() if hasattr(loss, "get_config") else {}
    plain = {key: value for key, value in config.items() if not callable(value)}
    name = getattr(loss, "__name__", type(loss).__name__)
    return f"{name} {_text(plain)}"


def _text(value: Any) -> str:
    """JSON, without the addresses that differ from process to process."""
    return re.sub(r" at 0x[0-9a-fA-F]+", "", json.dumps(value, sort_keys=True, default=str))


def fingerprint(gather: samplers.base.Gather, num_examples: int) -> str:
    """A digest of 256 examples spread over a data set: another order gives another one."""
    chosen = np.unique(np.linspace(0, num_examples - 1, _EXAMPLES).astype(np.int64))
    digest = hashlib.blake2b(digest_size=8)
    for part in tf.nest.flatten(gather(tf.constant(chosen))):
        values = np.ascontiguousarray(part)
        digest.update(f"{values.dtype} {values.shape}".encode())
        # Of strings an array holds the addresses.
        whole = values.dtype != object
        digest.update(values.tobytes() if whole else repr(values.tolist()).encode())
    return digest.hexdigest()
