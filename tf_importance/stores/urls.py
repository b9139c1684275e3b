"""Stores by their URLs."""

from __future__ import annotations

from tf_importance.arguments import meant, named
from tf_importance.stores import errors
from tf_importance.stores.base import Store, checked_name
from tf_importance.stores.memory import MemoryStore
from tf_importance.stores.redis import SCHEMES, RedisStore


def open_store(url: str, name: str = "default", role: str = "process") -> Store:
    """The store of a run.

    Args:
        url: memory:// for the threads of this process; redis://, rediss://, unix://, valkey:// or
            redis+sentinel:// for a Redis server (`RedisStore`).
        name: the run's. role: of this process, for messages.
    Raises:
        TypeError, ValueError: no store has such a URL.
    """
    if not isinstance(url, str):
        raise TypeError(f"{role}: a store's URL must be a string; got {named(url)}.")
    scheme, separator, rest = url.partition("://")
    scheme = scheme.lower()
    if separator and scheme == "memory":
        return MemoryStore(f"{rest}/{checked_name(name)}", role)
    if separator and scheme in SCHEMES:
        return RedisStore(url, name, role)
    raise ValueError(
        f"{role}: a store's URL must begin with memory://, "
        f"{', '.join(f'{name}://' for name in SCHEMES)}; got "
        f"{errors.without_credentials_of(url)!r}.{meant(scheme, ['memory', *SCHEMES])}"
    )
