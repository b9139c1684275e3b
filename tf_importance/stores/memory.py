"""A store in the memory of one process, for threads."""

from __future__ import annotations

import collections
import contextlib
import threading
import time
import uuid
import weakref
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from tf_importance.stores import base, records
from tf_importance.stores.records import CHANGE, RECORD, Message, newer


class _Contents:
    """What the stores of one name share."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.incarnation = uuid.uuid4().hex
        self.empty()

    def empty(self) -> None:
        self.run: base.Run | None = None
        self.parameters: base.Parameters | None = None
        self.fence = 0
        self.count = 0
        self.shards: dict[int, np.ndarray] = {}
        # Of each shard: the change that was its last; the version that it was scored with.
        self.changed: dict[int, int] = {}
        # The same of those that changed as a whole; single records of the others, by messages.
        self.dense: dict[int, int] = {}
        self.log: collections.deque[np.ndarray] = collections.deque()
        self.logged = self.log_bytes = 0
        self.scored: dict[int, int] = {}
        # Of each leased shard: when the lease ends, and its token.
        self.leases: dict[int, tuple[float, str]] = {}
        self.reports: dict[str, str] = {}


# As long as a store of that name is in use.
_ALL: weakref.WeakValueDictionary[str, _Contents] = weakref.WeakValueDictionary()
_ALL_LOCK = threading.Lock()


class MemoryStore(base.Store):
    """The embedded default: all stores of the same name in a process are one.

    Args:
        name: theirs.
        role: as in `Store`.
    """

    def __init__(self, name: str = "", role: str = "process") -> None:
        super().__init__(f"memory://{name}", role)
        with _ALL_LOCK:
            made = _Contents()
            self._contents = _ALL.setdefault(name, made)

    @contextlib.contextmanager
    def _held(self, of_run: bool = True) -> Iterator[_Contents]:
        contents = self._contents
        mine = self.run if of_run else None
        with contents.lock:
            if mine is not None and (contents.run is None or contents.run.id != mine.id):
                raise self.other_run()
            yield contents

    def now(self) -> float:
        return time.time()

    def _create(self, description: base.Description) -> base.Run:
        with self._held(of_run=False) as contents:
            if contents.run is None:
                contents.empty()
                contents.run = base.Run(uuid.uuid4().hex, self.now(), description)
                contents.scored = dict.fromkeys(range(description.layout.shards), 0)
            return contents.run

    def _find(self) -> base.Run | None:
        with self._held(of_run=False) as contents:
            return contents.run

    def take_over(self) -> int:
        with self._held() as contents:
            contents.fence += 1
            return contents.fence

    def publish(self, blob: bytes, fence: int, at_least: int = 0) -> int:
        with self._held() as contents:
            if fence != contents.fence:
                raise self.superseded()
            before = 0 if contents.parameters is None else contents.parameters.version
            version = max(before, at_least) + 1
            contents.parameters = base.Parameters(version, bytes(blob))
            return version

    def parameters(self, newer_than: int = 0) -> base.Parameters | None:
        with self._held() as contents:
            found = contents.parameters
        return found if found is not None and found.version > newer_than else None

    def write(self, messages: Sequence[Message]) -> int:
        layout, accepted = self.layout, 0
        for message in messages:
            message.checked(layout)
            with self._held() as contents:
                accepted += self._merge(contents, message)
        return accepted

    def _merge(self, contents: _Contents, message: Message) -> int:
        shard, run = message.shard, self.run
        size = len(run.description.layout.examples(shard))
        known = contents.shards.get(shard, np.zeros(size, RECORD)).copy()
        given = np.arange(len(message.scores)) if message.offsets is None else message.offsets
        incoming = message.records(run.created)
        chosen = newer(incoming, known[given])
        known[given[chosen]] = incoming[chosen]
        if chosen.any():
            contents.count += 1
            contents.shards[shard], contents.changed[shard] = known, contents.count
            if message.offsets is None or CHANGE.itemsize * chosen.sum() >= known.nbytes:
                contents.dense[shard] = contents.count
            else:
                self._log(contents, shard, given[chosen], incoming[chosen])
        if message.lease is not None and contents.leases.get(shard, (0, ""))[1] == message.lease:
            del contents.leases[shard]
            contents.scored[shard] = message.version
        return int(chosen.sum())

    def _log(self, contents: _Contents, shard: int, offsets: np.ndarray, found: np.ndarray) -> None:
        items = np.empty(len(found), CHANGE)
        items["shard"], items["offset"] = shard, offsets
        for name in RECORD.names or ():
            items[name] = found[name]
        contents.log.append(items)
        contents.logged += 1
        contents.log_bytes += items.nbytes
        while contents.log_bytes > records.LOGGED_BYTES:
            contents.log_bytes -= contents.log.popleft().nbytes

    def changes(self, since: base.Mark = base.Mark()) -> base.Changes:  # noqa: B008
        with self._held() as contents:
            seen = since if since.incarnation == contents.incarnation else base.Mark()
            first = contents.logged - len(contents.log)
            whole = seen.number == 0 or not first <= seen.logged <= contents.logged
            counts = contents.changed if whole else contents.dense
            changed = sorted(shard for shard, count in counts.items() if count > seen.number)
            later = [] if whole else list(contents.log)[seen.logged - first :]
            single = np.concatenate([np.empty(0, CHANGE), *later])
            mark = base.Mark(contents.incarnation, contents.count, contents.logged)
            return base.Changes(mark, changed, single)

    def read(self, shards: Sequence[int]) -> list[np.ndarray]:
        layout = self.layout
        with self._held() as contents:
            # Never written to once they stand there.
            return [
                contents.shards.get(shard, np.zeros(len(layout.examples(shard)), RECORD))
                for shard in shards
            ]

    def lease(self, owner: str, version: int, seconds: float) -> base.Lease | None:
        with self._held() as contents:
            now = self.now()
            for shard, (end, _) in list(contents.leases.items()):
                if end <= now:
                    del contents.leases[shard]
            free = [
                (scored, shard)
                for shard, scored in contents.scored.items()
                if scored < version and shard not in contents.leases
            ]
            if not free:
                return None
            _, shard = min(free)
            lease = base.Lease(shard, f"{owner}:{uuid.uuid4().hex}")
            contents.leases[shard] = (now + seconds, lease.token)
            return lease

    def renew(self, lease: base.Lease, seconds: float) -> bool:
        with self._held() as contents:
            if contents.leases.get(lease.shard, (0, ""))[1] != lease.token:
                return False
            contents.leases[lease.shard] = (self.now() + seconds, lease.token)
            return True

    def report(self, name: str, numbers: Mapping[str, float]) -> None:
        with self._held() as contents:
            contents.reports[name] = base.as_json({**numbers, "time": self.now()})

    def reports(self) -> dict[str, dict[str, float]]:
        with self._held() as contents:
            return {name: self._reported(text) for name, text in contents.reports.items()}

    def clear(self) -> None:
        with self._held(of_run=False) as contents:
            contents.empty()

    def close(self) -> None:
        """There is nothing to give back."""
