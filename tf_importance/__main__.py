"""Will importance sampling help, and how did it go? For those who only want to know.

    python -m tf_importance estimate my_module:make
    python -m tf_importance report runs/main

`make()` in my_module.py gives a compiled Keras model and data, `(model, (x, y))` or
`(model, dataset)`, a `tf.data.Dataset` of examples.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys

# What TensorFlow says when it starts is not asked for.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")


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
        "--after", type=_numbers, default=[300, 3000], help="steps to train a copy (300,3000)"
    )
    estimate.add_argument(
        "--batch_sizes", type=_numbers, default=[32, 128], help="sizes to predict for (32,128)"
    )
    estimate.add_argument("--examples", type=int, default=4096, help="to measure on (4096)")
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
    try:
        path = report(folder, given.out)
    except (FileNotFoundError, ImportError, ValueError) as error:
        parser.error(str(error))
    sys.stdout.write(f"{path}\n")


def _estimate(parser: argparse.ArgumentParser, given: argparse.Namespace) -> None:
    module, _, name = given.function.partition(":")
    if not name:
        parser.error(f"a function is named module:function; got {given.function!r}")
    sys.path.insert(0, os.getcwd())
    try:
        function = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        parser.error(f"there is no {given.function}: {error}")
    # Not before: to say what a command does needs no TensorFlow.
    from tf_importance.estimate import estimate_gain

    made = function()
    if not isinstance(made, tuple) or len(made) != 2:
        parser.error(f"{given.function} must give (model, data); got {type(made).__name__}")
    options = {"batch_sizes": given.batch_sizes, "examples": given.examples, "after": given.after}
    sys.stdout.write(f"\n{estimate_gain(*made, **options)}\n")


def _numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",") if part]


if __name__ == "__main__":
    main()
