"""What a master knows of the scores in the store: a copy, filtered by staleness."""

from __future__ import annotations

import math
import threading
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from tf_importance.arguments import number
from tf_importance.samplers.sum_tree import FANOUT
from tf_importance.stores import records

# Of a leaf, see `Mirror.leaves`.
COLUMNS = 3


@dataclass(frozen=True)
class Staleness:
    """How old a score may be and still count (Alain et al. 2015, section B.1).

    Attributes:
        seconds: by the store's clock; the paper's is 4.
        versions: publications of parameters since those that it was computed with.
    Raises:
        ValueError: one is not positive.
    """

    seconds: float = math.inf
    versions: float = math.inf

    def __post_init__(self) -> None:
        for name in ("seconds", "versions"):
            number(f"staleness {name}", getattr(self, name), "positive", lambda age: age > 0)


class Known(NamedTuple):
    """The scores at one time.

    Attributes:
        scores: [n] newest ones of this training, NaN where none is known.
        previous: [n] those before. usable: [n] which are fresh enough.
        versions: [n]. times: [n] in seconds, by the store.
    """

    scores: np.ndarray
    previous: np.ndarray
    usable: np.ndarray
    versions: np.ndarray
    times: np.ndarray


class Mirror:
    """Scores, their age and which of them count; may be used by several threads.

    Args:
        num_examples: n.
        staleness: what counts.
    Attributes:
        first_version: scores computed with parameters before these are of another training.
        lock: held while a change is made, for those who want several answers about one state.
    """

    def __init__(self, num_examples: int, staleness: Staleness) -> None:
        self.lock = threading.RLock()
        self.first_version = 0
        self._size, self._staleness = num_examples, staleness
        padded = -(-num_examples // FANOUT) * FANOUT
        self._scores = np.full(padded, np.nan, np.float32)
        self._previous = np.full(padded, np.nan, np.float32)
        self._versions = np.zeros(padded, np.uint32)
        self._times = np.zeros(padded, np.float64)
        self._usable = np.zeros(padded, bool)
        # Rows of leaves that are not as `leaves` gave them the last time.
        self._changed = np.zeros(padded // FANOUT, bool)

    def merge(self, start: int, found: np.ndarray, created: float) -> None:
        """Take up records of consecutive examples, those newer than what is known.

        Args:
            start: the first example. found: [k] records. created: when the run began.
        """
        self._merge(np.arange(start, start + len(found)), found, created)

    def merge_some(self, examples: np.ndarray, found: np.ndarray, created: float) -> None:
        """The same of any examples: [k] each; of one there may be several records."""
        order = np.lexsort((found["time"], found["version"], examples))
        examples, found = examples[order], found[order]
        # The newest of each.
        last = np.append(examples[1:] != examples[:-1], True)[: len(examples)]
        self._merge(examples[last], found[last], created)

    def _merge(self, places: np.ndarray, found: np.ndarray, created: float) -> None:
        times = records.seconds(found["time"], created)
        with self.lock:
            before = self._versions[places]
            same = found["version"] == before
            chosen = (found["version"] > before) | (same & (times > self._times[places]))
            chosen &= found["version"] > 0
            # Where the last score was of another training, there was none before.
            again = places[chosen & ~same & (before >= self.first_version)]
            self._previous[again] = self._scores[again]
            scores = np.where(np.isfinite(found["score"]), found["score"], np.nan)
            scores[scores < 0] = np.nan
            places = places[chosen]
            self._scores[places] = scores[chosen]
            self._versions[places] = found["version"][chosen]
            self._times[places] = times[chosen]
            self._mark(places)

    def _mark(self, places: np.ndarray) -> None:
        self._changed[places // FANOUT] = True

    def filter(self, now: float, version: int) -> None:
        """Find which scores count, at a time by the store's clock and a version of parameters."""
        with self.lock:
            usable = ~np.isnan(self._scores) & (self._versions >= self.first_version)
            if self._staleness.seconds < math.inf:
                usable &= self._times >= now - self._staleness.seconds
            if self._staleness.versions < math.inf:
                oldest = max(version - self._staleness.versions, 1)
                usable &= self._versions >= oldest
            self._mark(np.flatnonzero(usable != self._usable))
            self._usable = usable

    def leaves(self) -> tuple[np.ndarray, np.ndarray]:
        """What changed since the last call, for a tree: rows [m], and [m, 32, 3] leaves.

        A leaf is (ω̃, 1, 0) of an example whose score counts, else (0, 0, 1).
        """
        with self.lock:
            rows = np.flatnonzero(self._changed)
            self._changed[:] = False
            usable = self._usable.reshape(-1, FANOUT)[rows]
            scores = self._scores.reshape(-1, FANOUT)[rows]
        leaves = np.empty([*usable.shape, COLUMNS], np.float32)
        leaves[..., 0] = np.where(usable, scores, 0)
        leaves[..., 1] = usable
        leaves[..., 2] = ~usable
        leaves[rows * FANOUT + FANOUT > self._size, self._size % FANOUT or FANOUT :] = 0
        return rows, leaves

    def mark_all(self) -> None:
        """Let `leaves` give all rows the next time."""
        with self.lock:
            self._changed[:] = True

    def known(self) -> Known:
        """A copy of everything."""
        with self.lock:
            parts = (self._scores, self._previous, self._usable, self._versions, self._times)
            known = Known(*(part[: self._size].copy() for part in parts))
            known.scores[known.versions < self.first_version] = np.nan
            return known

    def usable_scores(self) -> np.ndarray:
        """[k] the scores that count."""
        with self.lock:
            return self._scores[self._usable]

    def newest_version(self) -> int:
        """That of the example that was scored last; 0 if none was."""
        with self.lock:
            return int(self._versions.max())

    def oldest_version(self) -> int:
        """That of the example that was scored the longest ago; 0 if one never was."""
        with self.lock:
            return int(self._versions[: self._size].min())
