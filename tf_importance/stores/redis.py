"""A store in a Redis server: version 6 or later, redis-py 5 or later."""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import logging
import time
import urllib.parse
import uuid
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from tf_importance.stores import base, errors, lua, records
from tf_importance.stores.records import LARGEST, RECORD, Message, ticks

# By the scheme of a URL, what redis-py calls it.
SCHEMES = {
    "redis": "redis",
    "rediss": "rediss",
    "unix": "unix",
    "valkey": "redis",
    "valkeys": "rediss",
    "redis+sentinel": "redis",
    "redis+cluster": "redis",
}
_LOG = logging.getLogger(__name__)
# A string of Redis holds 512 MB; but each chunk has to pass the line within the timeout. With what
# the server adds to it, it fills a class of 8 MB of its allocator; a little more takes 10.
CHUNK = 8 * 2**20 - 1024
# On a line so slow that a chunk takes much of the timeout the next ones are smaller, down to this.
_LEAST_CHUNK = 2**16 - 1024
_MUCH, _LITTLE = 1 / 4, 1 / 16
_HEADER = 16
# What becomes of chunks that were written by a master that died before it pointed to them.
_UNPOINTED_SECONDS = 3600
# Of former parameters, for those who still read them; the last is kept however large.
_FORMER_BYTES = 64 * 2**20
# Bytes of shards that are read at once: a line that brings so many in time is no silent one.
_READ_AT_ONCE = 2**20
# Errors that pass without these processes' doing: a script that hangs or was forgotten once more,
# a disk that is full, a server that starts, lacks replicas or changes its part.
_PASSING = (
    *("BUSY ", "MISCONF ", "LOADING ", "NOREPLICAS ", "CLUSTERDOWN", "MASTERDOWN ", "TRYAGAIN "),
    *("READONLY ", "NOSCRIPT "),
)
# What a client may stumble over in a reply that was damaged on its way.
_DAMAGED = (ValueError, TypeError, OverflowError, IndexError, KeyError, AttributeError)


class RedisStore(base.Store):
    """A run in a Redis server.

    The keys of run R all begin with `tfi:{R}:`. Parameters are cut into chunks under names of their
    own, and then one hash is pointed to them: whoever reads gets the ones or the others, and the
    digest proves it. A shard of scores is one string. The server runs what must happen in one go
    (`tf_importance/stores/lua.py`).

    Args:
        url: `redis://user:password@host:port/database`, as far as it is needed; `rediss://` for
            TLS, `unix://user:password@/path`; `valkey://` and `valkeys://` are the same.
            `redis+sentinel://host:port,host:port/service/database` is the master that sentinels
            name at the time, `redis+cluster://host:port,host:port` the node of a cluster that
            has the run's keys, which all lie in one slot. Further options as redis-py has them,
            such as `?ssl_ca_certs=…`.
        name: the run's, so that several can share a server.
        role: as in `Store`.
        timeout: seconds to wait for a connection or an answer.
        chunk: bytes in one chunk of parameters.
    Raises:
        ImportError: redis-py is not installed.
        ValueError: the URL is none.
    """

    def __init__(
        self,
        url: str,
        name: str = "default",
        role: str = "process",
        *,
        timeout: float = 10.0,
        chunk: int = CHUNK,
    ) -> None:
        super().__init__(url, role)
        self._prefix = f"tfi:{{{base.checked_name(name)}}}:"
        self._redis = _module()
        self._secrets = _secrets(url)
        self._largest_chunk = self._chunk = chunk
        self._timeout = timeout
        # A command that was lost is repeated by whoever gave it, who knows what it means.
        options = {
            "socket_connect_timeout": timeout,
            "socket_timeout": timeout,
            "retry": self._redis.retry.Retry(self._redis.backoff.NoBackoff(), 0),
        }
        # Of a cluster, how to get at the nodes that its URL names.
        self._nodes: list[dict[str, Any]] = []
        self._connected: Any = None
        try:
            if url.partition("://")[0].lower() == "redis+cluster":
                self._nodes = _nodes(url, options)
            else:
                self._connected = _opened(self._redis, url, options)
        except (ValueError, TypeError) as error:
            # It may name a part of a password as that of something else.
            why = "" if self._secrets or "@" in url else f": {error}"
            raise ValueError(
                f"{role}: no store has the URL {self.address!r}{why}. Give "
                "redis://host:port/database, rediss://… for TLS, unix:///path, "
                "redis+sentinel://host:port/service, or redis+cluster://host:port, with / ? # @ "
                "and spaces in a password as %2F, %3F, %23, %40 and %20."
            ) from None

    # Commands -----------------------------------------------------------------------------

    @property
    def _client(self) -> Any:
        """Of the server that has the run's keys; of a cluster that is found out."""
        if self._connected is None:
            self._connected = _node_of(self._redis, self._nodes, f"{self._prefix}run")
        return self._connected

    @_client.setter
    def _client(self, client: Any) -> None:
        self._connected = client

    @contextlib.contextmanager
    def _asking(self) -> Iterator[None]:
        """Turn redis-py's errors into the store's, without their credentials.

        A server that was demoted answers for ever on the connections that there are: they are
        dropped, so that the next ones go where the name leads by then. So are those that a damaged
        reply came by.
        """
        failures = self._redis.exceptions
        try:
            yield
            self.heard = time.monotonic()
        except errors.StoreError:
            raise
        except (failures.AuthenticationError, failures.NoPermissionError) as error:
            raise self._unauthorized(error) from None
        except failures.OutOfMemoryError as error:
            raise self._full(error) from None
        except (failures.ConnectionError, failures.TimeoutError, OSError) as error:
            self._forget_node()
            raise self.error(
                errors.Unreachable,
                f"the store does not answer: {self._clean(error)}",
                "Start it (redis-server --port …), or check host, port and network.",
            ) from None
        except (failures.ReadOnlyError, failures.TryAgainError, failures.MasterDownError) as error:
            self._drop_connections()
            raise self._passing(error) from None
        except failures.MovedError as error:
            raise self._of_cluster(error) from None
        except failures.ResponseError as error:
            raise self._of_response(str(error)) from None
        except (failures.RedisError, *_DAMAGED) as error:
            self._drop_connections()
            raise self._damaged(error) from None

    def _drop_connections(self) -> None:
        """All that are idle now, and those in use once they are given back."""
        if self._connected is not None:
            self._connected.connection_pool.disconnect()
        self._forget_node()

    def _forget_node(self) -> None:
        """Of a cluster another node may have the run's keys by now."""
        if self._nodes:
            self._connected = None

    def _damaged(self, error: Any) -> errors.StoreError:
        return self.error(
            errors.Unreachable,
            "the store's reply makes no sense, and was damaged on its way: "
            f"{type(error).__name__}: {self._clean(error)}",
            "If this goes on, see that a Redis server is what answers there, and by the protocol "
            "that the URL says (rediss:// for TLS).",
        )

    def _of_cluster(self, error: Any) -> errors.StoreError:
        if self._nodes:
            self._drop_connections()
            return self._passing(error)
        return self.error(
            errors.StoreError,
            f"the store is a node of a Redis Cluster, and the run's keys are another's: "
            f"{self._clean(error)}",
            "Give redis+cluster://host:port, which asks for the node that has the run's keys.",
        )

    def _of_response(self, text: str) -> errors.StoreError:
        """The error that a reply of the server stands for."""
        if "TFIRUN" in text:
            return self.other_run()
        if "TFISUPERSEDED" in text:
            return self.superseded()
        if "TFIFOREIGN" in text:
            return self.foreign(f"the {text.split('TFIFOREIGN ')[1].split(' script')[0]} there")
        if "TFICORRUPT" in text:
            return self._torn("chunks that were just written are gone")
        if "WRONGTYPE" in text:
            return self.foreign(f"a key under {self._prefix}")
        if "OOM" in text:
            return self._full(text)
        if text.startswith(_PASSING):
            self._drop_connections()
            return self._passing(text)
        if text.startswith(("MOVED ", "ASK ", "CROSSSLOT ")):
            return self._of_cluster(text)
        if any(code in text for code in ("NOAUTH", "WRONGPASS", "NOPERM")):
            return self._unauthorized(text)
        return self.error(
            errors.StoreError,
            f"the store refused a command: {self._clean(text)}",
            "Give the address of a Redis server of version 6 or later that accepts writes.",
        )

    def _unauthorized(self, error: Any) -> errors.StoreError:
        return self.error(
            errors.Unauthorized,
            f"the store denies access: {self._clean(error)}",
            "Give the right user and password in the URL, or allow this user all commands on "
            f"the keys {self._prefix}*.",
        )

    def _full(self, error: Any) -> errors.StoreError:
        return self.error(
            errors.OutOfMemory,
            f"the store has no room left: {self._clean(error)}",
            "Raise its maxmemory (CONFIG SET maxmemory …), or delete other runs.",
        )

    def _passing(self, error: Any) -> errors.StoreError:
        return self.error(
            errors.Unreachable,
            f"the store takes no such commands for now: {self._clean(error)}",
            "See its log; it must be a master, with room on its disk.",
        )

    def _torn(self, what: str) -> errors.StoreError:
        return self.error(
            errors.Corrupt,
            f"parameters cannot be used: {what}",
            "The master's next publication replaces them; if this goes on, publish less often than "
            f"they can be read, and check that no other program writes to {self._prefix}* and that "
            "maxmemory-policy is noeviction.",
        )

    def _clean(self, error: Any) -> str:
        text = errors.without_credentials(str(error))
        for secret in self._secrets:
            text = text.replace(secret, "***")
        return text

    def _run_script(self, script: str, *arguments: Any) -> Any:
        return self._run_scripts(script, [arguments])[0]

    def _run_scripts(self, script: str, calls: Sequence[Sequence[Any]]) -> list[Any]:
        """Run a script for each list of arguments, by as few round trips as there can be."""
        sha = hashlib.sha1(script.encode(), usedforsecurity=False).hexdigest()
        with self._asking():
            for _ in range(2):
                pipeline = self._client.pipeline(transaction=False)
                for arguments in calls:
                    # By a key a node of a cluster knows whether it is the one.
                    given = sha, 1, f"{self._prefix}run", self._prefix, *arguments
                    pipeline.execute_command("EVALSHA", *given)
                replies = pipeline.execute(raise_on_error=False)
                if not any(self._is_unknown(reply) for reply in replies):
                    break
                # All scripts may be run twice with the same arguments.
                self._client.script_load(script)
            for reply in replies:
                if isinstance(reply, Exception):
                    raise reply
            return replies

    def _is_unknown(self, reply: Any) -> bool:
        return isinstance(reply, self._redis.exceptions.NoScriptError)

    # Run ----------------------------------------------------------------------------------

    def now(self) -> float:
        with self._asking():
            seconds, microseconds = self._client.time()
            return float(seconds) + float(microseconds) / 1e6

    def _create(self, description: base.Description) -> base.Run:
        text = base.as_json(description)
        shards = description.layout.shards
        self._warn_of_eviction()
        return self._parsed(self._run_script(lua.CREATE, uuid.uuid4().hex, text, shards))

    def _warn_of_eviction(self) -> None:
        """Say so where the server may throw a run's keys away to make room."""
        try:
            with self._asking():
                found = self._client.info("memory")
                policy, limit = str(found["maxmemory_policy"]), int(found["maxmemory"])
        except errors.StoreError:
            return  # Not for everybody to see; what is lost then is found out later.
        if limit and policy != "noeviction":
            _LOG.warning(
                "%s: the store %s deletes keys when its memory is full (maxmemory-policy %s): "
                "scores and parameters may get lost. Set it to noeviction.",
                *(self.role, self.address, policy),
            )

    def _find(self) -> base.Run | None:
        names = ("magic", "id", "created", "description")
        fields: Sequence[bytes | None] = ()
        # It may be created or deleted between two questions.
        for _ in range(3):
            with self._asking():
                fields = self._client.hmget(f"{self._prefix}run", *names)
                if any(fields):
                    break
                if not self._client.exists(f"{self._prefix}run"):
                    return None
        return self._parsed(fields)

    def _parsed(self, fields: Sequence[bytes | None]) -> base.Run:
        magic, *rest = [field or b"" for field in fields]
        if magic != b"tf_importance" or not all(rest):
            raise self.foreign("the run there")
        identity, created, description = rest
        try:
            began, name = float(created), str(identity, "ascii")
            if not 0 <= began < 2**53:
                raise ValueError
            text = str(description, "utf-8")
        except ValueError:
            raise self.foreign("the run there") from None
        return base.Run(name, began, self._described(text))

    def take_over(self) -> int:
        with self._asking():
            return int(self._run_script(lua.TAKE_OVER, self.run.id))

    # Parameters ---------------------------------------------------------------------------

    def publish(self, blob: bytes, fence: int, at_least: int = 0) -> int:
        token, chunk = uuid.uuid4().hex, self._chunk
        view = memoryview(blob)
        starts = range(0, max(len(blob), 1), chunk)
        keys = [self._chunk_key(token, number) for number in range(len(starts))]
        arguments = (token, len(keys), len(blob), chunk, _digest(blob), _FORMER_BYTES)
        # What an earlier publication left that was broken off is deleted first.
        self._run_script(lua.BEGIN, self.run.id, fence, token, len(keys), _UNPOINTED_SECONDS)
        try:
            for key, start in zip(keys, starts):
                part = view[start : start + chunk]
                with self._timed(len(part)), self._asking():
                    self._client.set(key, part, ex=_UNPOINTED_SECONDS)
            with self._asking():
                return int(self._run_script(lua.PUBLISH, self.run.id, fence, at_least, *arguments))
        except (errors.OutOfMemory, errors.Superseded, errors.NoRun):
            with self._asking():
                self._client.unlink(*keys)
            raise

    @contextlib.contextmanager
    def _timed(self, size: int) -> Iterator[None]:
        """Adapt the next publication's chunks to what one of this takes of the timeout."""
        start, share = time.monotonic(), 1.0
        try:
            yield
            share = (time.monotonic() - start) / self._timeout
        finally:
            if share > _MUCH:
                self._chunk = max(self._chunk // 2, min(_LEAST_CHUNK, self._largest_chunk))
            elif share < _LITTLE and size >= self._chunk:
                self._chunk = min(2 * self._chunk, self._largest_chunk)

    def _chunk_key(self, token: str, number: int) -> str:
        return f"{self._prefix}parameters:{token}:{number}"

    def parameters(self, newer_than: int = 0) -> base.Parameters | None:
        for _ in range(3):
            with self._asking():
                fields = self._client.hmget(
                    f"{self._prefix}parameters", "version", "token", "chunks", "size", "digest"
                )
            if fields[0] is None:
                return None
            version, token, chunks, size, digest = self._pointer(fields)
            if version <= newer_than:
                return None
            blob = self._joined(token, chunks, size)
            if blob is not None and len(blob) == size and _digest(blob) == digest:
                return base.Parameters(version, blob)
            # Published anew meanwhile, more than once, so that the chunks are gone: look again.
        raise self._torn(f"version {version} is not what was published")

    def _pointer(self, fields: Sequence[bytes]) -> tuple[int, str, int, int, str]:
        try:
            version, token, chunks, size, digest = (str(field, "ascii") for field in fields)
            known = int(version), token, int(chunks), int(size), digest
            if not 0 < known[0] <= LARGEST:
                raise ValueError
            return known
        except (TypeError, ValueError):
            raise self.foreign("the parameters' pointer") from None

    def _joined(self, token: str, chunks: int, size: int) -> bytes | None:
        parts: list[bytes] = []
        for number in range(chunks):
            with self._asking():
                part = self._client.get(self._chunk_key(token, number))
            # No more than was published is read, however many chunks are said to be there.
            size -= len(part or b"")
            if part is None or size < 0:
                return None
            parts.append(part)
        return b"".join(parts)

    # Scores -------------------------------------------------------------------------------

    def write(self, messages: Sequence[Message]) -> int:
        layout, run = self.layout, self.run
        calls = []
        for message in messages:
            message.checked(layout)
            given = message.offsets
            offsets = b"" if given is None else np.asarray(given, "<u4").tobytes()
            calls.append(
                (
                    *(run.id, message.shard, len(layout.examples(message.shard))),
                    *(message.version, ticks(message.time, run.created)),
                    *(message.records(run.created).tobytes(), offsets, message.lease or ""),
                    records.LOGGED_BYTES,
                )
            )
        with self._asking():
            return sum(map(int, self._run_scripts(lua.WRITE, calls))) if calls else 0

    def changes(self, since: base.Mark = base.Mark()) -> base.Changes:  # noqa: B008
        with self._asking():
            # A server that came back from its disk may have forgotten changes that were seen.
            incarnation = str(self._client.info("server")["run_id"])
            seen = since if since.incarnation == incarnation else base.Mark()
            found = self._run_script(lua.CHANGES, self.run.id, seen.number, seen.logged)
            count, shards, logged, packed = found
            mark = base.Mark(incarnation, int(count), int(logged))
            shards = sorted(map(self._known_shard, shards))
            return base.Changes(mark, shards, self._known_changes(bytes(packed)))

    def read(self, shards: Sequence[int]) -> list[np.ndarray]:
        found: list[np.ndarray] = []
        bytes_of_one = RECORD.itemsize * self.layout.shard_size + _HEADER
        at_once = max(1, _READ_AT_ONCE // bytes_of_one)
        for start in range(0, len(shards), at_once):
            some = shards[start : start + at_once]
            with self._asking():
                values = self._client.mget([f"{self._prefix}scores:{shard}" for shard in some])
                if len(values) != len(some):
                    raise ValueError(f"{len(values)} values for {len(some)} keys")
                found += [self._records(shard, value) for shard, value in zip(some, values)]
        return found

    def _records(self, shard: int, value: bytes | None) -> np.ndarray:
        size = len(self.layout.examples(shard))
        if value is None:
            return np.zeros(size, RECORD)
        whole = len(value) == _HEADER + RECORD.itemsize * size
        if not whole or value[:8] != b"TFIS\x01\0\0\0":
            raise self.foreign(f"the shard {shard} there")
        return np.frombuffer(value, RECORD, offset=_HEADER)

    def lease(self, owner: str, version: int, seconds: float) -> base.Lease | None:
        token = f"{owner}:{uuid.uuid4().hex}".replace(" ", "_")
        arguments = token, version, _milliseconds(seconds), self.layout.shards
        shard = self._run_script(lua.LEASE, self.run.id, *arguments)
        return None if shard is None else base.Lease(self._known_shard(shard), token)

    def renew(self, lease: base.Lease, seconds: float) -> bool:
        arguments = lease.shard, lease.token, _milliseconds(seconds)
        return bool(self._run_script(lua.RENEW, self.run.id, *arguments))

    # Others -------------------------------------------------------------------------------

    def report(self, name: str, numbers: Mapping[str, float]) -> None:
        text = base.as_json(dict(numbers))
        text = text[:-1] if numbers else '{"reported": 1'
        self._run_script(lua.REPORT, self.run.id, name, text)

    def reports(self) -> dict[str, dict[str, float]]:
        with self._asking():
            found = self._client.hgetall(f"{self._prefix}reports")
            return {
                str(name, "utf-8", "replace"): self._reported(text) for name, text in found.items()
            }

    def clear(self) -> None:
        with self._asking():
            # First, so that nobody goes on writing to the rest.
            self._client.unlink(f"{self._prefix}run")
            # A glob takes { and } as they are.
            for key in self._client.scan_iter(match=f"{self._prefix}*", count=1000):
                self._client.unlink(key)
        self._run = None

    def close(self) -> None:
        if self._connected is not None:
            self._connected.close()


def _module() -> Any:
    try:
        return importlib.import_module("redis")
    except ImportError:
        raise ImportError(
            "a store in Redis needs redis-py. Install it, in a clone by pip install '.[redis]'."
        ) from None


def _opened(redis: Any, url: str, options: Mapping[str, Any]) -> Any:
    """A client for a URL.

    Raises:
        ValueError, TypeError: there is none.
    """
    scheme, _, rest = url.partition("://")
    own = f"{SCHEMES[scheme.lower()]}://{rest}"
    if scheme.lower() != "redis+sentinel":
        if SCHEMES[scheme.lower()] == "rediss" and "ssl_cert_reqs=none" not in rest.lower():
            # What redis-py does by itself from 6 on.
            options = {"ssl_check_hostname": True, **options}
        return redis.Redis.from_url(own, **options)
    parsed = urllib.parse.urlsplit(own)
    service, _, database = parsed.path.strip("/").partition("/")
    if not service:
        raise ValueError("a URL of sentinels names the service: redis+sentinel://host:port/service")
    sentinels, given = _hosts(parsed, "26379")
    sentinel = redis.sentinel.Sentinel(sentinels, sentinel_kwargs=dict(options), **options)
    return sentinel.master_for(service, db=int(database or 0), **given)


def _hosts(parsed: Any, port: str) -> tuple[list[tuple[str, int]], dict[str, str]]:
    """Hosts and ports of a URL that has several; user and password, as far as they are given."""
    *_, hosts = parsed.netloc.rpartition("@")
    named = {"username": parsed.username, "password": parsed.password}
    given = {name: urllib.parse.unquote(value) for name, value in named.items() if value}
    return [_host_and_port(one, port) for one in hosts.split(",")], given


def _host_and_port(text: str, port: str) -> tuple[str, int]:
    host, _, own = text.rpartition(":") if ":" in text else (text, "", port)
    return host.strip("[]"), int(own)


def _nodes(url: str, options: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What clients of those nodes of a cluster are made of that its URL names.

    Raises:
        ValueError: the URL is none.
    """
    parsed = urllib.parse.urlsplit(f"redis://{url.partition('://')[2]}")
    if parsed.path.strip("/") not in ("", "0"):
        raise ValueError("a cluster has database 0 alone")
    hosts, given = _hosts(parsed, "6379")
    return [{"host": host, "port": port, **given, **options} for host, port in hosts]


def _node_of(redis: Any, nodes: Sequence[Mapping[str, Any]], key: str) -> Any:
    """A client of the node that has a key, as the first of the nodes says that answers.

    Raises:
        What redis-py does: none answers, or nobody has the key.
    """
    passing = redis.exceptions.ConnectionError, redis.exceptions.TimeoutError, OSError
    failure: Exception = redis.exceptions.ConnectionError("no node of the cluster has the keys")
    for own in nodes:
        node = redis.Redis(**own)
        try:
            # In words of their own: redis-py understands the reply to "CLUSTER SLOTS" differently
            # from version to version.
            slot = int(node.execute_command("CLUSTER", "KEYSLOT", key))
            for first, last, (host, port, *_), *_ in node.execute_command("CLUSTER", "SLOTS"):
                if int(first) <= slot <= int(last):
                    host = str(host or b"", "ascii") or own["host"]
                    return redis.Redis(**{**own, "host": host, "port": int(port)})
        except passing as error:
            failure = error
        finally:
            node.close()
    raise failure


def _milliseconds(seconds: float) -> int:
    return max(1, int(1000 * seconds))


def _digest(blob: bytes) -> str:
    return hashlib.blake2b(blob, digest_size=16).hexdigest()


def _secrets(url: str) -> list[str]:
    """User's password in a URL, in all its spellings."""
    try:
        parsed = urllib.parse.urlsplit(url)
        options = urllib.parse.parse_qs(parsed.query)
        found = [parsed.password, *options.get("password", [])]
    except ValueError:
        return []
    spelled = {*found, *(urllib.parse.unquote(secret) for secret in found if secret)}
    return sorted(filter(None, spelled), key=len, reverse=True)
