"""Run the notebooks and keep what they print: make notebooks"""

from __future__ import annotations

import contextlib
import io
import json
import os
import pathlib
import tempfile
import warnings
from typing import Any

HERE = pathlib.Path(__file__).resolve().parent


def executed(cells: list[dict[str, Any]]) -> None:
    """Run the cells of code, one after the other, each with its prints as its output."""
    scope: dict[str, Any] = {"__name__": "__main__"}
    for cell in cells:
        if cell["cell_type"] == "code":
            printed = io.StringIO()
            with contextlib.redirect_stdout(printed):
                exec(compile("".join(cell["source"]), "cell", "exec"), scope)
            lines = printed.getvalue().splitlines(keepends=True)
            stream = {"name": "stdout", "output_type": "stream", "text": lines}
            cell["outputs"] = [stream] if lines else []


def main() -> None:
    """Execute all, each in a folder that is gone afterwards."""
    warnings.simplefilter("ignore")
    for path in sorted(HERE.glob("*.ipynb")):
        notebook = json.loads(path.read_text("utf-8"))
        with tempfile.TemporaryDirectory() as folder:
            os.chdir(folder)
            executed(notebook["cells"])
            os.chdir(HERE)
        path.write_text(json.dumps(notebook, indent=1, ensure_ascii=False) + "\n", "utf-8")


if __name__ == "__main__":
    main()
