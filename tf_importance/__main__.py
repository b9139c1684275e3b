"""Will importance sampling help, and how did it go? For those who only want to know.

    python -m tf_importance estimate my_module:make
    python -m tf_importance report runs/main

`make()` in my_module.py gives a compiled Keras model and data, `(model, (x, y))` or
`(model, dataset)`, a `tf.data.Dataset` of examples.
"""

from __future__ import annotations

import argparse
import difflib
import importlib
import inspect
import os
import sys


def main(arguments: list[str] | None = None) -> None:
    """Run a command.

    Args:
        arguments: words; by default those of the command line.
    """
    parser = argparse.ArgumentParser(
        "python -m tf_importance",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True)
    estimate = commands.add_parser(
        "estimate", help="the gain that is predicted for a net, as it is and after some steps"
    )
    estimate.add_argument("function", help="module:function, which gives (model, data)")
    estimate.add_argument(
        "--after", type=_counts, default=[300, 3000], help="steps to train a copy (300,3000)"
    )
    estimate.add_argument(
        "--batch_sizes", type=_counts, default=[32, 128], help="sizes to predict for (32,128)"
    )
    estimate.add_argument("--examples", type=_count, default=4096, help="to measure on (4096)")
    estimate.add_argument("--seconds", type=_count, default=60, help="to answer in, about (60)")
    report = commands.add_parser("report", help="an HTML page about runs, or a comparison")
    report.add_argument("folder", nargs="+", help="of runs; several are put side by side")
    report.add_argument("--out", help="the file (report.html in the folder)")
    given = parser.parse_args(arguments)
    if given.command == "report":
        _report(parser, given)
    else:
        _estimate(parser, given)


def _report(parser: argparse.ArgumentParser, given: argparse.Namespace) -> None:
    from tf_importance.reporting import report

    folder = given.folder[0] if len(given.folder) == 1 else given.folder
    if given.out is None and len(given.folder) > 1:
        parser.error("several folders go into one page; say where, --out report.html")
    try:
        path = report(folder, given.out)
    except (OSError, ImportError, ValueError) as error:
        parser.error(str(error))
    sys.stdout.write(f"{path}\n")


def _estimate(parser: argparse.ArgumentParser, given: argparse.Namespace) -> None:
    made = _made(parser, given.function)
    # Not before: to say what a command does needs none of it.
    from tf_importance.estimate import estimate_gain

    names = ("batch_sizes", "examples", "after", "seconds")
    try:
        found = estimate_gain(*made, **{name: getattr(given, name) for name in names})
    except (TypeError, ValueError) as error:
        # What is wrong with the model or the data, in a line.
        parser.error(f"{given.function}: {error}")
    sys.stdout.write(f"\n{found}\n")


def _made(parser: argparse.ArgumentParser, name: str) -> tuple:
    """(model, data) of a function module:function."""
    module, _, attribute = name.partition(":")
    if not attribute:
        parser.error(f"a function is named module:function; got {name!r}")
    sys.path.insert(0, os.getcwd())
    try:
        loaded = importlib.import_module(module)
    except ModuleNotFoundError as error:
        parser.error(f"there is no {name}: {error}")
    function = getattr(loaded, attribute, None)
    if function is None:
        close = difflib.get_close_matches(attribute, vars(loaded), 1)
        meant = f"; did you mean {module}:{close[0]}?" if close else ""
        parser.error(f"there is no {name}: module {module} has no {attribute!r}{meant}")
    if not callable(function):
        parser.error(f"{name} must be a function; it is a {type(function).__name__}")
    needed = [
        one.name
        for one in inspect.signature(function).parameters.values()
        if one.default is one.empty and one.kind not in (one.VAR_POSITIONAL, one.VAR_KEYWORD)
    ]
    if needed:
        parser.error(
            f"{name} is called without arguments, and needs {', '.join(needed)}; "
            "write a function that gives them"
        )
    made = function()
    if not isinstance(made, tuple) or len(made) != 2:
        parser.error(
            f"{name} must return (model, data), a compiled model and (x, y) or a dataset; got "
            f"{type(made).__name__}"
        )
    return made


def _count(text: str) -> int:
    """A positive whole number."""
    if not text.strip().isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a positive whole number; got {text!r}")
    return int(text)


def _counts(text: str) -> list[int]:
    """Some, with commas."""
    return [_count(part) for part in text.split(",") if part.strip()]


if __name__ == "__main__":
    main()
