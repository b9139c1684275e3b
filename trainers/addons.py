"""TensorFlow Addons, where it is installed."""

from __future__ import annotations

import importlib
import warnings
from types import ModuleType

PREFIX = "tfa:"


def load(wanted_by: str) -> ModuleType:
    """The module `tensorflow_addons`.

    Args:
        wanted_by: the flag that needs it, for the error.
    Raises:
        ImportError: TensorFlow Addons is not installed, or not for this TensorFlow.
    """
    try:
        with warnings.catch_warnings():
            # That its development has ended.
            warnings.simplefilter("ignore", UserWarning)
            return importlib.import_module("tensorflow_addons")
    except ImportError as error:
        raise ImportError(
            f"{wanted_by} needs TensorFlow Addons, which works with TensorFlow 2.15 only: "
            "in a clone, pip install '.[addons]' into an environment of its own "
            "(Python 3.10 or 3.11)."
        ) from error
