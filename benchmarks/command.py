"""The flags that all benchmarks share: --short and --verbose. Needs no TensorFlow."""

from __future__ import annotations

import pathlib

from absl import flags

# The trainers have flags of these names; a process that imports both, as the tests do, may.
flags.DEFINE_boolean(
    "short",
    False,
    "The smallest sizes and one round: shows in seconds that it runs; its figures mean nothing.",
    allow_override=True,
)
flags.DEFINE_boolean(
    "verbose", False, "Show what TensorFlow says while it starts.", allow_override=True
)


def shorten(**smallest: object) -> None:
    """With --short give flags their smallest values, and write to runs/short/ instead.

    Args:
        **smallest: by flag. A number is used whatever was given; a list, such as of nets, only if
            none was given, and so is --out.
    """
    values = flags.FLAGS
    if not values.short:
        return
    short_out = str(pathlib.Path("runs/short", pathlib.Path(values.out).name))
    for name, value in {**smallest, "out": short_out}.items():
        if isinstance(value, (int, float)) or not values[name].present:
            setattr(values, name, value)
