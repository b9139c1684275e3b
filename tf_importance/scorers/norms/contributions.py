"""What one layer call adds to the gradient of a variable, example by example, and its norm.

A contribution stands for B gradients of a variable's shape without holding them: the squared
norm of their sum over all uses of the variable is what counts (a time step, a pixel, a tied
layer and a second call are all uses).
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf

BYTES = 4  # of a float32


@dataclasses.dataclass(frozen=True)
class Contribution:
    """B gradients of one variable, factored.

    Its fields that are tensors have the batch as their first axis.
    """

    def gradients(self) -> tf.Tensor:
        """[B, *variable's shape]: materialised."""
        raise NotImplementedError

    def squared_norms(self) -> tf.Tensor:
        """[B]"""
        return squares_by_example(self.gradients())

    def workspace(self) -> int | None:
        """Bytes that `squared_norms` takes per example, None where shapes do not say."""
        raise NotImplementedError

    def gradient_size(self) -> int | None:
        """Bytes of one example's gradient."""
        raise NotImplementedError

    def folded(self, steps: int | tf.Tensor) -> Contribution:
        """Contributions of `steps` consecutive examples each, added up: B → B/steps."""
        raise NotImplementedError

    def joined(self, others: Sequence[Contribution]) -> Contribution | None:
        """The sum with others of the same kind in the same form, None where it has none."""
        return None

    def sliced(self, start, size) -> Contribution:
        """The contribution to `size` examples from one on."""

        def cut(part: tf.Tensor) -> tf.Tensor:
            inner = part.shape.rank - 1
            chunk = tf.slice(part, [start, *[0] * inner], [size, *[-1] * inner])
            return tf.ensure_shape(chunk, [chunk.shape[0], *part.shape[1:]])

        parts = {name: cut(part) for name, part in self.tensors().items()}
        return dataclasses.replace(self, **parts)

    def tensors(self) -> dict[str, tf.Tensor]:
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {name: value for name, value in values.items() if tf.is_tensor(value)}


@dataclasses.dataclass(frozen=True)
class Direct(Contribution):
    """Gradients that are as cheap to hold as anything else: biases, scales.

    Attributes:
        values: [B, *variable's shape].
    """

    values: tf.Tensor

    def gradients(self) -> tf.Tensor:
        return self.values

    def workspace(self) -> int | None:
        return size_of(self.values.shape[1:])

    gradient_size = workspace

    def folded(self, steps) -> Contribution:
        return Direct(tf.reduce_sum(split_steps(self.values, steps), axis=1))

    def joined(self, others: Sequence[Contribution]) -> Contribution | None:
        if all(isinstance(other, Direct) for other in others):
            return Direct(tf.add_n([self.values, *(other.gradients() for other in others)]))
        return None


@dataclasses.dataclass(frozen=True)
class Outer(Contribution):
    """Sums of outer products, Σ_p a_p d_pᵀ, in K blocks of the variable that do not overlap.

    The squared norm is that of the sum (materialised), or Σ_{p,p'} (a_p·a_p')(d_p·d_p') (Gram);
    for P = 1 that is ‖a‖²‖d‖² (Goodfellow 2015).

    Attributes:
        inputs: [B, K, P, n] a.
        deltas: [B, K, P, m] d, gradients with respect to what the variable's product gave.
        arrange: from [B, K, n, m] to [B, *variable's shape].
        layout: equal for contributions whose `arrange` is the same.
    """

    inputs: tf.Tensor
    deltas: tf.Tensor
    arrange: Callable[[tf.Tensor], tf.Tensor]
    layout: Any = None

    def gradients(self) -> tf.Tensor:
        return self.arrange(self._products())

    def squared_norms(self) -> tf.Tensor:
        points = self.inputs.shape[2]
        if points is not None:
            return self._gram() if self._gram_is_cheaper(points) else self._materialised()
        cheaper = self._gram_is_cheaper(tf.shape(self.inputs)[2])
        return tf.cond(cheaper, self._gram, self._materialised)

    def workspace(self) -> int | None:
        blocks, points, n = self.inputs.shape[1:]
        m = self.deltas.shape[3]
        if points is None:
            return None
        gram = self._gram_is_cheaper(points)
        return BYTES * blocks * (2 * points * points if gram else n * m)

    def gradient_size(self) -> int | None:
        return BYTES * self.inputs.shape[1] * self.inputs.shape[3] * self.deltas.shape[3]

    def folded(self, steps) -> Contribution:
        return dataclasses.replace(
            self, inputs=_fold_points(self.inputs, steps), deltas=_fold_points(self.deltas, steps)
        )

    def joined(self, others: Sequence[Contribution]) -> Contribution | None:
        alike = [o for o in others if isinstance(o, Outer) and o.layout == self.layout]
        if self.layout is None or len(alike) < len(others):
            return None
        inputs = tf.concat([self.inputs, *(other.inputs for other in alike)], axis=2)
        deltas = tf.concat([self.deltas, *(other.deltas for other in alike)], axis=2)
        return dataclasses.replace(self, inputs=inputs, deltas=deltas)

    def _gram_is_cheaper(self, points):
        """P²(n + m) against P n m multiplications, for each block."""
        n, m = self.inputs.shape[3], self.deltas.shape[3]
        return points * (n + m) <= n * m

    def _products(self) -> tf.Tensor:
        return tf.matmul(self.inputs, self.deltas, transpose_a=True)

    def _materialised(self) -> tf.Tensor:
        return squares_by_example(self._products())

    def _gram(self) -> tf.Tensor:
        gram = gram_matrix(self.inputs) * gram_matrix(self.deltas)
        return tf.maximum(tf.reduce_sum(gram, axis=[1, 2, 3]), 0)


@dataclasses.dataclass(frozen=True)
class Rows(Contribution):
    """Gradients of a table of which a few rows were read, Σ_t e_{id_t} d_tᵀ; never dense.

    Attributes:
        ids: [B, T] rows that were read.
        deltas: [B, T, m] gradients with respect to what was read.
        size: number of rows of the table.
    """

    ids: tf.Tensor
    deltas: tf.Tensor
    size: int

    def gradients(self) -> tf.Tensor:
        one_hot = tf.one_hot(self.ids, self.size, dtype=self.deltas.dtype)
        return tf.matmul(one_hot, self.deltas, transpose_a=True)

    def squared_norms(self) -> tf.Tensor:
        """Rows that were read more than once are added up first, by sorting them together."""
        shape = tf.shape(self.deltas)
        order = tf.argsort(self.ids, axis=1, stable=True)
        ids = tf.gather(self.ids, order, batch_dims=1)
        new = tf.pad(tf.cast(ids[:, 1:] != ids[:, :-1], tf.int32), [[0, 0], [1, 0]])
        row = tf.cumsum(new, axis=1) + shape[1] * tf.range(shape[0])[:, tf.newaxis]
        deltas = tf.gather(self.deltas, order, batch_dims=1)
        sums = tf.math.unsorted_segment_sum(deltas, row, shape[0] * shape[1])
        return squares_by_example(tf.reshape(sums, shape))

    def workspace(self) -> int | None:
        size = size_of(self.deltas.shape[1:])
        return None if size is None else 3 * size

    def gradient_size(self) -> int | None:
        return BYTES * self.size * self.deltas.shape[2]

    def folded(self, steps) -> Contribution:
        ids = split_steps(self.ids, steps)
        deltas = split_steps(self.deltas, steps)
        outer, width = tf.shape(ids)[0], self.deltas.shape[2]
        return Rows(
            tf.reshape(ids, [outer, -1]), tf.reshape(deltas, [outer, -1, width]), self.size
        )

    def joined(self, others: Sequence[Contribution]) -> Contribution | None:
        rows = [self, *(other for other in others if isinstance(other, Rows))]
        outers = [other for other in others if isinstance(other, Outer)]
        if len(rows) + len(outers) <= len(others):
            return None
        read = Rows(
            tf.concat([other.ids for other in rows], axis=1),
            tf.concat([other.deltas for other in rows], axis=1),
            self.size,
        )
        if not outers:
            return read
        used = outers[0].joined(outers[1:]) if len(outers) > 1 else outers[0]
        if not isinstance(used, Outer) or used.layout != TABLE:
            return None
        return _TiedTable(read.ids, read.deltas, used.inputs[:, 0], used.deltas[:, 0], self.size)


# The layout of an `Outer` whose n and m are the rows and columns of a table read by `Rows`.
TABLE = "table"


@dataclasses.dataclass(frozen=True)
class _TiedTable(Contribution):
    """A table that is read by rows and multiplied with as well: tied embeddings.

    ‖R + O‖² = ‖R‖² + ‖O‖² + 2 Σ_{t,p} a_p[id_t] (d_t·h_p), with O = Σ_p a_p h_pᵀ.
    """

    ids: tf.Tensor
    row_deltas: tf.Tensor
    inputs: tf.Tensor
    deltas: tf.Tensor
    size: int

    @property
    def _rows(self) -> Rows:
        return Rows(self.ids, self.row_deltas, self.size)

    @property
    def _outer(self) -> Outer:
        add = functools.partial(tf.expand_dims, axis=1)
        return Outer(add(self.inputs), add(self.deltas), lambda g: g[:, 0], TABLE)

    def gradients(self) -> tf.Tensor:
        return self._rows.gradients() + self._outer.gradients()

    def squared_norms(self) -> tf.Tensor:
        read = tf.gather(tf.transpose(self.inputs, [0, 2, 1]), self.ids, batch_dims=1)
        products = tf.matmul(self.row_deltas, self.deltas, transpose_b=True)
        crossed = tf.reduce_sum(read * products, axis=[1, 2])
        total = self._rows.squared_norms() + self._outer.squared_norms() + 2 * crossed
        return tf.maximum(total, 0)

    def workspace(self) -> int | None:
        parts = self._rows.workspace(), self._outer.workspace()
        return None if None in parts else sum(part or 0 for part in parts)


@dataclasses.dataclass(frozen=True)
class _Sum(Contribution):
    """A sum of contributions in different forms, materialised."""

    parts: tuple[Contribution, ...]

    def gradients(self) -> tf.Tensor:
        return tf.add_n([part.gradients() for part in self.parts])

    def workspace(self) -> int | None:
        sizes = [part.gradient_size() for part in self.parts]
        return None if None in sizes else 2 * max(size or 0 for size in sizes)

    def sliced(self, start, size) -> Contribution:
        return _Sum(tuple(part.sliced(start, size) for part in self.parts))

    def tensors(self) -> dict[str, tf.Tensor]:
        return self.parts[0].tensors()


def total(contributions: Sequence[Contribution]) -> Contribution:
    """All uses of a variable as one contribution: their sum, from which the norm is taken."""
    first, *others = sorted(contributions, key=lambda part: not isinstance(part, Rows))
    if not others:
        return first
    return first.joined(others) or _Sum((first, *others))


def squared_norms(contribution: Contribution, memory_limit: int) -> tf.Tensor:
    """Squared norms of B gradients, in chunks of examples where memory would pass a bound.

    Args:
        contribution: to the gradients of B examples.
        memory_limit: bytes that the work on one variable may take at a time.
    Returns:
        [B]
    """
    workspace = contribution.workspace()
    first = next(part for part in contribution.tensors().values() if part.dtype.is_floating)
    batch = first.shape[0]
    if workspace is None or (batch is not None and batch * workspace <= memory_limit):
        return contribution.squared_norms()
    chunk = max(1, memory_limit // max(workspace, 1))
    if batch is None:
        size = tf.shape(first)[0]
        chunk = tf.maximum(tf.minimum(chunk, size), 1)
    else:
        size, chunk = batch, min(chunk, batch)
    count = (size + chunk - 1) // chunk

    def norms_of(index):
        # Chunks of one size, as XLA needs them: the last one begins where it ends at B.
        return contribution.sliced(tf.minimum(index * chunk, size - chunk), chunk).squared_norms()

    norms = tf.TensorArray(first.dtype, count, element_shape=[None if batch is None else chunk])
    norms = tf.while_loop(
        lambda index, norms: index < count,
        lambda index, norms: (index + 1, norms.write(index, norms_of(index))),
        (0, norms),
        parallel_iterations=1,
        maximum_iterations=None if batch is None else count,
    )[1].stack()
    last = norms[-1, count * chunk - size :]
    return tf.ensure_shape(tf.concat([tf.reshape(norms[:-1], [-1]), last], axis=0), [batch])


def squares_by_example(values: tf.Tensor) -> tf.Tensor:
    """Σ v² over all axes but the first: [B]."""
    return tf.reduce_sum(tf.square(values), axis=list(range(1, values.shape.rank)))


def gram_matrix(values: tf.Tensor) -> tf.Tensor:
    """All inner products of the vectors along the axis before the last: […, P, P]."""
    return tf.matmul(values, values, transpose_b=True)


def size_of(shape: tf.TensorShape) -> int | None:
    """Bytes of a float32 tensor of a shape, None where it is not known."""
    elements = shape.num_elements()
    return None if elements is None else BYTES * elements


def split_steps(values: tf.Tensor, steps: int | tf.Tensor) -> tf.Tensor:
    """[B·steps, …] as [B, steps, …]."""
    return tf.reshape(values, tf.concat([[-1, steps], tf.shape(values)[1:]], axis=0))


def _fold_points(values: tf.Tensor, steps) -> tf.Tensor:
    """[B·steps, K, P, n] as [B, K, steps·P, n]."""
    blocks, width = values.shape[1], values.shape[3]
    split = tf.transpose(split_steps(values, steps), [0, 2, 1, 3, 4])
    static = values.shape[2] * steps if isinstance(steps, int) and values.shape[2] else -1
    return tf.reshape(split, [tf.shape(split)[0], blocks, static, width])
