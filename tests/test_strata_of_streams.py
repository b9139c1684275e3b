"""importance_sample(…, strata=…): batches by strata from a stream, alone and then scored."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import tf_importance as tfi
from tests.cases import quick
from tf_importance import marks

N, b, B = 2_000, 16, 64
RNG = np.random.default_rng(0)
Y = (np.arange(N) % 50 == 7).astype(np.int32)
X = (RNG.normal(size=(N, 4)) + Y[:, None]).astype(np.float32)


def compiled(rate=None, scorer=tfi.scorers.upper_bound):
    net = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
    model = tfi.ISModel(net, scorer=scorer)
    loss = keras.losses.BinaryCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(0.1 if rate is None else rate), loss)
    return model


def stream(*more, repeat=True):
    data = tf.data.Dataset.from_tensor_slices((X, Y[:, None], *more))
    return data.repeat() if repeat else data


def sampled(model, data, **kwargs):
    kwargs = {"strata": lambda x, y: y, "tau_threshold": "never", "seed": 1} | kwargs
    return data.apply(tfi.importance_sample(model, b, B, **kwargs))


def test_the_function_is_called_with_one_example():
    asked = []

    def strata(x, y):
        asked.append((x.shape, y.shape))
        return y[0]

    next(iter(sampled(compiled(), stream(), strata=strata)))
    assert set(asked) == {((4,), (1,))}


@pytest.mark.parametrize("threshold", quick(["never", "always"], "always"))
@pytest.mark.parametrize("score_in", ["pipeline", "step"])
def test_a_rare_class_has_its_share_and_weights_restore_the_prior(threshold, score_in):
    model = compiled()
    batches = sampled(model, stream(), tau_threshold=threshold, score_in=score_in)
    history = model.fit(batches, steps_per_epoch=150, verbose=0).history
    share = history["rare_share"][0]
    assert 0.05 < share < 0.5
    assert history["importance"][0] == (threshold == "always")
    boxes = marks.found(batches).reservoirs
    assert float(boxes.scores.sums[0, 1]) > 10, "steps say what they see"
    totals, rare = [], []
    if score_in == "pipeline" or threshold == "never":
        for _x, y, told in batches.take(300):
            totals.append(float(tf.reduce_mean(told["weight"])))
            rare.append(float(tf.reduce_mean(told["weight"] * tf.cast(y[:, 0], tf.float32))))
        assert np.mean(totals) == pytest.approx(1, abs=5 * np.std(totals) / 17 + 1e-3)
        assert np.mean(rare) == pytest.approx(0.02, abs=5 * np.std(rare) / 17)


def test_batches_are_keras_batches_of_known_size():
    batches = sampled(compiled(), stream())
    x, y, told = batches.element_spec
    assert x.shape == (b, 4) and y.shape == (b, 1)
    assert {key: spec.shape for key, spec in told.items()} == dict.fromkeys(
        ("weight", "memory", "stratum"), (b,)
    )


def test_without_strata_nothing_changes():
    batches = sampled(compiled(), stream(), strata=None)
    assert batches.element_spec[2].shape == (b,)


@pytest.mark.parametrize("scored", [False, True])
def test_weights_are_those_of_the_strata_times_those_of_the_draws(scored):
    threshold = "always" if scored else "never"
    for _x, _y, told in sampled(compiled(), stream(), tau_threshold=threshold).take(20):
        ratio = told["weight"].numpy() / told["memory"].numpy()
        if scored:
            assert np.std(ratio) > 0.01
        else:
            np.testing.assert_allclose(ratio, 1)


@pytest.mark.parametrize("threshold", ["never", "always"])
def test_users_sample_weights_multiply(threshold):
    own = RNG.gamma(1.0, size=N).astype(np.float32)
    model = compiled()
    for x, _y, told in sampled(model, stream(own), tau_threshold=threshold).take(5):
        mine = own[[np.flatnonzero((row == X).all(axis=1))[0] for row in x.numpy()]]
        np.testing.assert_allclose(told["weight"], told["importance"] * mine, rtol=1e-5)


@pytest.mark.parametrize("size", quick([1_000, 7], 1_000))
def test_a_pass_has_as_many_batches_as_it_would_without(size):
    data = stream(repeat=False).take(size)
    batches = [told["weight"].numpy() for _x, _y, told in sampled(compiled(), data)]
    assert len(batches) == -(-size // b)
    model = compiled()
    model.fit(sampled(model, data), epochs=2, verbose=0)
    assert int(model.optimizer.iterations) == 2 * -(-size // b)


@pytest.mark.parametrize("threshold", ["never", "always"])
def test_a_seeded_run_repeats(threshold):
    def run():
        keras.utils.set_random_seed(3)
        model = compiled()
        model.fit(sampled(model, stream(), tau_threshold=threshold), steps_per_epoch=30, verbose=0)
        return model.get_weights()

    for one, other in zip(run(), run()):
        np.testing.assert_array_equal(one, other)


def test_tau_is_that_of_what_comes_out():
    model = compiled(rate=1e-6)
    scores = []

    def watched(batch):
        x, y, told = batch
        importance = told["weight"] / told["memory"]
        worth = tfi.scorers.upper_bound(model, x, y) * told["memory"]
        squares = tf.reduce_mean(importance * worth**2)
        scores.append(float(tf.sqrt(squares) / tf.reduce_mean(importance * worth)))

    batches = sampled(model, stream(), tau_threshold="always").take(1)
    for batch in batches:
        watched(batch)
        model.train_on_batch(*batch)
    assert float(model.tau) == pytest.approx(scores[0], rel=1e-4)


def test_a_gain_switch_draws_on_top_while_that_pays_and_tells_the_gain_of_strata():
    keras.utils.set_random_seed(0)
    model = compiled(rate=tfi.schedules.GainAdapted(0.05))
    switch = tfi.switches.Gain(step_seconds=1.0, scoring_seconds=100.0)
    batches = sampled(model, stream(), switch=switch, tau_threshold=None, score_in="pipeline")
    history = model.fit(batches, steps_per_epoch=300, verbose=0).history
    assert history["importance"] == [0.0], "nothing is worth this much"
    assert history["gain"][0] > 1.1, "strata by themselves gain"
    assert float(switch.speedup) > 1.1


def test_it_starts_by_scoring_where_strata_are_named():
    model = compiled(rate=1e-3)
    switch = tfi.switches.Gain(step_seconds=1.0, scoring_seconds=1.0)
    with pytest.warns(UserWarning, match="learning rate that follows"):
        batches = sampled(model, stream(), switch=switch, tau_threshold=None)
    history = model.fit(batches, steps_per_epoch=100, verbose=0).history
    assert history["importance"] == [1.0]


def test_unusable_scores_leave_the_strata_as_they_are():
    model = compiled(scorer=lambda model, x, y: tf.fill([tf.shape(y)[0]], float("nan")))
    batches = sampled(model, stream(), tau_threshold="always")
    for _x, _y, told in batches.take(4):
        np.testing.assert_allclose(told["weight"], told["memory"])
    history = model.fit(batches, steps_per_epoch=8, verbose=0).history
    assert history["fallbacks"][0] >= 2


@pytest.mark.parametrize(
    "kwargs, error, message",
    [
        ({"strata": lambda x, y: x}, ValueError, r"the function gave float32 \(4,\)"),
        ({"strata": lambda x, y: x[0]}, TypeError, "gave float32. Cast"),
        ({"strata": lambda x, y: tf.concat([y, y], 0)}, ValueError, r"gave int32 \(2,\)"),
        ({"strata": Y}, TypeError, "strata must be whole numbers.*got an array"),
        ({"reservoir_size": 32}, ValueError, "at least 64.*got 32"),
        ({"reservoir_size": 0}, ValueError, "reservoir_size must be a positive integer"),
    ],
)
def test_what_is_no_stratum_is_refused_by_name(kwargs, error, message):
    with pytest.raises(error, match=message):
        sampled(compiled(), stream(), **kwargs)


def test_examples_of_unknown_shape_are_refused():
    data = stream().map(lambda x, y: (tf.ensure_shape(x, [None]), y))
    data = data.map(lambda x, y: (tf.numpy_function(lambda v: v, [x], tf.float32), y))
    data = data.map(lambda x, y: (tf.ensure_shape(x, [None]), y))
    with pytest.raises(ValueError, match="must know their shapes"):
        sampled(compiled(), data)


# Several replicas -------------------------------------------------------------------------------


@pytest.mark.parametrize("route", ["auto-sharded", "from function"])
@pytest.mark.parametrize("threshold", ["never", "always"])
@pytest.mark.slow
def test_replicas_learn_the_shares_of_one(strategy, route, threshold):
    """Of the same stream: each tells of its part of the batch, and the mean is of all."""

    def learned(model, data) -> float:
        keras.utils.set_random_seed(2)
        return model.fit(data, steps_per_epoch=150, epochs=2, verbose=0).history["rare_share"][1]

    alone = compiled(rate=0.0)
    alone.net.set_weights([np.full([4, 1], 0.3), np.array([-3.0])])
    expected = learned(alone, sampled(alone, stream(), tau_threshold=threshold))
    with strategy.scope():
        model = compiled(rate=0.0)
    model.net.set_weights(alone.net.get_weights())

    def half(context):
        return stream().apply(
            tfi.importance_sample(
                model, b // 2, B // 2, strata=lambda x, y: y, tau_threshold=threshold, seed=1
            )
        )

    if route == "from function":
        data = strategy.distribute_datasets_from_function(half)
    else:
        data = sampled(model, stream(), tau_threshold=threshold)
    assert learned(model, data) == pytest.approx(expected, rel=0.15)


def test_replicas_do_not_draw_the_same_positives(strategy):
    with strategy.scope():
        model = compiled()
    numbered = tf.data.Dataset.from_tensor_slices(
        (
            np.tile(np.arange(N, dtype=np.float32)[:, None], [1, 4]),
            (np.arange(N) % 5 == 0).astype(np.int32)[:, None],
        )
    )
    batches = sampled(model, numbered.repeat().shuffle(N, seed=1))
    seen: list[list[float]] = [[], []]
    for x, y, _ in strategy.experimental_distribute_dataset(batches.skip(150).take(8)):
        parts = zip(strategy.experimental_local_results(x), strategy.experimental_local_results(y))
        for replica, (numbers, labels) in enumerate(parts):
            seen[replica] += numbers.numpy()[labels.numpy()[:, 0] == 1, 0].tolist()
    # b/2 examples of each batch: in the order of their strata one replica would have all positives.
    fewest = min(map(len, seen))
    assert fewest > 12
    # Of 400 positives: by chance some of each replica's are the other's, and not most.
    assert len(set(seen[0]) & set(seen[1])) < fewest / 2


def test_more_strata_than_there_is_room_for_are_said(strategy, monkeypatch):
    monkeypatch.setattr(tfi.reservoirs, "_MOST", 8)
    with strategy.scope():
        model = compiled()
    batches = sampled(model, stream(), strata=lambda x, y: tf.cast(x[0] * 10, tf.int64))
    with pytest.raises(tf.errors.InvalidArgumentError, match="several replicas there may be"):
        list(batches.take(20))


# ------------------------------------------------------------------------------------------------


def test_a_class_for_segmentation_is_whether_an_image_holds_it():
    masks = RNG.random((200, 8, 8, 1)) < 0.02 * (np.arange(200) % 10 == 0)[:, None, None, None]
    images = RNG.normal(size=(200, 8, 8, 1)).astype(np.float32)
    net = keras.Sequential([keras.Input((8, 8, 1)), keras.layers.Conv2D(1, 3, padding="same")])
    model = tfi.ISModel(net)
    model.compile("sgd", keras.losses.BinaryCrossentropy(from_logits=True))
    data = tf.data.Dataset.from_tensor_slices((images, masks.astype(np.float32))).repeat()
    holds = lambda image, mask: tf.reduce_any(mask > 0)  # noqa: E731
    history = model.fit(sampled(model, data, strata=holds), steps_per_epoch=20, verbose=0).history
    assert np.isfinite(history["loss"][0]) and history["rare_share"][0] > 0.1
