"""The state of samplers and schedules in Keras's own files of weights.

Keras 3 saves there what `add_weight` made and nothing else; a `tf.train.Checkpoint` needs none of
this.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import tensorflow as tf

_SEPARATOR = "."


def save(modules: Mapping[str, tf.Module], store) -> None:
    """Write all variables of modules to a store of Keras."""
    for key, variable in _variables(modules).items():
        store[key] = variable.numpy()


def without(store) -> dict:
    """What a store holds beside that."""
    return {key: store[key] for key in store.keys() if _SEPARATOR not in key}


def of(name: str, store) -> dict[str, np.ndarray]:
    """What a store, which Keras closes, holds of a module."""
    return {key: np.array(store[key]) for key in store.keys() if key.startswith(name + _SEPARATOR)}


def load(modules: Mapping[str, tf.Module], store) -> None:
    """Read the variables back; a module of which the store holds nothing is left alone.

    Raises:
        ValueError: the store holds another module's state, or a part of one only.
    """
    there = {key for key in store.keys() if _SEPARATOR in key}
    for name, module in modules.items():
        wanted = _variables({name: module})
        found = {key for key in there if key.startswith(name + _SEPARATOR)}
        if not found:
            continue
        if found != set(wanted):
            raise ValueError(
                f"the file holds the state of another {name} than {type(module).__name__}: missing "
                f"are {sorted(set(wanted) - found)}, unknown {sorted(found - set(wanted))}. "
                "Compile with what it was saved with."
            )
        values = {key: np.asarray(store[key]) for key in wanted}
        for key, variable in wanted.items():
            if values[key].shape != tuple(variable.shape):
                raise ValueError(
                    f"the file's {key} has shape {values[key].shape} where this {name} has "
                    f"{tuple(variable.shape)}: it was made for another number of examples, or "
                    "with other arguments; to begin anew, compile with a new sampler behind this."
                )
        for key, variable in wanted.items():
            variable.assign(values[key])


def _variables(modules: Mapping[str, tf.Module]) -> dict[str, tf.Variable]:
    """All variables by names that do not depend on the process."""
    found = {}
    for name, module in modules.items():
        paths = module._flatten(predicate=lambda v: isinstance(v, tf.Variable), with_path=True)
        for path, variable in paths:
            found[_SEPARATOR.join([name, *map(str, path)])] = variable
    return found
