"""A master and its workers: exact and relaxed, with stores that fail and come back."""

import threading
import time
import uuid
import weakref

import keras
import numpy as np
import pytest
import tensorflow as tf

import tf_importance as tfi
from tests.distributed.conftest import Clock, N, compile_model, score_all, until
from tf_importance import distributed, processes, random_access, stores
from tf_importance.distributed import exchange as exchanges
from tf_importance.distributed import master as masters
from tf_importance.distributed import shared
from tf_importance.distributed import worker as worker_module

SHARD = 32


def master(model, store, **options):
    """One that takes no pause of its thread for silence."""
    own = {"pull_seconds": 0.02, "publish_every": 2, "shard_size": SHARD, "fallback_seconds": 1e6}
    return distributed.Master(N, model, store, **{**own, **options})


def worker(model, data, store, **options):
    """One that keeps its leases, however long it takes."""
    options = {"shard_size": SHARD, "lease_seconds": 1e6, **options}
    return distributed.Worker(model, data, store, **options)


class Recorder(keras.callbacks.Callback):
    """The loss after each step, and what else is asked for."""

    def __init__(self, also=lambda step: None):
        super().__init__()
        self.losses, self._also = [], also

    def on_train_batch_end(self, batch, logs=None):
        self.losses.append(float(logs["loss"]))
        self._also(len(self.losses))


def recording(sampler):
    """Write down what a sampler draws."""
    drawn, draw = [], sampler._draw

    def note(indices, weights):
        drawn.append((indices.copy(), weights.copy()))
        return np.int32(0)

    def recorded(turn):
        found = draw(turn)
        noted = tf.numpy_function(note, [found.indices, found.weights], tf.int32)
        with tf.control_dependencies([noted]):
            return tfi.samplers.Draw(tf.identity(found.indices), tf.identity(found.weights))

    sampler._draw = recorded
    return drawn


def trained(model, sampler, data, steps=12, also=lambda step: None, seed=3, learning_rate=0.05):
    compile_model(model, sampler, learning_rate)
    batches = tfi.history_sample(data, sampler, 8, seed=seed).repeat()
    recorder = Recorder(also)
    model.fit(batches, steps_per_epoch=steps, verbose=0, callbacks=[recorder])
    return recorder.losses


# Exact ----------------------------------------------------------------------------------------


def test_exact_is_the_oracle_bit_for_bit(data, make_model, meeting):
    oracle_model, model = make_model(), make_model()
    oracle = tfi.samplers.Oracle(N, oracle_model, scored_at_once=SHARD)
    exact = master(model, meeting("master"), exact=True)
    draws = recording(oracle), recording(exact)
    wanted = trained(oracle_model, oracle, data)
    workers = [worker(make_model(), data, meeting(f"worker {i}")) for i in range(3)]
    with distributed.working(*workers):
        found = trained(model, exact, data)
    assert found == wanted and len(draws[0]) == len(draws[1]) >= 12
    for mine, theirs in zip(*draws):
        np.testing.assert_array_equal(mine[0], theirs[0])
        np.testing.assert_array_equal(mine[1], theirs[1])
    for mine, theirs in zip(model.net.get_weights(), oracle_model.net.get_weights()):
        np.testing.assert_array_equal(mine, theirs)
    assert sum(w.scored for w in workers) >= 12 * N
    # Negative control: by scores of the beginning it is another training.
    stale_model = make_model()
    stale = master(stale_model, meeting("master"), exact=True)
    stale._pass_barrier = lambda: stale.turns.assign_add([1, 0])
    stale.scores.assign(exact.scores)
    assert trained(stale_model, stale, data) != wanted


def test_exact_draws_nothing_ahead(data, make_model, meeting):
    model = make_model()
    exact = master(model, meeting("master"), exact=True)
    with distributed.working(worker(make_model(), data, meeting("worker"))):
        with pytest.raises(tf.errors.OpError, match="drawn ahead"):
            # Ends with the first that is.
            trained(model, exact, data, 5_000, seed=None)


def test_a_barrier_that_nobody_lifts_is_an_error(data, make_model, meeting):
    model = make_model()
    exact = master(model, meeting("master"), exact=True, barrier_seconds=0.05)
    with pytest.raises(stores.StoreError, match="^master: .*0.05 seconds .*Start workers"):
        trained(model, exact, data)


# Relaxed --------------------------------------------------------------------------------------


def pulled(sampler, data, make_model, meeting, shards=3, publish=True):
    """Let a worker score some shards with the master's parameters as they are; pull that."""
    tfi.history_sample(data, sampler, 8)
    sampler._start = lambda: None
    if sampler._exchange is None:
        sampler.begin()
    if publish:
        sampler._snapshot()
        sampler.exchange.once()
    if shards:
        if sampler not in WORKERS:
            WORKERS[sampler] = worker(make_model(), data, meeting("worker"))
        for _ in range(shards):
            WORKERS[sampler].step()
    sampler.exchange.once()


# One for each master: what a worker takes the most time for is its first shard.
WORKERS = weakref.WeakKeyDictionary()


def drawn(sampler, batches=20, size=2_000):
    draw = tf.function(lambda: sampler.draw(size, 5), autograph=False)
    parts = [draw() for _ in range(batches)]
    return tuple(np.concatenate([part[i].numpy() for part in parts]) for i in (0, 1))


def shift(model, seed):
    for weight in model.net.weights:
        weight.assign_add(np.random.default_rng(seed).normal(scale=0.3, size=weight.shape))


@pytest.mark.parametrize(
    "shards, smoothing", [(1, 0.0), (3, 0.0), (2, 0.3), (2, distributed.TargetEntropy(0.9))]
)
def test_stale_and_missing_scores_leave_the_mean_unbiased(
    data, make_model, meeting, shards, smoothing
):
    model = make_model()
    sampler = master(model, meeting("master"), smoothing=smoothing)
    pulled(sampler, data, make_model, meeting, 3)
    shift(model, 1)
    pulled(sampler, data, make_model, meeting, shards)
    shift(model, 2)
    values = np.array(tfi.per_example_gradient_norms(model, *data), np.float64) + 1
    indices, weights = drawn(sampler)
    terms = values[indices] * weights
    error = terms.std() / np.sqrt(len(terms))
    assert abs(terms.mean() - values.mean()) < 4.5 * error
    # Negative control: without the weights it is not.
    assert abs(values[indices].mean() - values.mean()) > 4.5 * error


def test_those_without_a_score_have_the_mean_or_are_left_out(data, make_model, meeting):
    for unscored in ("mean", "leave_out"):
        model = make_model()
        sampler = master(model, meeting("master"), unscored=unscored)
        sampler.store.clear()
        pulled(sampler, data, make_model, meeting, 2)
        known = sampler.mirror.known()
        assert known.usable.sum() == 2 * SHARD == round(float(sampler.usable.numpy()) * N)
        indices, weights = drawn(sampler)
        unknown = ~known.usable[indices]
        if unscored == "mean":
            assert abs(unknown.mean() - 1 / 3) < 0.02
            np.testing.assert_allclose(weights[unknown], 1, rtol=1e-3)
        else:
            assert not unknown.any()
            scores = known.scores[known.usable]
            counts = np.bincount(indices, minlength=N)[known.usable]
            assert np.corrcoef(counts, scores)[0, 1] > 0.98
            assert abs((values := known.scores[indices] * weights).mean() - scores.mean()) < (
                5 * values.std() / np.sqrt(len(values)) + 1e-3 * scores.mean()
            )


def test_a_master_comes_before_the_model_is_compiled_with_it(data, meeting):
    net = keras.Sequential([keras.Input((5,)), keras.layers.Dense(3)])
    model = tfi.ISModel(net)
    sampler = master(model, meeting("master"))
    compile_model(model, sampler)
    history = model.fit(tfi.history_sample(data, sampler, 16), epochs=1, verbose=0)
    assert np.isfinite(history.history["loss"]).all()


def test_a_master_leaves_out_who_has_no_score_and_a_peer_does_not(make_model, meeting):
    assert distributed.Master(N, make_model(), meeting()).leaves_out
    assert not distributed.Peer(N, make_model(), meeting()).leaves_out


@pytest.mark.parametrize("absurd", [1e30, 3e38])
def test_one_absurd_score_does_not_capture_the_draws(absurd, data, make_model, meeting):
    sampler = master(make_model(), meeting("master"))
    sampler.store.clear()
    tfi.history_sample(data, sampler, 8)
    sampler._start = lambda: None
    sampler.begin()
    values = np.random.default_rng(0).gamma(2.0, 1.0, N).astype(np.float32)
    values[5] = absurd
    sampler.exchange.once()
    version, now = int(sampler.version.numpy()), sampler.store.now()
    for shard, scores in enumerate(values.reshape(3, SHARD)):
        sampler.store.write([stores.Message(shard, scores, version, now)])
    sampler.exchange.once()
    assert float(sampler.logs()["outliers"]) == 1
    indices, weights = drawn(sampler)
    share = (indices == 5).mean()
    assert 0.3 < share < 0.7, "a hundred of about N means"
    assert weights.max() < 2.5 * N
    # Unbiased all the same.
    assert abs(weights.mean() - 1) < 5 * weights.std() / np.sqrt(len(weights))


def test_a_full_store_is_asked_less_and_less_often(data, make_model, meeting, monkeypatch):
    """Until it has room again; other troubles are asked about four times a second."""
    sampler = master(make_model(), meeting("master"))
    tfi.history_sample(data, sampler, 8)
    sampler._start = lambda: None
    sampler.begin()
    exchange, store = sampler.exchange, sampler.store

    def failing(kind):
        def publish(*_):
            raise store.error(kind, "no", "Wait.")

        return publish

    pauses = []
    kinds = [stores.OutOfMemory] * 7 + [stores.Unreachable, None]
    for kind in kinds:
        sampler._snapshot()
        with monkeypatch.context() as patched:
            if kind is not None:
                patched.setattr(store, "publish", failing(kind))
            assert exchange.attempt() == (kind is None)
        pauses.append(exchange._retry_seconds)
    assert pauses == [0.5, 1.0, 2.0, 4.0, 8.0, 8.0, 8.0, 0.25, 0.25]


def test_no_limit_is_below_what_there_is():
    limit = shared.largest_credible
    assert limit(np.zeros(9)) == limit(np.zeros(0)) == np.inf
    assert limit(np.array([2.0])) == 200
    assert limit(np.array([1.0, 1.0, 1e9])) == 100
    many = np.random.default_rng(0).pareto(1.5, 10_000)
    assert (many > limit(many)).sum() < 10


def test_leases_are_kept_while_scoring_goes_on(data, make_model, meeting, monkeypatch):
    """A shard that takes three leases: fewer are scored at once, and nobody else gets it."""
    sampler = master(make_model(), meeting("master"), shard_size=N)
    tfi.history_sample(data, sampler, 8)
    sampler._start = lambda: None
    sampler.begin()
    sampler.exchange.once()
    clock = Clock()
    monkeypatch.setattr(worker_module, "time", clock)
    monkeypatch.setattr(stores.MemoryStore, "now", lambda _: 1e9 + clock.monotonic())
    store, stolen = meeting("worker"), []
    one = distributed.Worker(make_model(), data, store, shard_size=N, lease_seconds=1.0)
    thief = meeting("thief")
    score = one._scores

    def slow(start, end):
        clock.jump(3.0 * (end - start) / N)
        thief.join(one.description)
        stolen.append(thief.lease("thief", 1000, 1e-3) is not None)
        return score(start, end)

    one._scores = slow
    for _ in range(6):
        clock.jump(1.0)
        sampler._snapshot()
        sampler.exchange.once()
        one.step()
    # Passes of 96, 48 and 24 were too long.
    assert stolen[0] and not any(stolen[3:]) and len(stolen) > 12
    assert one._at_once < N and one.scored >= 2 * N


def test_zero_and_broken_scores_are_drawn_all_the_same(data, make_model, meeting):
    for values in (np.zeros(N), np.full(N, np.nan), np.full(N, -1.0), np.eye(1, N)[0]):
        sampler = master(make_model(), meeting("master"))
        sampler.store.clear()
        tfi.history_sample(data, sampler, 8)
        sampler._start = lambda: None
        sampler.begin()
        scores = values.astype(np.float32).reshape(3, SHARD)
        now = sampler.store.now()
        sampler.store.write([stores.Message(i, part, 1, now) for i, part in enumerate(scores)])
        sampler.exchange.once()
        indices, weights = drawn(sampler, 4, 20_000)
        assert np.isfinite(weights).all() and (weights > 0).all()
        assert len(set(indices)) > (0.5 if sampler.draws_by_scores else 0.99) * N
        assert sampler.draws_by_scores == (np.nan_to_num(values).max() > 0)


@pytest.mark.slow
def test_staleness_in_versions_and_in_seconds(data, make_model, meeting, store_clock):
    for staleness in (distributed.Staleness(versions=1), distributed.Staleness(seconds=60.0)):
        sampler = master(make_model(), meeting("master"), staleness=staleness)
        sampler.store.clear()
        for shards, later, share in ((3, 0, 1), (0, 59, 1), (0, 2, 0)):
            store_clock.jump(later)
            pulled(sampler, data, make_model, meeting, shards)
            assert float(sampler.usable.numpy()) == share
        # Uniform, for lack of scores that count.
        np.testing.assert_allclose(drawn(sampler, 1)[1], 1, rtol=1e-6)
        pulled(sampler, data, make_model, meeting, 3)
        assert float(sampler.usable.numpy()) == 1
    for bad in ({"seconds": 0}, {"versions": -1}, {"seconds": float("nan")}):
        with pytest.raises(ValueError, match="staleness"):
            distributed.Staleness(**bad)


def test_training_goes_on_while_workers_score(data, make_model, meeting):
    model = make_model()
    sampler = master(model, meeting("master"), smoothing=0.1)
    workers = [worker(make_model(), data, meeting(f"w{i}"), scored_at_once=20) for i in range(2)]
    shares = []

    def course(step):
        if step == 10:
            until(lambda: sampler.usable.numpy() == 1)
        if step == 20:
            until(lambda: sampler.version.numpy() >= 2)
        shares.append(float(sampler.usable.numpy()))

    before = loss(model, data)
    with distributed.working(*workers):
        trained(model, sampler, data, 60, course, learning_rate=0.3)
    assert loss(model, data) < 0.8 * before
    assert shares[-1] == 1 and sampler.version.numpy() >= 2


def loss(model, data):
    logits = model.net(data[0])
    return float(tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(data[1], logits)))


# Stores that fail -----------------------------------------------------------------------------


class Failing(stores.MemoryStore):
    """A store that can be taken away."""

    lost = False

    def _held(self, of_run=True):
        if Failing.lost:
            raise self.error(stores.Unreachable, "the store does not answer", "Start it.")
        return super()._held(of_run)


@pytest.fixture
def failing(monkeypatch):
    """A function from a role to a store that can be taken away, of a run of its own."""
    monkeypatch.setattr(Failing, "lost", False)
    name = uuid.uuid4().hex
    return lambda role: Failing(name, role)


def test_without_its_store_the_master_draws_uniformly_and_then_recovers(
    data, make_model, failing, monkeypatch, caplog
):
    clock = Clock(stands=False)
    monkeypatch.setattr(exchanges, "time", clock)
    model = make_model()
    sampler = master(model, failing("master"), fallback_seconds=1e5)
    seen = []

    def course(step):
        if step == 3:
            until(lambda: sampler.draws_by_scores)
            Failing.lost = True
            until(lambda: "Trying again" in caplog.text)
            clock.jump(0.5e5)
        if step == 6:
            assert sampler.draws_by_scores, "it has not been silent for long enough"
            clock.jump(1e5)
        if Failing.lost and not sampler.draws_by_scores:
            seen.append(step)
            Failing.lost = False
            until(lambda: sampler.draws_by_scores)
            model.stop_training = True

    with distributed.working(worker(make_model(), data, failing("worker"))):
        losses = trained(model, sampler, data, 30_000, course)
    assert len(seen) == 1 and seen[0] > 6
    assert np.isfinite(losses).all()


def test_a_store_may_be_silent_for_the_stated_time(data, make_model, meeting, monkeypatch):
    clock = Clock()
    monkeypatch.setattr(exchanges, "time", clock)
    sampler = master(make_model(), meeting("master"), fallback_seconds=10.0)
    pulled(sampler, data, make_model, meeting)
    for later, by_scores in ((9.5, True), (1.0, False)):
        clock.jump(later)
        sampler.maintain(1, None)
        assert sampler.draws_by_scores == by_scores
    sampler.exchange.once()
    assert sampler.draws_by_scores


def test_exact_waits_for_a_store_that_comes_back_empty(data, make_model, failing, caplog):
    models, losses = [make_model(), make_model()], []

    def come_back():
        until(lambda: caplog.text.count("Trying again") and caplog.text.count("Waiting"))
        Failing.lost = False

    for model, fails in zip(models, (False, True)):
        sampler = master(model, failing("master"), exact=True)
        sampler.store.clear()
        back = threading.Thread(target=come_back)

        def course(step, fails=fails, store=sampler.store, back=back):
            if fails and step == 3:
                store.clear()
                Failing.lost = True
                back.start()

        with distributed.working(worker(make_model(), data, failing("worker"))):
            losses.append(trained(model, sampler, data, 6, course))
    back.join()
    assert losses[0] == losses[1]


def test_an_emptied_store_is_filled_again(data, make_model, meeting, caplog):
    model = make_model()
    sampler = master(model, meeting("master"))
    other = meeting()
    seen = []

    def course(step):
        if step == 5:
            until(lambda: sampler.draws_by_scores)
            seen.append(int(sampler.version.numpy()))
            other.clear()
            # Versions go on from where they were, and all is scored again.
            until(lambda: sampler.mirror.oldest_version() > seen[0])

    one = worker(make_model(), data, meeting("worker"))
    with distributed.working(one):
        trained(model, sampler, data, 10, course)
    assert seen
    assert "Beginning it anew" in caplog.text and sampler.draws_by_scores


def test_a_second_master_ends_the_first_ones_training(data, make_model, meeting):
    model = make_model()
    sampler = master(model, meeting("first"))

    def course(step):
        time.sleep(0.01)
        if step == 3:
            second = meeting("second")
            second.create(sampler.store.run.description)
            second.take_over()

    with pytest.raises(stores.Superseded, match="^first: another master"):
        # Ends when it is told so.
        trained(model, sampler, data, 30_000, course)


def test_a_second_master_is_refused_at_its_beginning(data, make_model, meeting, monkeypatch):
    monkeypatch.setattr(masters, "_ALIVE_SECONDS", 0.1)
    # However long a loaded machine keeps the first from saying that it is there.
    monkeypatch.setattr(masters, "_SILENCES", 1e9)
    first, second = (master(make_model(), meeting(name)) for name in ("first", "second"))
    for one in (first, second):
        compile_model(one.trained_model, one)
        tfi.history_sample(data, one, 8)
    first.begin()
    fence = first._fence
    with pytest.raises(stores.Superseded, match="^second: another master trains .* Stop it first"):
        second.begin()
    assert first._fence == fence and first.store.publish(b"goes on", fence) > 0
    # One that has ended is none, and so is one that says nothing any more.
    first.end()
    second.begin()
    second.exchange.stop()
    monkeypatch.setattr(masters, "_SILENCES", 3)
    third = master(make_model(), meeting("third"))
    compile_model(third.trained_model, third)
    tfi.history_sample(data, third, 8)
    third.begin()
    third.end()
    second._snapshot()
    with pytest.raises(stores.Superseded, match="^second: another master has taken over"):
        second.exchange.once()


def test_of_several_processes_the_first_is_the_master(data, make_model, meeting, monkeypatch):
    """The others publish nothing, and draw by what workers have scored for it."""
    chief = master(make_model(), meeting("chief"))
    pulled(chief, data, make_model, meeting)
    version = int(chief.version.numpy())
    monkeypatch.setattr(masters.processes, "part_of", lambda strategy: processes.Part(2, 1, 1))
    model = make_model()
    other = master(model, meeting("other"))

    def course(step):
        if step == 3:
            until(lambda: other.draws_by_scores)

    trained(model, other, data, 6, course)
    assert int(other.version.numpy()) == version == chief.store.parameters().version
    known, known_by_chief = other.mirror.known(), chief.mirror.known()
    np.testing.assert_array_equal(known.scores, known_by_chief.scores)
    chief.store.publish(b"goes on", chief._fence)


def test_a_full_store_is_said(data, make_model, meeting, monkeypatch):
    model = make_model()
    sampler = master(model, meeting("master"))
    seen = []

    def course(step):
        if step == 3:

            def full(store, *_):
                raise store.error(stores.OutOfMemory, "no room", "")

            monkeypatch.setattr(type(sampler.store), "publish", full)
        if step == 6:
            until(lambda: sampler.exchange.is_full)
        if step == 8:
            seen.append(float(sampler.store_full))
            monkeypatch.undo()
            until(lambda: not sampler.exchange.is_full)

    trained(model, sampler, data, 12, course)
    assert seen == [1.0] and float(sampler.store_full) == 0.0


def test_roles_with_other_models_or_data_are_refused(data, make_model, meeting):
    sampler = master(make_model(), meeting("master"))
    pulled(sampler, data, make_model, meeting)
    x, y = data
    other_model = tfi.ISModel(keras.Sequential([keras.Input((5,)), keras.layers.Dense(3)]))
    compile_model(other_model)
    other_loss = make_model()
    other_loss.compile("sgd", keras.losses.CategoricalHinge())
    for model, source, what in (
        (other_model, data, "model"),
        (other_loss, data, "loss"),
        (make_model(), (x[::-1], y[::-1]), "data"),
        (make_model(), (x[:-1], y[:-1]), "num_examples"),
    ):
        with pytest.raises(stores.Mismatch, match=f"^worker: .*{what} .* there"):
            worker(model, source, meeting("worker")).run(threading.Event())
    with pytest.raises(stores.Mismatch, match="scorer"):
        worker(make_model(), data, meeting("w"), scorer=tfi.scorers.loss).step()


@pytest.mark.parametrize(
    "option", [{"publish_every": 0}, {"unscored": "x"}, {"pull_seconds": 0}, {"smoothing": -1}]
)
def test_options_out_of_range_are_refused(make_model, meeting, option):
    with pytest.raises(ValueError, match=next(iter(option))):
        master(make_model(), meeting(), **option)


def test_a_restored_master_goes_on(data, make_model, meeting, tmp_path):
    def run(steps):
        model = make_model()
        sampler = master(model, meeting("master"))
        compile_model(model, sampler)
        model.optimizer.build(model.trainable_variables)
        checkpoint = tf.train.Checkpoint(model=model, optimizer=model.optimizer)
        manager = tf.train.CheckpointManager(checkpoint, str(tmp_path), 1)
        restored = manager.restore_or_initialize()
        before = int(sampler.steps.numpy()), int(sampler.version.numpy())

        def published(step):
            until(lambda: int(sampler.version.numpy()) > before[1])

        with distributed.working(worker(make_model(), data, meeting("worker"))):
            trained(model, sampler, data, steps, published)
        manager.save()
        return restored, before, sampler

    first = run(10)[2]
    meeting().clear()
    restored, (steps, version), second = run(10)
    assert restored and steps == 10 and version == first.version.numpy() > 0
    assert second.steps.numpy() == 20
    assert second.version.numpy() > version, "even though the store began anew"


def test_a_training_that_fails_leaves_no_thread(data, make_model, meeting):
    before = set(threading.enumerate())
    sampler = master(model := make_model(), meeting("master"))

    def course(step):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        trained(model, sampler, data, also=course)
    left = [thread for thread in set(threading.enumerate()) - before if thread.name == "exchange"]
    assert not left


class Slow(stores.MemoryStore):
    """A store that takes its time for each part of a pull, or has none after the first."""

    course = staticmethod(lambda: None)

    def read(self, shards):
        self.course()
        return super().read(shards)


def test_a_long_pull_is_no_silence_and_a_broken_one_is(data, make_model, monkeypatch):
    monkeypatch.setattr(exchanges, "_SHARDS_AT_ONCE", 1)
    name, clock = uuid.uuid4().hex, Clock()
    monkeypatch.setattr(exchanges, "time", clock)
    store = Slow(name, "master")
    sampler = master(make_model(), store)
    pulled(sampler, data, make_model, lambda role: stores.MemoryStore(name, role))
    silences = []

    def slow():
        clock.jump(9)
        silences.append(sampler.exchange.silent_seconds)

    def broken():
        slow()
        if len(silences) > 1:
            raise store.error(stores.Unreachable, "gone", "")

    def pull():
        silences.clear()
        sampler.exchange._mark = stores.Mark()
        start = sampler.exchange._last_whole
        went_well = sampler.exchange.attempt()
        return went_well, sampler.exchange.silent_seconds, clock.monotonic() - start

    monkeypatch.setattr(store, "course", slow)
    clock.jump(1)
    went_well, silent, _ = pull()
    assert went_well and silent == 0 and len(silences) == 3 and max(silences) <= 10
    monkeypatch.setattr(store, "course", broken)
    went_well, silent, whole = pull()
    assert not went_well and silent == whole == pytest.approx(18)


def test_the_time_between_pulls_is_no_silence(make_model, meeting):
    with pytest.raises(ValueError, match="fallback_seconds must be longer than pull_seconds"):
        master(make_model(), meeting(), pull_seconds=10.0, fallback_seconds=10.0)


def test_equal_data_and_losses_have_equal_names_in_all_processes(make_model):
    def named(texts):
        x, y = np.array(texts), np.arange(len(texts))
        gather = random_access.opened((x, y))[1]
        return distributed.description.fingerprint(gather, len(texts))

    texts = [f"text {number}" for number in range(300)]
    assert named(texts) == named([str(text) for text in texts]) != named(texts[::-1])

    class Custom(keras.losses.Loss):
        def __init__(self, of):
            super().__init__()
            self.of = of

        def call(self, y_true, y_pred):
            return y_pred

        def get_config(self):
            return {"of": self.of}

    names = []
    for _ in range(2):
        model = make_model()
        model.compile("sgd", Custom(object()))
        names.append(distributed.description.loss_name(model.objective))
    assert names[0] == names[1] and "object" in names[0]


# Workers --------------------------------------------------------------------------------------


def test_a_worker_that_hangs_is_made_up_for(data, make_model, meeting, store_clock):
    sampler = master(make_model(), meeting("master"))
    pulled(sampler, data, make_model, meeting, 0)
    hanging = meeting("hanging")
    hanging.join(sampler.store.run.description)
    lost = hanging.lease("hanging", 1, 30.0)
    other = worker(make_model(), data, meeting("other"))
    score_all(other)
    assert other.scored == 2 * SHARD
    store_clock.jump(31)
    score_all(other)
    assert other.scored == 3 * SHARD
    # It wakes up, with scores of the same parameters at an earlier time: they count for nothing.
    message = stores.Message(lost.shard, np.full(SHARD, 9.0), 1, 0.0, lease=lost.token)
    assert hanging.write([message]) == 0


def test_workers_cover_all_examples_once_for_each_version(data, make_model, meeting):
    sampler = master(make_model(), meeting("master"))
    workers = [worker(make_model(), data, meeting(f"w{i}")) for i in range(3)]
    pulled(sampler, data, make_model, meeting, 0)
    with distributed.working(*workers):
        until(lambda: sum(w.scored for w in workers) >= N)
    assert not any(w.step() for w in workers), "there is nothing left to do"
    assert sum(w.scored for w in workers) == N, "nothing is scored twice with the same parameters"
    sampler.exchange.once()
    wanted = tfi.per_example_gradient_norms(make_model(), *data)
    np.testing.assert_allclose(sampler.mirror.known().scores, wanted, rtol=1e-5)
