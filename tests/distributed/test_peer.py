"""Peers: their own steps' scores, shared; alone, and two processes under one strategy."""

import concurrent.futures
import json
import os
import pathlib
import socket
import subprocess
import sys
import time

import keras
import numpy as np
import pytest
import tensorflow as tf

import tf_importance as tfi
from tests.distributed.conftest import HANGING_SECONDS, Clock, N, compile_model, until
from tests.redis_server import NEEDS_REDIS, RedisServer
from tf_importance import distributed, stores
from tf_importance.distributed import peer as peers

ROOT = pathlib.Path(__file__).parents[2]


def peer(model, store, **options):
    own = {"push_every": 2, "pull_seconds": 0.02, "shard_size": 32, "fallback_seconds": 1e6}
    options = {**own, **options}
    return distributed.Peer(N, model, store, **options)


def visit(sampler, indices, scores):
    scores = tf.constant(scores, tf.float32)
    indices = tf.constant(indices, tf.int64)
    sampler.update(tfi.samplers.Visit(indices, tf.ones_like(scores), scores))


def alone(data, make_model, meeting, name):
    """A peer whose exchanges happen when the test says so."""
    sampler = peer(make_model(), meeting(name), largest_batch=16)
    tfi.history_sample(data, sampler, 8)
    sampler._start = lambda: None
    sampler.begin()
    return sampler


def test_each_draws_by_what_all_have_seen(data, make_model, meeting):
    first, second = (alone(data, make_model, meeting, f"peer {i}") for i in range(2))
    visit(first, [0, 40, 5, 0], [1.0, 2.0, 3.0, 5.0])
    visit(second, [90, 40], [4.0, 8.0])
    second.maintain(2, None)
    second.exchange.once()
    first.maintain(4, None)
    first.exchange.once()
    second.exchange.once()
    for sampler in (first, second):
        known = sampler.mirror.known()
        assert set(np.flatnonzero(known.usable)) == {0, 5, 40, 90}
        # Twice in a batch counts as its mean; a later step's score replaces an earlier one's.
        np.testing.assert_allclose(known.scores[[0, 5, 40, 90]], [3.0, 3.0, 2.0, 4.0])
        assert known.versions[[40, 90]].tolist() == [4, 2]


def test_a_late_peer_overwrites_nothing_newer(data, make_model, meeting):
    first, second = (alone(data, make_model, meeting, f"peer {i}") for i in range(2))
    visit(first, [7, 8], [1.0, np.nan])
    first.maintain(10, None)
    first.exchange.once()
    visit(second, [7, 8], [9.0, 2.0])
    second.maintain(4, None)
    second.exchange.once()
    first.exchange.once()
    np.testing.assert_array_equal(first.mirror.known().scores[[7, 8]], [1.0, 2.0])


@pytest.mark.parametrize("command", ["now", "write"])
def test_what_could_not_be_sent_is_sent_later(data, make_model, meeting, monkeypatch, command):
    sampler = alone(data, make_model, meeting, "peer")
    visit(sampler, [1, 2], [1.0, 2.0])
    sampler.maintain(2, None)

    def fail(self, *_):
        raise self.error(stores.Unreachable, "gone", "")

    with monkeypatch.context() as patched:
        patched.setattr(stores.MemoryStore, command, fail)
        with pytest.raises(stores.Unreachable):
            sampler.exchange.once()
    visit(sampler, [2, 3], [5.0, 3.0])
    sampler.maintain(4, None)
    sampler.exchange.once()
    np.testing.assert_array_equal(sampler.mirror.known().scores[[1, 2, 3]], [1.0, 5.0, 3.0])


def test_what_waits_is_sent_by_one_thread_at_a_time(data, make_model, meeting, monkeypatch):
    sampler = alone(data, make_model, meeting, "peer")
    now = stores.MemoryStore.now

    def slowly(store):
        time.sleep(0.002)
        return now(store)

    monkeypatch.setattr(stores.MemoryStore, "now", slowly)
    for number in range(6):
        visit(sampler, [number], [1.0 + number])
        sampler.maintain(2 * number + 2, None)
    with concurrent.futures.ThreadPoolExecutor(4) as threads:
        for sent in [threads.submit(sampler.exchange.once) for _ in range(8)]:
            sent.result()
    np.testing.assert_array_equal(sampler.mirror.known().scores[:6], np.arange(6) + 1)


def test_what_is_sent_late_is_as_old_as_it_is(data, make_model, meeting, monkeypatch, store_clock):
    clock = Clock()
    monkeypatch.setattr(peers, "time", clock)
    sampler = alone(data, make_model, meeting, "peer")
    visit(sampler, [1, 2], [1.0, 2.0])
    sampler.maintain(2, None)
    for each in (clock, store_clock):
        each.jump(100)
    sampler.exchange.once()
    age = sampler.store.now() - sampler.mirror.known().times[[1, 2]]
    # The store counts in hundredths.
    np.testing.assert_allclose(age, 100, atol=0.02)


def test_a_batch_that_does_not_fit_is_refused(data, make_model, meeting):
    sampler = peer(make_model(), meeting(), largest_batch=4)
    with pytest.raises(ValueError, match="largest_batch .* 4 and 8"):
        tfi.history_sample(data, sampler, 8)


def test_under_a_strategy_it_is_refused(make_model, meeting):
    model = make_model()
    with tf.distribute.MirroredStrategy(["CPU:0"]).scope():
        with pytest.raises(ValueError, match=r"outside of strategy.scope\(\)"):
            peer(model, meeting())


def test_one_peer_trains_by_itself(data, make_model, meeting):
    model = make_model()
    # The scores are those of earlier steps: without smoothing, weights of 50 meet them.
    sampler = peer(model, meeting("peer"), largest_batch=8, smoothing=0.5)
    compile_model(model, sampler, 0.1)
    before = model.evaluate(*data, verbose=0)
    batches = tfi.history_sample(data, sampler, 8, seed=1).repeat()
    pulled = keras.callbacks.LambdaCallback(
        on_epoch_end=lambda epoch, logs: until(lambda: sampler.usable.numpy() > 0.5)
    )
    history = model.fit(
        batches, steps_per_epoch=40, epochs=3, verbose=0, callbacks=[pulled]
    ).history
    assert model.evaluate(*data, verbose=0) < 0.8 * before
    assert history["usable"][-1] > 0.5


@NEEDS_REDIS
@pytest.mark.slow
def test_two_processes_share_scores_and_parameters(tmp_path):
    with socket.socket() as one, socket.socket() as other:
        for found in (one, other):
            found.bind(("127.0.0.1", 0))
        ports = [str(found.getsockname()[1]) for found in (one, other)]
    server = RedisServer()
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "-1"}
    try:
        outs = [tmp_path / f"{rank}.json" for rank in range(2)]
        processes = [
            subprocess.Popen(
                [sys.executable, "-m", "tests.distributed.peer_process"]
                + [str(rank), ",".join(ports), server.url, str(out)],
                cwd=ROOT,
                env=environment,
                stderr=subprocess.PIPE,
                text=True,
            )
            for rank, out in enumerate(outs)
        ]
        errors = [process.communicate(timeout=2 * HANGING_SECONDS)[1] for process in processes]
        assert [process.returncode for process in processes] == [0, 0], errors
    finally:
        for process in processes:
            process.kill()
        server.close()
    first, second = (json.loads(out.read_text()) for out in outs)
    assert first["weights"] == second["weights"] and first["before"] == second["before"]
    assert first["after"] < 0.6 * first["before"]
    assert first["count"] == second["count"] == 60 * 8
    # Each draws for itself, and knows what either has visited.
    assert first["visited"] != second["visited"]
    for one in (first, second):
        assert set(one["scored"]) >= set(first["visited"]) | set(second["visited"])
    assert max(first["versions"]) >= 58
