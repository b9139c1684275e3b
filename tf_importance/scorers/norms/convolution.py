"""The contribution of a convolution, in one, two or three dimensions."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import tensorflow as tf

from tf_importance.scorers.norms import contributions

# An addition of a sum of shifted Gram matrices costs about as much as this many of the
# multiplications inside a matrix product, which run in registers.
_ADDITION = 16

# Patches of up to so many numbers are stored: a product for each offset would be all overhead.
_NARROW = 64


class Geometry(NamedTuple):
    """How a window moves.

    Attributes:
        kernel_size, strides, dilation: one number for each spatial axis.
        groups: of channels that do not mix.
    """

    kernel_size: tuple[int, ...]
    strides: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int = 1


@dataclasses.dataclass(frozen=True)
class Convolution(contributions.Contribution):
    """Σ_p x[stride·p + dilation·o] d[p]ᵀ for each offset o of the kernel.

    Patches are never stored: for every offset, the materialised form is one batched product of
    a strided slice. The Gram form needs the Gram matrix of *pixels* only, since that of patches
    is a sum of its shifts:

        ‖G‖² = Σ_{p,p'} (d_p·d_p') Σ_o x[p+o]·x[p'+o]

    which for small images with many channels is less work than even the batch's own gradient.

    Attributes:
        images: [B, …, C] what the window moves over, padded.
        deltas: [B, …, M] at the window's positions.
        geometry: the window.
        arrange: from [B, *kernel_size, groups, C/groups, M/groups] to [B, *variable's shape].
    """

    images: tf.Tensor
    deltas: tf.Tensor
    geometry: Geometry
    arrange: Callable[[tf.Tensor], tf.Tensor]

    def gradients(self) -> tf.Tensor:
        products = tf.stack(list(self._products()), axis=1)
        groups, inputs, outputs = products.shape[2:]
        shape = [-1, *self.geometry.kernel_size, groups, inputs, outputs]
        return self.arrange(tf.reshape(products, shape))

    def squared_norms(self) -> tf.Tensor:
        if self._gram_is_cheaper():
            return self._gram()
        return tf.add_n([contributions.squares_by_example(part) for part in self._products()])

    def workspace(self) -> int | None:
        sizes = self._sizes()
        if sizes is None:
            return None
        pixels, points = sizes
        groups, inputs, outputs = self._widths()
        if self._gram_is_cheaper():
            return contributions.BYTES * groups * (pixels**2 + 3 * points**2)
        return contributions.BYTES * groups * (points * (inputs + outputs) + inputs * outputs)

    def gradient_size(self) -> int | None:
        return contributions.BYTES * math.prod((*self.geometry.kernel_size, *self._widths()))

    def folded(self, steps) -> contributions.Contribution:
        gradients = contributions.Direct(self.gradients())
        return gradients.folded(steps)

    def _widths(self) -> tuple[int, int, int]:
        """Groups, and the channels of x and d in each."""
        groups = self.geometry.groups
        return groups, self.images.shape[-1] // groups, self.deltas.shape[-1] // groups

    def _sizes(self) -> tuple[int, int] | None:
        """Number of pixels and of positions; None where shapes do not say."""
        pixels = self.images.shape[1:-1].num_elements()
        points = self.deltas.shape[1:-1].num_elements()
        return None if None in (pixels, points) else (pixels, points)

    def _gram_is_cheaper(self) -> bool:
        sizes = self._sizes()
        if sizes is None:
            return False
        pixels, points = sizes
        _, inputs, outputs = self._widths()
        offsets = math.prod(self.geometry.kernel_size)
        additions = _ADDITION * (offsets + 1) * points**2 if offsets > 1 else 0
        gram = pixels**2 * inputs + points**2 * outputs + additions
        return gram < offsets * points * inputs * outputs

    def _offsets(self) -> Iterator[tuple[int, ...]]:
        return itertools.product(*(range(size) for size in self.geometry.kernel_size))

    def _windows(self, offset: Sequence[int]) -> tuple[slice, ...]:
        """Where the window's pixel of an offset is, over all positions."""
        shape = self.deltas.shape
        if not shape[1:-1].is_fully_defined():
            shape = tf.shape(self.deltas)
        _, strides, dilation, _ = self.geometry
        starts = [at * step for at, step in zip(offset, dilation)]
        stops = [
            start + (shape[axis + 1] - 1) * strides[axis] + 1 for axis, start in enumerate(starts)
        ]
        return tuple(slice(*window) for window in zip(starts, stops, strides))

    def _products(self) -> Iterator[tf.Tensor]:
        """[B, groups, C/groups, M/groups] for each offset."""
        groups, inputs, outputs = self._widths()
        deltas = _points(self.deltas, groups, outputs)
        if self._has_narrow_patches():
            patches = self._patches()
            products = tf.matmul(
                _points(patches, 1, patches.shape[-1]), deltas, transpose_a=True
            )
            yield from tf.split(products, math.prod(self.geometry.kernel_size), axis=2)
            return
        before: list[tf.Tensor] = []
        for offset in self._offsets():
            # One window at a time.
            with tf.control_dependencies(before):
                window = (slice(None), *self._windows(offset))
                pixels = _points(self.images[window], groups, inputs)
            if inputs == 1:
                product = tf.reduce_sum(pixels * deltas, axis=2, keepdims=True)
            else:
                product = tf.matmul(pixels, deltas, transpose_a=True)
            before = [product]
            yield product

    def _has_narrow_patches(self) -> bool:
        kernel_size, strides, dilation, groups = self.geometry
        width = math.prod(kernel_size) * self.images.shape[-1]
        # TensorFlow has no convolution with both.
        possible = max(strides) == 1 or max(dilation) == 1
        return groups == 1 and width <= _NARROW and possible

    def _patches(self) -> tf.Tensor:
        """[B, …, prod(kernel_size) · C], cut out by a convolution with ones and zeros."""
        kernel_size, strides, dilation, _ = self.geometry
        channels = self.images.shape[-1]
        width = math.prod(kernel_size) * channels
        ones = tf.reshape(tf.eye(width, dtype=self.images.dtype), [*kernel_size, channels, width])
        patches = tf.nn.convolution(self.images, ones, strides, "VALID", dilations=dilation)
        size = tf.shape(self.deltas)[1:-1]
        windows = [slice(None), *(slice(size[axis]) for axis in range(len(strides)))]
        return tf.ensure_shape(patches[windows], [*self.deltas.shape[:-1], width])

    def _gram(self) -> tf.Tensor:
        groups, inputs, outputs = self._widths()
        sizes = self.images.shape[1:-1]
        pixels = contributions.gram_matrix(_points(self.images, groups, inputs))
        pixels = tf.reshape(pixels, [-1, groups, *sizes, *sizes])
        windows = [self._windows(offset) for offset in self._offsets()]
        patches = tf.constant(0, pixels.dtype)
        for window in windows:
            # One window at a time.
            with tf.control_dependencies([patches]):
                shift = (slice(None), slice(None), *window, *window)
                patches += pixels[shift]
        deltas = contributions.gram_matrix(_points(self.deltas, groups, outputs))
        products = tf.reshape(patches, tf.shape(deltas)) * deltas
        return tf.maximum(tf.reduce_sum(products, axis=[1, 2, 3]), 0)


def _points(images: tf.Tensor, groups: int, width: int) -> tf.Tensor:
    """[B, …, groups·width] as [B, groups, P, width]."""
    points = images.shape[1:-1].num_elements()
    shape = [-1 if points is not None else tf.shape(images)[0], -1 if points is None else points]
    if groups == 1:
        return tf.reshape(images, [shape[0], 1, shape[1], width])
    return tf.transpose(tf.reshape(images, [*shape, groups, width]), [0, 2, 1, 3])


def padded(
    images: tf.Tensor, windows: tf.Tensor, geometry: Geometry, padding: str
) -> tf.Tensor:
    """Images as the window moves over them.

    Args:
        images: [B, …, C].
        windows: [B, …, M], one entry for each position of the window.
        geometry: the window.
        padding: "same", "valid" or "causal", as in Keras.
    """
    if padding == "valid":
        return images
    amounts: list[tuple[Any, Any]] = [(0, 0)]
    for axis, (size, stride, dilation) in enumerate(zip(*geometry[:3]), start=1):
        reach = (size - 1) * dilation
        if padding == "causal":
            amounts.append((reach, 0))
            continue
        length, positions = _length(images, axis), _length(windows, axis)
        missing = (positions - 1) * stride + reach + 1 - length
        missing = tf.maximum(missing, 0) if tf.is_tensor(missing) else max(missing, 0)
        amounts.append((missing // 2, missing - missing // 2))
    amounts.append((0, 0))
    if all(amount == (0, 0) for amount in amounts if not tf.is_tensor(amount[0])) and not any(
        tf.is_tensor(amount[0]) for amount in amounts
    ):
        return images
    return tf.pad(images, amounts)


def _length(images: tf.Tensor, axis: int):
    length = images.shape[axis]
    return tf.shape(images)[axis] if length is None else length
