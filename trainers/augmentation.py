"""Random changes of single images, before importance sampling sees them."""

from __future__ import annotations

import math
from collections.abc import Callable
from types import ModuleType

import tensorflow as tf

from trainers import addons

_PADDING = 4
_LARGEST_ANGLE = math.pi / 12
_LARGEST_SHIFT = 0.1
_CUTOUT_SHARE = 4

Augment = Callable[[tf.Tensor, tf.Tensor], tf.Tensor]


def flip_crop(image: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
    """Flip left to right half of the time; shift by up to 4 pixels, the rest by reflection.

    The augmentation of CIFAR in Zagoruyko & Komodakis 2016.

    Args:
        image: [height, width, channels].
        seed: [2] integers.
    Returns:
        An image of the same shape.
    """
    padding = [[_PADDING, _PADDING], [_PADDING, _PADDING], [0, 0]]
    padded = tf.pad(image, padding, mode="REFLECT")
    cropped = tf.image.stateless_random_crop(padded, image.shape, seed)
    return tf.image.stateless_random_flip_left_right(cropped, seed)


def rotate(image: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
    """Rotate by up to 15 degrees (TensorFlow Addons)."""
    angle = tf.random.stateless_uniform([], seed, -_LARGEST_ANGLE, _LARGEST_ANGLE)
    return _addons_image().rotate(image, angle, "bilinear")


def translate(image: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
    """Shift by up to a tenth of the height and of the width (TensorFlow Addons)."""
    largest = _LARGEST_SHIFT * tf.constant([image.shape[1], image.shape[0]], tf.float32)
    shift = tf.random.stateless_uniform([2], seed, -1.0, 1.0) * largest
    return _addons_image().translate(image, shift, "bilinear")


def cutout(image: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
    """Black out a square of about a quarter of the height, anywhere (TensorFlow Addons)."""
    height, width, _ = image.shape
    half = max(height // (2 * _CUTOUT_SHARE), 1)
    centre = tf.random.stateless_uniform([2], seed) * tf.constant([height, width], tf.float32)
    return _addons_image().cutout(image[tf.newaxis], 2 * half, tf.cast(centre, tf.int32))[0]


def _addons_image() -> ModuleType:
    return addons.load(f"--augment={addons.PREFIX}…").image


BY_NAME: dict[str, Augment | None] = {
    "none": None,
    "flip_crop": flip_crop,
    "tfa:rotate": rotate,
    "tfa:translate": translate,
    "tfa:cutout": cutout,
}


def augmented(name: str, seed: int) -> Callable[[tf.data.Dataset], tf.data.Dataset]:
    """A function for `Dataset.apply` on unbatched `(image, label)`.

    Args:
        name: a key of BY_NAME.
        seed: of the random changes.
    Raises:
        ValueError: unknown name.
        ImportError: an augmentation of TensorFlow Addons, which is not installed.
    """
    if name not in BY_NAME:
        raise ValueError(f"unknown augmentation {name!r}; known are {', '.join(BY_NAME)}.")
    augment = BY_NAME[name]
    if name.startswith(addons.PREFIX):
        _addons_image()

    def transform(dataset: tf.data.Dataset) -> tf.data.Dataset:
        if augment is None:
            return dataset
        seeds = tf.data.Dataset.random(seed=seed).batch(2, drop_remainder=True)
        return tf.data.Dataset.zip((dataset, seeds)).map(
            lambda example, seed: (augment(example[0], seed), example[1]),
            num_parallel_calls=tf.data.AUTOTUNE,
        )

    return transform
