"""Sources with random access: their length, and their examples by index."""

from __future__ import annotations

import numbers
import operator
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tf_importance import graphs
from tf_importance.arguments import named

_READ_AT_ONCE = 1024
_SHOWN = 8
_EXPLANATION = (
    "source must be (x, y) or (x, y, sample_weight), each an array or a nest of arrays of the same "
    "length; or have random "
    "access: a TFDS data source (tfds.data_source), or any object with __len__ and __getitem__ "
    "that gives (x, y)"
)


def opened(source: Any) -> tuple[int, Callable[[tf.Tensor], tuple[Any, Any]]]:
    """The number of examples of a source, and a function from indices [b] to (x, y).

    Of arrays with sample weights it is a function to (x, y, sample_weight).

    Raises:
        TypeError: the source has no random access. ValueError: it is empty, or of no such form.
    """
    if isinstance(source, tf.data.Dataset):
        raise TypeError(
            f"a tf.data.Dataset has no random access; got {named(source)}. {_EXPLANATION}. For "
            'TFDS: tfds.data_source(name, split="train").'
        )
    if isinstance(source, tuple):
        return _arrays(source)
    if not is_numbered(source):
        raise TypeError(f"{_EXPLANATION}; got {told(source)}.")
    return _random_access(source)


def is_numbered(source: Any) -> bool:
    """Whether an object has random access, as a torch Dataset and a TFDS data source have."""
    has_access = hasattr(source, "__len__") and hasattr(source, "__getitem__")
    others = (tuple, dict, str, bytes, np.ndarray, tf.Tensor)
    return has_access and not isinstance(source, others) and conversion(source) is None


def told(source: Any) -> str:
    """What an object is, and how to give its examples where that is known; for errors."""
    remedy = conversion(source)
    return named(source) + ("" if remedy is None else f": {remedy}")


def conversion(source: Any) -> str | None:
    """How to give the examples of what has them in batches, or in columns; None of other things."""
    if isinstance(source, keras.utils.Sequence):
        return (
            "a PyDataset has batches; give the arrays that it reads, (x, y), or an object whose "
            "__getitem__(i) is one example (x, y) and whose __len__ is their number"
        )
    of_torch = type(source).__module__.startswith("torch.utils.data")
    if of_torch and hasattr(source, "dataset") and not hasattr(source, "__getitem__"):
        return "a DataLoader has batches; give its examples, loader.dataset, and a batch_size"
    if hasattr(source, "iloc"):
        return (
            "a table has columns; give its inputs and labels as arrays, "
            "table[inputs].to_numpy('float32') and table[label].to_numpy()"
        )
    if hasattr(source, "with_format") and hasattr(source, "column_names"):
        names = ", ".join(map(str, source.column_names))
        return (
            f"its examples have the columns {names}; give inputs and labels as arrays, "
            "np.stack(data[inputs]) and np.asarray(data[label])"
        )
    return None


def first(source: Any, limit: int | None = None) -> tuple[Any, Any]:
    """The first examples of a source, all by default, as nests of arrays."""
    size, gather = opened(source)
    wanted = np.arange(size if limit is None else min(size, limit))
    parts = np.array_split(wanted, -(-len(wanted) // _READ_AT_ONCE))
    pieces = [gather(tf.constant(part)) for part in parts]
    return tf.nest.map_structure(lambda *each: np.concatenate(each), *pieces)


def _arrays(source: tuple) -> tuple[int, Callable]:
    if len(source) not in (2, 3):
        raise ValueError(f"{_EXPLANATION}; got a tuple of {len(source)}.")
    dense = tf.nest.map_structure(array, without_lists(source))
    tensors = tf.nest.map_structure(tf.convert_to_tensor, dense)
    if len(source) == 3:
        if not isinstance(tensors[2], tf.Tensor) or tensors[2].shape.rank != 1:
            raise ValueError(
                "sample weights must be one number for each example, shape [n]; got "
                f"{named(source[2])}."
            )
        tensors = (*tensors[:2], tf.cast(tensors[2], tf.float32))
    flat = tf.nest.flatten(tensors)
    lengths = {tensor.shape[0] if tensor.shape.rank else None for tensor in flat}
    if len(lengths) != 1 or None in lengths or 0 in lengths:
        shapes = [tuple(tensor.shape) for tensor in flat[:_SHOWN]]
        more = f" and {len(flat) - _SHOWN} more" if len(flat) > _SHOWN else ""
        raise ValueError(f"{_EXPLANATION}; got arrays of shapes {shapes}{more}.")

    def gather(indices):
        return tf.nest.map_structure(lambda tensor: tf.gather(tensor, indices), tensors)

    return len(flat[0]), gather


def array(part: Any) -> np.ndarray | tf.Tensor:
    """An array of numbers or strings, as NumPy or TensorFlow has it.

    Raises:
        TypeError: it is ragged, sparse, or of anything else.
    """
    kind = type(part).__name__
    if isinstance(part, (tf.RaggedTensor, tf.SparseTensor)) or hasattr(part, "toarray"):
        raise TypeError(
            f"arrays must be dense; got a {kind}. Give x.to_tensor() of a ragged one, and "
            "tf.sparse.to_dense(x), or x.toarray(), of a sparse one."
        )
    if isinstance(part, tf.Tensor):
        return part
    found = np.asarray(part)
    of_objects = found.dtype == object and found.size > 0
    if found.dtype.names or (
        of_objects and not isinstance(found.flat[0], (str, bytes, numbers.Number))
    ):
        raise TypeError(
            f"arrays must be of numbers or strings; got a {kind} of {found.dtype}. Stack its parts "
            "to one array, as np.stack(list(x)) of arrays, or np.stack([x[name] for name in "
            "x.dtype.names], axis=1) of columns; pad those of different lengths."
        )
    return found


def without_lists(nest: Any) -> Any:
    """Tuples in the place of lists of arrays, which tf.data would make one tensor of."""
    if isinstance(nest, dict):
        return {key: without_lists(part) for key, part in nest.items()}
    if not isinstance(nest, (list, tuple)):
        return nest
    if isinstance(nest, list) and not all(hasattr(part, "shape") for part in tf.nest.flatten(nest)):
        return nest  # Of numbers: an array.
    parts = [without_lists(part) for part in nest]
    return type(nest)(*parts) if hasattr(nest, "_fields") else tuple(parts)


def read(dataset: tf.data.Dataset, name: str) -> Any:
    """All examples of a dataset, nests of arrays.

    Args:
        name: of the argument, for the error.
    Raises:
        ValueError: there are none.
    """
    pieces = list(dataset.batch(_READ_AT_ONCE).as_numpy_iterator())
    if not pieces:
        raise ValueError(f"{name} has no examples; give a dataset that has some.")
    return tf.nest.map_structure(lambda *each: np.concatenate(each), *pieces)


def rows(nest: Any, indices: np.ndarray | slice) -> Any:
    """The same of some examples."""
    return tf.nest.map_structure(lambda part: part[indices], nest)


def _random_access(source: Any) -> tuple[int, Callable]:
    size = operator.index(len(source))
    if size == 0:
        raise ValueError(f"{_EXPLANATION}; got one of length 0.")
    example = _pair(source[0])
    first = tf.nest.map_structure(np.asarray, example)
    specs = tf.nest.map_structure(lambda part: tf.TensorSpec(part.shape, part.dtype), first)
    fetch = getattr(source, "__getitems__", None)

    def rows(indices):
        numbers = [int(index) for index in indices]
        examples = fetch(numbers) if fetch else [source[number] for number in numbers]
        flat = [tf.nest.flatten(_pair(one)) for one in examples]
        parts = zip(zip(*flat), tf.nest.flatten(specs))
        return [_stacked(part, spec) for part, spec in parts]

    def gather(indices):
        flat = tf.nest.flatten(specs)
        types = [spec.dtype for spec in flat]
        parts = tf.numpy_function(graphs.weakly(rows), [indices], types, stateful=False)
        for part, spec in zip(parts, flat):
            part.set_shape([indices.shape[0], *spec.shape])
        return tf.nest.pack_sequence_as(specs, parts)

    return size, gather


def _stacked(part: tuple, spec: tf.TensorSpec) -> np.ndarray:
    """Arrays of some examples as one.

    Raises:
        ValueError: one has another shape than the first example's, or is of another kind.
    """
    wanted = spec.dtype.as_numpy_dtype
    for one in map(np.asarray, part):
        if one.shape != tuple(spec.shape) or not np.can_cast(one.dtype, wanted, "same_kind"):
            raise ValueError(
                f"the examples of a source must be alike; the first has shape {tuple(spec.shape)} "
                f"and {spec.dtype.name}, and one has {one.shape} and {one.dtype}. Let __getitem__ "
                "pad or cast them."
            )
    return np.stack(part).astype(wanted)


def _pair(example: Any) -> tuple[Any, Any]:
    """(x, y) of one example."""
    if isinstance(example, dict) and {"image", "label"} <= set(example):
        return example["image"], example["label"]
    if isinstance(example, (tuple, list)) and len(example) == 2:
        return example[0], example[1]
    raise ValueError(f"{_EXPLANATION}; got an example {named(example)}.")
