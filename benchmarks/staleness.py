"""How old scores are with a number of workers, simulated: python -m benchmarks.staleness

Workers take the shard that was scored with the oldest parameters, pull the newest parameters if
there are newer ones than they have, score for as long as it takes, and push. The master publishes
at equal times, and pulls at equal times. Prints, for numbers of workers, the quantiles of the ages
that the master sees, in seconds and in publications, and the share of time that workers idle.
`benchmarks.issgd` measures the same with real workers, and states both.
"""

from __future__ import annotations

import heapq
from typing import NamedTuple

import numpy as np
from absl import app, flags

from benchmarks import command, measure

FLAGS = flags.FLAGS


class System(NamedTuple):
    """What is simulated.

    Attributes:
        examples: n. shard_size: of one lease. workers: W.
        scores_per_second: of one worker.
        publish_seconds: from one publication to the next.
        parameter_seconds: for a worker to pull the parameters.
        pull_seconds: from one pull of the master to the next.
    """

    examples: int
    shard_size: int
    workers: int
    scores_per_second: float
    publish_seconds: float
    parameter_seconds: float = 0.0
    pull_seconds: float = 1.0


class Seen(NamedTuple):
    """What the master sees in the long run.

    Attributes:
        seconds: [3] quantiles 10, 50 and 90 % of the ages. versions: the same in publications.
        idle: share of the workers' time.
    """

    seconds: np.ndarray
    versions: np.ndarray
    idle: float


def simulate(system: System, duration: float | None = None) -> Seen:
    """Event by event, from a beginning without scores; the first half does not count.

    Args:
        system: what. duration: seconds; by default six rounds over all examples.
    """
    shards = -(-system.examples // system.shard_size)
    one = system.shard_size / system.scores_per_second
    round_seconds = max(shards * one / system.workers, system.publish_seconds)
    duration = duration or 6 * (round_seconds + one + system.pull_seconds)
    begun, versions = np.full(shards, -np.inf), np.zeros(shards, int)
    waiting = [(0, shard) for shard in range(shards)]
    # (when, worker, shard that is done then or None, when it was begun, with what version)
    events = [(0.0, worker, None, 0.0, 0) for worker in range(system.workers)]
    heapq.heapify(events)
    has = np.zeros(system.workers, int)
    idle, looks, ages, behind = 0.0, duration / 2, [], []
    while events:
        now, worker, shard, start, version = heapq.heappop(events)
        while looks <= min(now, duration):
            known = np.isfinite(begun)
            ages.append(looks - begun[known])
            behind.append(_published(system, looks) - versions[known])
            looks += system.pull_seconds
        if now > duration:
            continue
        if shard is not None:
            begun[shard], versions[shard] = start, version
            heapq.heappush(waiting, (version, shard))
        newest = _published(system, now)
        begin = now + (system.parameter_seconds if newest > has[worker] else 0.0)
        has[worker] = newest
        if waiting and waiting[0][0] < newest:
            _, shard = heapq.heappop(waiting)
            heapq.heappush(events, (begin + one, worker, shard, begin, newest))
        else:
            following = newest * system.publish_seconds + 1e-9
            idle += min(following, duration) - now
            heapq.heappush(events, (following, worker, None, 0.0, 0))
    quantiles = (10, 50, 90)
    seconds = np.percentile(np.concatenate(ages), quantiles) + system.pull_seconds / 2
    return Seen(
        seconds,
        np.percentile(np.concatenate(behind), quantiles),
        idle / (duration * system.workers),
    )


def _published(system: System, now: float) -> int:
    return int(now / system.publish_seconds) + 1


_DEFINED = (
    *("examples", "shard_size", "scores_per_second"),
    *("publish_seconds", "parameter_seconds", "seconds_on_line"),
)


def main(_) -> None:
    command.shorten(examples=100_000, shard_size=4096, workers=["1", "3"])
    result = {}
    for workers in map(int, FLAGS.workers):
        # All pull at about the same time, and share the server's line.
        pulling = FLAGS.parameter_seconds + workers * FLAGS.seconds_on_line
        system = System(
            FLAGS.examples,
            FLAGS.shard_size,
            workers,
            FLAGS.scores_per_second,
            # Workers that pull for more than half of their time would score little.
            max(FLAGS.publish_seconds, 2 * pulling),
            pulling,
        )
        seen = simulate(system)
        result[workers] = {
            "seconds": seen.seconds.round(2).tolist(),
            "publications": seen.versions.round(1).tolist(),
            "idle": round(seen.idle, 3),
        }
        print(workers, result[workers], flush=True)
    measure.write(
        FLAGS.out, {"flags": FLAGS.flag_values_dict().get("examples"), "staleness": result}
    )


if __name__ == "__main__":
    flags.DEFINE_integer("examples", 570_000, "n; SVHN as the paper has it.")
    flags.DEFINE_integer("shard_size", 4096, "Examples under one lease.")
    flags.DEFINE_float("scores_per_second", 7_000, "Of one worker.")
    flags.DEFINE_float("publish_seconds", 4.0, "From one publication to the next.")
    flags.DEFINE_float("parameter_seconds", 0.1, "For a worker to pull the parameters.")
    flags.DEFINE_float("seconds_on_line", 0.0, "In addition, for each worker that pulls as well.")
    flags.DEFINE_list("workers", ["1", "2", "3", "10", "30", "100", "300", "1000"], "W.")
    flags.DEFINE_string("out", "runs/benchmarks/staleness.json", "Where the result goes.")
    app.run(main)
