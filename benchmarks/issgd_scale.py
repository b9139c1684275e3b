"""What a run asks of its store in a second, by its size: python -m benchmarks.issgd_scale

First it is measured what each call costs a real redis-server: bytes in and out, commands and
processor time, as a + b·size. From that, and from `benchmarks.staleness` for how long workers wait
and how old scores get, it is said what n examples, W workers and P bytes of parameters ask of the
store. The same is said of a run that is made, with two real workers, a master and a real store; the
result has the ratios of what was said to what was used.

A worker scores --scores_per_second. The master publishes as often as the workers can take the
parameters in half of the time, and not more often than --publish_seconds; all share the store's
line of --line_bytes a second. Peers, who write single scores, are measured by the score.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import time
from collections.abc import Callable, Iterator

import numpy as np
import redis
from absl import app, flags

import tf_importance as tfi
from benchmarks import command, measure
from benchmarks.store_use import Constants, Expected, Line, Scale, Use, expected, through
from benchmarks.stores import begun, data, model, publish, server
from reports import figures

FLAGS = flags.FLAGS
flags.DEFINE_list("examples", ["1e6", "1e7", "1e8", "1e9"], "n.")
flags.DEFINE_list("workers", ["100", "1000"], "W.")
flags.DEFINE_list("parameter_bytes", ["1e8", "1e10"], "P.")
flags.DEFINE_float("scores_per_second", 2_700.0, "Of one worker.")
flags.DEFINE_float("publish_seconds", 1.0, "Between publications, at least.")
flags.DEFINE_float("pull_seconds", 1.0, "Between pulls of the master.")
flags.DEFINE_float("line_bytes", 1.25e9, "Bytes a second that the store's line takes each way.")
flags.DEFINE_integer("repeats", 50, "Calls that a constant is measured by.")
flags.DEFINE_list("sizes", ["4096", "1024"], "Scores in a message, for the slope.")
flags.DEFINE_list("publications", ["16e6", "1e6"], "Bytes of a publication, for the slope.")
flags.DEFINE_integer("checked_examples", 1_000_000, "n of the run that is made.")
flags.DEFINE_list("checked_units", ["1024", "1024"], "Hidden layers of its net, which make P.")
flags.DEFINE_float("seconds", 10.0, "Its length.")
flags.DEFINE_string("out", "runs/benchmarks/issgd_scale.json", "Where the result goes.")

_FEATURES, _IDLE_SECONDS, _PATIENCE_SECONDS = 16, 3.0, 300.0

# What is not newer than what there is changes nothing.
_VERSIONS = itertools.count(1)


# Constants ------------------------------------------------------------------------------------


def used(client: redis.Redis) -> Use:
    """By a server since its start, without what asking for it takes."""
    stats, processor = client.info("stats"), client.info("cpu")
    seconds = processor["used_cpu_sys"] + processor["used_cpu_user"]
    return Use(
        stats["total_net_input_bytes"],
        stats["total_net_output_bytes"],
        _calls(client.info("commandstats")),
        seconds,
    )


def _calls(found: dict[str, dict]) -> float:
    """Without the server's own inside of scripts, which it counts as well."""
    own = ("evalsha", "hmget", "set", "get", "mget", "time", "unlink", "hgetall")
    return sum(float(found.get(f"cmdstat_{name}", {"calls": 0})["calls"]) for name in own)


def of_calls(client: redis.Redis, call: Callable[[], object], repeats: int) -> Use:
    """Of one call, a mean; what `used` itself takes is taken off."""
    call()  # Scripts are loaded, connections open.
    first = used(client)
    idle = used(client)
    for _ in range(repeats):
        call()
    last = used(client)
    return (1 / repeats) * (last - idle - (idle - first))


def line(client: redis.Redis, call: Callable[[int], object], sizes: list[int]) -> Line:
    """Of a call by its size, through two of them."""
    return through({n: of_calls(client, functools.partial(call, n), FLAGS.repeats) for n in sizes})


def constants() -> Constants:
    """By a real store, one call after the other."""
    sizes = [int(float(size)) for size in FLAGS.sizes]
    bytes_ = [int(float(size)) for size in FLAGS.publications]
    with server() as url:
        client = redis.Redis.from_url(url)
        idle = (1 / _IDLE_SECONDS) * of_calls(client, lambda: time.sleep(_IDLE_SECONDS), 1)
        of_shard: dict[int, Use] = {}
        for size in sizes:
            with _run(url, 64 * size, size) as store:
                store.publish(b"0", store.take_over())
                one = functools.partial(_one_shard, store, size)
                of_shard[size] = of_calls(client, one, FLAGS.repeats)
        with _run(url, 64 * sizes[0], sizes[0]) as store:
            scores = np.ones(sizes[0], np.float32)
            for shard in range(16):
                store.write([tfi.stores.Message(shard, scores, next(_VERSIONS), store.now())])
            report = of_calls(client, lambda: _report(store), FLAGS.repeats)
            pull = line(client, lambda count: _pull(store, count), [16 * sizes[0], 2 * sizes[0]])
            fence = store.take_over()
            publication = line(client, lambda size: store.publish(bytes(size), fence), bytes_)
            read: dict[int, Use] = {}
            for size in bytes_:
                store.publish(bytes(size), fence)
                read[size] = of_calls(client, store.parameters, FLAGS.repeats)
        with _run(url, 64 * sizes[0], sizes[0]) as store:
            single = line(client, lambda count: _singles(store, count), [512, 128])
            single_pull = line(client, _Peer(store), [512, 128])
    # What a pull of single scores was measured with has written them before.
    single_pull = Line(*(both - written for both, written in zip(single_pull, single)))
    return Constants(
        *(idle, through(of_shard), report, pull, publication, through(read), single, single_pull)
    )


@contextlib.contextmanager
def _run(url: str, examples: int, shard_size: int) -> Iterator[tfi.stores.Store]:
    store = tfi.stores.open_store(url)
    store.create(tfi.stores.Description(examples, shard_size=shard_size))
    try:
        yield store
    finally:
        store.clear()
        store.close()


def _one_shard(store: tfi.stores.Store, size: int) -> None:
    """The calls of `Worker.step`."""
    store.parameters(1)
    lease = store.lease("worker", 1, 1e-3)
    if lease is None:  # All are leased, for a millisecond.
        time.sleep(2e-3)
        lease = store.lease("worker", 1, 1e-3)
    scores = np.ones(size, np.float32)
    store.write([tfi.stores.Message(lease.shard, scores, 1, store.now(), lease=lease.token)])


def _report(store: tfi.stores.Store) -> None:
    store.report("host-12345-abcdef", {"scored": 123456.0, "per_second": 2700.5, "version": 12.0})


def _pull(store: tfi.stores.Store, count: int) -> None:
    """The calls of `Exchange._pull`."""
    store.changes(tfi.stores.Mark())
    store.read(range(count // store.layout.shard_size))
    store.now()


def _singles(store: tfi.stores.Store, count: int) -> None:
    """As a peer writes those of its batches: all over the data."""
    offsets, now, version = np.arange(count // 16), store.now(), next(_VERSIONS)
    scores = np.ones(len(offsets), np.float32)
    store.write(
        [tfi.stores.Message(shard, scores, version, now, offsets=offsets) for shard in range(16)]
    )


class _Peer:
    """Pulls what others have written since it did so last."""

    def __init__(self, store: tfi.stores.Store) -> None:
        self._store, self._mark = store, store.changes().mark

    def __call__(self, count: int) -> None:
        _singles(self._store, count)
        self._mark = self._store.changes(self._mark).mark


# A run that is made ---------------------------------------------------------------------------


def checked(known: Constants) -> dict:
    """What was said of a run over what it used, by a run of that size."""
    n, clients = FLAGS.checked_examples, 2
    with server() as url:
        client = redis.Redis.from_url(url)
        source, store = data(n, _FEATURES), tfi.stores.open_store(url, role="master")
        scorer = tfi.scorers.loss
        of_master = {"scorer": scorer, "pull_seconds": FLAGS.pull_seconds}
        master = begun(model(FLAGS.checked_units, _FEATURES), source, store, **of_master)
        workers = [
            tfi.distributed.Worker(
                model(FLAGS.checked_units, _FEATURES),
                source,
                tfi.stores.open_store(url, role=f"worker {number}"),
                scorer=scorer,
                scored_at_once=4096,
            )
            for number in range(clients)
        ]
        with tfi.distributed.working(*workers):
            beginning = time.perf_counter()
            while sum(worker.scored for worker in workers) < n / 10:
                if time.perf_counter() - beginning > _PATIENCE_SECONDS:
                    raise RuntimeError("the workers scored too little.")
                time.sleep(0.1)
            first, scored = used(client), sum(worker.scored for worker in workers)
            start, ages, version = time.perf_counter(), [], int(master.version)
            while time.perf_counter() - start < FLAGS.seconds:
                time.sleep(FLAGS.publish_seconds)
                publish(master)
                found = master.mirror.known()
                known_ages = store.now() - found.times[found.versions > 0]
                ages.append((time.perf_counter() - beginning, float(np.median(known_ages))))
            seconds, length = time.perf_counter() - start, time.perf_counter() - beginning
            rate = (sum(worker.scored for worker in workers) - scored) / seconds
            real = (1 / seconds) * (used(client) - first)
            times = max(int(master.version) - version, 1)
        master.end()
        size, blob = store.layout.shard_size, store.parameters().blob
    scale = Scale(
        *(n, clients, len(blob), size, rate / clients, seconds / times, FLAGS.pull_seconds),
        FLAGS.line_bytes,
    )
    said = expected(scale, known, length)
    late = [age for when, age in ages if when > length / 2]
    ratios = {name: round(a / b, 3) for name, a, b in zip(Use._fields, said.use, real)}
    return {
        "scale": scale._asdict(),
        "said_over_real": ratios,
        "real": {name: round(value, 3) for name, value in real._asdict().items()},
        "median_age": {"said": round(said.age, 2), "real": round(float(np.median(late)), 2)},
    }


# Results --------------------------------------------------------------------------------------


def scales() -> list[Scale]:
    """n by n with the first W and P; then the other W and P with the largest n."""
    n = [float(one) for one in FLAGS.examples]
    workers, bytes_ = [int(one) for one in FLAGS.workers], [float(p) for p in FLAGS.parameter_bytes]
    asked = [(one, workers[0], bytes_[0]) for one in n]
    asked += [(n[-1], one, p) for p in bytes_ for one in workers if (one, p) != asked[-1][1:]]
    size = tfi.stores.Description(int(n[-1])).layout.shard_size
    own = (FLAGS.scores_per_second, FLAGS.publish_seconds, FLAGS.pull_seconds, FLAGS.line_bytes)
    return [Scale(*one, size, *own) for one in asked]


def table(found: dict[Scale, Expected]) -> str:
    """As docs/issgd.md has it."""
    rows = []
    for scale, said in found.items():
        use = said.use
        rows.append(
            {
                "n": f"{scale.examples:.0e}",
                "W": scale.workers,
                "P": f"{scale.parameter_bytes / 1e6:,.0f} MB",
                "publication each": f"{scale.published_seconds:,.0f} s",
                "in, out": f"{use.received / 1e6:,.1f}, {use.sent / 1e6:,.1f} MB/s",
                "commands": f"{use.commands:,.0f}/s",
                "of a core": f"{use.seconds:.0%}",
                "memory": f"{said.store_bytes / 1e9:,.1f} GB",
                "median age": f"{said.age:,.0f} s",
                "workers idle": f"{said.idle:.0%}",
            }
        )
    return figures.markdown(rows)


def main(_) -> None:
    command.shorten(
        examples=["1e5"],
        workers=["2"],
        parameter_bytes=["1e6"],
        repeats=3,
        publications=["2e5", "1e5"],
        checked_examples=20_000,
        checked_units=["8"],
        seconds=2.0,
    )
    known = constants()
    for name, value in known._asdict().items():
        print(name, value)
    of_single = known.single_pull.of_one.sent
    print(f"a changed single score is pulled by {of_single:.1f} bytes")
    made = checked(known)
    print(made)
    found = {scale: expected(scale, known) for scale in scales()}
    text = table(found)
    result = {
        "constants": {name: list(value) for name, value in known._asdict().items()},
        "bytes_of_a_pulled_single": round(of_single, 2),
        "checked": made,
        "scales": [{**scale._asdict(), **said._asdict()} for scale, said in found.items()],
    }
    measure.write(FLAGS.out, result)
    print(f"\n{text}\n\nwritten to {FLAGS.out}")


if __name__ == "__main__":
    app.run(main)
