"""What arguments have to be."""

from __future__ import annotations

import operator
from typing import Any


def positive_integer(name: str, value: Any) -> int:
    """A positive integer of any integer type.

    Raises:
        ValueError: it is something else.
    """
    try:
        number = operator.index(value)
    except TypeError:
        number = 0
    if isinstance(value, bool) or number < 1:
        raise ValueError(f"{name} must be a positive integer; got {value!r}.")
    return number
