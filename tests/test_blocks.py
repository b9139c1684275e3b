"""Blocks that a sampler plans at once, the journal that steps write, and `fit` by a sampler."""

import copy
import pickle
import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf

import tf_importance as tfi
from tests.cases import quick
from tf_importance.draws import Draws
from tf_importance.journal import Journal
from tf_importance.samplers import Visit
from tf_importance.samplers.gain import GainEstimator
from tf_importance.samplers.sound import once_each

N, b = 256, 8
LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
KINDS = {
    "uniform": tfi.samplers.Uniform,
    "proportional": tfi.samplers.Proportional,
    "rank_based": tfi.samplers.RankBased,
    "rais": lambda: tfi.samplers.RAIS(training_set_size=128),
}
REMEMBER = ["proportional", "rank_based", "rais"]
# RAIS has all that the others have, and more.
RAIS_FIRST = [
    "rais",
    *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("proportional", "rank_based")),
]


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(N, 5)) * rng.gamma(0.5, 2.0, size=(N, 1))
    return x.astype(np.float32), x[:, :3].argmax(axis=1).astype(np.int32)


def compiled(sampler, rate=0.05, **options) -> tfi.ISModel:
    keras.utils.set_random_seed(7)
    layers = [keras.layers.Dense(8, activation="relu"), keras.layers.Dense(3)]
    model = tfi.ISModel(keras.Sequential([keras.Input((5,)), *layers]))
    model.compile(keras.optimizers.SGD(rate), LOSS, sampler=sampler, jit_compile=False, **options)
    return model


def trained(data, kind, block, steps, behind=lambda batches: batches) -> tfi.ISModel:
    model = compiled(KINDS[kind]())
    batches = tfi.history_sample(data, model.sampler, b, block=block, seed=1).repeat()
    model.fit(behind(batches), steps_per_epoch=steps, verbose=0)
    return model


def assert_same(one: tfi.ISModel, other: tfi.ISModel) -> None:
    for mine, theirs in zip(one.net.get_weights(), other.net.get_weights()):
        np.testing.assert_array_equal(mine, theirs)


class Seen(keras.callbacks.Callback):
    """The indices of the examples that were trained on, batch by batch."""

    def __init__(self, sampler) -> None:
        super().__init__()
        self._sampler, self.indices = sampler, []

    def on_train_batch_end(self, batch, logs=None) -> None:
        number = self._sampler.steps - 1
        size = int(self._sampler.journal.batch_size)
        draws = self._sampler.journal.plans(number[tf.newaxis], size)
        self.indices.append(draws.indices.numpy()[0])


# Blocks -----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", RAIS_FIRST)
@pytest.mark.slow
def test_a_seeded_run_repeats_however_far_up_to_a_block_the_reader_is_ahead(kind, data):
    first = trained(data, kind, 2, 60)
    assert_same(first, trained(data, kind, 2, 60, lambda batches: batches.prefetch(1)))
    # Negative control: another block is another run.
    other = trained(data, kind, 1, 60)
    assert any(
        not np.array_equal(mine, theirs)
        for mine, theirs in zip(first.net.get_weights(), other.net.get_weights())
    )
    assert int(first.sampler.journal.late) == 0


@pytest.mark.parametrize("kind", KINDS)
def test_reading_without_a_step_never_hangs_and_is_said(kind, data):
    sampler = KINDS[kind]()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        batches = list(tfi.history_sample(data, sampler, b, block=2, seed=1).repeat().take(300))
    assert len(batches) == 300
    assert int(sampler.journal.late) > 100
    said = [str(one.message) for one in caught if "ahead of the training" in str(one.message)]
    assert len(said) == 1 and type(sampler).__name__ in said[0]


def test_the_default_block_is_an_eighth_of_the_data_and_fits():
    large = tfi.samplers.Uniform(10**6)
    assert large.default_block(32) == 32 and large.default_block(2_000) == 2
    assert tfi.samplers.Uniform(1_024).default_block(32) == 4
    assert tfi.samplers.Uniform(100).default_block(32) == 1
    assert tfi.samplers.RAIS(10**6, training_set_size=1_000).default_block(32) == 15


def test_a_block_that_is_too_large_is_refused(data):
    with pytest.raises(ValueError, match="block must be 341 at most .* batches of 8; got 342"):
        tfi.history_sample(data, tfi.samplers.Uniform(), b, block=342)
    with pytest.raises(ValueError, match="block must be 8 at most .* batches of 8; got 9"):
        sampler = tfi.samplers.RAIS(training_set_size=128)
        tfi.history_sample(data, sampler, b, block=9)


@pytest.mark.parametrize("seed", [None, 1])
def test_each_example_is_in_the_first_pass_once_whatever_was_read_and_dropped(seed, data):
    """Two trainings, of other batch sizes, none of which reads its dataset to the end."""
    sampler = tfi.samplers.Uniform()
    model, seen = compiled(sampler), Seen(sampler)
    for size, steps in ((b, 5), (b, 6), (2 * b, 4), (b, 13)):
        batches = tfi.history_sample(data, sampler, size, block=1 + (size == b), seed=seed)
        model.fit(batches.prefetch(2), steps_per_epoch=steps, verbose=0, callbacks=[seen])
    assert sorted(np.concatenate(seen.indices)) == list(range(N))


@pytest.mark.parametrize("kind", quick(REMEMBER, REMEMBER[0]))
@pytest.mark.parametrize("block", quick([1, 2], 2))
def test_without_a_seed_all_that_steps_see_is_learned(kind, block, data):
    """Batches are read ahead then; what their steps see is late, and not lost."""
    model = compiled(KINDS[kind]())
    batches = tfi.history_sample(data, model.sampler, b, block=block).repeat()
    model.fit(batches, steps_per_epoch=200, verbose=0)
    learned = int(model.sampler.journal.learned)
    assert 200 - 2 * block - 2 <= learned <= 200
    assert int(model.sampler.journal.late) == 0
    if kind == "rais":
        assert model.sampler.uncertainty_set.numpy().any()


def test_what_comes_late_is_learned_later(data):
    model = compiled(KINDS["proportional"]())
    batches = iter(tfi.history_sample(data, model.sampler, b, block=1, seed=1))
    with pytest.warns(UserWarning, match="ahead of the training"):
        first = [next(batches) for _ in range(6)]
    assert int(model.sampler.journal.learned) == 0 and int(model.sampler.journal.late) == 5
    for batch in first:
        model.train_on_batch(*batch)
    next(batches)
    assert int(model.sampler.journal.learned) == 6
    visited = model.sampler.tree.leaves(tf.range(N, dtype=tf.int64)).numpy()[:, 1] == 0
    assert visited.sum() == len(np.unique(np.concatenate([batch[2]["index"] for batch in first])))


def test_a_loop_of_ones_own_learns(data):
    model = compiled(KINDS["rais"]())
    for batch in tfi.history_sample(data, model.sampler, b, seed=1).repeat().take(100):
        model.train_on_batch(*batch)
    assert model.sampler.uncertainty_set.numpy().any()
    assert int(model.sampler.steps) == 100


def test_many_steps_in_one_call_lose_no_visit(data):
    """What RAIS trains on stays in reach, in `fit`, in a loop, and in `fit` again."""
    model = compiled(KINDS["rais"](), steps_per_execution=40)
    batches = tfi.history_sample(data, model.sampler, b, seed=1).repeat()
    model.fit(batches, steps_per_epoch=80, verbose=0)
    # Not train_on_batch, which makes all steps of a call on its one batch in Keras 2.
    step = tf.function(model.train_step, autograph=False)
    for batch in batches.take(60):
        step(batch)
    model.fit(batches, steps_per_epoch=80, verbose=0)
    assert int(model.sampler.steps) == 220 and int(model.sampler.journal.late) == 0


@pytest.mark.parametrize("kind", RAIS_FIRST)
@pytest.mark.parametrize("stop", quick([40, 41], 41))
def test_resumed_in_the_midst_of_a_block_it_goes_on_bit_for_bit(kind, stop, data, tmp_path):
    whole = trained(data, kind, 2, 90)
    model = trained(data, kind, 2, stop)
    path = tf.train.Checkpoint(model=model, optimizer=model.optimizer).save(str(tmp_path / "at"))
    resumed = compiled(KINDS[kind]())
    batches = tfi.history_sample(data, resumed.sampler, b, block=2, seed=1).repeat()
    if hasattr(resumed.optimizer, "build"):
        resumed.optimizer.build(resumed.trainable_variables)
    tf.train.Checkpoint(model=resumed, optimizer=resumed.optimizer).restore(path)
    resumed.fit(batches, steps_per_epoch=90 - stop, verbose=0)
    assert_same(whole, resumed)


def test_backup_and_restore_goes_on_in_the_midst_of_a_block(data, tmp_path):
    def fit(model, *callbacks):
        batches = tfi.history_sample(data, model.sampler, b, block=2, seed=1).repeat()
        model.fit(batches, steps_per_epoch=25, epochs=3, verbose=0, callbacks=list(callbacks))

    class Kill(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            if epoch == 2:
                raise KeyboardInterrupt

    whole, killed, resumed = (compiled(KINDS["rais"]()) for _ in range(3))
    for model in (whole, killed, resumed):
        model(tf.zeros([1, 5]))
    fit(whole)
    backup = str(tmp_path / "backup")
    with pytest.raises(KeyboardInterrupt):
        fit(killed, keras.callbacks.BackupAndRestore(backup), Kill())
    assert int(killed.sampler.steps) == 50
    resumed.sampler.build(N)
    fit(resumed, keras.callbacks.BackupAndRestore(backup))
    assert int(resumed.sampler.steps) == 75
    assert_same(whole, resumed)


def test_a_weights_file_goes_into_a_sampler_once_it_knows_its_size(data, tmp_path):
    model, other = trained(data, "rais", 2, 60), compiled(KINDS["rais"]())
    path = str(tmp_path / "at.weights.h5")
    model.save_weights(path)
    other(tf.zeros([1, 5]))
    other.load_weights(path)
    np.testing.assert_array_equal(other.net.get_weights()[0], model.net.get_weights()[0])
    with pytest.raises(ValueError, match="another number of examples.*compile with a new sampler"):
        tfi.history_sample(tuple(part[:100] for part in data), other.sampler, b)
    other.compile("sgd", other.loss, sampler=KINDS["rais"]())
    other.load_weights(path)
    other.sampler.build(N)
    for mine, theirs in zip(model.sampler.variables, other.sampler.variables):
        np.testing.assert_array_equal(mine, theirs)
    # Where nothing is restored it begins anew.
    other.compile("sgd", other.loss, sampler=KINDS["rais"]())
    other.fit(*(part[:100] for part in data), batch_size=b, verbose=0)
    assert int(other.sampler.steps) == -(-100 // b)


@pytest.mark.parametrize("kind", KINDS)
def test_samplers_are_copied_and_pickled(kind, data):
    model = trained(data, kind, 2, 60)
    for copied in (copy.deepcopy(model.sampler), pickle.loads(pickle.dumps(model.sampler))):
        assert copied.num_examples == N
        for mine, theirs in zip(model.sampler.variables, copied.variables):
            np.testing.assert_array_equal(mine, theirs)


# The journal ------------------------------------------------------------------------------


def test_rows_are_found_by_the_numbers_of_their_batches():
    journal = Journal()
    journal.forget(b)
    write = tf.function(journal.write, autograph=False)
    indices = np.arange(4 * b).reshape(4, b)
    ones = tf.ones([4, b])
    kinds = tf.constant([4, 5, 6, 7])
    journal.put(Draws(tf.constant(indices, tf.int64), ones, 2 * ones, 3 * ones, ones, kinds))
    for number in (0, 2):
        write(tf.constant(number, tf.int64), tf.fill([b], float(number)), [7.0] * 3)
    draws, seen = journal.finished(tf.constant(4, tf.int64), b)
    np.testing.assert_array_equal(draws.indices, indices[[0, 2]])
    np.testing.assert_array_equal(draws.limits, np.full([2, b], 2.0))
    np.testing.assert_array_equal(draws.kinds, [4, 6])
    np.testing.assert_array_equal(seen.scores[:, 0], [0, 2])
    np.testing.assert_array_equal(seen.moments, np.full([2, 3], 7.0))
    assert int(journal.late) == 2
    # Once only.
    assert len(journal.finished(tf.constant(4, tf.int64), b)[0].indices) == 0


def test_a_row_of_the_last_lap_is_not_taken_for_this_ones():
    journal = Journal()
    journal.forget(b)
    laps = journal.batches(b)
    journal.write(tf.constant(3, tf.int64), tf.ones([b]), [0.0] * 3)
    journal.planned.assign(laps + 4)
    journal.learned.assign(laps)
    assert len(journal.finished(tf.constant(laps + 4, tf.int64), b)[0].indices) == 0
    journal.learned.assign(laps)
    journal.write(tf.constant(laps + 3, tf.int64), tf.ones([b]), [0.0] * 3)
    assert len(journal.finished(tf.constant(laps + 4, tf.int64), b)[0].indices) == 1


def test_a_block_of_moments_counts_as_its_batches_one_by_one():
    rng = np.random.default_rng(0)
    rows = rng.gamma(1.0, 1.0, [40, 3]).astype(np.float32)
    rows[[2, 5], 1] = np.nan, np.inf
    uniform = tf.constant(np.arange(40) % 16 == 8)
    one, other = GainEstimator(0.1), GainEstimator(0.1)
    for number, row in enumerate(rows):
        one.learn(tf.constant([row]), uniform[number : number + 1])
    other.learn(tf.constant(rows), uniform)
    for mine, theirs in zip(one.variables, other.variables):
        np.testing.assert_allclose(mine, theirs, rtol=1e-4)
    assert float(one.comparisons[0]) == 2


def test_many_visits_are_taken_together_as_few_are():
    rng = np.random.default_rng(0)
    scores = rng.gamma(1.0, 1.0, 60).astype(np.float32)
    scores[::7] = np.nan
    visit = Visit(tf.constant(rng.integers(9, size=60)), tf.ones([60]), tf.constant(scores))
    of_blocks = tf.function(
        once_each,
        input_signature=[tf.TensorSpec([None], part.dtype) for part in visit[::2]],
    )
    for mine, theirs in zip(once_each(*visit[::2]), of_blocks(*visit[::2])):
        np.testing.assert_allclose(mine, theirs, rtol=1e-5)


# fit by a sampler ---------------------------------------------------------------------------


@pytest.mark.parametrize("kind", RAIS_FIRST)
def test_fit_takes_arrays_and_draws_from_them(kind, data):
    model = compiled(KINDS[kind]())
    history = model.fit(*data, batch_size=b, epochs=12, verbose=0, validation_split=0.25).history
    assert model.sampler.num_examples == N * 3 // 4
    assert int(model.sampler.steps) == 12 * N * 3 // 4 // b
    assert history["loss"][-1] < history["loss"][0] and len(history["val_loss"]) == 12
    assert (max(history["max_weight"]) > 1) == (kind != "uniform")


def test_uniform_arrays_train_as_weighted_keras_does(data):
    """The same mean over the pass; sample and class weights together are multiplied."""
    weights, by_class = np.linspace(0, 2, N).astype(np.float32), {0: 3.0, 1: 1.0, 2: 0.5}
    model = compiled(tfi.samplers.Uniform(), rate=1e-9)
    plain = keras.models.clone_model(model.net)
    plain.set_weights(model.net.get_weights())
    plain.compile(keras.optimizers.SGD(1e-9), LOSS)

    def loss(trained, **given):
        return trained.fit(*data, batch_size=b, verbose=0, **given).history["loss"][0]

    for given in ({"sample_weight": weights}, {"class_weight": by_class}):
        assert loss(model, **given) == pytest.approx(loss(plain, **given), rel=1e-4)
    both = {"sample_weight": weights, "class_weight": by_class}
    product = weights * np.array([3.0, 1.0, 0.5], np.float32)[data[1]]
    expected = loss(plain, sample_weight=product)
    assert loss(model, **both) == pytest.approx(expected, rel=1e-4)
    # Negative control: without one of them it is another loss.
    assert loss(model, sample_weight=weights) != pytest.approx(expected, rel=0.05)


@pytest.mark.slow
def test_sample_weights_count_in_the_scores(data):
    weights = np.where(np.arange(N) < N // 2, 0.0, 1.0).astype(np.float32)
    model = compiled(tfi.samplers.Proportional(alpha=1.0, epsilon=1e-9), rate=1e-9)
    model.fit(*data, batch_size=b, epochs=30, verbose=0, sample_weight=weights)
    drawn = model.sampler.draw(2_000).indices.numpy()
    visited = model.sampler.tree.leaves(tf.range(N, dtype=tf.int64)).numpy()[:, 1] == 0
    assert np.mean(drawn[visited[drawn]] >= N // 2) > 0.99


class Rows:
    def __init__(self, x, y):
        self._x, self._y = x, y

    def __len__(self):
        return len(self._x)

    def __getitem__(self, index):
        return self._x[index], self._y[index]


def test_fit_takes_random_access(data):
    model = compiled(KINDS["proportional"]())
    model.fit(Rows(*data), batch_size=b, epochs=2, verbose=0)
    assert int(model.sampler.steps) == 2 * N // b


@pytest.mark.parametrize(
    "given, error, message",
    [
        (lambda x, y: {"x": tf.data.Dataset.from_tensor_slices((x, y))}, TypeError, "by number"),
        (lambda x, y: {"x": iter([(x, y)])}, TypeError, "by number.*importance_sample"),
        (lambda x, y: {"x": x}, TypeError, "no y"),
        (lambda x, y: {"x": x, "y": y, "shuffle": False}, ValueError, "shuffle=False"),
        (lambda x, y: {"x": x, "y": y, "validation_split": 1.0}, ValueError, "both sides; got 1.0"),
        (
            lambda x, y: {"x": x, "y": y, "sample_weight": np.ones([N, 3])},
            ValueError,
            r"one number for each.*\(256, 3\)",
        ),
        (
            lambda x, y: {"x": Rows(x, y), "class_weight": {0: 1.0}},
            ValueError,
            "class_weight goes with arrays",
        ),
    ],
)
def test_what_cannot_be_drawn_from_is_refused(given, error, message, data):
    model = compiled(KINDS["rais"]())
    with pytest.raises(error, match=message):
        model.fit(**given(*data), verbose=0)


def test_a_sampler_belongs_to_one_model(data):
    model = compiled(KINDS["rais"]())
    model.compile("sgd", LOSS, sampler=model.sampler)
    with pytest.raises(ValueError, match="belongs to model.*make a sampler for each"):
        compiled(model.sampler)
    with pytest.raises(TypeError, match=r"the class RAIS. Give an object: tfi.samplers.RAIS\(\)"):
        compiled(tfi.samplers.RAIS)


def test_a_dataset_of_another_sampler_is_refused(data):
    model = compiled(KINDS["proportional"]())
    batches = tfi.history_sample(data, KINDS["rais"](), b).map(lambda *batch: batch).repeat()
    with pytest.raises(ValueError, match="drawn by one RAIS.*another sampler, a Proportional"):
        model.fit(batches, steps_per_epoch=2, verbose=0)


def test_validation_does_not_take_the_trainings_draws(data):
    model = compiled(KINDS["proportional"]())
    batches = tfi.history_sample(data, model.sampler, b)
    with pytest.raises(ValueError, match=r"validation_data=\(x, y\)"):
        model.fit(batches, validation_data=batches, verbose=0)
    training = iter(batches)
    next(training)
    next(iter(tfi.history_sample(data, model.sampler, b)))
    with pytest.raises(tf.errors.InvalidArgumentError, match="a sampler of its own"):
        for _ in range(9):
            next(training)


def test_data_of_another_size_are_refused(data):
    model = compiled(KINDS["proportional"]())
    model.fit(*data, batch_size=b, verbose=0)
    with pytest.raises(ValueError, match="num_examples=256, and the source has 100"):
        model.fit(data[0][:100], data[1][:100], batch_size=b, verbose=0)


def test_the_share_of_drawn_batches_stays_where_a_block_is_longer_than_an_epoch(data):
    """It was logged as 0 in all epochs but those in which a block was planned."""
    model = compiled(tfi.samplers.Proportional())
    batches = tfi.history_sample(data, model.sampler, b, block=16).repeat()
    logs = model.fit(batches, steps_per_epoch=4, epochs=16, verbose=0).history
    assert logs["importance"][-8:] == [1.0] * 8
    # Of plain data it is another's.
    plain = compiled(None)
    drawn = tfi.importance_sample(plain, b, 4 * b, tau_threshold="always")
    plain.fit(tf.data.Dataset.from_tensor_slices(data).apply(drawn), verbose=0)
    assert plain.fit(*data, epochs=2, verbose=0).history["importance"] == [0.0, 0.0]
