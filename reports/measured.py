"""Which benchmark's figures stand where, and when and with what they were measured.

    make measured

Needs a clone with its history: the date is that of the newest line of figures behind the
benchmark's command, and the versions are those that constraints/current.txt pinned then.
"""

from __future__ import annotations

import datetime
import pathlib
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from typing import NamedTuple

ROOT = pathlib.Path(__file__).resolve().parents[1]
_LOCK = "constraints/current.txt"
_COMMAND = re.compile(r"`?python -m benchmarks\.(\w+)")
_PINNED = re.compile(r"^(tensorflow|keras)==([\w.]+)", flags=re.MULTILINE)
_BLAMED = re.compile(r"^(\w{40}) \d+ (\d+)", flags=re.MULTILINE)
_TITLE = """# All benchmarks

Each is a module of `benchmarks`, run in a clone after `pip install '.[trainers]'` by the command
that its page shows. It leaves a JSON file with its figures and versions. With `--short` it shows in
seconds that it works. Figures are ratios within one process where they can be, since the machines
are small and shared.

All were measured on virtual machines with 2 x86-64 cores, 24 GB and no GPU. The date is that of the
newest row of figures; in a text without a table they have none. Versions stand where they were
pinned by then. `make measured` writes this page anew.

| | what it measures | figures | date | TensorFlow, Keras |
|---|---|---|---|---|
"""


class Place(NamedTuple):
    """Where a page names a benchmark.

    Attributes:
        name: the benchmark. page: the path. lines: numbers of its tables' rows behind it.
    """

    name: str
    page: pathlib.Path
    lines: Sequence[int]


def places(page: pathlib.Path) -> Iterator[Place]:
    """Each mention of a benchmark on a page, to the next mention or heading."""
    lines = page.read_text("utf-8").splitlines()
    starts = [number for number, line in enumerate(lines) if _COMMAND.search(line)]
    for start in starts:
        stops = (n for n in range(start + 1, len(lines)) if n in starts or lines[n][:1] == "#")
        for found in _COMMAND.finditer(lines[start]):
            behind = range(start, next(stops, len(lines)))
            figures = [number for number in behind if re.match(r"\|.*\d", lines[number])]
            yield Place(found[1], page, figures)


def measured(place: Place) -> tuple[str, str]:
    """The newest commit of a place's lines, and its date."""
    blamed = _git("blame", "-w", "-M", "-C", "-C", "--porcelain", str(place.page))
    lines = {int(number) - 1: commit for commit, number in _BLAMED.findall(blamed)}
    commits = {lines[number] for number in place.lines}
    dates = {commit: int(_git("show", "-s", "--format=%at", commit)) for commit in commits}
    newest = max(commits, key=lambda commit: dates[commit])
    day = datetime.datetime.fromtimestamp(dates[newest], datetime.timezone.utc)
    return newest, f"{day:%Y-%m-%d}"


def versions(commit: str) -> dict[str, str]:
    """What was pinned for Python 3.11 and later; nothing of the time before versions were."""
    if not _git("ls-tree", "--name-only", commit, _LOCK):
        return {}
    # The last of a name is that of the newest Python.
    return dict(_PINNED.findall(_git("show", f"{commit}:{_LOCK}")))


def rows(out: pathlib.Path) -> Iterator[str]:
    """The table's, by name: where most of a benchmark's figures are, out itself left aside."""
    largest: dict[str, Place] = {}
    for page in sorted({*(ROOT / "docs").glob("*.md")} - {out}):
        for place in places(page):
            there = largest.setdefault(place.name, place)
            if len(place.lines) > len(there.lines):
                largest[place.name] = place
    for name, place in sorted(largest.items()):
        # Text without a table is reworded at any time: it has no date.
        commit, day = measured(place) if place.lines else ("", "")
        source = (ROOT / "benchmarks" / f"{name}.py").read_text("utf-8")
        pinned = versions(commit) if commit and "import torch" not in source else {}
        title = source.removeprefix('"""').partition("\n")[0].partition(": python -m")[0]
        page, day = place.page, day.replace("-", "\N{NON-BREAKING HYPHEN}")
        yield (
            f"| {name} | {title.rstrip('.')} | [{page.stem}]({page.name}) | {day} | "
            f"{', '.join(filter(None, map(pinned.get, ('tensorflow', 'keras'))))} |"
        )


def _git(*arguments: str) -> str:
    command = ["git", "-C", str(ROOT), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def main(arguments: list[str]) -> None:
    """Write the page."""
    if len(arguments) != 1:
        sys.exit("Give the page to write: python -m reports.measured docs/benchmarks.md.")
    out = pathlib.Path(arguments[0]).resolve()
    out.write_text(_TITLE + "\n".join(rows(out)) + "\n", "utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
