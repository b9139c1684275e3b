"""What can be wrong with a store, and what to do about it. No message holds a credential."""

from __future__ import annotations

import re

# user:password@ of a URL, and a password among its options.
_CREDENTIALS = (
    (re.compile(r"(?<=://)[^/@\s]*@"), "***@"),
    (re.compile(r"(?i)([?&](?:password|username)=)[^&\s]*"), r"\1***"),
)


class StoreError(RuntimeError):
    """Something is wrong with a store.

    Args:
        what: happened.
        role: of the process that it happened to, such as "worker".
        store: its address; credentials are taken out.
        remedy: what to do.
    """

    def __init__(self, what: str, *, role: str, store: str, remedy: str) -> None:
        super().__init__(f"{role}: {what} (store {without_credentials(store)}). {remedy}")


class Unreachable(StoreError):
    """Nobody answers, or not in time."""


class Unauthorized(StoreError):
    """The store wants other credentials, or forbids a command."""


class OutOfMemory(StoreError):
    """The store has no room for what was to be written; it is as it was before."""


class Foreign(StoreError):
    """What stands in the store is not of this format."""


class Mismatch(StoreError):
    """The run in the store is of another model, data set or format version."""


class NoRun(StoreError):
    """No run stands in the store, or another one than was joined."""


class Corrupt(StoreError):
    """Parameters are incomplete or not those that were published."""


class Superseded(StoreError):
    """Another master has taken over."""


def without_credentials(text: str) -> str:
    """A text with what stands for user and password in its URLs blacked out."""
    for pattern, replacement in _CREDENTIALS:
        text = pattern.sub(replacement, text)
    return text
