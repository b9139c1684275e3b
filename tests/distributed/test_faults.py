"""A run on a real redis-server whose parts are killed, at moments that a seed chooses."""

import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import time

import keras
import numpy as np
import pytest
import redis

import tf_importance as tfi
from tests.distributed.conftest import N, compile_model
from tests.redis_server import NEEDS_REDIS, RedisServer
from tf_importance import distributed, stores

pytestmark = NEEDS_REDIS

SHARD = 32


def until(condition, seconds=60.0):
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.01)
    return bool(condition())


class Trouble:
    """Takes a store away, and gives it back."""

    def __init__(self, server, kind):
        self.server, self.kind = server, kind

    def begin(self):
        if self.kind == "full":
            with redis.Redis(port=self.server.port) as client:
                client.config_set("maxmemory", 1)
        elif self.kind == "hangs":
            self.server.process.send_signal(signal.SIGSTOP)
        else:
            self.server.kill()

    def end(self):
        if self.kind == "full":
            with redis.Redis(port=self.server.port) as client:
                client.config_set("maxmemory", 0)
        elif self.kind == "hangs":
            self.server.process.send_signal(signal.SIGCONT)
        else:
            self.server.start()


KINDS = {
    "killed, and empty": (),
    "killed, with its data": ("--appendonly", "yes", "--appendfsync", "always"),
    "full": (),
    "hangs": (),
}


@pytest.mark.parametrize("kind", KINDS)
def test_training_outlasts_its_store(kind, data, make_model):
    server = RedisServer(*KINDS[kind])
    trouble, model = Trouble(server, kind), make_model()

    def meet(role):
        return stores.RedisStore(server.url, "faults", role, timeout=0.5)

    sampler = distributed.Master(
        N, model, meet("master"), publish_every=1, pull_seconds=0.02, fallback_seconds=0.3,
        shard_size=SHARD,
    )  # fmt: skip
    one = distributed.Worker(make_model(), data, meet("worker"), shard_size=SHARD, lease_seconds=1)
    seen = {}

    class Course(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            assert np.isfinite(logs["loss"])
            if batch == 2:
                until(lambda: sampler.draws_by_scores)
                seen["version"], seen["lost"] = int(sampler.version.numpy()), True
                trouble.begin()
            if "lost" in seen and "uniform" not in seen:
                time.sleep(0.02)
                if not sampler.draws_by_scores:
                    seen["uniform"] = True
                    trouble.end()
                    seen["recovered"] = until(
                        lambda: (
                            sampler.draws_by_scores
                            and sampler.mirror.oldest_version() > seen["version"]
                        )
                    )
                    self.model.stop_training = True

    compile_model(model, sampler)
    batches = tfi.history_sample(data, sampler, 8, seed=1).repeat()
    try:
        with distributed.working(one):
            model.fit(batches, steps_per_epoch=2_000, verbose=0, callbacks=[Course()])
        assert seen["uniform"] and seen["recovered"]
        versions = np.concatenate(sampler.store.read(range(3)))["version"]
        assert versions.min() > seen["version"], "versions never go back"
        assert sampler.store.parameters().version >= versions.max()
        assert np.isfinite(sampler.mirror.known().scores).all()
    finally:
        server.close()


# Whole processes ------------------------------------------------------------------------------


def started(*arguments, out=subprocess.DEVNULL):
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "-1", "TF_NUM_INTEROP_THREADS": "2"}
    command = [sys.executable, "-m", "trainers.issgd", *arguments]
    return subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=out)


def rows(out: pathlib.Path, name="metrics.jsonl"):
    path = out / name
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


@pytest.mark.slow
def test_worker_and_master_die_and_the_run_ends_well(tmp_path):
    chance = random.Random(0)
    server, out = RedisServer(), tmp_path / "run"
    common = ["--flagfile=configs/issgd/digits.cfg", "--net=linear", "--steps=1500"]
    common += [f"--store={server.url}", "--lease_seconds=1", "--evaluations=30"]
    log = (tmp_path / "log").open("w")
    store = stores.open_store(server.url, role="tester")
    workers = [started(*common, "--role=worker", "--quit_when_idle=60", out=log) for _ in range(2)]
    master = started(*common, f"--out={out}", out=log)
    try:
        assert until(lambda: any(row.get("usable") for row in rows(out))), log_of(tmp_path)
        time.sleep(chance.random())
        workers[0].kill()
        assert until(lambda: len(rows(out)) > 5), log_of(tmp_path)
        time.sleep(chance.random() / 2)
        master.kill()
        master.wait()
        before = rows(out)[-1]["step"]
        assert 0 < before < 1500, "killed in the midst"
        version = version_of(store)
        master = started(*common, f"--out={out}", out=log)
        assert master.wait(timeout=120) == 0, log_of(tmp_path)
        steps = [row["step"] for row in rows(out)]
        assert steps == [50 * i for i in range(31)], "it went on, and nothing counts twice"
        assert version_of(store) > version
        assert rows(out)[-1]["train_loss"] < 0.3 * rows(out)[0]["train_loss"]
        assert rows(out)[-1]["usable"] == 1
        (reported,) = {row["workers"] for row in rows(out, "issgd.jsonl")[-1:]}
        assert reported >= 1
    finally:
        for process in (*workers, master):
            process.kill()
            process.wait()
        server.close()


def version_of(store) -> int:
    found = redis.Redis.from_url(store.address).hget("tfi:{default}:parameters", "version")
    return int(found)


def log_of(path: pathlib.Path) -> str:
    return (path / "log").read_text()[-3000:]
