"""What workers, store and master take, with a real redis-server: python -m benchmarks.issgd

(a) Scores per second of one and of two worker processes of one thread each, and how old their
    scores are, beside what `benchmarks.staleness` predicts from the speed of one.
(b) The store: scores written and read per second, and bytes, at n = 6·10⁵ and 10⁷.
(c) The master's step with a store, 6·10⁵ examples and scores that all change every two seconds,
    over a step of the same pipeline without any (`Uniform`); bytes on the wire per step.
(d) From the death of a worker to the scores that it owed.

All parts run on this machine, server included; other work on it shows, so its load is stated.
"""

from __future__ import annotations

import contextlib
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator

import keras
import numpy as np
import redis
from absl import app, flags

import tf_importance as tfi
from benchmarks import command, measure, staleness
from benchmarks.stores import begun, data, model, server

FLAGS = flags.FLAGS
flags.DEFINE_list("parts", ["a", "b", "c", "d"], "What to measure.")
flags.DEFINE_list("sizes", ["600000", "10000000"], "n of (b).")
flags.DEFINE_integer("examples", 60_000, "n of (a).")
flags.DEFINE_list("worker_units", ["1024", "1024"], "Hidden layers of (a).")
flags.DEFINE_integer("master_examples", 600_000, "n of (c).")
flags.DEFINE_integer("rounds", 5, "Rounds of (a) and (c).")
flags.DEFINE_float("seconds", 8.0, "Seconds of a timing of (a).")
flags.DEFINE_float(
    "publish_seconds", 0.5, "Between publications of (a); no more than n are scored."
)
flags.DEFINE_integer("steps", 300, "Training steps of a timing of (c).")
flags.DEFINE_list("units", ["256", "256"], "Hidden layers; the paper's are 2048 four times.")
flags.DEFINE_list("leases", ["1", "5"], "Seconds of a lease of (d).")
flags.DEFINE_integer("deaths", 3, "Deaths of (d), for each lease.")
flags.DEFINE_string("out", "runs/benchmarks/issgd.json", "Where the result goes.")
# Of the processes that this one starts.
flags.DEFINE_string("as_process", None, "worker or writer.")
flags.DEFINE_string("store", None, "Of those processes.")
flags.DEFINE_string("name", "", "Of those processes.")


@contextlib.contextmanager
def processes(kind: str, url: str, names: list[str]) -> Iterator[None]:
    """Further processes of this module, of one thread each."""
    one_thread = {"TF_NUM_INTRAOP_THREADS": "1", "TF_NUM_INTEROP_THREADS": "1"}
    environment = {**os.environ, **one_thread, "OMP_NUM_THREADS": "1"}
    one = [sys.executable, "-m", "benchmarks.issgd", f"--as_process={kind}", f"--store={url}"]
    one += [f"--examples={FLAGS.examples}", f"--master_examples={FLAGS.master_examples}"]
    one += [f"--worker_units={','.join(FLAGS.worker_units)}"]
    started = [subprocess.Popen([*one, f"--name={n}"], env=environment) for n in names]
    try:
        yield
    finally:
        for process in started:
            process.kill()
            process.wait()


def as_worker() -> None:
    store = tfi.stores.open_store(FLAGS.store, role=FLAGS.name)
    made, source = model(FLAGS.worker_units), data(FLAGS.examples)
    tfi.distributed.Worker(made, source, store, name=FLAGS.name).run()


def as_writer() -> None:
    """In place of many workers: it renews all scores every two seconds, and computes nothing."""
    store = tfi.stores.open_store(FLAGS.store, role="writer")
    while True:
        with contextlib.suppress(tfi.stores.NoRun):
            store.join(tfi.stores.Description(**_description_of(FLAGS.store)))
            break
        time.sleep(0.1)
    scores = np.random.default_rng(0).random(store.layout.shard_size).astype(np.float32) + 0.1
    pause = 2.0 / store.layout.shards
    while True:
        newest = store.parameters()
        version = newest.version if newest is not None else 1
        for shard in range(store.layout.shards):
            size = len(store.layout.examples(shard))
            store.write([tfi.stores.Message(shard, scores[:size], version, store.now())])
            time.sleep(pause)


def _description_of(url: str) -> dict:
    """Of whatever run stands in a store; one that nobody has if there is none."""
    text = redis.Redis.from_url(url).hget("tfi:{default}:run", "description")
    return json.loads(text or '{"num_examples": 1}')


# (a) ------------------------------------------------------------------------------------------


def workers() -> dict:
    rates: dict[int, list[float]] = {1: [], 2: []}
    ages: dict[int, list[float]] = {1: [], 2: []}
    for number in range(FLAGS.rounds):
        for count in (1, 2) if number % 2 else (2, 1):
            rate, age = _scoring(count)
            rates[count].append(rate)
            ages[count].append(age)
            print(f"round {number + 1}: {count} workers, {rate:.0f} scores/s, age {age:.2f} s")
    # With --short on a busy machine a worker may not have scored anything.
    ratios = [two / max(one, 1.0) for one, two in zip(rates[1], rates[2])]
    # Nothing is scored twice with the same parameters: no number of workers gets beyond this.
    most = FLAGS.examples / FLAGS.publish_seconds
    found: dict = {"speedup_of_two": measure.summary(ratios), "most_scores_per_second": most}
    for count in (1, 2):
        rate = statistics.median(rates[count])
        size = tfi.stores.Description(FLAGS.examples).shard_size
        system = staleness.System(
            FLAGS.examples, size, count, rate / count, FLAGS.publish_seconds, pull_seconds=1e-3
        )
        found[f"{count}_workers"] = {
            "scores_per_second": round(rate),
            "median_age_measured": round(statistics.median(ages[count]), 3),
            "median_age_simulated": round(float(staleness.simulate(system, 10.0).seconds[1]), 3),
        }
    return found


def _scoring(count: int) -> tuple[float, float]:
    """Scores per second, and the median age of scores in seconds."""
    with server() as url:
        store = tfi.stores.open_store(url, role="master")
        begun(model(FLAGS.worker_units), data(FLAGS.examples), store).exchange.stop()
        blob, fence = store.parameters().blob, store.take_over()
        names = [f"worker {number}" for number in range(count)]
        with processes("worker", url, names):
            while len(_workers(store)) < count:
                time.sleep(0.2)
            _publish_for(store, blob, fence, 2.0)
            start, before = time.perf_counter(), _scored(store)
            ages = _publish_for(store, blob, fence, FLAGS.seconds)
            # Reports are a second old at most, at both ends.
            rate = (_scored(store) - before) / (time.perf_counter() - start)
    return rate, statistics.median(ages)


def _publish_for(store, blob: bytes, fence: int, seconds: float) -> list[float]:
    """Publish again and again; the median ages of the scores meanwhile."""
    ages, end = [], time.perf_counter() + seconds
    while time.perf_counter() < end:
        store.publish(blob, fence)
        time.sleep(FLAGS.publish_seconds)
        records = np.concatenate(store.read(range(store.layout.shards)))
        records = records[records["version"] > 0]
        if len(records):
            times = tfi.stores.records.seconds(records["time"], store.run.created)
            ages.append(float(np.median(store.now() - times)))
    return ages


def _scored(store) -> float:
    return sum(report["scored"] for report in _workers(store))


def _workers(store) -> list[dict[str, float]]:
    """The reports of workers; a master writes one as well."""
    return [report for report in store.reports().values() if "scored" in report]


# (b) ------------------------------------------------------------------------------------------


def throughput() -> dict:
    return {int(size): _throughput(int(size)) for size in FLAGS.sizes}


def _throughput(n: int) -> dict:
    with server() as url:
        store = tfi.stores.open_store(url)
        layout = store.create(tfi.stores.Description(n)).description.layout
        scores = np.random.default_rng(0).random(layout.shard_size).astype(np.float32)
        client = redis.Redis.from_url(url)
        found = {}
        for name, version in (("written", 2), ("written_late", 1)):
            start = time.perf_counter()
            for shard in range(layout.shards):
                size = len(layout.examples(shard))
                store.write([tfi.stores.Message(shard, scores[:size], version, store.now())])
            found[f"scores_{name}_per_second"] = round(n / (time.perf_counter() - start))
        before = client.info("stats")["total_net_output_bytes"]
        start = time.perf_counter()
        mirror = tfi.distributed.mirror.Mirror(n, tfi.distributed.Staleness())
        shards = store.changes().shards
        for shard, records in zip(shards, store.read(shards)):
            mirror.merge(layout.examples(shard).start, records, store.run.created)
        found["scores_read_per_second"] = round(n / (time.perf_counter() - start))
        after = client.info("stats")["total_net_output_bytes"]
        found["megabytes_read"] = round((after - before) / 1e6, 2)
        found["megabytes_in_server"] = round(client.info("memory")["used_memory"] / 1e6, 1)
        start = time.perf_counter()
        mirror.filter(store.now(), 2)
        rows, leaves = mirror.leaves()
        tree = tfi.samplers.sum_tree.SumTree(n, 3)
        tree.update_rows(rows, leaves)
        found["seconds_into_tree"] = round(time.perf_counter() - start, 4)
    print(n, found)
    return found


# (c) ------------------------------------------------------------------------------------------


def master() -> dict:
    """On images of 28 × 28 by an index, so that 6·10⁵ of them take no memory."""
    n, kept = FLAGS.master_examples, 4096
    images, labels = data(kept)

    class Source:
        def __len__(self):
            return n

        def __getitem__(self, index):
            return images[index % kept], labels[index % kept]

        def __getitems__(self, indices):
            return [self[index] for index in indices]

    with server() as url, processes("writer", url, ["writer"]):
        client = redis.Redis.from_url(url)
        shared, alone = model(FLAGS.units), model(FLAGS.units)
        loss, sgd = "sparse_categorical_crossentropy", keras.optimizers.SGD
        sampler = tfi.distributed.Master(n, shared, tfi.stores.open_store(url, role="master"))
        uniform = tfi.samplers.Uniform(n)
        models = {"with": shared, "without": alone}
        samplers = {"with": sampler, "without": uniform}
        from_logits = keras.losses.SparseCategoricalCrossentropy(from_logits=True, name=loss)
        batches = {}
        for name, made in models.items():
            made.compile(sgd(1e-3), from_logits, sampler=samplers[name])
            batches[name] = tfi.history_sample(Source(), samplers[name], 128).repeat()
        traffic: list[float] = []

        def timed(name: str) -> float:
            before = _bytes(client)
            seconds = measure.fit_seconds(models[name], batches[name], FLAGS.steps)
            if name == "with":
                traffic.append((_bytes(client) - before) / FLAGS.steps)
            return seconds

        timed("with")
        time.sleep(5)
        variants = {name: lambda name=name: timed(name) for name in models}
        rounds = measure.interleaved(variants, FLAGS.rounds, print)
        usable = float(sampler.usable.numpy())
    return {
        "with_to_without": measure.summary([one["with"] / one["without"] for one in rounds]),
        "milliseconds_without": round(1e3 * statistics.median(o["without"] for o in rounds), 3),
        # The writer's scores, which would be other machines', are in it.
        "megabytes_per_step": round(statistics.median(traffic) / 1e6, 4),
        "usable": usable,
    }


def _bytes(client) -> int:
    stats = client.info("stats")
    return stats["total_net_input_bytes"] + stats["total_net_output_bytes"]


# (d) ------------------------------------------------------------------------------------------


def deaths() -> dict:
    found = {}
    for lease_seconds in map(float, FLAGS.leases):
        times = []
        for _ in range(FLAGS.deaths):
            with server() as url:
                store, n = tfi.stores.open_store(url), 4_096
                source = data(n)
                begun(model(FLAGS.units), source, store).exchange.stop()
                worker = tfi.distributed.Worker(
                    model(FLAGS.units),
                    source,
                    tfi.stores.open_store(url),
                    lease_seconds=lease_seconds,
                )
                worker.step()
                # What a worker that dies right after it took a shard leaves behind.
                store.lease("dead", 1, lease_seconds)
                died = time.perf_counter()
                while worker.scored < n:
                    if not worker.step():
                        time.sleep(0.01)
                times.append(time.perf_counter() - died)
        found[f"lease_of_{lease_seconds:g}_s"] = round(statistics.median(times), 2)
    return found


PARTS = {"a": workers, "b": throughput, "c": master, "d": deaths}
_NAMES = {"a": "workers", "b": "store", "c": "master", "d": "seconds_to_make_up_for_a_death"}


def main(_) -> None:
    command.shorten(
        sizes=["10000"],
        examples=1000,
        worker_units=["8"],
        master_examples=10_000,
        rounds=1,
        seconds=3.0,
        steps=10,
        units=["8"],
        leases=["0.2"],
        deaths=1,
    )
    if FLAGS.as_process:
        {"worker": as_worker, "writer": as_writer}[FLAGS.as_process]()
        return
    result: dict = {"load_before": os.getloadavg()}
    for part in FLAGS.parts:
        print(f"== ({part})")
        result[_NAMES[part]] = PARTS[part]()
        print(result[_NAMES[part]])
    result["load_after"] = os.getloadavg()
    measure.write(FLAGS.out, result)
    print(f"written to {FLAGS.out}")


if __name__ == "__main__":
    app.run(main)
