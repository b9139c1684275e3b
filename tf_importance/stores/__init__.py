"""Where scores live: the one thing that the processes of a delegated run know of each other."""

from tf_importance.stores.base import (
    Changes,
    Description,
    Lease,
    Mark,
    Parameters,
    Run,
    Store,
)
from tf_importance.stores.errors import (
    Corrupt,
    Foreign,
    Mismatch,
    NoRun,
    OutOfMemory,
    StoreError,
    Superseded,
    Unauthorized,
    Unreachable,
    without_credentials,
    without_credentials_of,
)
from tf_importance.stores.memory import MemoryStore
from tf_importance.stores.records import RECORD, Layout, Message
from tf_importance.stores.redis import RedisStore
from tf_importance.stores.urls import open_store

__all__ = [
    "RECORD",
    "Changes",
    "Corrupt",
    "Description",
    "Foreign",
    "Layout",
    "Lease",
    "Mark",
    "MemoryStore",
    "Message",
    "Mismatch",
    "NoRun",
    "OutOfMemory",
    "Parameters",
    "RedisStore",
    "Run",
    "Store",
    "StoreError",
    "Superseded",
    "Unauthorized",
    "Unreachable",
    "open_store",
    "without_credentials",
    "without_credentials_of",
]
