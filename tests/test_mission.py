"""What was asked for first, and must stay whatever is built around it."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import tf_importance as tfi
from tf_importance import fresh

B, b = 32, 8


def compiled() -> tfi.ISModel:
    model = tfi.ISModel(keras.Sequential([keras.Input((2,)), keras.layers.Dense(4)]))
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    return model


def functions(dataset) -> list[tf.Graph]:
    """The graphs of what a dataset's transforms do."""
    found, waiting = [], [dataset]
    while waiting:
        one = waiting.pop()
        waiting.extend(one._inputs())
        if hasattr(one, "_map_func"):
            found.append(one._map_func.function.graph)
    return found


def operations(graph) -> set[str]:
    """The types of all operations of a graph and of the functions that it calls."""
    definition = graph.as_graph_def()
    nodes = [*definition.node]
    for function in definition.library.function:
        nodes.extend(function.node_def)
    return {node.op for node in nodes}


def test_batches_are_x_y_and_weight(blobs):
    model = compiled()
    dataset = tf.data.Dataset.from_tensor_slices(blobs)
    x, y, weight = dataset.apply(tfi.importance_sample(model, b, B)).element_spec
    assert (x.shape, y.shape) == ([b, 2], [b])
    assert weight == tf.TensorSpec([b], tf.float32)


def test_draws_are_categorical_by_default(blobs):
    model = compiled()
    dataset = tf.data.Dataset.from_tensor_slices(blobs)
    used = set().union(*map(operations, functions(dataset.apply(tfi.importance_sample(model, b)))))
    assert "StatelessMultinomial" in used, "what tf.random.stateless_categorical is"
    systematic = dataset.apply(tfi.importance_sample(model, b, resampling="systematic"))
    assert "StatelessMultinomial" not in set().union(*map(operations, functions(systematic)))


@pytest.mark.parametrize("data", ["finite", "endless"])
def test_the_pipeline_is_a_conditional_on_tau(data, blobs):
    model = compiled()
    dataset = tf.data.Dataset.from_tensor_slices(blobs)
    dataset = dataset.repeat() if data == "endless" else dataset

    def graphs_that_read_tau(**how):
        graphs = functions(dataset.apply(tfi.importance_sample(model, b, B, **how)))
        handle = getattr(model.tau, "value", model.tau)
        handle = (handle if isinstance(handle, tf.Variable) else model.tau).handle
        return [g for g in graphs if any(outside is handle for outside, _ in g.captures)]

    (graph,) = graphs_that_read_tau()
    assert operations(graph) & {"If", "StatelessIf"}
    assert graphs_that_read_tau(tau_threshold="always") == []


def test_tau_turns_the_next_group(blobs):
    model = compiled()
    batches = iter(
        tf.data.Dataset.from_tensor_slices(blobs)
        .repeat()
        .apply(tfi.importance_sample(model, b, B, tau_threshold=2.0, seed=0))
    )
    for tau, drawn in ((1.0, False), (3.0, True), (2.0, False), (2.1, True)):
        model.tau.assign(tau)
        group = [next(batches)[2].numpy() for _ in range(1 if drawn else B // b)]
        assert (np.ptp(np.concatenate(group)) > 0) == drawn, tau


@pytest.mark.parametrize(
    "device, asked", [("/device:GPU:0", True), ("/device:TPU:0", True), ("", False)]
)
def test_xla_is_asked_for_where_there_is_an_accelerator(device, asked, blobs, monkeypatch):
    model, seen, function = compiled(), [], tf.function
    monkeypatch.setattr(fresh.compat, "device", lambda model: device)

    def spy(*args, jit_compile=None, **kwargs):
        seen.append(jit_compile)
        return function(*args, **kwargs)

    monkeypatch.setattr(fresh.tf, "function", spy)
    spec = tuple(tf.TensorSpec(part.shape[1:], part.dtype) for part in map(tf.constant, blobs))
    fresh.compiled(fresh.Score(model.scorer, model), spec, B, "auto")
    assert seen[0] == asked
