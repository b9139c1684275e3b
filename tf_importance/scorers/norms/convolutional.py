"""Convolutions: ordinary, transposed, depthwise, separable; one to three dimensions."""

from __future__ import annotations

import keras
import tensorflow as tf

from tf_importance.scorers.norms.contributions import Contribution, Direct
from tf_importance.scorers.norms.convolution import Convolution, Geometry, padded
from tf_importance.scorers.norms.dense import has_no_adapter, matrix
from tf_importance.scorers.norms.recording import Recorder, before_activation
from tf_importance.scorers.norms.registry import register

L = keras.layers


def _suits(layer) -> bool:
    return has_no_adapter(layer) and layer.padding in ("same", "valid", "causal")


def _geometry(layer, groups: int) -> Geometry:
    return Geometry(
        tuple(layer.kernel_size), tuple(layer.strides), tuple(layer.dilation_rate), groups
    )


def _channels_last(layer, images: tf.Tensor) -> tf.Tensor:
    if layer.data_format == "channels_last":
        return images
    return tf.transpose(images, [0, *range(2, images.shape.rank), 1])


def _bias(deltas: tf.Tensor) -> Direct:
    """The bias's: sums over the positions of [B, …, M]."""
    return Direct(tf.reduce_sum(deltas, axis=list(range(1, deltas.shape.rank - 1))))


def _side_by_side(products: tf.Tensor) -> tf.Tensor:
    """[B, …, groups, n, m] as an ordinary kernel: [B, …, n, groups·m]."""
    groups, n, m = products.shape[-3:]
    swapped = tf.einsum("...gnm->...ngm", products)
    return tf.reshape(swapped, [-1, *products.shape[1:-3], n, groups * m])


def _by_channel(products: tf.Tensor) -> tf.Tensor:
    """[B, …, C, 1, multiplier] as a depthwise kernel: [B, …, C, multiplier]."""
    return products[..., 0, :]


def _turned(products: tf.Tensor) -> tf.Tensor:
    """[B, …, 1, out, in]: a transposed convolution's kernel is [B, …, out, in]."""
    return products[..., 0, :, :]


@register(L.Conv1D, L.Conv2D, L.Conv3D, method="shifted products", suits=_suits)
def _convolution(layer, call, record: Recorder, inputs, **kwargs):
    geometry = _geometry(layer, layer.groups)

    def contributions(deltas, inputs) -> list[Contribution]:
        images, deltas = _channels_last(layer, inputs), _channels_last(layer, deltas)
        images = padded(images, deltas, geometry, layer.padding)
        return [Convolution(images, deltas, geometry, _side_by_side), _bias(deltas)]

    def note(outputs):
        return record(outputs, [layer.kernel, layer.bias], contributions, inputs)

    with before_activation(layer, note):
        return call(inputs, **kwargs)


@register(
    L.Conv1DTranspose,
    L.Conv2DTranspose,
    L.Conv3DTranspose,
    method="shifted products",
    suits=_suits,
)
def _transposed_convolution(layer, call, record: Recorder, inputs, **kwargs):
    """The convolution that it transposes goes from its outputs to its inputs."""
    geometry = _geometry(layer, groups=1)

    def contributions(deltas, inputs) -> list[Contribution]:
        inputs, deltas = _channels_last(layer, inputs), _channels_last(layer, deltas)
        images = padded(deltas, inputs, geometry, layer.padding)
        return [Convolution(images, inputs, geometry, _turned), _bias(deltas)]

    def note(outputs):
        return record(outputs, [layer.kernel, layer.bias], contributions, inputs)

    with before_activation(layer, note):
        return call(inputs, **kwargs)


@register(L.DepthwiseConv1D, L.DepthwiseConv2D, method="shifted products", suits=_suits)
def _depthwise_convolution(layer, call, record: Recorder, inputs, **kwargs):
    kernel = _depthwise_kernel(layer)

    def contributions(deltas, inputs) -> list[Contribution]:
        images, deltas = _channels_last(layer, inputs), _channels_last(layer, deltas)
        geometry = _geometry(layer, groups=images.shape[-1])
        images = padded(images, deltas, geometry, layer.padding)
        return [Convolution(images, deltas, geometry, _by_channel), _bias(deltas)]

    def note(outputs):
        return record(outputs, [kernel, layer.bias], contributions, inputs)

    with before_activation(layer, note):
        return call(inputs, **kwargs)


def _depthwise_kernel(layer):
    """`kernel` in Keras 3, `depthwise_kernel` in Keras 2."""
    return layer.depthwise_kernel if hasattr(layer, "depthwise_kernel") else layer.kernel


@register(
    L.SeparableConv1D, L.SeparableConv2D, method="shifted and outer products", suits=_suits
)
def _separable_convolution(layer, call, record: Recorder, inputs, **kwargs):
    """A depthwise convolution, then a matrix; what is between the two is taken apart here."""
    rank = len(layer.kernel_size)
    kernel = tf.convert_to_tensor(layer.depthwise_kernel)
    between = _depthwise(layer, _channels_last(layer, inputs), tf.cast(kernel, inputs.dtype))

    def depthwise(deltas, inputs) -> list[Contribution]:
        geometry = _geometry(layer, groups=inputs.shape[-1])
        images = padded(inputs, deltas, geometry, layer.padding)
        return [Convolution(images, deltas, geometry, _by_channel)]

    def pointwise(deltas, between) -> list[Contribution]:
        product = matrix(between, deltas)
        ones = [1] * rank

        def arrange(products):
            return tf.reshape(products, [-1, *ones, *products.shape[2:]])

        product = type(product)(product.inputs, product.deltas, arrange)
        return [product, _bias(deltas)]

    between = record(between, [layer.depthwise_kernel], depthwise, _channels_last(layer, inputs))
    kernel = tf.cast(tf.convert_to_tensor(layer.pointwise_kernel), between.dtype)
    outputs = tf.tensordot(between, tf.reshape(kernel, kernel.shape[rank:]), 1)
    if layer.use_bias:
        outputs += tf.cast(tf.convert_to_tensor(layer.bias), outputs.dtype)
    variables = [layer.pointwise_kernel, layer.bias if layer.use_bias else None]
    outputs = record(outputs, variables, pointwise, between)
    if layer.data_format == "channels_first":
        outputs = tf.transpose(outputs, [0, rank + 1, *range(1, rank + 1)])
    return outputs if layer.activation is None else layer.activation(outputs)


def _depthwise(layer, images: tf.Tensor, kernel: tf.Tensor) -> tf.Tensor:
    """The depthwise half of a separable convolution, as TensorFlow computes it."""
    padding = layer.padding.upper()
    if len(layer.kernel_size) == 2:
        strides = [1, *layer.strides, 1]
        return tf.nn.depthwise_conv2d(images, kernel, strides, padding, None, layer.dilation_rate)
    if padding == "CAUSAL":
        reach = (layer.kernel_size[0] - 1) * layer.dilation_rate[0]
        images, padding = tf.pad(images, [[0, 0], [reach, 0], [0, 0]]), "VALID"
    # TensorFlow wants equal strides on both axes; along the added one nothing moves.
    strides, dilation = [1, *layer.strides * 2, 1], [1, *layer.dilation_rate]
    outputs = tf.nn.depthwise_conv2d(
        images[:, tf.newaxis], kernel[tf.newaxis], strides, padding, None, dilation
    )
    return outputs[:, 0]
