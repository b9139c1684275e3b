"""How scores are laid out: packed records in shards, ordered by the stamp of their message.

A record is 12 bytes, little-endian: the score (float32), the version of the parameters that it was
computed with (uint32, 0 for never), and when, in hundredths of a second since the run began
(uint32, good for 497 days). A shard is a fixed number of consecutive examples.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tf_importance.arguments import positive_integer

RECORD = np.dtype([("score", "<f4"), ("version", "<u4"), ("time", "<u4")])
# A record on its own: of which shard, at which place there.
CHANGE = np.dtype([("shard", "<u4"), ("offset", "<u4"), *RECORD.descr])
# Single records of so many bytes are kept for those who look at what changed.
LOGGED_BYTES = 8 * 2**20
# Seconds.
TICK = 0.01
LARGEST = 2**32 - 1
_LARGEST_SHARD = 4096
_WANTED_SHARDS = 64


@dataclass(frozen=True)
class Layout:
    """How n examples are cut into shards.

    Attributes:
        num_examples: n.
        shard_size: examples in each but the last.
    Raises:
        ValueError: one is not a positive integer.
    """

    num_examples: int
    shard_size: int

    def __post_init__(self) -> None:
        positive_integer("num_examples", self.num_examples)
        positive_integer("shard_size", self.shard_size)

    @property
    def shards(self) -> int:
        """Their number."""
        return -(-self.num_examples // self.shard_size)

    def examples(self, shard: int) -> range:
        """The examples of a shard.

        Raises:
            ValueError: there is no such shard.
        """
        if not 0 <= shard < self.shards:
            raise ValueError(f"shard must be in [0, {self.shards}); got {shard}.")
        start = shard * self.shard_size
        return range(start, min(start + self.shard_size, self.num_examples))

    def examples_of(self, changes: np.ndarray) -> np.ndarray:
        """[k] int64, the examples of single records, [k] of `CHANGE`."""
        return changes["shard"].astype(np.int64) * self.shard_size + changes["offset"]


def default_shard_size(num_examples: int) -> int:
    """About n/64, a power of two from 32 to 4,096.

    Small data sets are shared out among several workers so; of 10⁸ examples there are 24,415
    shards of 48 KB.
    """
    wanted = -(-num_examples // _WANTED_SHARDS)
    return min(max(1 << (wanted - 1).bit_length(), 32), _LARGEST_SHARD)


@dataclass(frozen=True, eq=False)
class Message:
    """Scores of examples of one shard, computed with the same parameters at the same time.

    Attributes:
        shard: its number.
        scores: [k] float32; NaN, infinite and negative ones are kept, and used by nobody.
        version: of the parameters, at least 1.
        time: in seconds by the store's clock.
        offsets: [k] distinct places in the shard; None for the first k.
        lease: of the shard, to be given back with it; None if there is none.
    """

    shard: int
    scores: np.ndarray
    version: int
    time: float
    offsets: np.ndarray | None = None
    lease: str | None = None

    def checked(self, layout: Layout) -> Message:
        """Itself.

        Raises:
            ValueError: it does not fit the layout.
        """
        size = len(layout.examples(self.shard))
        scores = np.asarray(self.scores)
        if scores.ndim != 1 or not 0 < len(scores) <= size:
            raise ValueError(f"scores must be [k], 0 < k ≤ {size}; got shape {scores.shape}.")
        if not 0 < self.version <= LARGEST:
            raise ValueError(f"version must be in [1, {LARGEST}]; got {self.version}.")
        if self.offsets is not None:
            offsets = np.asarray(self.offsets)
            inside = offsets.shape == scores.shape and np.all((0 <= offsets) & (offsets < size))
            if not inside or len(np.unique(offsets)) != len(offsets):
                raise ValueError(
                    f"offsets must be {len(scores)} distinct places below {size}; got shape "
                    f"{offsets.shape}."
                )
        return self

    def records(self, created: float) -> np.ndarray:
        """[k] records, for a run that began at a time."""
        packed = np.empty(len(self.scores), RECORD)
        packed["score"], packed["version"] = self.scores, self.version
        packed["time"] = ticks(self.time, created)
        return packed


def ticks(time: float, created: float) -> int:
    """Seconds by the store's clock as what a record holds."""
    return min(max(int((time - created) / TICK), 0), LARGEST)


def seconds(packed: np.ndarray, created: float) -> np.ndarray:
    """The inverse."""
    return created + packed.astype(np.float64) * TICK


def newer(records: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Where records were computed with later parameters, or with the same ones later: [k] bool.

    A message that comes twice, late or out of order changes nothing by this order that it
    should not.
    """
    same = records["version"] == others["version"]
    later = records["time"] > others["time"]
    return (records["version"] > others["version"]) | (same & later)
