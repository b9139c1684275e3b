"""Random examples in place of a data set, with its number of classes: nothing is downloaded."""

from __future__ import annotations

import numpy as np
import tensorflow as tf

from trainers import datasets

_EXAMPLES, _TEST_EXAMPLES = 24, 8
# By builder. Color images are smaller than the real ones, so that large nets are quick.
_SHAPES = {"digits": (8, 8, 1), "mit67": (32, 32, 3)}
_GREY, _COLOR = (28, 28, 1), (16, 16, 3)
_CLASSES = {"mit67": 67, "cifar100": 100, "cifar100_augmented": 100}


def load(name: str) -> datasets.Data:
    """What `datasets.load` returns, made up.

    Args:
        name: a key of `datasets.SOURCES`.
    Raises:
        ValueError: unknown name.
    """
    source = datasets.source(name)
    classes = _CLASSES.get(source.builder, 10) // (1 if source.half is None else 2)
    shape = _SHAPES.get(source.builder, _GREY if "mnist" in source.builder else _COLOR)
    images = np.random.default_rng(0).uniform(size=(_EXAMPLES, *shape)).astype(np.float32)
    labels = np.arange(_EXAMPLES, dtype=np.int32) % classes
    examples = tf.data.Dataset.from_tensor_slices((images, labels))
    if name.startswith("permuted"):
        # Of a corner: a sequence of 784 steps takes long.
        examples = examples.map(lambda image, label: (source.to_input(image[:8, :8]), label))
    shape = tuple(examples.element_spec[0].shape)
    return datasets.Data(
        examples, examples.take(_TEST_EXAMPLES), _EXAMPLES, shape, classes, _EXAMPLES
    )
