"""The remembered way end to end: sources, steps, checkpoints, and what is refused."""

import importlib.util

import keras
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds

import tf_importance as tfi

L = keras.layers
BATCH = 16
SAMPLERS = {
    "uniform": tfi.samplers.Uniform,
    "proportional": tfi.samplers.Proportional,
    "rank_based": lambda n: tfi.samplers.RankBased(n, 5.0, sort_every=4, recompute_every=9),
    "rais": lambda n: tfi.samplers.RAIS(n, training_set_size=128),
    "oracle": None,
}
LOSS = "sparse_categorical_crossentropy"


def net_of(normalized=False):
    layers = [keras.Input((2,)), L.Dense(8, activation="relu")]
    layers += [tfi.layers.BatchNormalization()] if normalized else []
    return keras.Sequential([*layers, L.Dense(4, activation="softmax")])


def built(normalized=True) -> tfi.ISModel:
    model = tfi.ISModel(net_of(normalized))
    model(tf.zeros([1, 2]))
    return model


def compiled(make=tfi.samplers.RAIS, n=512, rate=0.1, normalized=True, **kwargs) -> tfi.ISModel:
    keras.utils.set_random_seed(0)
    model = built(normalized)
    sampler = make(n) if make is not None else tfi.samplers.Oracle(n, model)
    optimizer = keras.optimizers.SGD(tfi.schedules.GainAdapted(rate), momentum=0.9)
    model.compile(optimizer, LOSS, metrics=["accuracy"], sampler=sampler, **kwargs)
    return model


def state(model) -> list[np.ndarray]:
    """All of it but the epoch's counters: weights, optimizer, sampler, schedule, τ."""
    optimizer = model.optimizer.variables
    optimizer = optimizer() if callable(optimizer) else optimizer
    schedule = model.schedule.variables
    weights = [w for w in model.weights if "counts" not in w.name and "monitors" not in w.name]
    parts = [*weights, *optimizer, *model.sampler.variables, *schedule]
    return [np.array(tf.convert_to_tensor(part)) for part in parts]


@pytest.mark.parametrize(
    "name",
    ["rais", *(pytest.param(n, marks=pytest.mark.slow) for n in SAMPLERS if n != "rais")],
)
def test_training_works_and_logs_the_gain(name, blobs):
    if name == "oracle":
        blobs = tuple(part[:64] for part in blobs)
    # At this rate and momentum weights of 80 make it leap, by this sampler and some seeds.
    seed = 1 if name == "proportional" else 0
    keras.utils.set_random_seed(seed)
    model = compiled(SAMPLERS[name], len(blobs[0]))
    before = model.evaluate(*blobs, verbose=0)[0]
    batches = tfi.history_sample(blobs, model.sampler, BATCH, seed=seed)
    logs = model.fit(batches, epochs=3, verbose=0).history
    assert len(batches) == len(blobs[0]) // BATCH
    assert model.evaluate(*blobs, verbose=0)[0] < before
    assert len(logs["gain"]) == 3 and np.all(np.isfinite(logs["gain"]))
    gain = float(model.schedule.gain)
    assert gain == pytest.approx(logs["gain"][-1])
    steps = int(model.sampler.steps)
    assert steps == 3 * len(batches) == int(model.sampler.draws)
    if name == "uniform":
        assert gain == 1 and float(model.schedule.following) == steps
    if name == "oracle":
        assert logs["gain"][-1] >= 1


def test_uniform_sampling_with_gain_adapted_is_plain_keras(blobs):
    """Up to rounding in the batch normalization, fed the same batches."""
    model = compiled(tfi.samplers.Uniform)
    batches = tfi.history_sample(blobs, model.sampler, BATCH, seed=0)
    copy = tfi.samplers.Uniform(512)
    plain = keras.models.clone_model(model.net)
    plain.set_weights(model.net.get_weights())
    plain.compile(keras.optimizers.SGD(0.1, momentum=0.9), LOSS)
    same = tfi.history_sample(blobs, copy, BATCH, seed=0).map(lambda x, y, drawn: (x, y))
    model.fit(batches, epochs=2, verbose=0)
    plain.fit(same, epochs=2, verbose=0)
    for mine, theirs in zip(model.net.get_weights(), plain.get_weights()):
        np.testing.assert_allclose(mine, theirs, rtol=5e-5, atol=2e-6)


@pytest.mark.slow
@pytest.mark.parametrize("name, stop", [("rais", 45), ("rais", 51), ("proportional", 20)])
def test_killed_and_resumed_mid_epoch_it_goes_on_bit_for_bit(name, stop, blobs, tmp_path):
    """Same indices, weights and parameters; for RAIS also while c and d are being trained."""

    def batches(model):
        return tfi.history_sample(blobs, model.sampler, BATCH, seed=3).repeat()

    class Save(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            if batch == stop - 1:
                checkpoint = tf.train.Checkpoint(model=self.model, optimizer=self.model.optimizer)
                self.path = checkpoint.save(str(tmp_path / "at"))

    whole, save = compiled(SAMPLERS[name]), Save()
    whole.fit(batches(whole), steps_per_epoch=70, verbose=0, callbacks=[save])
    resumed = compiled(SAMPLERS[name])
    if hasattr(resumed.optimizer, "build"):
        resumed.optimizer.build(resumed.trainable_variables)
    checkpoint = tf.train.Checkpoint(model=resumed, optimizer=resumed.optimizer)
    checkpoint.restore(save.path).assert_existing_objects_matched()
    resumed.fit(batches(resumed), steps_per_epoch=70 - stop, verbose=0)
    for mine, theirs in zip(state(whole), state(resumed)):
        np.testing.assert_array_equal(mine, theirs)


@pytest.mark.slow
def test_runs_of_a_seed_repeat_and_of_others_not(blobs):
    weights = []
    for seed in (1, 1, 2):
        model = compiled(SAMPLERS["proportional"])
        model.fit(tfi.history_sample(blobs, model.sampler, BATCH, seed=seed), verbose=0)
        weights.append(model.net.get_weights()[0])
    np.testing.assert_array_equal(weights[0], weights[1])
    assert not np.array_equal(weights[0], weights[2])


def test_weights_files_hold_the_samplers_state(blobs, tmp_path):
    model = compiled(SAMPLERS["rais"])
    model.fit(tfi.history_sample(blobs, model.sampler, BATCH, seed=0), epochs=2, verbose=0)
    model.save_weights(str(tmp_path / "at.weights.h5"))
    other = compiled(SAMPLERS["rais"])
    other.load_weights(str(tmp_path / "at.weights.h5"))
    for mine, theirs in zip(model.sampler.variables, other.sampler.variables):
        np.testing.assert_array_equal(mine, theirs)
    assert float(other.schedule.following) == float(model.schedule.following) > 0
    plain = built()
    plain.load_weights(str(tmp_path / "at.weights.h5"))
    wrong = compiled(SAMPLERS["rais"], n=100)
    with pytest.raises(ValueError, match="another number of examples"):
        wrong.load_weights(str(tmp_path / "at.weights.h5"))
    wrong = compiled(SAMPLERS["uniform"])
    with pytest.raises(ValueError, match="another sampler than Uniform"):
        wrong.load_weights(str(tmp_path / "at.weights.h5"))


def test_the_sampler_is_no_weight_of_the_model(blobs):
    assert len(compiled().weights) == len(built().weights)


def test_a_weights_file_without_a_sampler_leaves_it_fresh(blobs, tmp_path):
    built().save_weights(str(tmp_path / "at.weights.h5"))
    model = compiled(SAMPLERS["rais"])
    model.load_weights(str(tmp_path / "at.weights.h5"))
    assert int(model.sampler.steps) == 0


def test_a_checkpoint_of_another_sampler_is_refused(blobs, tmp_path):
    path = tf.train.Checkpoint(model=compiled(SAMPLERS["rais"])).save(str(tmp_path / "at"))
    with pytest.raises(ValueError, match="[Ss]hape"):
        tf.train.Checkpoint(model=compiled(SAMPLERS["rais"], n=100)).restore(path)


# Sources ------------------------------------------------------------------------------------


class Rows:
    """Random access in the way of an array_record or TFDS data source."""

    def __init__(self, x, y, as_dict):
        self._x, self._y, self._as_dict = x, y, as_dict

    def __len__(self):
        return len(self._x)

    def __getitem__(self, index):
        x, y = self._x[index], self._y[index]
        return {"image": x, "label": y, "id": b"7"} if self._as_dict else (x, y)


class Rowwise(Rows):
    def __getitems__(self, indices):
        return [self[index] for index in indices]

    def __getitem__(self, index):
        assert isinstance(index, int)
        return super().__getitem__(index)


@pytest.mark.parametrize("kind", [Rows, Rowwise])
@pytest.mark.parametrize("as_dict", [True, False])
def test_random_access_gives_the_same_batches_as_arrays(kind, as_dict, blobs):
    samplers = [tfi.samplers.Uniform(512) for _ in range(2)]
    sources = [blobs, kind(*blobs, as_dict)]
    pairs = zip(*(tfi.history_sample(s, m, BATCH, seed=0) for s, m in zip(sources, samplers)))
    for one, other in pairs:
        for mine, theirs in zip(tf.nest.flatten(one), tf.nest.flatten(other)):
            np.testing.assert_array_equal(mine, theirs)
            assert mine.shape == theirs.shape and mine.dtype == theirs.dtype


class Shades(tfds.core.GeneratorBasedBuilder):
    """Tiny images, of as many shades as there are examples; the label is the shade's rest."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        image, label = tfds.features.Image(shape=(4, 3, 1)), tfds.features.ClassLabel(num_classes=3)
        features = tfds.features.FeaturesDict({"image": image, "label": label})
        return self.dataset_info_from_configs(features=features)

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples()}

    def _generate_examples(self):
        for shade in range(64):
            yield shade, {"image": np.full([4, 3, 1], shade, np.uint8), "label": shade % 3}


@pytest.mark.skipif(
    importlib.util.find_spec("array_record") is None,
    reason="needs array_record (pip install array_record)",
)
def test_a_data_source_of_tfds_is_a_source(tmp_path):
    source = tfds.data_source(
        "shades",
        split="train",
        data_dir=str(tmp_path),
        builder_kwargs={"file_format": "array_record"},
    )
    sampler = tfi.samplers.Proportional(len(source))
    batches = tfi.history_sample(source, sampler, BATCH, seed=0)
    assert batches.element_spec[0].shape == (BATCH, 4, 3, 1)
    images, labels, drawn = next(iter(batches))
    assert images.dtype == tf.uint8 and len(set(drawn["index"].numpy())) > 4
    shades = np.array([source[index]["image"][0, 0, 0] for index in drawn["index"].numpy()])
    assert np.all(images == shades[:, None, None, None])
    np.testing.assert_array_equal(labels, shades % 3)


def test_batches_are_the_examples_at_the_indices_with_static_shapes(blobs):
    x, y = blobs
    source = ({"a": x, "b": (x[:, 0], np.arange(512))}, y)
    batches = tfi.history_sample(source, tfi.samplers.Uniform(512), BATCH, seed=0)
    assert batches.element_spec[0]["a"].shape == (BATCH, 2)
    inputs, labels, drawn = next(iter(batches))
    np.testing.assert_array_equal(inputs["a"], x[drawn["index"].numpy()])
    np.testing.assert_array_equal(inputs["b"][1], drawn["index"])
    np.testing.assert_array_equal(labels, y[drawn["index"].numpy()])
    assert drawn["weight"].dtype == tf.float32


def test_augmentation_goes_behind_it(blobs):
    model = compiled(SAMPLERS["rais"])
    batches = tfi.history_sample(blobs, model.sampler, BATCH, seed=0)
    batches = batches.map(lambda x, y, drawn: (x + 0.01, y, drawn)).repeat()
    model.fit(batches, steps_per_epoch=60, verbose=0)
    assert model.sampler.uncertainty_set.numpy().any()


def crop_offsets(indices, visits):
    """[b, 2] in 0 … 8, settled by the example and the number of its visit."""
    seeds = tf.stack([indices, tf.cast(visits, tf.int64), tf.zeros_like(indices)], axis=1)
    number = tf.raw_ops.RandomIndexShuffle(
        index=tf.zeros_like(indices), seed=seeds, max_index=tf.constant(80, tf.int64), rounds=4
    )
    return tf.stack([number // 9, number % 9], axis=1)


def crop_magnitude(indices, visits):
    return tf.norm(tf.cast(crop_offsets(indices, visits), tf.float32) - 4.0, axis=1)


def test_the_offset_of_a_random_crop_is_a_feature():
    """As in RAIS's section 6: what the map does is what the sampler has been told before."""
    images = np.arange(144, dtype=np.float32).reshape(1, 12, 12, 1) + np.zeros([60, 1, 1, 1], "f")
    sampler = tfi.samplers.RAIS(60, training_set_size=64, features=crop_magnitude)
    net = keras.Sequential([keras.Input((4, 4, 1)), L.Flatten(), L.Dense(4, activation="softmax")])
    model = tfi.ISModel(net)
    model.compile(keras.optimizers.SGD(1e-4), LOSS, sampler=sampler)
    seen = []

    def crop(images, labels, drawn):
        starts = crop_offsets(drawn["index"], tf.gather(sampler.visits, drawn["index"]))
        cut = lambda pair: tf.slice(pair[0], tf.concat([pair[1], [0]], 0), [4, 4, 1])  # noqa: E731
        cropped = tf.map_fn(cut, (images, starts), tf.float32)
        return tf.ensure_shape(cropped, [BATCH, 4, 4, 1]), labels, drawn

    batches = tfi.history_sample((images, np.zeros(60, np.int32)), sampler, BATCH, seed=0)
    for batch in batches.repeat().map(crop).take(12):
        model.train_on_batch(*batch)
        corner = batch[0].numpy()[:, 0, 0, 0]
        seen += [np.hypot(corner // 12 - 4, corner % 12 - 4)]
    # What the last step has seen is taken up when the next batch is planned.
    told = sampler.recent.rows.numpy()[: 11 * BATCH % 128, -4]
    seen = np.concatenate(seen)[128 : 11 * BATCH]
    np.testing.assert_allclose(told, seen, rtol=1e-5)
    assert np.ptp(seen) > 2


def test_evaluation_takes_its_batches_by_their_weights(blobs):
    model = compiled(SAMPLERS["uniform"])
    batches = tfi.history_sample(blobs, tfi.samplers.Uniform(512), BATCH, seed=0)
    np.testing.assert_allclose(
        model.evaluate(batches, verbose=0), model.evaluate(*blobs, verbose=0), rtol=1e-4
    )


def test_a_stream_leaves_the_sampler_alone_and_is_refused(blobs):
    model = compiled(SAMPLERS["rais"])
    stream = tf.data.Dataset.from_tensor_slices(blobs).batch(BATCH)
    with pytest.raises(TypeError, match="by number.*importance_sample"):
        model.fit(stream, verbose=0)
    assert int(model.sampler.steps) == 0


def test_without_a_seed_it_runs_as_well(blobs):
    model = compiled(SAMPLERS["rais"])
    model.fit(tfi.history_sample(blobs, model.sampler, BATCH), epochs=3, verbose=0)
    assert model.sampler.uncertainty_set.numpy().any()


@pytest.mark.slow
@pytest.mark.parametrize(
    "options", [{"steps_per_execution": 4}, {"run_eagerly": True}, {"jit_compile": True}]
)
def test_options_of_compile(options, blobs):
    model = compiled(SAMPLERS["rais"], **options)
    batches = tfi.history_sample(blobs, model.sampler, BATCH, seed=0).repeat()
    model.fit(batches, steps_per_epoch=52, verbose=0)
    assert model.sampler.uncertainty_set.numpy().any()
    assert int(model.sampler.steps) == 52


@pytest.mark.slow
@pytest.mark.parametrize("name", ["proportional", "rank_based"])
def test_samplers_compile_by_xla(name, blobs):
    model = compiled(SAMPLERS[name], jit_compile=True)
    model.fit(tfi.history_sample(blobs, model.sampler, BATCH, seed=0), steps_per_epoch=9, verbose=0)
    assert int(model.sampler.steps) == 9


@pytest.mark.parametrize("scorer", [tfi.scorers.loss, tfi.scorers.gradient_norm])
def test_scores_are_the_models_scorers(scorer, blobs):
    keras.utils.set_random_seed(0)
    model = tfi.ISModel(net_of(), scorer=scorer)
    sampler = tfi.samplers.Proportional(512, alpha=1.0, epsilon=1e-30)
    model.compile(keras.optimizers.SGD(0.0), LOSS, sampler=sampler)
    # The second batch is planned by what the step on the first has seen.
    batches = tfi.history_sample(blobs, sampler, BATCH, block=1, seed=0)
    model.fit(batches, verbose=0, steps_per_epoch=2)
    x, y, drawn = next(iter(tfi.history_sample(blobs, tfi.samplers.Uniform(512), 512)))
    leaves = sampler.tree.leaves(drawn["index"]).numpy()
    visited = leaves[:, 1] == 0
    assert visited.sum() >= BATCH - 2
    np.testing.assert_allclose(leaves[visited, 0], scorer(model, x, y)[visited], rtol=1e-4)


@pytest.mark.slow
def test_rank_based_scores_all_examples_anew_when_it_is_due(blobs):
    model = compiled(lambda n: tfi.samplers.RankBased(n, recompute_every=5), rate=1e-9)
    batches = tfi.history_sample(blobs, model.sampler, BATCH, block=1, seed=0)
    model.fit(batches, steps_per_epoch=4, verbose=0)
    assert np.isinf(model.sampler.scores).sum() > 400
    model.fit(batches, steps_per_epoch=2, verbose=0)
    expected = model.scorer(model, *blobs)
    np.testing.assert_allclose(model.sampler.scores, expected, rtol=0.05, atol=1e-3)


@pytest.mark.parametrize("seed", [None, 0])
def test_the_oracle_draws_by_the_net_as_it_is_now(seed, blobs):
    """Never ahead of the step, with a seed or without."""
    points, labels = blobs[0][:64], blobs[1][:64]
    model = compiled(None, 64)
    batches = iter(tfi.history_sample((points, labels), model.sampler, BATCH, seed=seed).repeat())
    for _ in range(4):
        *_, drawn = next(batches)
        norms = tfi.per_example_gradient_norms(model, points, labels).numpy()
        p = norms / norms.sum()
        np.testing.assert_allclose(drawn["weight"], 1 / (64 * p[drawn["index"]]), rtol=1e-3)
        model.net.set_weights([1.7 * weight for weight in model.net.get_weights()])


# What is refused ----------------------------------------------------------------------------


def test_what_has_no_random_access_is_refused(blobs):
    dataset = tf.data.Dataset.from_tensor_slices(blobs)
    for source in (dataset, iter([1, 2]), (pair for pair in zip(*blobs))):
        with pytest.raises(TypeError, match="tfds.data_source.*__len__ and __getitem__|access"):
            tfi.history_sample(source, tfi.samplers.Uniform(512))


@pytest.mark.parametrize(
    "source, message",
    [
        ((np.zeros([5, 2]), np.zeros(4)), r"shapes \[\(5, 2\), \(4,\)\]"),
        ((np.zeros([0, 2]), np.zeros(0)), r"shapes \[\(0, 2\), \(0,\)\]"),
        ((np.zeros([5, 2]), np.zeros(5), np.ones(5), np.ones(5)), "tuple of 4"),
        ((np.zeros([5, 2]), np.zeros(5), np.ones([5, 2])), "one number for each example"),
        ([3.0, 4.0], "got an example 3.0"),
        ([], "length 0"),
        ((np.zeros([5, 2]), np.zeros(5)), "num_examples=512, and the source has 5"),
    ],
)
def test_a_wrong_source_is_refused_with_what_came(source, message):
    with pytest.raises(ValueError, match=message):
        tfi.history_sample(source, tfi.samplers.Uniform(512))


def test_wrong_samplers_and_sizes_are_refused(blobs):
    with pytest.raises(TypeError, match="tfi.samplers; got 'rais'"):
        tfi.history_sample(blobs, "rais")
    with pytest.raises(ValueError, match="batch_size must be a positive integer; got 0"):
        tfi.history_sample(blobs, tfi.samplers.Uniform(512), 0)
    with pytest.raises(ValueError, match="128 for batches of 100"):
        tfi.history_sample(blobs, SAMPLERS["rais"](512), 100)
    model = tfi.ISModel(net_of())
    with pytest.raises(TypeError, match="sampler must be one of tfi.samplers, or None; got 7"):
        model.compile("sgd", LOSS, sampler=7)


def test_a_model_without_the_sampler_is_told_so(blobs):
    model = tfi.ISModel(net_of())
    model.compile("sgd", LOSS)
    with pytest.raises(ValueError, match="sampler=sampler"):
        model.fit(tfi.history_sample(blobs, tfi.samplers.Uniform(512), 16), verbose=0)


def test_a_sampler_that_must_score_needs_a_source():
    model = tfi.ISModel(net_of())
    model.compile("sgd", LOSS)
    with pytest.raises(ValueError, match="history_sample"):
        tfi.samplers.Oracle(5, model).draw(2, 0)
    sampler = tfi.samplers.RankBased(5, recompute_every=1)
    sampler.steps.assign(1)
    with pytest.raises(ValueError, match="compile"):
        sampler.tend()
