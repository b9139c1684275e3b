"""What surrounds the `main` of every program: where its results go, and how it ends early.

What a user gave wrongly is said in a line; --verbose shows where it was found.
"""

from __future__ import annotations

import argparse
import difflib
import pathlib
import re
import shlex
import signal
import sys
from collections.abc import Callable, Sequence

from absl import app, flags

import tf_importance as tfi
from trainers import help

_HELP = {"--help", "-help", "-h", "-?"}
_INTERRUPTED = 128 + signal.SIGINT
_CONFIGS = pathlib.Path(__file__).resolve().parents[1] / "configs"
# Not that of "et al.", of "eq. 6" or of a file's ending.
_SENTENCE_END = re.compile(r"(?<!\bal)(?<!\beq)(?<!\bsec)(?<!\bFig)\. (?=[A-Z\-])")
# What arguments, files and stores are refused by.
_REFUSALS = (ValueError, TypeError, ImportError, OSError, RuntimeError)


def run(main: Callable[[Sequence[str]], None], resumed_by: Sequence[str] = ()) -> None:
    """Run a program; after Ctrl-C say what is kept and which command goes on.

    Args:
        main: takes the arguments that are no flags, as with `app.run`.
        resumed_by: arguments that the command needs to go on, beside those given.
    """
    # The import of TensorFlow, trainers.startup, let Ctrl-C end the process.
    if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if _HELP & {*sys.argv[1:]}:
        print(help.text(flags.FLAGS, sys.argv[0], sys.modules["__main__"].__doc__ or ""))
        return
    if "--list_configs" in sys.argv:
        print("\n".join(configs_of(_name())))
        return
    _refuse_missing_flagfile()
    try:
        app.run(guarded(main), flags_parser=_parsed)
    except KeyboardInterrupt:
        print(f"\n{_farewell(flags.FLAGS, resumed_by)}", file=sys.stderr)
        sys.exit(_INTERRUPTED)


def guarded(main: Callable[[Sequence[str]], None]) -> Callable[[Sequence[str]], None]:
    """A main that says in a line what it was given wrongly, and ends with status 1."""

    def run_main(arguments: Sequence[str]) -> None:
        try:
            _refuse_words(arguments[1:])
            main(arguments)
        except _REFUSALS as error:
            if "--verbose" in sys.argv or isinstance(error, (NotImplementedError, RecursionError)):
                raise
            text = tfi.stores.without_credentials(str(error) or type(error).__name__)
            print(f"{_name()}: {text} (--verbose shows where)", file=sys.stderr)
            sys.exit(1)

    return run_main


def _parsed(arguments: Sequence[str]) -> list[str]:
    """The words that are no flags; a flag that is wrong is said in a line, and ends the program."""
    try:
        return flags.FLAGS(arguments)
    except flags.Error as error:
        others = " ".join(filter(None, map(_of_another, _flagfiles())))
        text = " ".join([str(error).rstrip(".") + ".", *([others] if others else [])])
        print(f"{_name()}: {text} --help shows all flags.", file=sys.stderr)
        sys.exit(1)


def _of_another(path: str) -> str:
    """That a flagfile is of another program, where it says so itself."""
    text = pathlib.Path(path).read_text("utf-8") if pathlib.Path(path).exists() else ""
    programs = sorted(set(re.findall(r"python -m (trainers\.\w+) ", text)))
    if not programs or _name() in programs:
        return ""
    return f"{path} is a flagfile of {' and '.join(programs)}."


def _refuse_words(words: Sequence[str]) -> None:
    """Raises: ValueError: there are words on the command line that belong to no flag."""
    if words:
        raise ValueError(
            f"{' '.join(words)!r} belongs to no flag; give values as --name=value, and a switch "
            "as --name or --noname."
        )


def configs_of(program: str) -> list[str]:
    """A line for each flagfile of a program: its path, and what it says of itself first.

    Args:
        program: such as trainers.compare.
    """
    lines = []
    for path in sorted(_CONFIGS.rglob("*.cfg")):
        text, name = path.read_text("utf-8"), str(path.relative_to(_CONFIGS.parent))
        comments = " ".join(line.lstrip("# ") for line in text.splitlines() if line.startswith("#"))
        # Others' commands may come before, and make what it needs.
        _, *commands = comments.split("python -m ")
        if any(one.startswith(f"{program} ") and name in one for one in commands):
            first = _SENTENCE_END.split(comments)[0].partition("  python")[0]
            lines.append(f"{name}: {first.rstrip('.:')}.")
    return lines


def _name() -> str:
    """As `python -m` has it."""
    return f"trainers.{pathlib.Path(sys.argv[0]).stem}"


def _refuse_missing_flagfile() -> None:
    """Name the flagfiles that are like one that is not there."""
    for path in _flagfiles():
        if not pathlib.Path(path).exists():
            known = [str(one.relative_to(_CONFIGS.parent)) for one in _CONFIGS.rglob("*.cfg")]
            close = difflib.get_close_matches(path, known, 3, 0.6)
            like = f" Did you mean {' or '.join(close)}?" if close else ""
            text = f"there is no flagfile {path}.{like} --list_configs shows those that there are."
            print(f"{_name()}: {text}", file=sys.stderr)
            sys.exit(1)


def default_out() -> str:
    """runs/NAME, with the name of the flagfile on the command line, else of the program.

    Where several flagfiles have a name, their folders come first: runs/issgd-digits. No run lies in
    the directory of another.
    """
    *_, last = sys.argv[0], *_flagfiles()
    path = pathlib.Path(last).absolute()
    several = len([*_CONFIGS.rglob(path.name)]) > 1
    return f"runs/{path.parent.name}-{path.stem}" if several else f"runs/{path.stem}"


def _flagfiles() -> list[str]:
    """Those on the command line."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--flagfile", "-flagfile", action="append", default=[])
    known, _ = parser.parse_known_args(sys.argv[1:])
    return known.flagfile


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
