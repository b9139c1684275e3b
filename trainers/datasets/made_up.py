"""Random examples in place of a data set, with its number of classes: nothing is downloaded."""

from __future__ import annotations

import numpy as np
import tensorflow as tf

from trainers import datasets
from trainers.datasets import flights, rare

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


def rare_classes(name: str, long_tail: bool) -> rare.Rare:
    """What `rare.load` returns, made up, a third of it of the rarest class of two.

    Args:
        name: of `rare.NAMES`. long_tail: ten classes in place of two.
    Raises:
        ValueError: unknown name.
    """
    if name not in rare.NAMES:
        raise ValueError(f"--dataset must be one of {', '.join(rare.NAMES)}; got {name!r}.")
    rng = np.random.default_rng(0)
    if name in rare.FLIGHTS:
        codes = np.zeros([_EXAMPLES, len(flights.SIZES)])
        x = np.concatenate([codes, rng.normal(size=(_EXAMPLES, len(flights.NUMBERS)))], axis=1)
    else:
        shape = _SHAPES.get(name, _GREY if "mnist" in name else _COLOR)
        x = rng.uniform(size=(_EXAMPLES, *shape))
    places = np.arange(_EXAMPLES)
    classes = 10 if long_tail and name not in rare.FLIGHTS else 2
    y = places % classes if classes > 2 else places % 3 == 0
    part = rare.Part(x.astype(np.float32), y.astype(np.int32), np.ones(_EXAMPLES, np.float32))
    return rare.Rare(part, part, part, num_classes=classes)
