"""Images as sequences: pixel by pixel, in one fixed random order."""

from __future__ import annotations

import numpy as np
import tensorflow as tf


def permutation(size: int) -> np.ndarray:
    """The order of the pixels: for a size always the same, on every machine and version.

    Args:
        size: number of pixels.
    Returns:
        [size] integers.
    """
    # RandomState, whose stream NumPy has frozen (NEP 19); a Generator's may change.
    return np.random.RandomState(0).permutation(size)


def as_sequence(image: tf.Tensor, pool: int = 1) -> tf.Tensor:
    """The pixels of an image, permuted (Le et al. 2015; K&F 2018, section 4.4).

    Args:
        image: [height, width, channels] with a static shape.
        pool: side of the squares that are averaged to one pixel first; divides both sides.
    Returns:
        [height · width / pool², channels].
    """
    height, width, channels = image.shape
    squares = tf.reshape(image, [height // pool, pool, width // pool, pool, channels])
    pixels = tf.reshape(tf.reduce_mean(squares, axis=[1, 3]), [-1, channels])
    return tf.gather(pixels, permutation(pixels.shape[0]))
