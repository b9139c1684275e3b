"""What a run of workers and a master asks of its store: from what each call costs, arithmetic."""

from __future__ import annotations

import math
from typing import NamedTuple

import tf_importance as tfi
from benchmarks import staleness

# Ages depend on how many rounds a worker makes, not on how finely they are cut.
_MOST_SHARDS = 4_096


class Use(NamedTuple):
    """Of a store.

    Attributes:
        received, sent: bytes by the server. commands: it ran, scripts as one. seconds: of its
            processor.
    """

    received: float = 0.0
    sent: float = 0.0
    commands: float = 0.0
    seconds: float = 0.0

    def __add__(self, other: Use) -> Use:  # type: ignore[override]
        return Use(*(a + b for a, b in zip(self, other)))

    def __sub__(self, other: Use) -> Use:
        return self + -1.0 * other

    def __rmul__(self, factor: float) -> Use:  # type: ignore[override]
        return Use(*(factor * part for part in self))


class Line(NamedTuple):
    """of_call + size · of_one."""

    of_call: Use
    of_one: Use

    def at(self, size: float) -> Use:
        return self.of_call + size * self.of_one


def through(found: dict[int, Use]) -> Line:
    """The line through two points."""
    (size, use), (other, of_other) = found.items()
    of_one = (1 / (size - other)) * (use - of_other)
    return Line(use - size * of_one, of_one)


class Constants(NamedTuple):
    """What calls cost.

    Attributes:
        shard: a worker's for one shard, by its scores: it looks for parameters, leases, writes.
        report: of a worker, each second. pull: a master's, by the scores that changed.
        publication, parameters: written and read, by the byte.
        single, single_pull: a peer's, by the scores that it writes and that others wrote.
        idle: a second of a server that nobody asks.
    """

    idle: Use
    shard: Line
    report: Use
    pull: Line
    publication: Line
    parameters: Line
    single: Line
    single_pull: Line


class Scale(NamedTuple):
    """What is asked.

    Attributes:
        examples: n. workers: W. parameter_bytes: P. shard_size: of a lease.
        scores_per_second: of one worker, while it scores.
        publish_seconds, pull_seconds: from one to the next.
        line_bytes: a second, of the store.
    """

    examples: float
    workers: int
    parameter_bytes: float
    shard_size: int
    scores_per_second: float
    publish_seconds: float
    pull_seconds: float
    line_bytes: float

    @property
    def published_seconds(self) -> float:
        """Between publications: half of the time is for the workers to take them."""
        of_all = self.workers * self.parameter_bytes / self.line_bytes
        return max(self.publish_seconds, 2 * of_all)


class Expected(NamedTuple):
    """What is said of a scale: of the store in a second, of the scores, of the workers.

    Attributes:
        use: a second. age: median of the scores, seconds. idle: share of the workers' time.
        store_bytes: that the server holds.
    """

    use: Use
    age: float
    idle: float
    store_bytes: float


def expected(scale: Scale, constants: Constants, seconds: float | None = None) -> Expected:
    """What a scale asks of the store: in the long run, or in the second half of so many seconds."""
    # As staleness has it, with larger shards where there are very many.
    of_one = max(scale.shard_size, math.ceil(scale.examples / _MOST_SHARDS))
    taken = scale.workers * scale.parameter_bytes / scale.line_bytes
    system = staleness.System(
        *(round(scale.examples), of_one, scale.workers, scale.scores_per_second),
        *(scale.published_seconds, taken, scale.pull_seconds),
    )
    seen = staleness.simulate(system, seconds)
    idle = float(seen.idle)
    # A worker takes parameters once for a publication, and no more often than it begins a shard.
    between = max(scale.published_seconds, scale.shard_size / scale.scores_per_second + taken)
    scoring = max(1 - idle - taken / between, 0.0)
    shards = scale.workers * scoring * scale.scores_per_second / scale.shard_size
    changed = min(shards * scale.pull_seconds, scale.examples / scale.shard_size)
    publications = 1 / scale.published_seconds
    use = (
        constants.idle
        + shards * constants.shard.at(scale.shard_size)
        + scale.workers * constants.report
        + (1 / scale.pull_seconds) * constants.pull.at(changed * scale.shard_size)
        + publications * constants.publication.at(scale.parameter_bytes)
        + (scale.workers / between) * constants.parameters.at(scale.parameter_bytes)
    )
    held = tfi.stores.records.RECORD.itemsize * scale.examples + 3 * scale.parameter_bytes
    return Expected(use, float(seen.seconds[1]), idle, held)
