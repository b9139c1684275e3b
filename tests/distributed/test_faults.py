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
from tests.distributed.conftest import HANGING_SECONDS, N, compile_model, until
from tests.redis_server import NEEDS_REDIS, RedisServer
from tf_importance import distributed, stores

pytestmark = NEEDS_REDIS

SHARD = 32
ROOT = pathlib.Path(__file__).parents[2]


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
        # How long a hanging one is waited for: more than a loaded machine needs to answer.
        return stores.RedisStore(server.url, "faults", role, timeout=3.0)

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
                # What the exchange last complained of; it may have been silent for long before.
                if sampler.exchange._said and not sampler.draws_by_scores:
                    seen["uniform"] = True
                    trouble.end()
                    until(
                        lambda: (
                            sampler.draws_by_scores
                            and sampler.mirror.oldest_version() > seen["version"]
                        )
                    )
                    seen["recovered"] = True
                    self.model.stop_training = True

    compile_model(model, sampler)
    batches = tfi.history_sample(data, sampler, 8, seed=1).repeat()
    try:
        with distributed.working(one):
            model.fit(batches, steps_per_epoch=15_000, verbose=0, callbacks=[Course()])
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
    return subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=out
    )


def rows(out: pathlib.Path, name="metrics.jsonl"):
    path = out / name
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


@pytest.mark.slow
def test_worker_and_master_die_and_the_run_ends_well(tmp_path):
    chance = random.Random(0)
    server, out = RedisServer(), tmp_path / "run"
    common = ["--flagfile=configs/issgd/digits.cfg", "--net=linear", "--steps=3000"]
    common += [f"--store={server.url}", "--lease_seconds=1", "--evaluations=60"]
    log = (tmp_path / "log").open("w")
    store = stores.open_store(server.url, role="tester")
    workers = [
        started(*common, "--role=worker", f"--quit_when_idle={HANGING_SECONDS}", out=log)
        for _ in range(2)
    ]
    master = started(*common, f"--out={out}", out=log)
    try:
        # So many rows of 60, and the worker some steps before the master.
        until(lambda: any(row.get("usable") for row in rows(out)), lambda: log_of(tmp_path))
        workers[0].kill()
        fatal = chance.randrange(6, 12)
        until(lambda: len(rows(out)) >= fatal, lambda: log_of(tmp_path))
        master.kill()
        master.wait()
        before = rows(out)[-1]["step"]
        assert 0 < before < 3000, "killed in the midst"
        version = version_of(store)
        master = started(*common, f"--out={out}", out=log)
        assert master.wait(timeout=HANGING_SECONDS) == 0, log_of(tmp_path)
        steps = [row["step"] for row in rows(out)]
        assert steps == [50 * i for i in range(61)], "it went on, and nothing counts twice"
        assert version_of(store) > version
        assert rows(out)[-1]["train_loss"] < 0.3 * rows(out)[0]["train_loss"]
        assert rows(out)[-1]["usable"] == 1
        since = [row for row in rows(out, "issgd.jsonl") if row["step"] > before]
        assert max(row["workers"] for row in since) >= 1
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
