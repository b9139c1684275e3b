"""One memory for all replicas of a process: two logical CPUs under MirroredStrategy."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import tf_importance as tfi
from tests.cases import quick

N, b = 96, 8  # b of both replicas together.
RNG = np.random.default_rng(0)
Y = RNG.integers(3, size=N).astype(np.int32)
X = (2 * np.eye(3)[Y] + RNG.normal(size=(N, 3))).astype(np.float32)
LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
SAMPLERS = {
    "proportional": lambda: tfi.samplers.Proportional(),
    "rank_based": lambda: tfi.samplers.RankBased(sort_every=1),
    "rais": lambda: tfi.samplers.RAIS(training_set_size=64),
    "stratified": lambda: tfi.samplers.Stratified(),
    "inclusion": lambda: tfi.samplers.Inclusion(),
    "fresh": lambda: tfi.samplers.Fresh(12, over=tfi.samplers.Proportional()),
}

# Of each, what it remembers of the examples.
REMEMBERED = {
    "proportional": lambda sampler: np.asarray(sampler.tree.levels[0]).ravel(),
    "rank_based": lambda sampler: np.asarray(sampler.scores),
    "rais": lambda sampler: np.asarray(sampler.features),
    "inclusion": lambda sampler: np.asarray(sampler.scores),
}


def model_in(strategy, sampler, rate=0.1, inside=True, **options):
    """A model of two replicas; of one where there is no strategy."""
    strategy = strategy or tf.distribute.get_strategy()
    sampler = sampler if inside else sampler()
    with strategy.scope():
        net = keras.Sequential([keras.Input((3,)), keras.layers.Dense(3)])
        model = tfi.ISModel(net, **options)
        made = sampler() if inside else sampler
        model.compile(keras.optimizers.SGD(rate), LOSS, metrics=["accuracy"], sampler=made)
    return model


def scores_of(model):
    """[N] of the net as it is."""
    return np.asarray(tfi.scorers.upper_bound(model, X, Y))


# One memory -------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", quick(SAMPLERS, "rais", "fresh"))
def test_it_trains(strategy, kind):
    """Each step is two batches, all are learned from, and what is read ahead is waited for."""
    keras.utils.set_random_seed(1)
    model = model_in(strategy, SAMPLERS[kind], tfi.schedules.GainAdapted(0.1))
    logs = model.fit(X, Y, batch_size=b, steps_per_epoch=40, epochs=3, verbose=0).history
    sampler = model.sampler
    assert logs["loss"][-1] < 0.8 * logs["loss"][0]
    assert int(sampler.steps) == 2 * 3 * 40
    assert int(sampler.journal.learned) > int(sampler.steps) - 40
    assert logs["late"][-1] == 0 and np.isfinite(logs["gain"]).all()
    assert isinstance(sampler.position, tf.Variable) and not hasattr(sampler.position, "values")


@pytest.mark.parametrize("inside", [True, False], ids=["in scope", "before it"])
@pytest.mark.slow
def test_each_replica_writes_the_row_of_its_own_batch(strategy, inside):
    model = model_in(strategy, SAMPLERS["proportional"], 0.0, inside)
    model.fit(X, Y, batch_size=b, steps_per_epoch=48, verbose=0)
    journal, half = model.sampler.journal, b // 2
    numbers = tf.range(int(journal.trained), dtype=tf.int64)
    planned = journal.plans(numbers, half).indices.numpy()
    journal.learned.assign(0)
    _, seen = journal.finished(tf.constant(len(numbers), tf.int64), half)
    np.testing.assert_allclose(seen.scores, scores_of(model)[planned], rtol=1e-4)
    # Both had some, and not the same.
    assert len(planned) == 96 and (planned[0::2] != planned[1::2]).mean() > 0.9


@pytest.mark.parametrize("kind", quick(["proportional", "rank_based", "rais", "inclusion"], "rais"))
def test_the_memory_is_what_one_replica_would_have(strategy, kind):
    """Told of the same batches in their order, a sampler by itself remembers the same."""
    # Of a net that stands still, so that it does not matter how they are grouped.
    model = model_in(strategy, SAMPLERS[kind], 0.0)
    model.fit(X, Y, batch_size=b, steps_per_epoch=60, verbose=0)
    sampler, half = model.sampler, b // 2
    journal, alone = sampler.journal, SAMPLERS[kind]()
    alone.build(N)
    learned = int(journal.learned)
    assert learned > 40
    journal.learned.assign(0)
    draws, seen = journal.finished(tf.constant(learned, tf.int64), half)
    assert draws.indices.shape[0] == learned
    alone.remember(draws, seen)
    for part in REMEMBERED[kind](sampler), REMEMBERED[kind](alone):
        assert len(np.unique(part)) > N // 2
    np.testing.assert_allclose(
        REMEMBERED[kind](sampler), REMEMBERED[kind](alone), rtol=1e-3, atol=1e-6
    )


@pytest.mark.slow
def test_what_trains_is_unbiased(strategy):
    """Each example counts 1/n, by Monte Carlo on the parameters; without weights it does not."""
    count = 24
    with strategy.scope():
        net = keras.Sequential(
            [
                keras.Input((count,)),
                keras.layers.Dense(1, use_bias=False, kernel_initializer="zeros"),
            ]
        )
        scorer = tf.constant(np.exp(np.random.default_rng(2).normal(size=count)), tf.float32)
        model = tfi.ISModel(net, scorer=lambda model, x, y: tf.linalg.matvec(x, scorer))
        model.compile(
            keras.optimizers.SGD(1.0),
            lambda y, outputs: outputs[:, 0],
            sampler=tfi.samplers.Proportional(),
        )
    kernels = [np.zeros(count)]
    noted = keras.callbacks.LambdaCallback(
        on_train_batch_end=lambda batch, logs: kernels.append(
            -model.net.get_weights()[0][:, 0].astype(np.float64)
        )
    )
    x, y = np.eye(count, dtype=np.float32), np.zeros(count, np.float32)
    model.fit(x, y, batch_size=b, steps_per_epoch=1200, verbose=0, callbacks=[noted])
    # Behind what passes of the data there are at first.
    found = np.diff(kernels, axis=0)[100:]
    errors = found.std(axis=0, ddof=1) / np.sqrt(len(found))
    assert np.abs((found.mean(axis=0) - 1 / count) / errors).max() < 4.5
    drawn = (found > 0).astype(float)
    unweighted = drawn / drawn.sum(axis=1, keepdims=True)
    errors = unweighted.std(axis=0, ddof=1) / np.sqrt(len(found))
    assert np.abs((unweighted.mean(axis=0) - 1 / count) / errors).max() > 8


@pytest.mark.slow
def test_seeded_runs_repeat(strategy):
    found = []
    for _ in range(2):
        keras.utils.set_random_seed(3)
        model = model_in(strategy, SAMPLERS["rais"])
        data = tfi.history_sample((X, Y), model.sampler, b, seed=5).repeat()
        model.fit(data, steps_per_epoch=48, verbose=0)
        found.append(model.net.get_weights()[0])
    np.testing.assert_allclose(*found, rtol=1e-5)


# The gain ---------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_gain_is_that_of_all_replicas(strategy):
    """Of a net that stands still: as of one replica with batches of both, and not of one half."""
    found = {}
    # Norms that differ much, and a mean gradient that outweighs the noise.
    sizes = np.exp(np.random.default_rng(3).normal(size=(N, 1)))
    x = (sizes * (X + 0.5)).astype(np.float32)
    for name, where, size in (("two", strategy, 8), ("one", None, 8), ("half", None, 4)):
        keras.utils.set_random_seed(1)
        model = model_in(
            where,
            lambda: tfi.samplers.Proportional(alpha=1.0, gain_smoothing=0.002),
            0.0,
            scorer=tfi.scorers.gradient_norm,
        )
        model.net.set_weights([np.zeros((3, 3)), np.array([2.0, -1.0, 0.0])])
        model.fit(x, Y, batch_size=size, steps_per_epoch=2000, verbose=0)
        found[name] = float(model.sampler.gain.ratio)
    assert found["two"] == pytest.approx(found["one"], rel=0.1)
    assert abs(found["half"] / found["one"] - 1) > 0.15


# Resumed ----------------------------------------------------------------------------------


@pytest.mark.parametrize("first, second", [(1, 2), (2, 1)])
@pytest.mark.slow
def test_a_checkpoint_goes_on_with_another_number_of_replicas(strategy, first, second, tmp_path):
    """With what was remembered; in the midst of a block, behind an odd number of batches."""
    where = {1: None, 2: strategy}
    model = model_in(where[first], SAMPLERS["proportional"])
    # The same size for each replica.
    model.fit(X, Y, batch_size=4 * first, steps_per_epoch=17, verbose=0)
    path = tf.train.Checkpoint(model=model).write(str(tmp_path / "checkpoint"))
    before = int(model.sampler.steps)
    other = model_in(where[second], SAMPLERS["proportional"])
    tf.train.Checkpoint(model=other).read(path)
    other.sampler.build(N)
    for mine, theirs in zip(model.sampler.tree.levels, other.sampler.tree.levels):
        np.testing.assert_array_equal(mine, theirs)
    logs = other.fit(X, Y, batch_size=4 * second, steps_per_epoch=48, verbose=0).history
    assert int(other.sampler.steps) == before + before % second + 48 * second
    assert logs["late"][-1] == 0 and logs["loss"][-1] < 1


# What is refused --------------------------------------------------------------------------


def test_what_works_on_one_replica_alone_is_refused(strategy):
    switched = tfi.samplers.Switched(
        [tfi.samplers.Uniform(), tfi.samplers.RAIS()], by=tfi.switches.Gain()
    )
    for sampler in (switched, tfi.samplers.Oracle(N, model_in(strategy, SAMPLERS["rais"]))):
        with pytest.raises(ValueError, match=f"{type(sampler).__name__} works on one replica"):
            model_in(strategy, lambda sampler=sampler: sampler)


def test_a_batch_that_cannot_be_shared_out_is_refused(strategy):
    model = model_in(strategy, SAMPLERS["proportional"])
    with pytest.raises(ValueError, match="multiple of their number; got 9"):
        model.fit(X, Y, batch_size=9, verbose=0)


def test_a_dataset_for_another_number_of_replicas_is_refused(strategy):
    sampler = SAMPLERS["proportional"]()
    data = tfi.history_sample((X, Y), sampler, b)
    model = model_in(strategy, lambda: sampler)
    with pytest.raises(ValueError, match="drawn for 1 replicas.*trains on 2"):
        model.fit(data, verbose=0)


# Logs ---------------------------------------------------------------------------------------


def test_logs_are_those_of_keras_own_train_function(strategy, monkeypatch):
    """Means over the replicas, averaged at once: also where some are vectors, or whole numbers."""

    class Seen(keras.metrics.Sum):
        """Counts calls, in whole numbers."""

        def update_state(self, y_true, y_pred, sample_weight=None):
            return super().update_state(tf.ones([], tf.int32))

    def logs(direct):
        keras.utils.set_random_seed(2)
        if not direct:
            monkeypatch.setattr(tfi.compat, "make_train_function_direct", lambda model: None)
        with strategy.scope():
            net = keras.Sequential([keras.Input((3,)), keras.layers.Dense(3)])
            model = tfi.ISModel(net)
            metrics = [keras.metrics.F1Score(), "accuracy", Seen(dtype="int32", name="calls")]
            loss = keras.losses.CategoricalCrossentropy(from_logits=True)
            model.compile("sgd", loss, metrics=metrics)
        kept = []
        keep = keras.callbacks.LambdaCallback(on_train_batch_end=lambda _, logs: kept.append(logs))
        one_hot = np.eye(3, dtype=np.float32)[Y]
        model.fit(X, one_hot, batch_size=b, shuffle=False, verbose=0, callbacks=[keep])
        return kept

    direct, generic = logs(True), logs(False)
    assert len(direct) == len(generic) == N // b
    for one, other in zip(direct, generic):
        assert set(one) == set(other) and {"f1_score", "calls", "tau", "ess"} <= set(one)
        for name, value in other.items():
            np.testing.assert_allclose(np.asarray(one[name]), np.asarray(value), rtol=1e-4)
    assert len({float(one["tau"]) for one in direct}) > 2
