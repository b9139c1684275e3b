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


def turn(image: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
    """Rotate by any angle, as Cohen & Welling 2016 augment rotated MNIST.

    By TensorFlow's own operation: `tfa.image.rotate` is the same one, and Keras's layer takes
    no seed for each image, so that runs could not repeat.
    """
    angle = tf.random.stateless_uniform([], seed, 0.0, 2 * math.pi)
    cosine, sine = tf.cos(angle), tf.sin(angle)
    height, width = (tf.cast(size - 1, tf.float32) for size in image.shape[:2])
    x = (width - (cosine * width - sine * height)) / 2
    y = (height - (sine * width + cosine * height)) / 2
    transform = tf.stack([cosine, -sine, x, sine, cosine, y, 0.0, 0.0])[tf.newaxis]
    return tf.raw_ops.ImageProjectiveTransformV3(
        images=image[tf.newaxis],
        transforms=transform,
        output_shape=image.shape[:2],
        fill_value=0.0,
        interpolation="BILINEAR",
        fill_mode="CONSTANT",
    )[0]


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
    "turn": turn,
    "tfa:rotate": rotate,
    "tfa:translate": translate,
    "tfa:cutout": cutout,
}


def by_name(name: str) -> Augment | None:
    """The augmentation of a name, None for "none".

    Raises:
        ValueError: unknown name.
        ImportError: an augmentation of TensorFlow Addons, which is not installed.
    """
    if name not in BY_NAME:
        raise ValueError(f"unknown augmentation {name!r}; known are {', '.join(BY_NAME)}.")
    if name.startswith(addons.PREFIX):
        _addons_image()
    return BY_NAME[name]


def augmented(name: str, seed: int) -> Callable[[tf.data.Dataset], tf.data.Dataset]:
    """A function for `Dataset.apply` on unbatched `(image, label)`.

    Args:
        name: a key of BY_NAME.
        seed: of the random changes.
    Raises:
        ValueError: unknown name.
        ImportError: an augmentation of TensorFlow Addons, which is not installed.
    """
    augment = by_name(name)

    def transform(dataset: tf.data.Dataset) -> tf.data.Dataset:
        if augment is None:
            return dataset
        seeds = tf.data.Dataset.random(seed=seed).batch(2, drop_remainder=True)
        return tf.data.Dataset.zip((dataset, seeds)).map(
            lambda example, seed: (augment(example[0], seed), example[1]),
            num_parallel_calls=tf.data.AUTOTUNE,
        )

    return transform
