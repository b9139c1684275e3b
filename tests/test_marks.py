"""Several datasets, several models: each trains as it was asked to, or is refused before a step."""

import copy
import pickle

import keras
import numpy as np
import pytest
import tensorflow as tf

import tf_importance as tfi
from tf_importance import compat, marks

L = keras.layers
N, b, B = 256, 8, 32
LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
WEIGHTS = np.linspace(0.2, 3, N).astype(np.float32)


@pytest.fixture
def points(blobs):
    return tuple(part[:N] for part in blobs)


def compiled(rate=0.1, loss=LOSS, sampler=None, normalized=False) -> tfi.ISModel:
    keras.utils.set_random_seed(3)
    middle = [tfi.layers.BatchNormalization()] if normalized else []
    net = keras.Sequential([keras.Input((2,)), L.Dense(8, "tanh"), *middle, L.Dense(4)])
    model = tfi.ISModel(net)
    model.compile(keras.optimizers.SGD(rate), loss, metrics=["accuracy"], sampler=sampler)
    return model


def stream(model, points, *weights, batch_size=b, presample_size=B, **how) -> tf.data.Dataset:
    how = {"tau_threshold": "always", "seed": 1, **how}
    draw = tfi.importance_sample(model, batch_size, presample_size, **how)
    return tf.data.Dataset.from_tensor_slices((*points, *weights)).repeat().apply(draw)


def plain(_, points) -> tf.data.Dataset:
    return tf.data.Dataset.from_tensor_slices((*points, WEIGHTS)).repeat().batch(b)


def of_gain(model, points) -> tf.data.Dataset:
    switch = tfi.switches.Gain(step_seconds=1.0, scoring_seconds=0.1)
    return stream(model, points, tau_threshold=None, switch=switch)


KINDS = {
    "always": stream,
    "weighted": lambda model, points: stream(model, points, WEIGHTS),
    "larger": lambda model, points: stream(model, points, batch_size=16, presample_size=64),
    "in step": lambda model, points: stream(model, points, score_in="step"),
    "in step, smoothed": lambda model, points: stream(
        model, points, score_in="step", smoothing=1.0, resampling="systematic"
    ),
    "never": lambda model, points: stream(model, points, tau_threshold="never"),
    "plain, weighted": plain,
}


def trained(model, dataset):
    logs = model.fit(dataset, steps_per_epoch=20, verbose=0).history
    return logs, model.net.get_weights()


QUICK = ("in step", "plain, weighted", "weighted")


@pytest.mark.parametrize(
    "kind",
    [kind if kind in QUICK else pytest.param(kind, marks=pytest.mark.slow) for kind in KINDS],
)
def test_a_dataset_trains_alike_whichever_others_were_made(kind, points):
    """Made before it, and behind it; each with batch normalization, which tells weights apart."""
    alone = compiled(normalized=True)
    truth = trained(alone, KINDS[kind](alone, points))
    model = compiled(normalized=True)
    before = [KINDS[other](model, points) for other in KINDS if other < kind]
    dataset = KINDS[kind](model, points)
    behind = [KINDS[other](model, points) for other in KINDS if other > kind]
    logs, weights = trained(model, dataset)
    assert len(before) + len(behind) == len(KINDS) - 1
    for name, values in truth[0].items():
        # What the pipelines read ahead of the steps is counted, and without a seed nothing is.
        np.testing.assert_allclose(logs[name], values, rtol=1e-6, err_msg=name)
    for mine, theirs in zip(weights, truth[1]):
        np.testing.assert_array_equal(mine, theirs)


@pytest.mark.slow
def test_one_after_another_they_train_as_each_alone(points):
    """Never beside Gain, and back: the gain belongs to the dataset."""
    model = compiled(tfi.schedules.GainAdapted(0.1))
    drawn = of_gain(model, points)
    uniform = stream(model, points, tau_threshold="never")
    for _ in range(2):
        assert trained(model, uniform)[0]["importance"] == [0.0]
        model.fit(drawn, steps_per_epoch=150, verbose=0)
    assert trained(model, drawn)[0]["importance"][0] > 0.5


def test_a_mark_is_found_behind_what_was_applied(points):
    model = compiled()
    dataset = stream(model, points)
    mark = marks.found(dataset)
    behind = dataset.map(lambda x, y, w: (x + 0.0, y, w)).prefetch(2).take(9).cache()
    assert marks.found(behind) is mark and mark.model is model
    assert marks.found(plain(model, points)) is None and marks.found(points) is None


def test_a_dataset_of_another_model_is_refused(points):
    one, other = compiled(), compiled()
    with pytest.raises(ValueError, match="scored by model 'importance.*fit on model"):
        other.fit(stream(one, points), steps_per_epoch=1, verbose=0)


def test_a_dataset_from_before_another_compile_is_refused_where_that_matters(points):
    model = compiled()
    dataset = stream(model, points)
    model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    trained(model, dataset)
    model.compile(keras.optimizers.SGD(tfi.schedules.GainAdapted(0.1)), LOSS)
    with pytest.raises(ValueError, match="follows the gain since the dataset was made"):
        model.fit(dataset, steps_per_epoch=1, verbose=0)
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy())
    with pytest.raises(ValueError, match="another loss since the dataset was made"):
        model.fit(dataset, steps_per_epoch=1, verbose=0)


def new_activation(model):
    model.net.layers[-1].activation = keras.activations.tanh


def adapter(model):
    if not compat.KERAS_3:
        pytest.skip("Keras 2 has no adapters of its own")
    model.net.layers[-1].enable_lora(2)


def other_weights(model):
    model.compile("sgd", LOSS, loss_weights=[0.5])


@pytest.mark.parametrize("change", [new_activation, adapter, other_weights])
@pytest.mark.parametrize("score_in", ["pipeline", "step"])
def test_scores_are_of_the_model_as_it_is(points, change, score_in):
    """The step's are, once compiled anew as Keras wants it; a pipeline's are refused else."""
    model = compiled()
    dataset = stream(model, points, score_in=score_in)
    trained(model, dataset)
    change(model)
    if change is not other_weights:
        model.compile("sgd", LOSS)
    if score_in == "step":
        trained(model, dataset)
        return
    with pytest.raises(ValueError, match="was changed since the dataset was made.*again"):
        model.fit(dataset, steps_per_epoch=1, verbose=0)


# Samplers that are composed of others -----------------------------------------------------


def switched(fresh=True, **how) -> tfi.samplers.Switched:
    rais = tfi.samplers.RAIS(training_set_size=64)
    rescored = [tfi.samplers.Fresh(24, over=rais)] if fresh else []
    switch = tfi.switches.Gain(step_seconds=1.0, scoring_seconds=0.3)
    return tfi.samplers.Switched([tfi.samplers.Uniform(), rais, *rescored], by=switch, **how)


@pytest.mark.parametrize("fresh", [True, False])
@pytest.mark.slow
def test_switched_draws_what_fit_gets(fresh, points):
    model = compiled(tfi.schedules.GainAdapted(0.5), sampler=switched(fresh))
    logs = model.fit(*points, batch_size=b, epochs=20, verbose=0).history
    assert logs["importance"][0] == 0 and max(logs["importance"]) > 0.5
    assert logs["gain"][-1] > 1 and logs["loss"][-1] < 0.7 * logs["loss"][0]
    assert int(model.sampler.memory.steps) == 20 * N // b
    assert model.sampler.memory.uncertainty_set.numpy().any()


@pytest.mark.slow
def test_fresh_over_a_sampler_draws_what_fit_gets(points):
    rais = tfi.samplers.RAIS(training_set_size=64)
    model = compiled(sampler=tfi.samplers.Fresh(24, over=rais))
    logs = model.fit(*points, batch_size=b, epochs=10, verbose=0).history
    assert logs["max_weight"][-1] > 1.5 and logs["loss"][-1] < 0.7 * logs["loss"][0]
    assert int(rais.recent.count) > 9 * 3 * N, "all 24 of a pre-sample are told"


@pytest.mark.slow
def test_long_and_short_forms_are_the_same_run(points):
    runs = []
    for composed in (True, False):
        rais = tfi.samplers.RAIS(training_set_size=64)
        switch = tfi.switches.Gain(step_seconds=1.0, scoring_seconds=0.3)
        if composed:
            members = [tfi.samplers.Uniform(), rais, tfi.samplers.Fresh(24, over=rais)]
            sampler = tfi.samplers.Switched(members, by=switch)
            model = compiled(tfi.schedules.GainAdapted(0.5), sampler=sampler)
            batches = tfi.history_sample(points, sampler, b, seed=5)
        else:
            model = compiled(tfi.schedules.GainAdapted(0.5), sampler=rais)
            batches = tfi.history_sample(
                points, rais, b, presample_size=24, switch=switch, model=model, seed=5
            )
        runs.append(model.fit(batches.repeat(), steps_per_epoch=300, verbose=0).history)
    assert runs[0] == runs[1] and runs[0]["importance"][0] > 0.1


@pytest.mark.parametrize("kind", ["fresh", "switched"])
@pytest.mark.slow
def test_a_composed_sampler_is_copied_with_its_state(kind, points):
    rate = tfi.schedules.GainAdapted(0.1)
    sampler = tfi.samplers.Fresh(24, over=tfi.samplers.Proportional())
    if kind == "switched":
        sampler = switched()
    compiled(rate, sampler=sampler).fit(*points, batch_size=b, epochs=2, verbose=0)
    for other in (copy.deepcopy(sampler), pickle.loads(pickle.dumps(sampler))):
        assert other.memory is not sampler.memory and other.journal is other.memory.journal
        for mine, theirs in zip(sampler.variables, other.variables):
            np.testing.assert_array_equal(mine, theirs)
        rate = tfi.schedules.GainAdapted(0.1)
        compiled(rate, sampler=other).fit(*points, batch_size=b, verbose=0)


def test_what_does_not_compose_is_refused(points):
    rais, uniform = tfi.samplers.RAIS(), tfi.samplers.Uniform()
    switch = tfi.switches.Gain()
    for members in ([rais], [uniform], [uniform, rais, rais], [rais, uniform]):
        with pytest.raises((TypeError, ValueError), match="Uniform|only tfi.samplers.RAIS"):
            tfi.samplers.Switched(members, by=switch)
    with pytest.raises(TypeError, match="must be a tfi.switches.Gain; got"):
        tfi.samplers.Switched([uniform, rais], by=tfi.switches.Tau())
    with pytest.raises(ValueError, match="the same object"):
        other = tfi.samplers.Fresh(24, over=tfi.samplers.RAIS())
        tfi.samplers.Switched([uniform, rais, other], by=switch)
    with pytest.raises(ValueError, match="a memory of its own.*got a Fresh"):
        tfi.samplers.Fresh(24, over=tfi.samplers.Fresh(24))
    with pytest.raises(ValueError, match="belongs to none"):
        tfi.history_sample(points, tfi.samplers.Fresh(24), b)
    with pytest.raises(ValueError, match="at least batch_size; got 4 and 8"):
        compiled(sampler=tfi.samplers.Fresh(4)).fit(*points, batch_size=b, verbose=0)


def test_a_samplers_logs_are_read_behind_the_batch(points):
    """What the pipeline learned before a batch is in that batch's logs, whoever is faster."""
    behind = []

    class Watched(tfi.samplers.Proportional):
        def logs(self):
            total = self.tree.total()
            operations = tf.compat.v1.get_default_graph().get_operations()
            read = [one for one in operations if one.type == "ReadVariableOp"][-1]
            behind.append(read.control_inputs)
            return {"total": tf.cast(total[0], tf.float32)}

    model = compiled(sampler=Watched())
    model.fit(*points, batch_size=b, epochs=1, verbose=0)
    assert behind and all(behind)


# What is applied behind the draw ------------------------------------------------------------


def drawn_by(way):
    points = np.random.default_rng(0).normal(size=(64, 3)).astype("float32")
    data = points, (points[:, 0] > 0).astype("int64")
    net = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
    model, loss = tfi.ISModel(net), keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    sampler = tfi.samplers.Proportional() if way == "memory" else None
    model.compile("sgd", loss, sampler=sampler)
    if sampler:
        return model, tfi.history_sample(data, sampler, 8)
    score_in = {"stream": "pipeline", "step": "step"}[way]
    sampled = tfi.importance_sample(model, 8, 16, tau_threshold="always", score_in=score_in)
    return model, tf.data.Dataset.from_tensor_slices(data).apply(sampled)


APPLIED = {
    "cache": (lambda data: data.cache(), "cached behind the draw"),
    "cache, then prefetch": (lambda data: data.cache().prefetch(1), "cached behind the draw"),
    "no weights": (lambda data: data.map(lambda x, y, drawn: (x, y)), "dropped the weights"),
    "inputs alone": (lambda data: data.map(lambda x, y, drawn: x), "dropped the weights"),
}


APART = {
    "unbatch": lambda data: data.unbatch().batch(16),
    "rebatch": lambda data: data.rebatch(16).prefetch(1),
}


@pytest.mark.parametrize("way", ["step", "memory"])
@pytest.mark.parametrize("name", APART)
def test_batches_that_are_learned_from_are_not_taken_apart(name, way):
    model, data = drawn_by(way)
    with pytest.raises(ValueError, match="cannot be taken apart"):
        model.fit(APART[name](data), verbose=0)


def test_weighted_batches_may_be_taken_apart():
    model, data = drawn_by("stream")
    assert model.fit(APART["rebatch"](data), verbose=0).history["importance"] == [1.0]


@pytest.mark.parametrize("apply", ["flat_map", "interleave"])
def test_a_dataset_is_known_where_a_function_of_another_one_gives_it(apply):
    """As its metrics are: those of the data, and not of what is drawn."""
    keras.utils.set_random_seed(0)
    model, data = drawn_by("stream")
    within = getattr(tf.data.Dataset.range(1), apply)(lambda i: data.map(lambda *parts: parts))
    assert marks.found(within) is marks.found(data) is not None
    assert model.fit(within, verbose=0).history["importance"] == [1.0]
    with pytest.raises(ValueError, match="cached behind the draw"):
        model.fit(within.cache(), verbose=0)


def test_batches_of_files_and_generators(tmp_path):
    model, data = drawn_by("stream")
    data.save(str(tmp_path / "drawn"))
    with pytest.raises(ValueError, match="save and load, before the draw"):
        model.fit(tf.data.Dataset.load(str(tmp_path / "drawn")), verbose=0)
    with pytest.warns(UserWarning, match="give fit the dataset itself"):
        model.fit((batch for batch in data), verbose=0)


@pytest.mark.parametrize("way", ["stream", "step", "memory"])
@pytest.mark.parametrize("name", APPLIED)
def test_what_undoes_the_draw_is_refused(name, way):
    apply, why = APPLIED[name]
    model, data = drawn_by(way)
    before = model.net.get_weights()
    with pytest.raises(ValueError, match=why):
        model.fit(apply(data), verbose=0)
    np.testing.assert_array_equal(model.net.get_weights()[0], before[0])


def test_a_service_reads_before_the_draw_and_not_behind_it(points):
    service = tf.data.experimental.service
    dispatcher = service.DispatchServer()
    address = dispatcher.target.split("://")[1]
    worker = service.WorkerServer(service.WorkerConfig(dispatcher_address=address))
    served = service.distribute("parallel_epochs", dispatcher.target)
    model = compiled()
    drawn = tfi.importance_sample(model, b, 4 * b, tau_threshold="always")
    weighted = tf.data.Dataset.from_tensor_slices((*points, np.ones(len(points[0]), np.float32)))
    weighted = weighted.batch(b).apply(served).prefetch(1)
    # Weights of one's own come from it to a model that nothing was drawn for.
    assert trained(model, weighted)[0]["importance"] == [0.0]
    plain = tf.data.Dataset.from_tensor_slices(points)
    assert trained(model, plain.apply(served).apply(drawn))[0]["importance"] == [1.0]
    with pytest.raises(ValueError, match="before the draw"):
        model.fit(plain.apply(drawn).apply(served).prefetch(1), verbose=0)
    with pytest.raises(ValueError, match="make another ISModel"):
        model.fit(weighted, verbose=0)
    assert worker is not None


@pytest.mark.parametrize("way", ["step", "memory"])
def test_a_map_that_hands_on_the_weights_alone_is_refused(way):
    model, data = drawn_by(way)
    with pytest.raises(ValueError, match="dropped the weights, or what comes with them"):
        model.fit(data.map(lambda x, y, drawn: (x, y, drawn["weight"])), verbose=0)


@pytest.mark.parametrize("way", ["stream", "step", "memory"])
def test_what_changes_inputs_behind_the_draw_is_taken(way):
    model, data = drawn_by(way)
    changed = data.map(lambda x, y, drawn: (2.0 * x, y, drawn)).prefetch(1)
    assert "loss" in model.fit(changed, verbose=0).history
