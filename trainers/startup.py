"""The import of TensorFlow, without its noise and without a traceback after Ctrl-C.

It takes seconds, in which TensorFlow tells what it found on the machine: drivers, instructions,
plug-ins. --verbose on the command line, or a TF_CPP_MIN_LOG_LEVEL below 3, shows all of that.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import signal
import sys
from collections.abc import Iterator

_LEVEL = "TF_CPP_MIN_LOG_LEVEL"
_NOTHING = "3"


def import_tensorflow() -> None:
    """Import it, quietly unless the user asks for more."""
    _end_by_interrupt()
    if "--verbose" not in sys.argv:
        os.environ.setdefault(_LEVEL, _NOTHING)
    quiet = os.environ.get(_LEVEL) == _NOTHING
    # What is said while the libraries are loaded knows no level: it goes to the descriptor.
    with _no_standard_error() if quiet else contextlib.nullcontext():
        importlib.import_module("tensorflow")


def _end_by_interrupt() -> None:
    """Until `program.run` takes over, let Ctrl-C end a program of this package at once."""
    # "-m" is what python -m has there while it imports the module's package, and no one later.
    starts_program = sys.argv[0] == "-m"
    if starts_program and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)


@contextlib.contextmanager
def _no_standard_error() -> Iterator[None]:
    sys.stderr.flush()
    saved = os.dup(2)
    try:
        with open(os.devnull, "w") as nowhere:
            os.dup2(nowhere.fileno(), 2)
        yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)
