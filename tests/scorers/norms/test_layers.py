"""Gradient norms of every family of layers against batches of one example."""

import importlib.util
import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf

import tf_importance as tfi
from tests.cases import quick
from tests.scorers.norms.batches import assert_exact, batch, compiled, precision
from tests.scorers.norms.families import BY_EXAMPLE, FAMILIES, Normalized, net, of, subclassed

L = keras.layers
needs_addons = pytest.mark.skipif(
    importlib.util.find_spec("tensorflow_addons") is None, reason="needs TensorFlow Addons"
)

# What takes seconds and is like another one.
SLOW = {
    "bidirectional",
    "conv 1D",
    "conv 3D",
    "depthwise conv 1D",
    "gru",
    "in a loop",
    "masked bidirectional gru",
    "one time step",
    "own cell",
    "separable conv 1D",
    "simple rnn",
    "stacked cells",
    "stacked cells, states",
    "time distributed",
    "transposed conv 1D",
    "transposed conv 3D",
    "unknown length",
}
QUICK = [family for family in FAMILIES if family not in SLOW]


def squared(model, x, y, **kwargs):
    return tfi.per_example_gradient_norms(model, x, y, per_variable=True, **kwargs)


@pytest.mark.filterwarnings("ignore:layer", "ignore:variables")
@pytest.mark.parametrize("family", quick(FAMILIES, *QUICK))
def test_norms_are_those_of_single_examples(family):
    """To the last digits, in a graph and in chunks."""
    with precision("float64"):
        model = compiled(FAMILIES[family]())
        x, y = batch(model)
        tolerance = 1e-6 if family == "adapter" else 1e-12  # Keras keeps adapters in float32.
        chunked = tf.function(lambda x, y: squared(model, x, y, memory_limit=500), autograph=False)
        assert_exact(chunked(x, y), model, x, y, tolerance)


@pytest.mark.parametrize("family", quick(FAMILIES, *QUICK))
def test_eagerly_in_float32_too_and_by_the_fallback_only_where_it_must_be(family):
    model = compiled(FAMILIES[family]())
    x, y = batch(model)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert_exact(squared(model, x, y), model, x, y, 1e-5)
    said = [str(each.message) for each in caught if "norms.register" in str(each.message)]
    # A loop that runs eagerly is in reach.
    assert bool(said) == (family in BY_EXAMPLE and family != "in a loop")
    layers = [row.layer for row in tfi.scorers.norms.coverage(model) if row.is_fallback]
    about_layers = [line for line in said if line.startswith("layer")]
    assert len(about_layers) == len(layers)
    if family != "own cell":  # It is the layer around it that is differentiated.
        assert all(any(repr(name) in line for line in about_layers) for name in layers)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:layer")
def test_a_recurrent_layer_of_convolutions():
    model = compiled(net((2, 4, 4, 2), of(L.ConvLSTM2D, 2, 2)))
    x, y = batch(model)
    assert_exact(squared(model, x, y), model, x, y, 1e-5)


@pytest.mark.parametrize(
    "family", quick(["dense", "conv", "lstm", "attention", "masked lstm"], "dense", "conv")
)
@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
def test_mixed_precision_is_as_exact_as_its_gradients(family, policy):
    with precision(policy):
        model = compiled(FAMILIES[family]())
        x, y = batch(model)
        in_graph = tf.function(lambda x, y: squared(model, x, y), autograph=False)
        assert_exact(in_graph(x, y), model, x, y, 0.05 if policy == "mixed_bfloat16" else 0.01)


@pytest.mark.parametrize(
    "family",
    quick(
        ["dense over time", "conv", "conv of many channels", "lstm", "gru", "attention"],
        "conv",
        "gru",
    ),
)
def test_under_xla(family):
    model = compiled(FAMILIES[family]())
    x, y = batch(model)
    compiled_by_xla = tf.function(
        lambda x, y: squared(model, x, y), jit_compile=True, autograph=False
    )
    assert_exact(compiled_by_xla(x, y), model, x, y, 2e-5)


def test_embeddings_are_never_dense():
    """No tensor of the graph is larger than the table itself, which two examples share."""
    tokens = keras.Input((4,), dtype="int32")
    table = L.Embedding(5000, 8)
    model = compiled(keras.Model(tokens, L.Dense(3)(L.Flatten()(table(tokens)))))
    x, y = tf.constant([[7, 7, 1, 7], [0, 4999, 3, 0]]), tf.constant([0, 2])
    function = tf.function(lambda x, y: squared(model, x, y), autograph=False)
    assert_exact(function(x, y), model, x, y, 1e-5)
    graph = function.get_concrete_function(x, y).graph
    sizes = [out.shape.num_elements() or 0 for op in graph.get_operations() for out in op.outputs]
    assert max(sizes) <= 5000 * 8


@needs_addons
@pytest.mark.parametrize("kind", ["cell", "weight normalization"])
def test_layers_of_tensorflow_addons(kind, recwarn):
    import tensorflow_addons as tfa

    def normalized(layer):
        return lambda: tfa.layers.WeightNormalization(layer, data_init=False)

    layers = {
        "cell": [lambda: L.RNN(tfa.rnn.LayerNormLSTMCell(4))],
        "weight normalization": [normalized(L.Dense(4, "relu")), normalized(L.Conv1D(4, 2))],
    }
    model = net((6, 4), *layers[kind])
    x, y = batch(model)
    model(x)  # Initializes weight normalization.
    compiled(model)
    assert_exact(squared(model, x, y), model, x, y, 1e-5)
    assert not [each for each in recwarn if "norms.register" in str(each.message)]


@pytest.mark.parametrize("family", ["dense over time", "gru"])
def test_one_example_and_none(family):
    model = compiled(FAMILIES[family]())
    x, y = batch(model, size=1)
    assert_exact(squared(model, x, y), model, x, y, 1e-5)
    function = tf.function(
        lambda x, y: tfi.per_example_gradient_norms(model, x, y), reduce_retracing=True
    )
    assert function(x[:0], y[:0]).shape == [0]


def test_a_batch_of_unknown_size():
    model = compiled(FAMILIES["lstm"]())
    x, y = batch(model)
    signature = [tf.TensorSpec([None, 6, 4]), tf.TensorSpec([None], y.dtype)]
    function = tf.function(lambda x, y: squared(model, x, y), signature, autograph=False)
    assert_exact(function(x, y), model, x, y, 1e-5)


def test_training_mode_has_no_norms():
    model = compiled(subclassed(Normalized))
    with pytest.raises(ValueError, match="couple|statistics of the batch"):
        squared(model, *batch(model))


@pytest.mark.parametrize(
    "coupling",
    [lambda x: x - tf.reduce_mean(x, axis=0), lambda x: tf.nn.softmax(x, axis=0)],
    ids=["mean", "softmax"],
)
def test_layers_that_couple_examples_are_refused(coupling):
    model = compiled(net((4,), of(L.Dense, 4), lambda: L.Lambda(coupling)))
    x, y = batch(model)
    with pytest.raises(ValueError, match="couples the examples of a batch"):
        squared(model, x, y)


def test_noise_in_inference_is_not_taken_for_coupling():
    model = compiled(net((4,), lambda: L.Lambda(lambda x: x + tf.random.normal(tf.shape(x)))))
    assert np.all(tfi.per_example_gradient_norms(model, *batch(model)) > 0)
