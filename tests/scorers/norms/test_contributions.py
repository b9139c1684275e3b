"""Contributions: every form against the gradients held in full, in NumPy."""

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from tf_importance.scorers.norms import contributions
from tf_importance.scorers.norms.contributions import Direct, Outer, Rows
from tf_importance.scorers.norms.convolution import Convolution, Geometry

SIZES = st.integers(1, 5)
SEEDS = st.integers(0, 2**16)
few = settings(max_examples=10, deadline=None)


def tensors(seed: int, *shapes):
    rng = np.random.default_rng(seed)
    return [tf.constant(rng.normal(size=shape)) for shape in shapes]


def outer(inputs, deltas, layout="matrix"):
    return Outer(inputs, deltas, lambda products: products, layout)


def rows(seed: int, batch: int, times: int, width: int, size: int = 4) -> Rows:
    rng = np.random.default_rng(seed)
    ids = tf.constant(rng.integers(size, size=(batch, times)), tf.int32)
    return Rows(ids, tf.constant(rng.normal(size=(batch, times, width))), size)


def assert_norms_are_of(contribution, gradients) -> None:
    """gradients: [B, …], in NumPy."""
    expected = np.sum(np.reshape(gradients, [len(gradients), -1]) ** 2, axis=1)
    for limit in (2**20, 1):
        norms = contributions.squared_norms(contribution, limit)
        np.testing.assert_allclose(norms, expected, rtol=1e-10, atol=1e-12)
    held = np.reshape(contribution.gradients(), [len(gradients), -1])
    np.testing.assert_allclose(held, np.reshape(gradients, held.shape), rtol=1e-10, atol=1e-12)


@few
@given(SEEDS, SIZES, SIZES, SIZES, SIZES, SIZES)
def test_outer_products_in_both_forms(seed, batch, blocks, points, n, m):
    inputs, deltas = tensors(seed, (batch, blocks, points, n), (batch, blocks, points, m))
    gradients = np.einsum("bkpn,bkpm->bknm", inputs, deltas)
    contribution = outer(inputs, deltas)
    assert_norms_are_of(contribution, gradients)
    expected = np.sum(gradients**2, axis=(1, 2, 3))
    np.testing.assert_allclose(contribution._gram(), expected, rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(contribution._materialised(), expected, rtol=1e-10)


@pytest.mark.parametrize(
    ("points", "n", "m", "gram"), [(1, 9, 9, True), (4, 16, 16, True), (9, 16, 16, False)]
)
def test_the_form_with_fewer_multiplications_is_taken(points, n, m, gram):
    inputs, deltas = tensors(0, (2, 1, points, n), (2, 1, points, m))
    graph = tf.function(lambda: outer(inputs, deltas).squared_norms()).get_concrete_function().graph
    products = [op for op in graph.get_operations() if op.type.startswith("BatchMatMul")]
    assert all(product.outputs[0].shape[-1] == points for product in products) == gram


@few
@given(SEEDS, SIZES, SIZES, SIZES)
def test_rows_that_repeat_are_added_up_first(seed, batch, times, width):
    contribution = rows(seed, batch, times, width)
    gradients = np.zeros([batch, contribution.size, width])
    for example, ids in enumerate(contribution.ids.numpy()):
        np.add.at(gradients[example], ids, contribution.deltas.numpy()[example])
    assert_norms_are_of(contribution, gradients)


@few
@given(SEEDS, SIZES, SIZES, SIZES, SIZES)
def test_all_uses_of_a_variable_are_added_up_before_the_norm(seed, batch, times, points, width):
    a, b, c, d = tensors(
        seed, *[(batch, 1, points, 4), (batch, 1, points, width)] * 2
    )
    table = contributions.TABLE
    parts = {
        "alike": [outer(a, b), outer(c, d)],
        "unlike": [outer(a, b, "one"), outer(c, d, "other")],
        "without layout": [outer(a, b, None), outer(c, d, None)],
        "direct": [Direct(a), Direct(c), Direct(a)],
        "rows": [rows(seed, batch, times, width), rows(seed + 1, batch, points, width)],
        "tied": [
            Outer(a, b, lambda g: g[:, 0], table),
            rows(seed, batch, times, width),
            Outer(c, d, lambda g: g[:, 0], table),
        ],
        "rows and others": [
            rows(seed, batch, times, width),
            Outer(a, b, lambda g: g[:, 0], "matrix"),
        ],
    }
    for uses in parts.values():
        gradients = sum(np.asarray(use.gradients()) for use in uses)
        assert_norms_are_of(contributions.total(uses), gradients)


@few
@given(SEEDS, SIZES, SIZES)
def test_folded_steps_are_added_up(seed, batch, steps):
    a, b = tensors(seed, (batch * steps, 2, 3, 4), (batch * steps, 2, 3, 2))
    uses = [outer(a, b), Direct(a), rows(seed, batch * steps, 3, 2)]
    for use in uses:
        single = np.asarray(use.gradients())
        gradients = single.reshape([batch, steps, *single.shape[1:]]).sum(axis=1)
        assert_norms_are_of(use.folded(steps), gradients)


@few
@given(
    SEEDS,
    st.integers(1, 3),
    st.integers(1, 2),
    st.integers(1, 3),
    st.integers(1, 3),
    st.integers(1, 3),
    st.integers(1, 2),
    st.integers(1, 4),
)
def test_convolutions_in_both_forms(seed, batch, groups, size, stride, dilation, width, points):
    reach = (points - 1) * stride + (size - 1) * dilation + 1
    geometry = Geometry((size, 1), (stride, 1), (dilation, 1), groups)
    images, deltas = tensors(
        seed, (batch, reach, 2, groups * width), (batch, points, 2, groups * 3)
    )
    contribution = Convolution(images, deltas, geometry, lambda products: products)
    gradients = np.zeros([batch, size, 1, groups, width, 3])
    x = images.numpy().reshape([batch, reach, 2, groups, width])
    d = deltas.numpy().reshape([batch, points, 2, groups, 3])
    for offset in range(size):
        at = offset * dilation + stride * np.arange(points)
        gradients[:, offset, 0] = np.einsum("bpqgn,bpqgm->bgnm", x[:, at], d)
    assert_norms_are_of(contribution, gradients)
    expected = np.sum(gradients.reshape([batch, -1]) ** 2, axis=1)
    np.testing.assert_allclose(contribution._gram(), expected, rtol=1e-9, atol=1e-10)


def test_chunks_bound_the_work_in_memory():
    """The graph's largest product holds as many examples as the limit allows."""
    inputs, deltas = tensors(0, (64, 1, 50, 20), (64, 1, 50, 30))
    limit = 8 * contributions.BYTES * 20 * 30
    function = tf.function(lambda: contributions.squared_norms(outer(inputs, deltas), limit))
    np.testing.assert_allclose(function(), outer(inputs, deltas)._gram(), rtol=1e-10)
    body = next(
        op for op in function.get_concrete_function().graph.get_operations() if "While" in op.type
    )
    assert body is not None


def test_gram_forms_are_never_negative():
    """Rounding may take a sum of products below the zero that it stands for."""
    inputs = tf.constant([[[[1e4], [1e4 + 1e-3]]]], tf.float32)
    deltas = tf.constant([[[[1.0, 2.0, 3.0], [-1.0, -2.0, -3.0]]]], tf.float32)
    assert np.all(outer(inputs, deltas)._gram().numpy() >= 0)
