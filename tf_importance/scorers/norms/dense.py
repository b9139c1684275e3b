"""Dense layers: one matrix, or the matrices that an einsum takes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import keras
import tensorflow as tf

from tf_importance.scorers.norms.contributions import Contribution, Direct, Outer
from tf_importance.scorers.norms.recording import Recorder, before_activation
from tf_importance.scorers.norms.registry import register


def unbroadcast(values: tf.Tensor, shape: Sequence[int]) -> tf.Tensor:
    """Gradient with respect to a variable that was broadcast: [B, …] → [B, *shape]."""
    shape = list(shape)
    extra = values.shape.rank - 1 - len(shape)
    values = tf.reduce_sum(values, axis=list(range(1, 1 + extra)))
    ones = [
        axis for axis in range(1, values.shape.rank) if shape[axis - 1] == 1 != values.shape[axis]
    ]
    return tf.reduce_sum(values, axis=ones, keepdims=True)


def points(values: tf.Tensor) -> tf.Tensor:
    """[B, …, n] as [B, 1, P, n]."""
    sizes = values.shape[1:-1].num_elements()
    batch = -1 if sizes is not None else tf.shape(values)[0]
    return tf.reshape(values, [batch, 1, -1 if sizes is None else sizes, values.shape[-1]])


def matrix(inputs: tf.Tensor, deltas: tf.Tensor) -> Outer:
    """Contribution to a matrix [n, m] of x W: inputs [B, …, n], deltas [B, …, m]."""
    return Outer(points(inputs), points(deltas), lambda g: g[:, 0], "matrix")


def has_no_adapter(layer: keras.layers.Layer) -> bool:
    """Whether a layer's kernel is its variable: neither LoRA nor quantized."""
    adapted = getattr(layer, "lora_enabled", False)
    return not adapted and getattr(layer, "quantization_mode", None) is None


@register(keras.layers.Dense, method="outer products", suits=has_no_adapter)
def _dense(layer, call, record: Recorder, inputs, *args, **kwargs):
    def contributions(deltas, inputs) -> list[Contribution]:
        return [matrix(inputs, deltas), Direct(unbroadcast(deltas, deltas.shape[-1:]))]

    def note(outputs):
        return record(outputs, [layer.kernel, layer.bias], contributions, inputs)

    with before_activation(layer, note):
        return call(inputs, *args, **kwargs)


class Letters(NamedTuple):
    """The axes of an einsum of inputs and a kernel, by what becomes of them.

    Attributes:
        inputs, kernel, outputs: the three terms, the batch's letter first in two of them.
        blocks: in all three. points: in inputs and outputs.
        n: in inputs and kernel. m: in outputs and kernel. summed: in inputs alone.
    """

    inputs: str
    kernel: str
    outputs: str
    blocks: str
    points: str
    n: str
    m: str
    summed: str


def letters(equation: str, rank: int) -> Letters | None:
    """Sort the letters of an equation such as "btd,dnh->btnh"; None where that cannot be.

    Args:
        equation: of `EinsumDense`; may have an ellipsis.
        rank: of the inputs.
    """
    left, outputs = equation.replace(" ", "").split("->")
    inputs, kernel = left.split(",")
    if "..." in equation:
        unused = [c for c in map(chr, range(ord("A"), ord("Z") + 1)) if c not in equation]
        axes = "".join(unused[: rank - len(inputs.replace("...", ""))])
        inputs, outputs = inputs.replace("...", axes), outputs.replace("...", axes)
    batch = inputs[0]
    terms = set(inputs), set(kernel), set(outputs)
    repeated = any(len(term) != len(have) for term, have in zip((inputs, kernel, outputs), terms))
    unmatched = terms[1] - terms[0] - terms[2]
    if repeated or unmatched or outputs[:1] != batch or batch in kernel or "..." in kernel:
        return None

    def among(term: str, *, kernel_has: bool, others: str, others_have: bool) -> str:
        return "".join(
            c
            for c in term
            if c != batch and (c in kernel) == kernel_has and (c in others) == others_have
        )

    return Letters(
        inputs,
        kernel,
        outputs,
        blocks=among(inputs, kernel_has=True, others=outputs, others_have=True),
        points=among(inputs, kernel_has=False, others=outputs, others_have=True),
        n=among(inputs, kernel_has=True, others=outputs, others_have=False),
        m=among(outputs, kernel_has=True, others=inputs, others_have=False),
        summed=among(inputs, kernel_has=False, others=outputs, others_have=False),
    )


def einsum_product(equation: str, inputs: tf.Tensor, deltas: tf.Tensor, kernel) -> Outer:
    """Contribution to the kernel of an einsum.

    Args:
        equation: as in `letters`.
        inputs: [B, …]. deltas: [B, …] gradients of its outputs.
        kernel: the variable.
    """
    found = letters(equation, inputs.shape.rank)
    assert found is not None  # `suits` has seen to that.
    batch = found.inputs[0]
    sizes = dict(zip(found.kernel, kernel.shape))

    def canonical(values, term: str, last: str) -> tf.Tensor:
        """[B, K, P, n or m]"""
        wanted = batch + found.blocks + found.points + last
        values = tf.einsum(f"{term}->{wanted}", values)
        dimensions = dict(zip(wanted, values.shape))
        count = [
            math.prod(sizes[c] for c in found.blocks),
            _product([dimensions[c] for c in found.points]),
            math.prod(sizes[c] for c in last),
        ]
        if count[1] is not None:
            return tf.reshape(values, [-1, *count])
        return tf.reshape(values, [tf.shape(values)[0], count[0], -1, count[2]])

    order = found.blocks + found.n + found.m

    def arrange(products):
        split = tf.reshape(products, [-1, *(sizes[c] for c in order)])
        return tf.transpose(split, [0, *(1 + order.index(c) for c in found.kernel)])

    layout = "matrix" if not found.blocks and order == found.kernel else (order, found.kernel)
    return Outer(
        canonical(inputs, found.inputs, found.n),
        canonical(deltas, found.outputs, found.m),
        arrange,
        (layout, tuple(kernel.shape)),
    )


def _product(dimensions: Sequence[int | None]) -> int | None:
    return None if None in dimensions else math.prod(d for d in dimensions if d is not None)


def _has_sortable_equation(layer) -> bool:
    # Any rank will do: an ellipsis only adds letters to inputs and outputs.
    return has_no_adapter(layer) and letters(layer.equation, len(layer.equation)) is not None


@register(keras.layers.EinsumDense, method="outer products", suits=_has_sortable_equation)
def _einsum_dense(layer, call, record: Recorder, inputs, *args, **kwargs):
    def contributions(deltas, inputs) -> list[Contribution | None]:
        bias = None if layer.bias is None else Direct(unbroadcast(deltas, layer.bias.shape))
        return [einsum_product(layer.equation, inputs, deltas, layer.kernel), bias]

    def note(outputs):
        return record(outputs, [layer.kernel, layer.bias], contributions, inputs)

    with before_activation(layer, note):
        return call(inputs, *args, **kwargs)
