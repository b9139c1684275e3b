"""Gradient norms of random architectures against batches of one example, in both precisions."""

import keras
import pytest
from hypothesis import HealthCheck, Phase, assume, given, settings
from hypothesis import strategies as st

import tf_importance as tfi
from tests.scorers.norms.batches import assert_exact, batch, compiled, precision
from tests.scorers.norms.families import VOCABULARY, net, of

L = keras.layers
pytestmark = pytest.mark.slow
# The same examples every time, and no search for a smaller one: a net takes its time.
some = settings(
    max_examples=5,
    deadline=None,
    derandomize=True,
    phases=(Phase.explicit, Phase.generate),
    suppress_health_check=list(HealthCheck),
)

SMALL = st.integers(1, 3)
ACTIVATIONS = st.sampled_from([None, "relu", "tanh", "softplus"])
PRECISIONS = {"float32": 1e-5, "float64": 1e-10}


def assert_norms_are_exact(data, build) -> None:
    """Of the net that `build` makes, in a precision that is drawn."""
    name, tolerance = data.draw(st.sampled_from(sorted(PRECISIONS.items())))
    with precision(name):
        model = compiled(build())
        x, y = batch(model, size=2)
        squared = tfi.per_example_gradient_norms(model, x, y, per_variable=True)
        assert_exact(squared, model, x, y, tolerance)


@some
@given(st.data())
def test_dense(data):
    layers = [
        of(L.Dense, width, activation, use_bias=bias)
        for width, activation, bias in data.draw(
            st.lists(st.tuples(SMALL, ACTIVATIONS, st.booleans()), min_size=1, max_size=3)
        )
    ]
    shape = tuple(data.draw(st.lists(SMALL, min_size=1, max_size=3)))
    assert_norms_are_exact(data, of(net, shape, *layers))


@some
@given(st.data())
@pytest.mark.parametrize("rank", [1, 2, 3])
def test_convolutions(rank, data):
    padding = data.draw(st.sampled_from(["same", "valid"] + ["causal"] * (rank == 1)))
    strides, dilation = data.draw(st.sampled_from([(1, 1), (2, 1), (3, 1), (1, 2)]))
    size = data.draw(st.lists(SMALL, min_size=rank, max_size=rank))
    convolution = of(
        getattr(L, f"Conv{rank}D"),
        data.draw(SMALL),
        size,
        strides=strides,
        dilation_rate=dilation,
        padding=padding,
        activation=data.draw(ACTIVATIONS),
        use_bias=data.draw(st.booleans()),
    )
    shape = [data.draw(st.integers(1 + (each - 1) * dilation, 7)) for each in size]
    assert_norms_are_exact(data, of(net, (*shape, data.draw(SMALL)), convolution))


@some
@given(st.data())
@pytest.mark.parametrize("rank", [1, 2, 3])
def test_transposed_convolutions(rank, data):
    size = data.draw(st.lists(SMALL, min_size=rank, max_size=rank))
    convolution = of(
        getattr(L, f"Conv{rank}DTranspose"),
        data.draw(SMALL),
        size,
        strides=data.draw(SMALL),
        padding=data.draw(st.sampled_from(["same", "valid"])),
        activation=data.draw(ACTIVATIONS),
    )
    shape = data.draw(st.lists(SMALL, min_size=rank, max_size=rank))
    assert_norms_are_exact(data, of(net, (*shape, data.draw(SMALL)), convolution))


@some
@given(st.data())
@pytest.mark.parametrize("kind", ["DepthwiseConv", "SeparableConv"])
@pytest.mark.parametrize("rank", [1, 2])
def test_convolutions_by_channel(kind, rank, data):
    strides, dilation = data.draw(st.sampled_from([(1, 1), (2, 1), (1, 2)]))
    size = data.draw(SMALL)
    filters = (data.draw(SMALL),) if kind == "SeparableConv" else ()
    convolution = of(
        getattr(L, f"{kind}{rank}D"),
        *filters,
        (size,) * rank,
        strides=strides,
        dilation_rate=dilation,
        padding=data.draw(st.sampled_from(["same", "valid"])),
        depth_multiplier=data.draw(SMALL),
        activation=data.draw(ACTIVATIONS),
    )
    # Keras 2 pads a dilated depthwise convolution of one dimension as if along both.
    assume(not (rank == 1 and dilation > 1 and kind == "DepthwiseConv"))
    shape = [data.draw(st.integers(1 + (size - 1) * dilation, 6)) for _ in range(rank)]
    assert_norms_are_exact(data, of(net, (*shape, data.draw(SMALL)), convolution))


@some
@given(st.data())
@pytest.mark.parametrize("kind", ["SimpleRNN", "LSTM", "GRU"])
def test_recurrent(kind, data):
    options = {
        "use_bias": data.draw(st.booleans()),
        "activation": data.draw(ACTIVATIONS),
        "go_backwards": data.draw(st.booleans()),
        "return_sequences": data.draw(st.booleans()),
    }
    if kind == "GRU":
        options["reset_after"] = data.draw(st.booleans())
    layer = of(getattr(L, kind), data.draw(SMALL), **options)
    if not options["go_backwards"] and data.draw(st.booleans()):
        inner = layer
        layer = lambda: L.Bidirectional(inner())  # noqa: E731
    length, width = data.draw(st.tuples(st.integers(1, 5), SMALL))
    masking = [of(L.Masking, mask_value=0.0)] * data.draw(st.booleans())
    assert_norms_are_exact(data, of(net, (length, width), *masking, layer))


@some
@given(st.data())
def test_normalizations(data):
    kinds = {
        "layer": of(L.LayerNormalization, scale=data.draw(st.booleans())),
        "layers": of(L.LayerNormalization, axis=data.draw(st.sampled_from([1, [1, 2], [2]]))),
        "group": of(L.GroupNormalization, groups=data.draw(st.sampled_from([1, 2, -1]))),
        "batch": of(L.BatchNormalization, axis=data.draw(st.sampled_from([1, 2, -1]))),
        "prelu": of(L.PReLU, shared_axes=data.draw(st.sampled_from([None, [1], [2]]))),
    }
    chosen = data.draw(st.lists(st.sampled_from(sorted(kinds)), min_size=1, max_size=3))
    shape = data.draw(SMALL), data.draw(SMALL)
    assert_norms_are_exact(data, of(net, shape, of(L.Dense, 4), *[kinds[name] for name in chosen]))


@some
@given(st.data())
def test_embeddings_and_attention(data):
    length, width, heads = data.draw(st.tuples(st.integers(1, 6), SMALL, SMALL))
    masked = data.draw(st.booleans())

    def build():
        tokens = keras.Input((length,), dtype="int32")
        hidden = L.Embedding(VOCABULARY, width, mask_zero=masked)(tokens)
        hidden = L.MultiHeadAttention(heads, 2)(hidden, hidden)
        return keras.Model(tokens, L.Dense(3)(L.GlobalAveragePooling1D()(hidden)))

    assert_norms_are_exact(data, build)
