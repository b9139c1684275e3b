"""What a store is: the one place where master, workers and peers of a run meet."""

from __future__ import annotations

import abc
import dataclasses
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from tf_importance.arguments import named, positive_integer
from tf_importance.stores import errors
from tf_importance.stores.records import CHANGE, Layout, Message, default_shard_size

FORMAT = 2


@dataclass(frozen=True)
class Description:
    """What all processes of a run must agree on.

    Attributes:
        num_examples: n.
        loss: the compiled loss. scorer: what a score is. dtype: what the net computes in.
        model: digest of the weights' shapes and dtypes. data: digest of the data set.
        shard_size: examples in a shard; by default a size that fits n.
        format: of all that stands in the store.
    """

    num_examples: int
    loss: str = ""
    scorer: str = ""
    dtype: str = "float32"
    model: str = ""
    data: str = ""
    shard_size: int = 0
    format: int = FORMAT

    def __post_init__(self) -> None:
        positive_integer("num_examples", self.num_examples)
        if not self.shard_size:
            object.__setattr__(self, "shard_size", default_shard_size(self.num_examples))
        Layout(self.num_examples, self.shard_size)

    @property
    def layout(self) -> Layout:
        """The shards."""
        return Layout(self.num_examples, self.shard_size)


class Run(NamedTuple):
    """A run in a store.

    Attributes:
        id: differs for each time that a run is created.
        created: seconds by the store's clock.
        description: what its processes agree on.
    """

    id: str
    created: float
    description: Description


class Parameters(NamedTuple):
    """Published parameters.

    Attributes:
        version: counts the publications, from 1.
        blob: as published.
    """

    version: int
    blob: bytes


class Mark(NamedTuple):
    """Up to where the changes of the scores are known.

    Attributes:
        incarnation: of the store; a store that was restarted may have forgotten the last changes.
        number: of changes.
        logged: of messages with single records.
    """

    incarnation: str = ""
    number: int = 0
    logged: int = 0


class Changes(NamedTuple):
    """What changed.

    Attributes:
        mark: to ask from the next time.
        shards: numbers of those that are to be read as a whole.
        records: [k] of `records.CHANGE`, single ones of other shards; of one example there may be
            several.
    """

    mark: Mark
    shards: list[int]
    records: np.ndarray


class Lease(NamedTuple):
    """A shard that is one's own to score for a while.

    Attributes:
        shard: its number.
        token: goes into the message with its scores.
    """

    shard: int
    token: str


class Store(abc.ABC):
    """Parameters, scores and leases of one run; every method may raise a `StoreError`.

    A process begins with `create` (a master, a peer) or `join` (a worker). All methods may be
    called from several threads. Nothing that is read is ever executed or unpickled.

    Args:
        address: for messages; credentials are left out of them.
        role: of this process, for messages.
    Attributes:
        run: the one that was created or joined.
        heard: when it last answered, in seconds of `time.monotonic`; −∞ where nobody asks.
    """

    def __init__(self, address: str, role: str) -> None:
        self.address = errors.without_credentials_of(address)
        self.role, self.heard = role, float("-inf")
        self._run: Run | None = None

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.address!r}, role={self.role!r})"

    @property
    def run(self) -> Run:
        """The run.

        Raises:
            NoRun: none was created or joined yet.
        """
        if self._run is None:
            raise self.error(errors.NoRun, "no run was joined yet", "Call create or join first.")
        return self._run

    @property
    def layout(self) -> Layout:
        """The run's shards."""
        return self.run.description.layout

    # Run ----------------------------------------------------------------------------------

    def create(self, description: Description) -> Run:
        """Begin a run, or join the one that stands there if its description is the same.

        Raises:
            Mismatch: it is another. Foreign: it is no run of this library.
        """
        self._run = self._agreed(self._create(description), description)
        return self._run

    def join(self, description: Description) -> Run:
        """Join the run that stands there.

        Raises:
            NoRun: none does. Mismatch, Foreign: as `create`.
        """
        found = self._find()
        if found is None:
            raise self.error(
                errors.NoRun,
                "no run stands there",
                "Start the master first, with the same store and run name.",
            )
        self._run = self._agreed(found, description)
        return self._run

    def _agreed(self, run: Run, mine: Description) -> Run:
        there, here = dataclasses.asdict(run.description), dataclasses.asdict(mine)
        differences = [
            f"{name} {there[name]!r} there, {here[name]!r} here"
            for name in here
            if there[name] != here[name]
        ]
        if differences:
            raise self.error(
                errors.Mismatch,
                f"the run there is another: {'; '.join(differences)}",
                "Give all roles the same model, loss and data and the same version of "
                "tf_importance, or this run a name of its own.",
            )
        return run

    def _described(self, text: str) -> Description:
        """A description as it was written, of whatever format version."""
        try:
            fields = json.loads(text)
            known = {field.name for field in dataclasses.fields(Description)}
            if fields["format"] != FORMAT:
                raise self.error(
                    errors.Mismatch,
                    f"the run there is of format {fields['format']!r}, and this is {FORMAT}",
                    "Give all roles the same version of tf_importance, or this run a name of "
                    "its own.",
                )
            return Description(**{name: fields[name] for name in known})
        except (ValueError, TypeError, KeyError, RecursionError):
            raise self.foreign("the run's description") from None

    def _reported(self, text: str | bytes) -> dict[str, float]:
        """A report as it was written: numbers by name, and no others."""
        try:
            found = json.loads(text)
            if not isinstance(found, dict) or "time" not in found:
                raise ValueError
            return {str(name): float(number) for name, number in found.items()}
        except (ValueError, TypeError, OverflowError, RecursionError):
            raise self.foreign("a report there") from None

    def _known_shard(self, shard: Any) -> int:
        """A shard's number as it was read."""
        try:
            number = int(shard)
        except (ValueError, TypeError):
            number = -1
        if not 0 <= number < self.layout.shards:
            raise self.foreign("the list of shards")
        return number

    def _known_changes(self, packed: bytes) -> np.ndarray:
        """Single records as they were read."""
        try:
            found = np.frombuffer(packed, CHANGE)
        except ValueError:
            raise self.foreign("the log of changes") from None
        layout = self.layout
        in_shard = found["offset"] < layout.shard_size
        inside = in_shard & (layout.examples_of(found) < layout.num_examples)
        if not inside.all():
            raise self.foreign("the log of changes")
        return found

    # For each store to define -------------------------------------------------------------

    @abc.abstractmethod
    def now(self) -> float:
        """Seconds by the store's clock, by which all times and leases go."""

    @abc.abstractmethod
    def _create(self, description: Description) -> Run: ...

    @abc.abstractmethod
    def _find(self) -> Run | None: ...

    @abc.abstractmethod
    def take_over(self) -> int:
        """Become the master: the number to publish with; that of an earlier one is void."""

    @abc.abstractmethod
    def publish(self, blob: bytes, fence: int, at_least: int = 0) -> int:
        """Swap the parameters, as a whole or not at all.

        Args:
            blob: the new ones. fence: of `take_over`. at_least: the version to follow, if the
                store knows a lower one.
        Returns:
            Their version: larger than any before.
        Raises:
            Superseded: another master has taken over.
        """

    @abc.abstractmethod
    def parameters(self, newer_than: int = 0) -> Parameters | None:
        """The newest parameters, None if there are none newer than a version.

        Raises:
            Corrupt: what is there is not what was published.
        """

    @abc.abstractmethod
    def write(self, messages: Sequence[Message]) -> int:
        """Take up the scores that are newer than those there, in one go for each message.

        Returns:
            How many were.
        Raises:
            NoRun: the store holds another run by now.
        """

    @abc.abstractmethod
    def changes(self, since: Mark = Mark()) -> Changes:  # noqa: B008  a tuple of constants
        """What changed since a mark; all shards that have scores if the mark is void.

        Of messages with offsets, as peers write them, single records; of whole shards, or where the
        mark is too old for that, the shards.
        """

    @abc.abstractmethod
    def read(self, shards: Sequence[int]) -> list[np.ndarray]:
        """The records of shards, each [its number of examples]; zeros where none were written."""

    @abc.abstractmethod
    def lease(self, owner: str, version: int, seconds: float) -> Lease | None:
        """The shard whose scores are the oldest, for one owner alone.

        Args:
            owner: a name. version: of the owner's parameters. seconds: until it is free again,
                by the store's clock, unless its scores are written first.
        Returns:
            None if all shards are leased or scored with this version already.
        """

    @abc.abstractmethod
    def renew(self, lease: Lease, seconds: float) -> bool:
        """Keep a lease for so long from now; whether it is still its owner's."""

    @abc.abstractmethod
    def report(self, name: str, numbers: Mapping[str, float]) -> None:
        """Leave numbers for others to see; `time` is added."""

    @abc.abstractmethod
    def reports(self) -> dict[str, dict[str, float]]:
        """What was left, by name."""

    @abc.abstractmethod
    def clear(self) -> None:
        """Delete the run and all that belongs to it, and nothing else."""

    @abc.abstractmethod
    def close(self) -> None:
        """Give back connections."""

    # Messages -----------------------------------------------------------------------------

    def error(self, kind: type[errors.StoreError], what: str, remedy: str) -> errors.StoreError:
        """An error with this store's address and role."""
        return kind(what, role=self.role, store=self.address, remedy=remedy)

    def foreign(self, what: str) -> errors.StoreError:
        """The error for what is not of this format."""
        return self.error(
            errors.Foreign,
            f"{what} is not of tf_importance's format, and was left as it is",
            "Give this run another name or database.",
        )

    def other_run(self) -> errors.StoreError:
        """The error for a run that is gone."""
        return self.error(
            errors.NoRun,
            "the run that was joined is no longer there: the store was emptied or holds another",
            "Join again once the master has published.",
        )

    def second_master(self) -> errors.StoreError:
        """The error for one that would take over from another."""
        return self.error(
            errors.Superseded,
            "another master trains by this run now",
            "Stop it first, or give this run a name of its own.",
        )

    def superseded(self) -> errors.StoreError:
        """The error for a master that is no more."""
        return self.error(
            errors.Superseded, "another master has taken over this run", "Stop one of the two."
        )


def as_json(value: Any) -> str:
    """A description or a report as text that is the same for equal values."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = dataclasses.asdict(value)
    return json.dumps(value, sort_keys=True)


def check(store: Any) -> None:
    """Raises: TypeError: it is no store."""
    if not isinstance(store, Store):
        url = isinstance(store, str)
        remedy = f" Open it: tfi.stores.open_store({store!r})." if url and "@" not in store else ""
        remedy = remedy or " Open one: tfi.stores.open_store(url)."
        came = "a string" if url else named(store)
        raise TypeError(f"store must be a tfi.stores.Store; got {came}.{remedy}")


def checked_name(name: str) -> str:
    """The name of a run.

    Raises:
        ValueError: it holds more than letters, digits, dots, dashes and underscores.
    """
    if not re.fullmatch(r"[\w.-]+", name):
        raise ValueError(
            f"a run's name must be of letters, digits, dots, dashes and underscores; got {name!r}."
        )
    return name
