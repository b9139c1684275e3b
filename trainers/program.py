"""What surrounds the `main` of every program: where its results go, and how Ctrl-C ends it."""

from __future__ import annotations

import argparse
import pathlib
import shlex
import signal
import sys
from collections.abc import Callable, Sequence

from absl import app, flags

import tf_importance as tfi

_INTERRUPTED = 128 + signal.SIGINT


def run(main: Callable[[Sequence[str]], None], resumed_by: Sequence[str] = ()) -> None:
    """Run a program; after Ctrl-C say what is kept and which command goes on.

    Args:
        main: takes the arguments that are no flags, as with `app.run`.
        resumed_by: arguments that the command needs to go on, beside those given.
    """
    # The import of TensorFlow, trainers.startup, let Ctrl-C end the process.
    if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        app.run(main)
    except KeyboardInterrupt:
        print(f"\n{_farewell(flags.FLAGS, resumed_by)}", file=sys.stderr)
        sys.exit(_INTERRUPTED)


def default_out() -> str:
    """runs/NAME, with the name of the flagfile on the command line, else of the program."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--flagfile", "-flagfile", default=sys.argv[0])
    known, _ = parser.parse_known_args(sys.argv[1:])
    return f"runs/{pathlib.Path(known.flagfile).stem}"


def _farewell(values: flags.FlagValues, resumed_by: Sequence[str]) -> str:
    kept = values.out and pathlib.Path(values.out).exists()
    if values.dry_run or values.short or not kept:
        return "Interrupted; there is nothing to go on from."
    added = [argument for argument in resumed_by if argument not in sys.argv]
    command = [*map(tfi.stores.without_credentials_of, sys.orig_argv), *added]
    return (
        f"Interrupted. {values.out} keeps everything until the last evaluation; this goes on:\n"
        f"  {shlex.join(command)}"
    )
