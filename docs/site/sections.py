"""Docstrings as the site's parser wants them: sections apart, and each item of one on its line."""

from __future__ import annotations

import re
from typing import Any

import griffe

_NAMES = "Args|Attributes|Returns|Raises|Yields"
_BEGINS = re.compile(rf"(?<!\n)\n(?=(?:{_NAMES}):\n)")
_LISTS = re.compile(r"^(?:Args|Attributes|Raises):\n(?: {4}.*\n?)+", flags=re.MULTILINE)
# "size: b. seed: of its draws."
_NEXT_ITEM = re.compile(r"\.\s+(?=(?:[a-z_]+(?:, [a-z_]+)*|[A-Z]\w*Error): )")


class Sections(griffe.Extension):
    """Puts in what the sources do without, and leaves out what only makes objects print."""

    def on_class(self, *, cls: griffe.Class, **kwargs: Any) -> None:
        """Of each class that is read."""
        cls.bases = [base for base in cls.bases if not str(base).endswith("Written")]

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Of each object that is read."""
        if obj.docstring is not None:
            obj.docstring.value = apart(obj.docstring.value)


def apart(text: str) -> str:
    """A docstring with an empty line before each section, and a line for each item."""
    text = _BEGINS.sub("\n\n", text)
    return _LISTS.sub(lambda found: _NEXT_ITEM.sub(".\n    ", found[0]), text)
