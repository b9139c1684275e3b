"""Every trainer as a command: quiet, tried out in seconds, interrupted and resumed."""

from __future__ import annotations

import json
import os
import pathlib
import re
import shlex
import signal
import subprocess
import sys
import time

import pytest

from trainers import program, startup

ROOT = pathlib.Path(__file__).parents[2]
_DEADLINE = 240  # seconds
_CURVES = (
    "configs/image_classification/digits_uniform.cfg,configs/image_classification/digits_gain.cfg"
)
_COMMANDS = [
    ["trainers.issgd", "--role=worker", "--store=redis://nobody:1"],
    *(
        pytest.param(command, marks=pytest.mark.slow)
        for command in (
            ["trainers.compare", f"--curves={_CURVES}", "--out=OUT"],
            # The others: .ci/fresh.
            ["trainers.image_classification"],
        )
    ),
]


def _environment() -> dict[str, str]:
    """Where nobody has asked TensorFlow to be quiet, and modules are found from any directory."""
    kept = {name: value for name, value in os.environ.items() if name != "TF_CPP_MIN_LOG_LEVEL"}
    return {**kept, "PYTHONPATH": os.getcwd()}


def _runs_quietly(command: list[str], cwd: pathlib.Path) -> str:
    """What a command prints; what it logs must be its own."""
    shown = subprocess.run(
        [sys.executable, "-m", *command],
        capture_output=True,
        text=True,
        cwd=cwd,
        env=_environment(),
    )
    assert shown.returncode == 0, shown.stderr
    said = [line for line in shown.stderr.splitlines() if not line.startswith("worker 0: ")]
    assert said == []
    return shown.stdout


@pytest.fixture
def root(tmp_path) -> pathlib.Path:
    """An empty directory but for the configs, which name each other from the checkout's root."""
    (tmp_path / "configs").symlink_to(pathlib.Path("configs").resolve())
    return tmp_path


@pytest.mark.parametrize("command", _COMMANDS, ids=lambda command: command[0])
def test_a_dry_run_is_quiet_and_leaves_nothing(root, command):
    shown = _runs_quietly([*command, "--dry_run", "--short"], root)
    assert "--batch_size=4" in shown.splitlines() and "one step: " in shown
    assert [path.name for path in root.iterdir()] == ["configs"]


@pytest.mark.slow
def test_a_flagfile_alone_is_a_command_and_short_replaces_what_it_left(root):
    config = "configs/image_classification/digits_gain.cfg"
    for _ in range(2):
        command = ["trainers.image_classification", f"--flagfile={config}", "--short"]
        shown = _runs_quietly(command, root)
        assert shown.startswith("Training for 2 steps; results go to runs/digits_gain-short.")
        assert shown.rstrip().endswith("runs/digits_gain-short/curves.png")
    assert [path.name for path in (root / "runs").iterdir()] == ["digits_gain-short"]


@pytest.mark.parametrize(
    "arguments, out",
    [
        ([], "runs/trainer"),
        (["--flagfile=a/b.cfg", "--seed=3"], "runs/b"),
        (["--seed=3", "--flagfile", "a/b.cfg", "--flagfile=c.cfg"], "runs/c"),
        (["--flagfile=configs/issgd/digits.cfg"], "runs/issgd-digits"),
        (["--flagfile=configs/main.cfg"], "runs/main"),
    ],
)
def test_results_go_to_a_directory_of_the_flagfiles_name(monkeypatch, arguments, out):
    monkeypatch.setattr(sys, "argv", ["/x/trainer.py", *arguments])
    assert program.default_out() == out


def test_no_flagfile_writes_into_the_results_of_another(monkeypatch):
    found = set()
    files = sorted(pathlib.Path("configs").rglob("*.cfg"))
    for file in files:
        monkeypatch.setattr(sys, "argv", ["/x/trainer.py", f"--flagfile={file}"])
        found.add(pathlib.Path(program.default_out()))
    assert len(found) == len(files) > 100
    assert {path.parent for path in found} == {pathlib.Path("runs")}


@pytest.mark.parametrize(
    "arguments, before, after", [([], "", "3"), (["--verbose"], "", ""), ([], "1", "1")]
)
def test_tensorflow_is_quiet_unless_asked(monkeypatch, arguments, before, after):
    monkeypatch.setenv("TF_CPP_MIN_LOG_LEVEL", before)
    if not before:
        monkeypatch.delenv("TF_CPP_MIN_LOG_LEVEL")
    monkeypatch.setattr(sys, "argv", ["x", *arguments])
    startup.import_tensorflow()
    assert os.environ.get("TF_CPP_MIN_LOG_LEVEL", "") == after


# Ctrl-C ---------------------------------------------------------------------------------------


def _rows(path: pathlib.Path) -> list[dict]:
    return [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]


def _interrupted(command: list[str], watched: pathlib.Path) -> str:
    """Start a command, press Ctrl-C once a run has two evaluations; what it says about that."""
    process = subprocess.Popen(
        [sys.executable, "-m", *command],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        # Where this process ignores the signal, a child would too.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    end = time.monotonic() + _DEADLINE
    metrics = watched / "metrics.jsonl"
    while not (metrics.exists() and metrics.read_text().count("\n") >= 2):
        assert process.poll() is None and time.monotonic() < end
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=_DEADLINE)
    assert process.returncode == 130, said
    assert "Traceback" not in said
    return said


def _resumed(said: str) -> subprocess.CompletedProcess:
    """Run the command that was said."""
    command = shlex.split(said.splitlines()[-1])
    return subprocess.run(command, capture_output=True, text=True, check=True)


def _assert_goes_on(before: list[dict], path: pathlib.Path, steps: int) -> None:
    """A run is complete, with the evaluations that it had and none twice."""
    rows = _rows(path)
    assert [row["step"] for row in rows] == list(range(steps + 1))
    # The last may have been without its checkpoint.
    assert len(before) > 1 and rows[: len(before) - 1] == before[:-1]


def _steps(steps: int, data_dir: str) -> list[str]:
    """Flags of a run with an evaluation at each of its steps, a power of two."""
    flags = ["--net=linear", "--batch_size=16", f"--data_dir={data_dir}"]
    return [*flags, f"--steps={steps}", f"--evaluations={steps}"]


@pytest.mark.slow
def test_an_interrupted_run_says_the_command_that_completes_it(data_dir, tmp_path):
    out = tmp_path / "with a space"
    command = ["trainers.image_classification", f"--out={out}", *_steps(64, data_dir)]
    said = _interrupted(command, out)
    assert f"Interrupted. {out} keeps everything until the last evaluation" in said
    before = _rows(out)
    assert "Continuing from step" in _resumed(said).stderr
    _assert_goes_on(before, out, 64)


@pytest.mark.slow
def test_an_interrupted_comparison_keeps_complete_and_partial_runs(data_dir, tmp_path):
    for name in ("one", "two"):
        (tmp_path / f"{name}.cfg").write_text("\n".join(_steps(32, data_dir)))
    out = tmp_path / "out"
    command = ["trainers.compare", "--seeds=1", "--anew", f"--out={out}"]
    command.append(f"--curves={tmp_path / 'one.cfg'},{tmp_path / 'two.cfg'}")
    said = _interrupted(command, out / "two" / "0")
    assert said.splitlines()[-1].endswith(" --noanew")
    complete, partial = _rows(out / "one" / "0"), _rows(out / "two" / "0")
    done = _resumed(said)
    assert done.stdout.splitlines()[-1].endswith("comparison.png")
    assert _rows(out / "one" / "0") == complete
    _assert_goes_on(partial, out / "two" / "0", 32)


# What a user gives wrongly -----------------------------------------------------------------------


@pytest.mark.parametrize("error", [ValueError, OSError, RuntimeError])
def test_what_is_refused_is_said_in_a_line(monkeypatch, capsys, error):
    def main(arguments):
        raise error("--net must be one of redis://user:secret@host; got 'x'.")

    monkeypatch.setattr(sys, "argv", ["trainers/compare.py"])
    with pytest.raises(SystemExit) as ended:
        program.guarded(main)([])
    said = capsys.readouterr().err
    assert ended.value.code == 1 and "secret" not in said
    assert said.startswith("trainers.compare: --net must be one of") and said.count("\n") == 1
    monkeypatch.setattr(sys, "argv", ["trainers/compare.py", "--verbose"])
    with pytest.raises(error):
        program.guarded(main)([])


def test_a_flagfile_that_is_not_there_is_said_with_those_that_are_like_it(monkeypatch, capsys):
    for words in (["--flagfile=configs/diggits.cfg"], ["--flagfile", "configs/diggits.cfg"]):
        monkeypatch.setattr(sys, "argv", ["trainers/compare.py", *words])
        with pytest.raises(SystemExit) as ended:
            program.run(lambda _: None)
        assert ended.value.code == 1
        assert "Did you mean configs/digits.cfg" in capsys.readouterr().err


def test_the_flagfiles_of_a_program(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["trainers/compare.py", "--list_configs"])
    program.run(lambda _: None)
    lines = capsys.readouterr().out.splitlines()
    found = {line.partition(": ")[0] for line in lines}
    assert {"configs/main.cfg", "configs/digits.cfg", "configs/figures/small_images.cfg"} <= found
    assert not any("rare_classes/" in path for path in found)
    assert all(re.search(r": .*\w\)?\.$", line) for line in lines)
    # What another program makes first is none of its own.
    of_images = program.configs_of("trainers.image_classification")
    assert not any("figures/" in line for line in of_images)
    # Each flagfile is some program's.
    shown = {
        line.partition(": ")[0]
        for name in ("compare", "image_classification", "fine_tuning", "rare_classes", "issgd")
        for line in program.configs_of(f"trainers.{name}")
    }
    others = ("sequence_classification", "variance_ablation")
    shown |= {
        line.partition(": ")[0]
        for name in others
        for line in program.configs_of(f"trainers.{name}")
    }
    there = {str(path.relative_to(ROOT)) for path in (ROOT / "configs").rglob("*.cfg")}
    assert there - shown == set()


# What is wrong on a command line -----------------------------------------------------------------

_UNIFORM = "configs/image_classification/digits_uniform.cfg"


@pytest.mark.parametrize(
    "words, said",
    [
        (["image_classification", "--momentum=nan"], "--momentum must be in [0, 1)."),
        (["image_classification", "--momentum=1"], "--momentum must be in [0, 1)."),
        (["image_classification", "--weight_decay=nan"], "must be finite and not negative."),
        (["image_classification", "--kept=2"], "--kept must be in (0, 1]."),
        (["image_classification", "--clip_norm=-1"], "must be finite and not negative."),
        (["image_classification", "jit", "--short"], "'jit' belongs to no flag; give values as"),
        (["image_classification", "--flagfile=configs/main.cfg"], "flagfile of trainers.compare."),
        (["image_classification", "--jot"], "Unknown command line flag 'jot'."),
        (["compare", f"--curves={_UNIFORM}", "--grid=a"], "positive learning rates; got 'a'."),
        (["compare", f"--curves={_UNIFORM}", "--grid=-1"], "positive learning rates; got '-1'."),
        (["compare", f"--curves={_UNIFORM}", "--time_budget=-1"], "must be positive and finite."),
        (["compare", f"--curves={_UNIFORM}", "--best_of_grid"], "has no --grid; give learning"),
        (["compare", "--curves=nofile.cfg"], "Give flagfiles of that trainer as --curves."),
    ],
    ids=lambda value: " ".join(value[-1:]) if isinstance(value, list) else "",
)
def test_what_is_wrong_is_said_in_a_line(root, words, said):
    program_name, *given = words
    ended = subprocess.run(
        [sys.executable, "-m", f"trainers.{program_name}", *given],
        capture_output=True,
        text=True,
        cwd=root,
        env=_environment(),
    )
    lines = ended.stderr.strip().splitlines()
    assert ended.returncode == 1 and len(lines) == 1, ended.stderr
    assert lines[0].startswith(f"trainers.{program_name}: ") and said in lines[0]
    assert [path.name for path in root.iterdir()] == ["configs"]
