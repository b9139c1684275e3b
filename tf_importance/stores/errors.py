"""What can be wrong with a store, and what to do about it. No message holds a credential."""

from __future__ import annotations

import re

# A password among a URL's options, and user:password@; up to the last @, should one of those before
# belong to a password that was not percent-encoded.
_CREDENTIALS = (
    (re.compile(r"(?i)([?&]\w*(?:password|username)=)[^&\s]*"), r"\1***"),
    (re.compile(r"(?<=://)\S*@"), "***@"),
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


def without_credentials_of(url: str) -> str:
    """The same of a single URL, spaces and quotes in its password included."""
    return without_credentials(re.sub(r"(?s)(?<=://).*@", "***@", url))


def without_credentials(text: str) -> str:
    """A text with what stands for user and password in its URLs blacked out."""
    for pattern, replacement in _CREDENTIALS:
        text = pattern.sub(replacement, text)
    return text
