"""Recurrent layers: the same matrices at every time step.

What the product with the inputs adds to the gates has, for all time steps, a gradient that holds
all that the gradients of both matrices are made of.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import keras
import tensorflow as tf

from tf_importance import compat
from tf_importance.scorers.norms import fallback
from tf_importance.scorers.norms.contributions import Contribution, Direct, Outer
from tf_importance.scorers.norms.dense import matrix, unbroadcast
from tf_importance.scorers.norms.recording import Recorder, replaced
from tf_importance.scorers.norms.registry import entry_of, register

L = keras.layers


class Step(NamedTuple):
    """What a cell makes of one time step.

    Attributes:
        output: [B, units], the new hidden state.
        states: all new states, the hidden one first.
        kept: [B, k · units] what the gradients need of it.
    """

    output: tf.Tensor
    states: list[tf.Tensor]
    kept: tf.Tensor


class Equations(NamedTuple):
    """A cell, taken apart.

    Attributes:
        step: (cell, inputs times the kernel [B, gates · units], states, recurrent kernel,
            recurrent bias) -> `Step`.
        contributions: (deltas [B, …, gates · units], inputs [B, …, n], kept [B, …, k · units])
            -> contributions to kernel, recurrent kernel and bias.
    """

    step: Callable[..., Step]
    contributions: Callable[..., list[Contribution]]


def _simple_step(cell, inputs, states, kernel, _) -> Step:
    (state,) = states
    output = _activated(cell.activation, inputs + tf.matmul(state, kernel))
    return Step(output, [output], state)


def _lstm_step(cell, inputs, states, kernel, _) -> Step:
    state, carry = states
    output, carry = lstm_states(cell, inputs + tf.matmul(state, kernel), carry)
    return Step(output, [output, carry], state)


def lstm_states(cell, gates, carry, normalize=lambda carry: carry) -> tuple[tf.Tensor, tf.Tensor]:
    """Hidden state and carry of an LSTM from its gates' pre-activations [B, 4 · units]."""
    entering, forgetting, candidate, showing = tf.split(gates, 4, axis=-1)
    entering, forgetting, showing = (
        _activated(cell.recurrent_activation, gate) for gate in (entering, forgetting, showing)
    )
    carry = forgetting * carry + entering * _activated(cell.activation, candidate)
    carry = normalize(carry)
    return showing * _activated(cell.activation, carry), carry


def _gru_step(cell, inputs, states, kernel, bias) -> Step:
    (state,) = states
    update, reset, candidate = tf.split(inputs, 3, axis=-1)
    if cell.reset_after:
        product = tf.matmul(state, kernel) + (0 if bias is None else bias)
        updated, was_reset, recurrent = tf.split(product, 3, axis=-1)
    else:
        updated, was_reset = tf.split(tf.matmul(state, kernel[:, : 2 * cell.units]), 2, axis=-1)
    update = _activated(cell.recurrent_activation, update + updated)
    reset = _activated(cell.recurrent_activation, reset + was_reset)
    if cell.reset_after:
        recurrent = reset * recurrent
    else:
        recurrent = tf.matmul(reset * state, kernel[:, 2 * cell.units :])
    output = update * state + (1 - update) * _activated(cell.activation, candidate + recurrent)
    return Step(output, [output], tf.concat([state, reset], axis=-1))


def _activated(activation, values: tf.Tensor) -> tf.Tensor:
    return values if activation is None else activation(values)


def _plain_contributions(cell, deltas, inputs, kept) -> list[Contribution]:
    """Where the gates get x K + h R + b: one gradient for all three."""
    bias = Direct(unbroadcast(deltas, deltas.shape[-1:]))
    return [matrix(inputs, deltas), matrix(kept, deltas), bias]


def _gru_contributions(cell, deltas, inputs, kept) -> list[Contribution]:
    """The candidate's recurrent product is reset after it (Keras's default) or before."""
    state, reset = tf.split(kept, 2, axis=-1)
    update, was_reset, candidate = tf.split(deltas, 3, axis=-1)
    if cell.reset_after:
        recurrent = tf.concat([update, was_reset, reset * candidate], axis=-1)
        biases = [unbroadcast(each, each.shape[-1:]) for each in (deltas, recurrent)]
        bias = Direct(tf.stack(biases, axis=1))
        return [matrix(inputs, deltas), matrix(state, recurrent), bias]
    blocks = matrix(state, update), matrix(state, was_reset), matrix(reset * state, candidate)
    product = Outer(
        tf.concat([block.inputs for block in blocks], axis=1),
        tf.concat([block.deltas for block in blocks], axis=1),
        lambda products: tf.concat(tf.unstack(products, axis=1), axis=-1),
        "gates",
    )
    bias = Direct(unbroadcast(deltas, deltas.shape[-1:]))
    return [matrix(inputs, deltas), product, bias]


_EQUATIONS = {
    L.SimpleRNNCell: Equations(_simple_step, _plain_contributions),
    L.LSTMCell: Equations(_lstm_step, _plain_contributions),
    L.GRUCell: Equations(_gru_step, _gru_contributions),
}


class _Weights(NamedTuple):
    """A cell's variables as tensors of its inputs' type; the bias None, [·] or a pair."""

    kernel: tf.Tensor
    recurrent_kernel: tf.Tensor
    bias: tf.Tensor | None
    recurrent_bias: tf.Tensor | None


def _weights(cell, dtype) -> _Weights:
    def tensor(variable):
        return None if variable is None else tf.cast(tf.convert_to_tensor(variable), dtype)

    bias, recurrent_bias = tensor(cell.bias if cell.use_bias else None), None
    if bias is not None and bias.shape.rank == 2:
        bias, recurrent_bias = tf.unstack(bias)
    return _Weights(tensor(cell.kernel), tensor(cell.recurrent_kernel), bias, recurrent_bias)


def _variables(cell) -> list:
    return [cell.kernel, cell.recurrent_kernel, cell.bias if cell.use_bias else None]


def _of_inputs(weights: _Weights, inputs: tf.Tensor) -> tf.Tensor:
    """x K + b."""
    product = tf.tensordot(inputs, weights.kernel, 1)
    return product if weights.bias is None else product + weights.bias


class _Ran(NamedTuple):
    """What a loop over time leaves.

    Attributes:
        outputs: [T, B, units]. kept: [T, B, k · units], as in `Step`.
        states: the last ones.
    """

    outputs: tf.Tensor
    kept: tf.Tensor
    states: list[tf.Tensor]


class _Loop:
    """A cell over all time steps, as Keras goes through them.

    Going back, every step is computed once more: between the two passes only the states are
    held, and going back costs no more than Keras's loops do with what they hold.

    Args:
        multiply: [B, n] inputs of a step -> their products [B, gates · units].
        step: (products, states) -> `Step`.
        sequences: [T, B, n]. mask: [T, B, 1], False where a step keeps its states, or None.
        zero_outputs: give zeros for such a step, in place of the output before.
    """

    def __init__(self, multiply, step, sequences, mask, zero_outputs: bool) -> None:
        self._multiply, self._step = multiply, step
        self._sequences, self._mask = sequences, mask
        self._zero_outputs = zero_outputs
        self._length = sequences.shape[0] or tf.shape(sequences)[0]

    def __call__(self, products: tf.Tensor, states: list[tf.Tensor]) -> _Ran:
        """Run; the outputs' gradient goes to the products [T, B, gates · units] and states."""

        @tf.custom_gradient
        def run(products, *states):
            outputs, kept, history, last = self._forward(list(states))

            def gradient(*deltas):
                return self._backward(deltas[0], list(deltas[2:]), outputs, history)

            return (outputs, kept, *last), gradient

        outputs, kept, *last = run(products, *states)
        return _Ran(outputs, tf.stop_gradient(kept), last)

    def _masked(self, time, products, before, states) -> tuple[Step, list[tf.Tensor]]:
        """A step, and what is left of it by the mask: output and states."""
        new = self._step(products, states)
        if self._mask is None:
            return new, [new.output, *new.states]
        other = tf.zeros_like(before) if self._zero_outputs else before
        mask = self._mask[time]
        pairs = zip((new.output, *new.states), (other, *states))
        return new, [tf.where(mask, made, held) for made, held in pairs]

    def _forward(self, states):
        """Outputs, what is kept, the states before each step, and the last ones."""
        sizes = 2 + len(states)
        made = [tf.TensorArray(states[0].dtype, self._length) for _ in range(sizes)]

        def body(time, made, before, states):
            products = self._multiply(self._sequences[time])
            new, (output, *after) = self._masked(time, products, before, states)
            rows = (output, new.kept, *states)
            return time + 1, [m.write(time, row) for m, row in zip(made, rows)], output, after

        _, made, _, states = tf.while_loop(
            lambda time, *_: time < self._length,
            body,
            (0, made, tf.zeros_like(states[0]), states),
            maximum_iterations=self._length,
        )
        outputs, kept, *history = (part.stack() for part in made)
        return outputs, kept, history, states

    def _backward(self, deltas, state_deltas, outputs, history):
        """Gradients by the products and by the first states."""
        gradients = tf.TensorArray(deltas.dtype, self._length)

        def body(time, gradients, before_delta, state_deltas):
            states = [part[time] for part in history]
            before = tf.where(time > 0, outputs[tf.maximum(time - 1, 0)], 0)
            products = self._multiply(self._sequences[time])
            with tf.GradientTape() as tape:
                given = [products, before, *states]
                tape.watch(given)
                _, made = self._masked(time, products, before, states)
            wanted = [deltas[time] + before_delta, *state_deltas]
            delta, before_delta, *state_deltas = tape.gradient(
                made, given, wanted, unconnected_gradients=tf.UnconnectedGradients.ZERO
            )
            return time - 1, gradients.write(time, delta), before_delta, state_deltas

        _, gradients, _, state_deltas = tf.while_loop(
            lambda time, *_: time >= 0,
            body,
            (self._length - 1, gradients, tf.zeros_like(outputs[0]), state_deltas),
            maximum_iterations=self._length,
        )
        return gradients.stack(), *state_deltas


def _turned(sequences: tf.Tensor) -> tf.Tensor:
    """[B, T, …] as [T, B, …], or back."""
    return tf.transpose(sequences, [1, 0, *range(2, sequences.shape.rank)])


def _run(layer, cell, record: Recorder, sequences, states, mask) -> _Ran:
    """All time steps of one cell, noted; sequences [T, B, n]."""
    weights = _weights(cell, sequences.dtype)
    equations = _EQUATIONS[type(cell)]

    def step(products, states) -> Step:
        kernel, bias = weights.recurrent_kernel, weights.recurrent_bias
        return equations.step(cell, products, states, kernel, bias)

    def contributions(*tensors) -> list[Contribution]:
        return equations.contributions(cell, *map(_turned, tensors))

    if states is None:
        sizes = tf.nest.flatten(cell.state_size)
        states = [tf.zeros([tf.shape(sequences)[1], size], sequences.dtype) for size in sizes]
    zero_outputs = getattr(layer, "zero_output_for_mask", False)
    multiply = functools.partial(_of_inputs, weights)
    loop = _Loop(multiply, step, tf.stop_gradient(sequences), mask, zero_outputs)
    # Of all steps at once, for their gradient: the values that the loop uses are its own.
    products = record.watch(_of_inputs(weights, sequences))
    ran = loop(products, states)
    record(products, _variables(cell), contributions, sequences, ran.kept, batch_axis=1)
    return ran


def _is_plain(cell) -> bool:
    """Whether the activations of a cell are functions: layers may have variables."""
    activations = (cell.activation, getattr(cell, "recurrent_activation", None))
    return not any(isinstance(each, (keras.layers.Layer, tf.Module)) for each in activations)


def _suits(layer) -> bool:
    return not getattr(layer, "time_major", False)


def _unrolled(layer, call, record: Recorder, cells, sequences, **kwargs):
    """Each time step by itself; the whole loop by the fallback where that cannot be."""
    registered = all(entry_of(cell) is not None for cell in cells)
    if registered and sequences.shape[1] is not None:
        with replaced(layer, unroll=True):
            return call(sequences, **kwargs)
    with record.unattended():
        generic = fallback.handler(record.wanted(layer))
        return generic(layer, call, record, sequences, **kwargs)


@register(L.SimpleRNN, L.LSTM, L.GRU, L.RNN, method="gates of all time steps", suits=_suits)
def _recurrent(layer, call, record: Recorder, sequences, initial_state=None, mask=None, **kwargs):
    """Of Keras's cells in one loop; cells that somebody registered note each time step."""
    if layer.stateful:
        raise ValueError(
            f"layer {layer.name!r} is stateful: its outputs depend on earlier batches, so that an "
            "example has no gradient of its own; use stateful=False."
        )
    if isinstance(sequences, (list, tuple)):
        # Keras 2 hands initial states over among the inputs.
        sequences, *initial_state = sequences
    cells = list(getattr(layer.cell, "cells", [layer.cell]))
    known = all(type(cell) in _EQUATIONS and _is_plain(cell) for cell in cells)
    if not known or (len(cells) > 1 and (layer.return_state or initial_state is not None)):
        kwargs |= {"initial_state": initial_state, "mask": mask}
        return _unrolled(layer, call, record, cells, sequences, **kwargs)
    states = None
    if initial_state is not None:
        states = [tf.cast(state, sequences.dtype) for state in tf.nest.flatten(initial_state)]
    if mask is not None:
        mask = _turned(tf.cast(tf.nest.flatten(mask)[0], tf.bool)[..., tf.newaxis])
    outputs = _turned(sequences)
    if layer.go_backwards:
        outputs = tf.reverse(outputs, axis=[0])
        mask = None if mask is None else tf.reverse(mask, axis=[0])
    for cell in cells:
        ran = _run(layer, cell, record, outputs, states, mask)
        outputs = ran.outputs
    last = _turned(outputs) if layer.return_sequences else outputs[-1]
    if not layer.return_state:
        return last
    return (last, *ran.states) if compat.KERAS_3 else [last, *ran.states]


@register(L.SimpleRNNCell, L.LSTMCell, L.GRUCell, method="gates of one time step")
def _recurrent_cell(cell, call, record: Recorder, inputs, states, *args, **kwargs):
    weights = _weights(cell, inputs.dtype)
    products = record.watch(_of_inputs(weights, inputs))
    equations = _EQUATIONS[type(cell)]
    step = equations.step(
        cell,
        products,
        tf.nest.flatten(states),
        weights.recurrent_kernel,
        weights.recurrent_bias,
    )
    contributions = functools.partial(equations.contributions, cell)
    record(products, _variables(cell), contributions, inputs, step.kept)
    return step.output, step.states if tf.nest.is_nested(states) else step.states[0]
