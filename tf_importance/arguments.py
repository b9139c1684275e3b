"""What arguments have to be, and how errors speak of what came in their place."""

from __future__ import annotations

import contextlib
import difflib
import functools
import numbers
import operator
from collections.abc import Callable, Collection, Iterable
from typing import Any

_LONGEST = 80


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
        raise ValueError(f"{name} must be a positive integer; got {named(value)}.")
    return number


def positive_integers(name: str, values: Any) -> list[int]:
    """Some positive integers, of any collection.

    Raises:
        ValueError: it is something else.
    """
    found = listed(name, values, "a list of positive integers, such as [300]")
    return [positive_integer(f"each of {name}", value) for value in found]


def listed(name: str, values: Any, wanted: str) -> list[Any]:
    """What is in a collection of any type: a list, a tuple, an array, a generator.

    Raises:
        ValueError: it is none, or a string.
    """
    if not isinstance(values, str):
        with contextlib.suppress(TypeError):
            return list(values)
    raise ValueError(f"{name} must be {wanted}; got {named(values)}.")


def number(name: str, value: Any, wanted: str, fits: Callable[[float], bool]) -> float:
    """A real number of any type that fits.

    Args:
        wanted: what does, in words: "positive and finite". fits: whether a number does.
    Raises:
        ValueError: it is none, or one that does not.
    """
    known = isinstance(value, numbers.Real) and not isinstance(value, bool)
    if known or (hasattr(value, "numpy") and value.shape == ()):
        found = float(value)
        if fits(found):
            return found
    raise ValueError(f"{name} must be {wanted}; got {named(value)}.")


def one_of(name: str, value: Any, known: Collection[Any]) -> Any:
    """A value that is one of a few.

    Raises:
        ValueError: it is none of them.
    """
    # A tensor would be compared value by value.
    if isinstance(value, (str, bool, type(None))) and value in known:
        return value
    raise ValueError(
        f"{name} must be one of {', '.join(map(repr, known))}; got {named(value)}."
        f"{meant(value, [one for one in known if isinstance(one, str)])}"
    )


def named(value: Any) -> str:
    """A value as an error shows it: never what an array holds, and no address of an object."""
    kind = type(value).__name__
    if isinstance(value, type):
        return f"the class {value.__name__}"
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        dtype = getattr(value.dtype, "name", value.dtype)
        kind = "array" if kind == "ndarray" else "tensor" if "Tensor" in kind else kind
        return f"{_with_article(kind)} of shape {_shape(value.shape)} and dtype {dtype}"
    if isinstance(value, (list, tuple, set, frozenset, dict)):
        parts = [*value, *value.values()] if isinstance(value, dict) else [*value]
        text = repr(value)
        plain = all(isinstance(part, (str, int, float, type(None))) for part in parts)
        return text if plain and len(text) <= _LONGEST else f"a {kind} of {len(value)}"
    text = repr(value)
    if isinstance(value, (str, bytes)):
        return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…"
    if callable(value) and hasattr(value, "__name__") and text.startswith("<"):
        return f"the function {value.__name__}"
    if text.startswith("<") or len(text) > _LONGEST:
        return _with_article(kind)
    return text


def written(kind: type, args: Iterable, options: dict[str, Any]) -> str:
    """An object as it was made: `Gain(step_seconds=1.0)`."""
    parts = [_in_call(value) for value in args]
    parts += [f"{name}={_in_call(value)}" for name, value in options.items()]
    return f"{kind.__name__}({', '.join(parts)})"


def _in_call(value: Any) -> str:
    """Of objects that print as they were made, a list is shown whole."""
    if isinstance(value, (list, tuple)) and all(isinstance(one, Written) for one in value):
        return f"[{', '.join(map(repr, value))}]"
    return named(value)


class Written:
    """Prints as it was made."""

    def __new__(cls, *args, **kwargs):
        """Note what it is made of."""
        made = super().__new__(cls)
        # Of a function, which a tf.Module does not look into; and one that can be pickled.
        object.__setattr__(made, "_made_of", functools.partial(_pair, args, kwargs))
        return made

    def __repr__(self) -> str:
        return written(type(self), *self._made_of())  # type: ignore[attr-defined]


def _pair(args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
    return args, kwargs


def meant(value: Any, known: Collection[str]) -> str:
    """What was probably meant by a name that is none of those that are known; " …" or nothing."""
    close = difflib.get_close_matches(str(value), known, 1, 0.5)
    return f" Did you mean {close[0]!r}?" if close else ""


def to_be_made(value: Any, package: str, kinds: Iterable[type]) -> str:
    """How to make an object that was given by its class or by its name; " …" or nothing."""
    by_name = [kind.__name__ for kind in kinds]
    name = value.__name__ if isinstance(value, type) else value
    if isinstance(name, str) and name not in by_name:
        by_lower = {one.lower(): one for one in by_name}
        close = difflib.get_close_matches(name.lower().replace("_", ""), by_lower, 1, 0.6)
        name = by_lower[close[0]] if close else None
    return f" Give an object: {package}.{name}()." if isinstance(name, str) else ""


def public_kinds(base: Any) -> list[type]:
    """What inherits from a class, and has a public name in this package."""
    found: list[type] = []
    for kind in base.__subclasses__():
        found += [kind, *public_kinds(kind)]
    ours = (kind for kind in found if kind.__module__.startswith("tf_importance."))
    return [kind for kind in ours if not kind.__name__.startswith("_")]


def _shape(shape: Any) -> str:
    try:
        return str(tuple(shape))
    except (TypeError, ValueError):
        return "unknown"


def _with_article(kind: str) -> str:
    return f"{'an' if kind[:1].lower() in 'aeiou' else 'a'} {kind}"
