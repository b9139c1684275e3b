"""One memory for several processes: two of them here, under MultiWorkerMirroredStrategy."""

import json
import os
import pathlib
import re
import socket
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf

import tf_importance as tfi
from tests import memory_process
from tests.distributed.conftest import HANGING_SECONDS
from tf_importance import blocks, processes, samplers

ROOT = pathlib.Path(__file__).parents[1]
N, b = memory_process.N, memory_process.b
STILL = {"sampler": "Proportional", "rate": 0.0, "steps": 150, "epochs": 2}
LEARNING = {"sampler": "RAIS", "rate": 0.1, "steps": 20, "epochs": 3}


def trained_by_two(folder, **spec):
    """What both have seen, and where the first one's checkpoint is."""
    with socket.socket() as one, socket.socket() as other:
        for found in (one, other):
            found.bind(("127.0.0.1", 0))
        ports = ",".join(str(found.getsockname()[1]) for found in (one, other))
    outs = [folder / f"{rank}.json" for rank in range(2)]
    command = [sys.executable, "-m", "tests.memory_process"]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "-1"}
    started = [
        subprocess.Popen(
            [*command, str(rank), ports, json.dumps(spec), str(out)],
            cwd=ROOT,
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank, out in enumerate(outs)
    ]
    try:
        errors = [process.communicate(timeout=2 * HANGING_SECONDS)[1] for process in started]
        assert [process.returncode for process in started] == [0, 0], errors
    finally:
        for process in started:
            process.kill()
    return [json.loads(out.read_text()) for out in outs], str(folder / "0")


@pytest.fixture(scope="module")
def still(tmp_path_factory):
    """Two processes with a net that stands still."""
    return trained_by_two(tmp_path_factory.mktemp("still"), **STILL)


def are_the_same(one, other):
    """What both know and what both are."""
    for name in ("trained", "indices", "drawn_with", "scores", "weights"):
        assert one[name] == other[name], name
    assert one["memory"].keys() == other["memory"].keys() and one["memory"]
    for name, values in one["memory"].items():
        np.testing.assert_allclose(values, other["memory"][name], rtol=1e-6, err_msg=name)


@pytest.mark.slow
def test_both_know_what_either_has_seen(still):
    (one, other), _ = still
    are_the_same(one, other)
    assert one["trained"] == 2 * 300 and one["logs"]["late"] == 0
    for each in (one, other):
        # Each of the rows, whoever wrote it, has the scores of what it is a row of.
        expected = np.asarray(each["score_of_each"])[each["indices"]]
        np.testing.assert_allclose(each["scores"], expected, rtol=1e-4)
    assert len(one["indices"]) == one["trained"]


@pytest.mark.slow
def test_one_memory_alone_would_remember_the_same(still):
    (one, _), checkpoint = still
    alone = tfi.samplers.Proportional()
    alone.build(N)
    restored = tfi.samplers.Proportional(N)
    tf.train.Checkpoint(sampler=restored).restore(checkpoint).expect_partial()
    learned = int(restored.journal.learned)
    # The lag is a block, and the last part is no whole one.
    assert learned > one["trained"] - 100
    parts = [np.ravel(one[name][:learned]) for name in ("indices", "drawn_with", "scores")]
    indices, *rest = parts
    for number in range(learned):
        chosen = slice(number * b, (number + 1) * b)
        values = [tf.constant(part[chosen], tf.float32) for part in rest]
        alone.update(tfi.samplers.Visit(tf.constant(indices[chosen], tf.int64), *values))
    np.testing.assert_allclose(
        np.asarray(restored.tree.levels[0]), np.asarray(alone.tree.levels[0]), rtol=1e-4, atol=1e-6
    )


@pytest.mark.parametrize("weighted", [True, False], ids=["weighted", "negative control"])
@pytest.mark.slow
def test_what_they_draw_is_unbiased(still, weighted):
    """z-test of the weighted mean of random functions of the examples."""
    (one, _), _ = still
    later = slice(2 * N // b, None)
    indices, weights = (np.asarray(one[name][later]) for name in ("indices", "drawn_with"))
    # What examples are drawn by is among them: the draws are far from uniform in it.
    random = np.random.default_rng(0).normal(size=(N, 6))
    values = np.concatenate([random, np.asarray(one["score_of_each"])[:, np.newaxis]], axis=1)
    weights = weights if weighted else np.ones_like(weights)
    means = (weights[..., np.newaxis] * values[indices]).mean(axis=1) - values.mean(axis=0)
    z = means.mean(axis=0) / (means.std(axis=0, ddof=1) / np.sqrt(len(means)))
    assert np.abs(z).max() < 4.5 if weighted else np.abs(z).max() > 6


@pytest.fixture(scope="module")
def learning(tmp_path_factory):
    """Two processes whose RAIS and net learn."""
    return trained_by_two(tmp_path_factory.mktemp("learning"), **LEARNING)


@pytest.mark.slow
def test_the_learning_rate_follows_what_both_see(learning):
    (one, other), _ = learning
    are_the_same(one, other)
    assert one["trained"] == 2 * 60 and one["logs"]["late"] == 0
    assert one["logs"]["loss"] < 1.0 and np.isfinite(one["logs"]["gain"])


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["Inclusion", "Fresh"])
def test_others_learn_together(tmp_path, kind):
    (one, other), _ = trained_by_two(tmp_path, **{**LEARNING, "sampler": kind, "seeds": [1, 1]})
    are_the_same(one, other)
    assert one["trained"] == 2 * 60 and one["logs"]["late"] == 0
    assert one["logs"]["loss"] < 1.0
    if kind == "Inclusion":
        # They share a pass: all examples come once, each at one of the two.
        assert sorted(np.ravel(one["indices"][: N // b])) == list(range(N))


@pytest.mark.slow
def test_a_checkpoint_goes_on_with_two_and_with_one(tmp_path, learning):
    (before, _), checkpoint = learning
    (one, other), _ = trained_by_two(tmp_path, **LEARNING, restore=checkpoint)
    are_the_same(one, other)
    assert one["trained"] == 2 * before["trained"]
    assert one["logs"]["loss"] < before["logs"]["loss"]

    model = memory_process.compiled("RAIS", 0.1)
    x, y = memory_process.data()
    batches = tfi.history_sample((x, y), model.sampler, b).repeat()
    restored = tf.train.Checkpoint(net=model.net, sampler=model.sampler)
    restored.restore(checkpoint).expect_partial()
    assert int(model.sampler.steps) == before["trained"]
    logs = model.fit(batches, steps_per_epoch=60, verbose=0).history
    assert int(model.sampler.steps) == before["trained"] + 60 and logs["late"] == [0]
    assert logs["loss"][-1] < before["logs"]["loss"]


@pytest.mark.slow
def test_other_data_are_refused_by_all(tmp_path):
    found, _ = trained_by_two(tmp_path, **LEARNING, differ=True)
    for each in found:
        said = r"samplers of the processes differ: the number of examples .*96, 95.*Give all"
        assert re.search(said, each["error"]), each["error"]


def test_what_cannot_be_is_refused():
    members = [samplers.Uniform(), samplers.RAIS()]
    switched = samplers.Switched(members, by=tfi.switches.Gain())
    with pytest.raises(ValueError, match="Switched works on one replica of a process; got .* 2"):
        samplers.check(switched, 1, 2)
    samplers.check(samplers.RAIS(), 1, 2)
    # Outside of `fit` nobody brings together what processes see.
    planned, _ = planned_for(processes.Part(4, 2, 2))
    with pytest.raises(
        tf.errors.OpError, match="in several processes a Proportional draws in `fit`"
    ):
        list(planned.dataset())


def planned_for(part):
    sampler = samplers.Proportional()
    sampler.build(N)
    sampler.replicas = part.replicas
    x = np.arange(N, dtype=np.float32)
    planned = blocks.Blocks(
        sampler,
        lambda indices: (tf.gather(x, indices), indices),
        batch_size=3,
        block=8,
        length=16,
        seed=0,
        lagging=True,
        drawing=sampler.drawing(3),
        part=part,
    )
    return planned, x


def test_a_process_of_several_replicas_has_batches_for_each():
    """Their dataset gives one batch after the other, of those that are its own."""
    planned, x = planned_for(processes.Part(4, 2, 2))
    sampler = planned._sampler
    sampler.journal.gathering = type("Ready", (), {"wait_for": lambda self, end: None})()
    found = list(planned.dataset())
    assert len(found) == planned.dataset().cardinality() == 8
    numbers = [int(told["row"][0]) for _, _, told in found]
    assert numbers == [2, 3, 6, 7, 10, 11, 14, 15]
    plans = sampler.journal.plans(tf.constant(numbers, tf.int64), 3)
    for (inputs, _, told), indices in zip(found, plans.indices.numpy()):
        np.testing.assert_array_equal(told["index"], indices)
        np.testing.assert_array_equal(inputs, x[indices])
