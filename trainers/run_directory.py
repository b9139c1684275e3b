"""What a run leaves behind: who it was (run.json) and how it went (metrics.jsonl)."""

from __future__ import annotations

import fcntl
import json
import os
import pathlib
import platform
import shutil
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

import keras
import tensorflow as tf

import tf_importance as tfi

_DESCRIPTION = "run.json"
# What a run leaves of a net: saved_model and net.keras, and two checkpoints while the newer one is
# written, each with two numbers of the optimizer's for each of the net's at most; and the rest.
_COPIES, _REST = 2 + 2 * 3, 2 * 2**20
# Descriptors of the directories that this process holds, by device and inode, until its end.
_held: dict[tuple[int, int], int] = {}


def space(out: str | pathlib.Path, net: keras.Model) -> str:
    """What a run takes of the disk that it is on, in words.

    Raises:
        ValueError: it does not fit.
    """
    size = _REST + _COPIES * sum(weight.nbytes for weight in net.get_weights())
    there = pathlib.Path(out).absolute()
    while not there.exists():
        there = there.parent
    free = shutil.disk_usage(there).free
    if free < size:
        raise ValueError(
            f"a run takes up to {_mega(size)}, and at --out={out} there are {_mega(free)} left; "
            "give an --out with more room."
        )
    return f"A run takes up to {_mega(size)} there; {_mega(free)} are free."


def _mega(size: int) -> str:
    return f"{size / 1e6:,.0f} MB"


def remove(path: str | pathlib.Path) -> None:
    """Remove a run, where there is one; nothing that is no run.

    Raises:
        ValueError: another process trains there.
    """
    if pathlib.Path(path, _DESCRIPTION).exists():
        _hold(path)
        shutil.rmtree(path)


def _hold(path: str | pathlib.Path) -> None:
    """Keep a directory for this process, as long as it lives."""
    status = os.stat(path)
    if (status.st_dev, status.st_ino) in _held:
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise ValueError(
            f"--out={path} is being written by another process; wait for its end, or give another "
            "directory."
        ) from None
    except OSError:  # A file system without locks.
        pass
    _held[status.st_dev, status.st_ino] = descriptor


class RunDirectory:
    """The directory of one run.

    Args:
        path: made if it does not exist.
        flags: the run's flags; they are written to run.json with the versions, the commit and
            the command line.
    Raises:
        ValueError: the directory holds another run, with other flags, or foreign files, or another
            process trains there.
    """

    def __init__(self, path: str | pathlib.Path, flags: Mapping[str, Any]) -> None:
        self.path = pathlib.Path(path)
        description = self.path / _DESCRIPTION
        if description.exists():
            _refuse_other_flags(self.path, json.loads(description.read_text())["flags"], flags)
        elif self.path.exists() and any(self.path.iterdir()):
            raise ValueError(
                f"--out={self.path} is not empty and holds no run; give another directory."
            )
        self.path.mkdir(parents=True, exist_ok=True)
        _hold(self.path)
        description.write_text(json.dumps(_described(flags), indent=2) + "\n")

    def append(self, row: Mapping[str, Any]) -> None:
        """Add a line to metrics.jsonl."""
        tfi.reporting.runs.append(self.path, row)

    def keep_until(self, step: int) -> None:
        """Drop the lines after a step, written by a process that got no further checkpoint."""
        tfi.reporting.runs.keep_until(self.path, step)


def _refuse_other_flags(
    path: pathlib.Path, there: Mapping[str, Any], given: Mapping[str, Any]
) -> None:
    given = json.loads(json.dumps(given))
    names = sorted({*there, *given})
    differences = [
        f"--{name}={there.get(name)} there, {given.get(name)} now"
        for name in names
        if there.get(name) != given.get(name)
    ]
    if differences:
        raise ValueError(
            f"--out={path} holds a run with other flags: {'; '.join(differences)}. Give another "
            "directory, or the same flags to continue that run."
        )


def _described(flags: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "flags": dict(flags),
        "seed": flags.get("seed"),
        "versions": {
            "tf_importance": tfi.__version__,
            "tensorflow": tf.__version__,
            "keras": keras.__version__,
            "python": platform.python_version(),
        },
        "devices": [device.device_type for device in tf.config.list_physical_devices()],
        "commit": _commit(),
        "command": [tfi.stores.without_credentials_of(argument) for argument in sys.argv],
    }


def _commit() -> str | None:
    """The commit of the source, None where git does not know one."""
    command = ["git", "-C", str(pathlib.Path(__file__).parent), "rev-parse", "HEAD"]
    try:
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
