"""The transform: shapes, groups, seeds, fallbacks, live weights and refusals."""

import copy
import re
import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf

import tf_importance as tfi
from tests.cases import quick
from tf_importance import compat

L = keras.layers


def classifier(inputs=(2,), **kwargs) -> tfi.ISModel:
    net = keras.Sequential([keras.Input(inputs), L.Flatten(), L.Dense(4)])
    model = tfi.ISModel(net, **kwargs)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile("sgd", loss)
    return model


def numbered(n) -> tf.data.Dataset:
    """n examples whose inputs are their numbers."""
    x = np.repeat(np.arange(n, dtype=np.float32)[:, None], 2, axis=1)
    return tf.data.Dataset.from_tensor_slices((x, (np.arange(n) % 4).astype(np.int32)))


def counts(dataset) -> np.ndarray:
    """How often each example appears with a weight above zero."""
    seen = [x[w > 0, 0] for x, y, w in dataset.as_numpy_iterator()]
    return np.bincount(np.concatenate(seen).astype(int))


def test_the_two_lines_alone_work(blobs):
    model = classifier()
    batches = tf.data.Dataset.from_tensor_slices(blobs).apply(tfi.importance_sample(model))
    shapes = tf.nest.map_structure(lambda spec: spec.shape.as_list(), batches.element_spec)
    assert shapes == ([32, 2], [32], [32])
    history = model.fit(batches, epochs=2, verbose=0).history
    assert len(history["loss"]) == 2 and np.all(np.isfinite(history["loss"]))


@pytest.mark.parametrize("resampling", ["multinomial", "systematic"])
def test_a_drawn_batch_has_its_weights(resampling):
    model = classifier()
    data = numbered(16)
    batches = data.apply(
        tfi.importance_sample(model, 4, 8, tau_threshold="always", resampling=resampling, seed=1)
    )
    found = list(batches.as_numpy_iterator())
    assert len(found) == 2
    for group, (x, y, weights) in enumerate(found):
        members = slice(8 * group, 8 * group + 8)
        xs, ys = (np.array(part)[members] for part in zip(*data.as_numpy_iterator()))
        scores = tfi.scorers.upper_bound(model, tf.constant(xs), tf.constant(ys)).numpy()
        positions = x[:, 0].astype(int) - 8 * group
        truth = scores.mean() / scores[positions]
        np.testing.assert_allclose(weights, truth, rtol=1e-4)
        np.testing.assert_array_equal(y, ys[positions])


@pytest.mark.parametrize("n", [1, 3, 4, 7, 8, 13, 16, 21])
def test_every_example_is_used_once_when_nothing_is_drawn(n):
    batches = numbered(n).apply(tfi.importance_sample(classifier(), 4, 8, tau_threshold="never"))
    found = list(batches)
    assert len(found) == -(-n // 4)
    np.testing.assert_array_equal(counts(batches), np.ones(n))
    assert all(weights.shape == [4] for _, _, weights in found)


@pytest.mark.parametrize("n", [3, 13])
def test_the_short_group_is_used_whole_even_when_drawing(n):
    batches = numbered(n).apply(
        tfi.importance_sample(classifier(), 4, 8, tau_threshold="always", seed=0)
    )
    rest = n % 8
    np.testing.assert_array_equal(counts(batches)[-rest:], np.ones(rest))


def test_a_filled_up_batch_has_the_mean_of_its_examples():
    *_, (x, _, weights) = numbered(6).apply(
        tfi.importance_sample(classifier(), 4, 8, tau_threshold="never")
    )
    np.testing.assert_allclose(weights, [2, 2, 0, 0])
    np.testing.assert_allclose(np.mean(weights * x[:, 0]), np.mean([4.0, 5.0]))


def test_sample_weights_multiply_into_scores_and_weights():
    model = classifier()
    sample_weights = np.linspace(0, 3, 16).astype(np.float32)
    with_weights = tf.data.Dataset.zip(
        (numbered(16), tf.data.Dataset.from_tensor_slices(sample_weights))
    ).map(lambda example, weight: (*example, weight))
    xs, ys = (np.array(part) for part in zip(*numbered(16).as_numpy_iterator()))
    scores = sample_weights * tfi.scorers.upper_bound(model, tf.constant(xs), tf.constant(ys))
    (x, _, weights) = next(
        with_weights.apply(
            tfi.importance_sample(model, 16, 16, tau_threshold="always", seed=0)
        ).as_numpy_iterator()
    )
    positions = x[:, 0].astype(int)
    assert 0 not in positions
    truth = sample_weights[positions] * np.mean(scores) / np.asarray(scores)[positions]
    np.testing.assert_allclose(weights, truth, rtol=1e-4)
    uniform = with_weights.apply(tfi.importance_sample(model, 4, 8, tau_threshold="never"))
    emitted = np.concatenate([w for _, _, w in uniform.as_numpy_iterator()])
    np.testing.assert_allclose(emitted, sample_weights)


def test_any_nest_of_inputs_and_outputs():
    a, b = keras.Input((3,), name="a"), keras.Input((2, 2), name="b")
    joined = L.Concatenate()([a, L.Flatten()(b)])
    net = keras.Model({"a": a, "b": b}, {"p": L.Dense(4)(joined), "q": L.Dense(1)(joined)})
    model = tfi.ISModel(net)
    model.compile("sgd", {"p": "mse", "q": "mse"}, loss_weights={"p": 1.0, "q": 0.1})
    data = tf.data.Dataset.from_tensor_slices(
        (
            {"a": np.ones((40, 3), np.float32), "b": np.ones((40, 2, 2), np.float32)},
            {"p": np.ones((40, 4), np.float32), "q": np.ones((40, 1), np.float32)},
        )
    )
    batches = data.apply(tfi.importance_sample(model, 4, 8, tau_threshold="always"))
    x, y, weights = next(iter(batches))
    assert x["b"].shape == [4, 2, 2] and y["q"].shape == [4, 1] and weights.shape == [4]
    model.fit(batches, verbose=0)


class Subclassed(keras.Model):
    def __init__(self):
        super().__init__()
        self.hidden, self.last = L.Dense(5, activation="relu"), L.Dense(4, activation="softmax")

    def call(self, inputs):
        return self.last(self.hidden(inputs))


@pytest.mark.parametrize(
    "net",
    [
        lambda: keras.Sequential([L.Dense(5), L.Dense(4, activation="softmax")]),
        Subclassed,
    ],
    ids=["Sequential", "subclassed"],
)
@pytest.mark.parametrize("shape", ["static", "unknown"])
def test_an_unbuilt_net_is_built_from_the_dataset(net, shape):
    model = tfi.ISModel(net())
    model.compile("sgd", "sparse_categorical_crossentropy")
    data = numbered(20)
    if shape == "unknown":
        signature = (tf.TensorSpec([None], tf.float32), tf.TensorSpec([], tf.int32))
        data = tf.data.Dataset.from_generator(
            lambda: numbered(20).as_numpy_iterator(), output_signature=signature
        )
    batches = data.apply(tfi.importance_sample(model, 4, 8, tau_threshold="always"))
    assert model.net.built and len(model.net.weights) == 4
    model.fit(batches, verbose=0)


@pytest.mark.slow
@pytest.mark.parametrize("resampling", ["multinomial", "systematic"])
def test_seeded_runs_repeat_exactly(blobs, resampling):
    def run(seed):
        keras.utils.set_random_seed(1)
        model = classifier()
        data = tf.data.Dataset.from_tensor_slices(blobs).shuffle(512, seed=4)
        batches = data.apply(
            tfi.importance_sample(
                model, 8, 32, tau_threshold=1.05, resampling=resampling, seed=seed
            )
        )
        history = model.fit(batches, epochs=4, verbose=0).history
        return model.get_weights(), history

    first, second, other = run(3), run(3), run(4)
    assert 0 < np.mean(first[1]["importance"]) < 1
    for a, b in zip(first[0], second[0]):
        np.testing.assert_array_equal(a, b)
    assert first[1] == second[1]
    assert any(np.any(a != b) for a, b in zip(first[0], other[0]))


def test_draws_differ_from_epoch_to_epoch():
    batches = numbered(8).apply(
        tfi.importance_sample(classifier(), 8, 8, tau_threshold="always", seed=0)
    )
    first, second = (next(batches.as_numpy_iterator())[0] for _ in range(2))
    assert np.any(first != second)


def test_an_iterator_resumes_from_a_checkpoint(tmp_path):
    batches = numbered(64).apply(
        tfi.importance_sample(classifier(), 4, 8, tau_threshold="always", seed=0)
    )
    iterator = iter(batches)
    next(iterator)
    path = tf.train.Checkpoint(iterator=iterator).save(str(tmp_path / "at"))
    expected = [next(iterator) for _ in range(3)]
    restored = iter(batches)
    tf.train.Checkpoint(iterator=restored).restore(path)
    for (x, _, w), (x_again, _, w_again) in zip(expected, restored):
        np.testing.assert_array_equal(x, x_again)
        np.testing.assert_array_equal(w, w_again)


def test_the_pipeline_reads_live_weights_and_tau():
    model = classifier()
    data = numbered(8).repeat()
    batches = iter(data.apply(tfi.importance_sample(model, 8, 8, tau_threshold=1.5, seed=0)))
    np.testing.assert_array_equal(next(batches)[2], np.ones(8))
    model.tau.assign(2.0)
    first = next(batches)[2].numpy()
    assert np.ptp(first) > 0
    kernel, bias = model.net.get_weights()
    model.net.set_weights([0 * kernel, 0 * bias])
    np.testing.assert_allclose(next(batches)[2], np.ones(8), rtol=1e-6)
    model.tau.assign(1.5)
    np.testing.assert_array_equal(next(batches)[0][:, 0], np.arange(8))


def test_under_prefetch_and_map(blobs):
    model = classifier()
    batches = (
        tf.data.Dataset.from_tensor_slices(blobs)
        .repeat()
        .apply(tfi.importance_sample(model, 8, 32, tau_threshold="always"))
        .map(lambda x, y, w: (x + 0.0, y, w))
        .prefetch(tf.data.AUTOTUNE)
    )
    history = model.fit(batches, steps_per_epoch=20, epochs=2, verbose=0).history
    assert history["importance"][-1] == 1


BAD_SCORES = {"zero": 0.0, "nan": np.nan, "infinite": np.inf, "negative": -1.0}


@pytest.mark.parametrize("value", BAD_SCORES.values(), ids=BAD_SCORES)
@pytest.mark.parametrize("spoilt", ["one", "all"])
def test_unusable_scores_fall_back_to_uniform_and_are_counted(value, spoilt):
    def scorer(model, x, y):
        bad = tf.ones_like(x[:, 0], tf.bool) if spoilt == "all" else x[:, 0] == 3.0
        return tf.where(bad, value, x[:, 0] + 1)

    model = classifier()
    batches = numbered(24).apply(
        tfi.importance_sample(model, 4, 8, scorer=scorer, tau_threshold="always", seed=0)
    )
    history = model.fit(batches, verbose=0).history
    groups = {"zero": 0}.get(spoilt, 3 if spoilt == "all" else 1)
    if spoilt == "one" and value == 0.0:
        groups = 0  # an example of score zero is simply not drawn
    assert history["fallbacks"] == [groups]
    assert np.isfinite(history["loss"][0]) and np.isfinite(history["tau"][0])
    emitted = list(batches.as_numpy_iterator())
    assert len(emitted) == 3 + groups
    assert np.all(np.isfinite(np.concatenate([w for _, _, w in emitted])))
    if groups:
        np.testing.assert_array_equal(
            np.sort(np.concatenate([emitted[0][0], emitted[1][0]])[:, 0]), np.arange(8)
        )


def test_nothing_is_scored_below_the_threshold():
    calls = tf.Variable(0)

    def scorer(model, x, y):
        calls.assign_add(1)
        return tf.ones_like(x[:, 0])

    model = classifier()
    make = tfi.importance_sample(model, 4, 8, scorer=scorer, tau_threshold=1.5, seed=0)
    list(numbered(64).apply(make))
    assert calls.numpy() == 0
    model.tau.assign(9.0)
    list(numbered(64).apply(make))
    assert calls.numpy() == 8


@pytest.mark.parametrize("jit_compile", [True, False, "auto"])
def test_the_scorer_may_be_compiled(jit_compile):
    batches = numbered(16).apply(
        tfi.importance_sample(
            classifier(), 4, 8, tau_threshold="always", seed=0, jit_compile=jit_compile
        )
    )
    assert len(list(batches)) == 2


def test_thresholds_have_names():
    for name, drawn in (
        ("guaranteed", False),
        ("break_even", True),
        ("presample_break_even", False),
        ("always", True),
        ("never", False),
        (1.9, True),
        (2, False),
    ):
        model = classifier()
        model.tau.assign(2.0)
        batches = numbered(16).apply(tfi.importance_sample(model, 4, 16, tau_threshold=name))
        assert len(list(batches)) == (1 if drawn else 4), name


# Refusals -----------------------------------------------------------------------------------


def uncompiled():
    return tfi.ISModel(keras.Sequential([keras.Input((2,)), L.Dense(4)]))


@pytest.mark.parametrize(
    "arguments, error, message",
    [
        (lambda: (keras.Sequential([L.Dense(4)]),), TypeError, r"ISModel; got.*Wrap the net"),
        (lambda: (uncompiled(),), ValueError, r"not compiled with a loss.*model.compile"),
        (lambda: (classifier(), 0), ValueError, "batch_size must be a positive integer; got 0"),
        (lambda: (classifier(), 8, 4), ValueError, "multiple of batch_size.*got 4 and 8"),
        (lambda: (classifier(), 8, 20), ValueError, "multiple of batch_size.*got 20 and 8"),
    ],
)
def test_wrong_models_and_sizes_are_refused(arguments, error, message):
    with pytest.raises(error, match=message):
        tfi.importance_sample(*arguments())


@pytest.mark.parametrize(
    "name, value, message",
    [
        ("tau_threshold", -1.0, "finite and not negative; got -1.0.*'always'"),
        ("tau_threshold", float("nan"), "finite and not negative; got nan"),
        ("tau_threshold", float("inf"), "finite and not negative; got inf.*'never'"),
        ("tau_threshold", "breakeven", "'break_even'.*got 'breakeven'"),
        ("resampling", "stratified", "'multinomial', 'systematic'.*got 'stratified'"),
        ("batch_size", 2.5, "batch_size must be a positive integer; got 2.5"),
        ("jit_compile", "yes", "True, False, 'auto'; got 'yes'"),
    ],
)
def test_wrong_options_are_refused(name, value, message):
    with pytest.raises(ValueError, match=message):
        tfi.importance_sample(classifier(), **{name: value})


def test_sizes_may_be_numpys():
    tfi.importance_sample(classifier(), np.int64(8), np.int32(16))


@pytest.mark.skipif(not compat.KERAS_3, reason="Keras 2 fetches a batch when the last is done")
def test_a_seed_with_several_steps_per_execution_warns():
    model = classifier()
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile("sgd", loss, steps_per_execution=4)
    with pytest.warns(UserWarning, match="steps_per_execution=4.*use steps_per_execution=1"):
        tfi.importance_sample(model, seed=0)


def test_a_dataset_that_is_scored_by_another_loss_is_refused():
    model = classifier()
    batches = numbered(8).apply(tfi.importance_sample(model, 4, 8))
    model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    model.fit(batches, verbose=0)
    model.compile("sgd", "mse")
    with pytest.raises(ValueError, match="another loss since.*again"):
        model.fit(batches, verbose=0)


def test_string_labels_are_refused():
    data = numbered(8).map(lambda x, y: (x, tf.strings.as_string(y)))
    with pytest.raises(ValueError, match="labels must be numbers.*Map the strings"):
        data.apply(tfi.importance_sample(classifier()))


def test_a_scorer_must_be_callable():
    with pytest.raises(TypeError, match="callable.*got 'loss'"):
        tfi.importance_sample(classifier(), scorer="loss")


@pytest.mark.parametrize("drop_remainder", [True, False])
def test_a_batched_dataset_is_refused(drop_remainder):
    batched = numbered(20).batch(4, drop_remainder=drop_remainder)
    with pytest.raises(ValueError, match=r"must not be batched.*\.unbatch\(\)"):
        batched.apply(tfi.importance_sample(classifier()))


def test_a_batched_dataset_is_refused_for_an_unbuilt_net_too():
    model = tfi.ISModel(keras.Sequential([L.Dense(4)]))
    model.compile("sgd", "mse")
    with pytest.raises(ValueError, match="must not be batched"):
        numbered(20).batch(4).apply(tfi.importance_sample(model))


@pytest.mark.parametrize(
    "data, error, message",
    [
        (lambda: numbered(8).map(lambda x, y: x), ValueError, "must have labels"),
        (lambda: numbered(8).map(lambda x, y: (x,)), ValueError, "must have labels"),
        (
            lambda: numbered(8).map(lambda x, y: (tf.RaggedTensor.from_row_lengths(x, [1, 1]), y)),
            ValueError,
            "dense tensors",
        ),
        (lambda: [(1, 2)], TypeError, "tf.data.Dataset"),
    ],
)
def test_other_datasets_are_refused(data, error, message):
    with pytest.raises(error, match=message):
        tfi.importance_sample(classifier())(data())


@pytest.mark.parametrize(
    "loss, labels, message",
    [
        (lambda y, p: tf.reduce_mean(p), lambda y: y, "no value for each example"),
        ("categorical_crossentropy", lambda y: y, "cannot be computed for each example"),
        ("mse", lambda y: tf.zeros([3]), "cannot be computed for each example"),
        (
            keras.losses.SparseCategoricalCrossentropy(from_logits=True),
            lambda y: tf.one_hot(y, 4),
            "cannot be computed for each example",
        ),
    ],
    ids=["scalar loss", "sparse for dense", "wrong width", "dense for sparse"],
)
def test_losses_that_do_not_fit_the_labels_are_refused(loss, labels, message):
    model = classifier()
    model.compile("sgd", loss)
    data = numbered(20).map(lambda x, y: (x, labels(y)))
    with pytest.raises(ValueError, match=message):
        data.apply(tfi.importance_sample(model, 4, 16))


def test_a_scorer_of_the_wrong_shape_is_refused():
    with pytest.raises(ValueError, match=r"one score for each example, .*\[8\]; got shape \(\)"):
        numbered(20).apply(
            tfi.importance_sample(classifier(), 4, 8, scorer=lambda m, x, y: tf.reduce_sum(x))
        )


# Why nothing is drawn ------------------------------------------------------------------------


def test_a_dataset_shorter_than_a_group_is_warned_of(blobs):
    model = classifier()
    short = tf.data.Dataset.from_tensor_slices(blobs).take(20)
    with pytest.warns(UserWarning, match="has 20 examples.*32 at once: nothing will be drawn"):
        short.apply(tfi.importance_sample(model, 8, 32))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        short.repeat().apply(tfi.importance_sample(model, 8, 32))
        short.apply(tfi.importance_sample(model, 8, 32, tau_threshold="never"))


WHY = {
    "τ was .* at the end, and drawing begins above 99": {"tau_threshold": 99.0},
    "no plan to draw was ever worth its cost": {
        "switch": tfi.switches.Gain(step_seconds=1.0, scoring_seconds=1e6)
    },
    "no group of 32 examples was ever complete": {"tau_threshold": "always", "examples": 20},
    "": {"tau_threshold": "always"},
}


@pytest.mark.parametrize("score_in", quick(["step", "pipeline"], "step"))
@pytest.mark.parametrize("why", WHY)
def test_one_line_says_why_nothing_was_drawn(blobs, why, score_in):
    how = dict(WHY[why])
    if "switch" in how:
        how["switch"] = copy.deepcopy(how["switch"])
    data = tf.data.Dataset.from_tensor_slices(blobs).take(how.pop("examples", 96))
    # Of no known length.
    data = data.filter(lambda x, y: True)
    model = classifier()
    drawn = data.apply(tfi.importance_sample(model, 8, 32, score_in=score_in, **how))
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        model.fit(drawn, epochs=2, verbose=0)
    lines = [str(one.message) for one in said if "nothing was drawn" in str(one.message)]
    assert len(lines) == bool(why) and all(re.search(why, line) for line in lines)


@pytest.mark.parametrize("score_in", ["step", "pipeline"])
def test_unusable_scores_are_a_reason(blobs, score_in):
    model = classifier()
    data = tf.data.Dataset.from_tensor_slices(blobs).take(96)
    drawn = data.apply(
        tfi.importance_sample(
            model,
            *(8, 32),
            score_in=score_in,
            tau_threshold="always",
            scorer=lambda model, x, y: x[:, 0] * np.nan,
        )
    )
    with pytest.warns(UserWarning, match="scores of all 6 pre-samples were unusable"):
        model.fit(drawn, epochs=2, verbose=0)
