"""What a trainer does with a store beside its steps, in a thread of its own."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

from tf_importance import stores
from tf_importance.distributed.mirror import Mirror

_LOG = logging.getLogger(__name__)
_RETRY_SECONDS = 0.25
# A store that is full is asked less and less often, down to once in so many.
_LONGEST_RETRY_SECONDS = 8.0
# 12 MB of the largest ones.
_SHARDS_AT_ONCE = 256


class Exchange:
    """Sends what there is to send, pulls the scores that changed, and says that they did.

    The store may go and come back; it may come back empty. Then the run is begun anew. A trainer
    that was replaced, and anything unforeseen, fails its training.

    Args:
        store: where to meet.
        description: of the run.
        mirror: takes up the scores.
        joined: called after the run was begun or joined.
        send: called when woken and before each pull; gives the version that scores are compared to.
        pulled: called after it.
        pull_seconds: from one pull to the next.
    """

    def __init__(
        self,
        store: stores.Store,
        description: stores.Description,
        mirror: Mirror,
        *,
        joined: Callable[[], None],
        send: Callable[[], int],
        pulled: Callable[[], None],
        pull_seconds: float,
    ) -> None:
        self._store, self._description, self._mirror = store, description, mirror
        self._joined, self._send, self._pulled = joined, send, pulled
        self._pull_seconds = pull_seconds
        self._mark = stores.Mark()
        # What is sent is taken out of queues: by one thread at a time.
        self._busy = threading.Lock()
        self._stop, self._wake = threading.Event(), threading.Event()
        self._thread: threading.Thread | None = None
        self._failure: BaseException | None = None
        self._said, self._retry_seconds, self._is_full = "", _RETRY_SECONDS, False
        self._contact = self._last_whole = self._last_pull = time.monotonic()

    @property
    def silent_seconds(self) -> float:
        """Since the last exchange that went well, or the last part of one that goes well so far."""
        heard = self._store.heard if self._busy.locked() else self._contact
        return time.monotonic() - max(self._contact, heard)

    @property
    def is_full(self) -> bool:
        """Whether the store had no room for what was to be written."""
        return self._is_full

    def join(self) -> None:
        """Begin or join the run.

        Raises:
            stores.StoreError: that cannot be.
        """
        self._store.create(self._description)
        self._mark = stores.Mark()
        self._joined()

    def once(self) -> None:
        """Send and pull."""
        with self._busy:
            self._pull(self._send())

    def _pull(self, version: int) -> None:
        changes = self._store.changes(self._mark)
        layout, created = self._store.layout, self._store.run.created
        for start in range(0, len(changes.shards), _SHARDS_AT_ONCE):
            shards = changes.shards[start : start + _SHARDS_AT_ONCE]
            for shard, found in zip(shards, self._store.read(shards)):
                self._mirror.merge(layout.examples(shard).start, found, created)
            self._contact = time.monotonic()
        if len(changes.records):
            examples = layout.examples_of(changes.records)
            self._mirror.merge_some(examples, changes.records, created)
        # Not before all is read: what failed halfway is asked for again.
        self._mark = changes.mark
        self._mirror.filter(self._store.now(), version)
        self._pulled()
        self._contact = self._last_whole = self._last_pull = time.monotonic()

    # The thread ---------------------------------------------------------------------------

    def start(self) -> None:
        """Go on by itself until `stop`."""
        self._stop.clear()
        self._contact = self._last_whole = time.monotonic()
        self._last_pull = -self._pull_seconds
        self._thread = threading.Thread(target=self._run, name="exchange", daemon=True)
        self._thread.start()

    def wake(self) -> None:
        """There is something to send."""
        self._wake.set()

    def stop(self) -> None:
        """Finish the exchange that is going on, and no more."""
        self._stop.set()
        self._wake.set()
        if self._thread is not None:
            self._thread.join()
        self._thread = None

    def raise_failure(self) -> None:
        """Raise what ended the thread, if something did."""
        if self._failure is not None:
            failure, self._failure = self._failure, None
            raise failure

    def _run(self) -> None:
        try:
            while not self._stop.is_set():
                due = self._until_pull() <= 0
                went_well = self.attempt(due)
                pause = self._until_pull() if went_well else self._retry_seconds
                # Who publishes wakes it at each turn: a store that is full is left alone even so.
                waited = self._stop if self._retry_seconds > _RETRY_SECONDS else self._wake
                waited.wait(pause)
                self._wake.clear()
        except BaseException as error:  # raised again where the training is
            self._failure = error

    def attempt(self, pull: bool = True) -> bool:
        """Send, and pull if it is due; whether that went well. What may pass is logged.

        Raises:
            stores.Superseded: it does not pass.
        """
        try:
            with self._busy:
                version = self._send()
                self._contact = time.monotonic()
                if pull:
                    self._pull(version)
        except stores.Superseded:
            raise
        except stores.NoRun as error:
            self._say(error, "Beginning it anew.")
            return self._began_anew()
        except stores.StoreError as error:
            self._is_full = isinstance(error, stores.OutOfMemory)
            longer = min(2 * self._retry_seconds, _LONGEST_RETRY_SECONDS)
            self._retry_seconds = longer if self._is_full else _RETRY_SECONDS
            # What was begun and not ended counts for nothing.
            self._contact = self._last_whole
            self._say(error, "Trying again.")
            return False
        self._said, self._retry_seconds, self._is_full = "", _RETRY_SECONDS, False
        return True

    def _until_pull(self) -> float:
        return max(0.0, self._last_pull + self._pull_seconds - time.monotonic())

    def _began_anew(self) -> bool:
        try:
            self.join()
        except stores.StoreError as error:
            self._say(error, "Trying again.")
        return False

    def _say(self, error: stores.StoreError, then: str) -> None:
        """Log a trouble, once."""
        if str(error) != self._said:
            self._said = str(error)
            _LOG.warning("%s %s", error, then)
