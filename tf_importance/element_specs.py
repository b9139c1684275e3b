"""What a dataset's elements must look like, and a net that is built to take them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

from tf_importance import graphs
from tf_importance.arguments import named


def checked(model: keras.Model, dataset: tf.data.Dataset) -> tuple:
    """The dataset's element_spec, as (x, y) or (x, y, sample_weight) without a batch axis."""
    if not isinstance(dataset, tf.data.Dataset):
        raise TypeError(
            f"importance_sample applies to a tf.data.Dataset; got {named(dataset)}. Make one of "
            "arrays: tf.data.Dataset.from_tensor_slices((x, y))."
        )
    spec = dataset.element_spec
    if not isinstance(spec, tuple) or len(spec) not in (2, 3):
        raise ValueError(
            "the dataset must have labels: elements (x, y) or (x, y, sample_weight); got "
            f"element_spec {spec}."
        )
    leaves = tf.nest.flatten(spec)
    unknown = [leaf for leaf in leaves if getattr(leaf, "shape", None) == tf.TensorShape(None)]
    if unknown:
        raise ValueError(
            "the dataset does not say how many axes its examples have; got element_spec "
            f"{spec}. Set it in a map: x = tf.ensure_shape(x, [5]), with None for a size that "
            "varies (or by output_signature=, where a generator makes it)."
        )
    if not all(isinstance(leaf, tf.TensorSpec) for leaf in leaves):
        raise ValueError(
            f"the dataset's elements must be dense tensors; got {spec}. Map ragged ones by "
            "x.to_tensor(), and sparse ones by tf.sparse.to_dense(x)."
        )
    refuse_strings(spec[1])
    if any(leaf.dtype == tf.string for leaf in tf.nest.flatten(spec[2:])):
        raise ValueError(
            f"sample weights must be numbers; got {spec[2]}. Convert them, as by "
            "tf.strings.to_number."
        )
    if is_batched(model, spec):
        raise ValueError(
            "the dataset must not be batched, since importance_sample batches it itself; got "
            f"element_spec {spec}. Leave out .batch(), or undo it by .unbatch(). If it is not, and "
            "its examples differ in length, which are padded, build the net before: "
            "net.build((None, None))."
        )
    return spec


def refuse_strings(labels) -> None:
    """Raises: ValueError: there are strings among the labels, a nest of specs."""
    if any(leaf.dtype == tf.string for leaf in tf.nest.flatten(labels)):
        raise ValueError(
            f"labels must be numbers; got {labels}. Map the strings to classes, as by "
            "np.unique(labels, return_inverse=True)[1]."
        )


def weighs_elements(spec: tuple) -> bool:
    """Whether there are sample weights that are not one number for each example."""
    return len(spec) == 3 and (tf.nest.is_nested(spec[2]) or spec[2].shape not in ([], [1]))


def is_batched(model: keras.Model, spec: Any) -> bool:
    """Whether inputs have the net's own rank, or every part a leading axis of unknown size."""
    leaves = tf.nest.flatten(spec)
    parts = tf.nest.flatten(spec[0] if isinstance(spec, tuple) and spec else spec)
    if not all(isinstance(leaf, tf.TensorSpec) for leaf in leaves):
        return False
    # A net that is not functional, or not built, has no symbolic inputs.
    try:
        expected = tf.nest.flatten(model.net.inputs or [])
    except (AttributeError, ValueError):
        expected = []
    if expected and len(expected) == len(parts):
        ranks = sorted(len(tensor.shape) for tensor in expected)
        return ranks == sorted(leaf.shape.rank or 0 for leaf in parts)
    return all(leaf.shape.rank and leaf.shape[0] is None for leaf in leaves)


def with_scalar_weights(dataset: tf.data.Dataset) -> tf.data.Dataset:
    """The dataset, whose sample weights may have shape [1], with scalars."""
    spec = dataset.element_spec
    if len(spec) < 3 or weighs_elements(spec) or spec[2].shape.rank == 0:
        return dataset
    return dataset.map(graphs.as_it_stands(lambda x, y, weight: (x, y, tf.reshape(weight, []))))


def batched(dataset: tf.data.Dataset, size: int, drop_remainder: bool = False) -> tf.data.Dataset:
    """Batches of examples; those that may differ in their sizes are padded with zeros."""
    if all(leaf.shape.is_fully_defined() for leaf in tf.nest.flatten(dataset.element_spec)):
        return dataset.batch(size, drop_remainder=drop_remainder)
    return dataset.padded_batch(size, drop_remainder=drop_remainder)


def build(model: keras.Model, spec: tuple, one: Callable[[], Any]) -> None:
    """Make the weights of an unbuilt net by a call on one example.

    Args:
        model: an ISModel. spec: (x, …), without a batch axis.
        one: gives inputs with a batch axis of 1, where the spec does not say all their sizes.
    """
    if model.built and model.net.built:
        return
    inputs = spec[0]
    if all(leaf.shape.is_fully_defined() for leaf in tf.nest.flatten(inputs)):
        example = tf.nest.map_structure(lambda s: tf.zeros([1, *s.shape], s.dtype), inputs)
    else:
        example = one()
    with model.distribute_strategy.scope():
        sequential = isinstance(model.net, keras.Sequential) and not tf.nest.is_nested(example)
        if sequential and not model.net.built:
            # By the call alone it would have the call's batch size for good.
            model.net.build((None, *example.shape[1:]))
        model(example, training=False)
