"""The trainer of delegated runs: one process, its configs, its records, its refusals."""

from __future__ import annotations

import json
import pathlib

import numpy as np
import pytest

from reports import curves
from reports import issgd as report
from trainers import delegated, issgd, run_directory

CONFIGS = sorted(pathlib.Path("configs/issgd").glob("*.cfg"))


@pytest.fixture
def settings_of(parser_of):
    """Parses this trainer's command line."""
    return parser_of(issgd.define)


def rows(path: pathlib.Path, name: str) -> list[dict]:
    return [json.loads(line) for line in (path / name).read_text().splitlines()]


def test_the_whole_system_in_one_process(settings_of):
    settings = settings_of(
        *("--net=linear", "--steps=60", "--evaluations=3", "--workers=2", "--publish_every=5"),
        *("--pull_seconds=0.05", "--smooth_to_entropy=0.95", "--staleness_versions=50"),
    )
    path, model = issgd.train(settings)
    metrics, monitors = rows(path, "metrics.jsonl"), rows(path, "issgd.jsonl")
    assert [row["step"] for row in metrics] == [row["step"] for row in monitors] == [0, 20, 40, 60]
    assert metrics[-1]["train_loss"] < metrics[0]["train_loss"]
    last = monitors[-1]
    assert np.isfinite([value for value in last.values() if value is not None]).all()
    if last["sqrt_trace_stale"] is not None:
        assert last["sqrt_trace_ideal"] <= last["sqrt_trace_stale"]
    flags_of_run = json.loads((path / "run.json").read_text())["flags"]
    assert flags_of_run["sampling"] == "issgd" and flags_of_run["smooth_to_entropy"] == 0.95
    assert not {"store", "role", "run_name"} & set(flags_of_run)


@pytest.mark.slow
def test_exact_repeats_itself(settings_of, tmp_path):
    weights = []
    for name in ("one", "two"):
        settings = settings_of(
            *("--net=linear", "--steps=3", "--evaluations=1", "--workers=2", "--exact"),
            *("--repeatable", f"--out={tmp_path / name}"),
        )
        weights.append(issgd.train(settings)[1].net.get_weights())
    for mine, theirs in zip(*weights):
        np.testing.assert_array_equal(mine, theirs)


def test_uniform_needs_no_store(settings_of):
    settings = settings_of("--sampling=uniform", "--steps=2", "--evaluations=1", "--net=linear")
    path, _ = issgd.train(settings)
    assert not (path / "issgd.jsonl").exists()


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.stem)
def test_configs_parse_and_name_themselves(settings_of, config):
    # Beside those without workers of their own there is a server.
    place = [] if "--workers" in config.read_text() else ["--store=redis://127.0.0.1:6379"]
    settings = settings_of(f"--flagfile={config}", *place)
    delegated.checked(settings)
    assert f"--flagfile={config}" in config.read_text()
    assert settings.sampling == ("uniform" if "uniform" in config.stem else "issgd")


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--role=boss"], "--role must be one of master, worker, peer; got 'boss'"),
        (["--role=worker"], "needs a store that other processes can reach"),
        (["--steps=1"], "nobody scores but --workers"),
        (["--exact", "--workers=1"], "--repeatable"),
        (["--scorer=x"], "--scorer must be one of"),
        (["--role=peer", "--store=redis://h", "--time_budget=1"], "same step"),
        (["--role=peer", "--store=redis://h", "--steps=1", "--peers=a:1", "--rank=1"], "--rank"),
        (["--store=http://u:secret@h", "--steps=1", "--workers=1"], "begin with memory://"),
        (["--store=redis://u:secret@127.0.0.1:1", "--steps=1", "--net=linear"], "does not answer"),
    ],
)
def test_what_cannot_be_is_refused_without_credentials(settings_of, arguments, message):
    with pytest.raises((ValueError, RuntimeError), match=message) as caught:
        issgd.train(settings_of(*arguments))
    assert "secret" not in str(caught.value)


def test_credentials_are_not_written_down(tmp_path, monkeypatch):
    monkeypatch.setattr("sys.argv", ["issgd", "--store=redis://user:secret@host:1/0", "--steps=1"])
    run_directory.RunDirectory(tmp_path / "run", {})
    text = (tmp_path / "run" / "run.json").read_text()
    assert "secret" not in text and "redis://***@host:1/0" in text


# Reports --------------------------------------------------------------------------------------


def recorded(path: pathlib.Path, seed: int, monitors: bool) -> pathlib.Path:
    """What a run of ten evaluations leaves."""
    path.mkdir(parents=True)
    (path / "run.json").write_text(json.dumps({"flags": {"learning_rate": 0.1}}))
    lines, numbers = [], []
    for step in range(11):
        error = 0.5 / (1 + step) + 0.01 * seed
        row = {"step": step, "seconds": step * 2.0, "train_loss": 2 * error}
        lines.append({**row, "train_error": error, "test_error": error})
        trace = 1.0 + seed if step > 2 else None
        numbers.append({"step": step, "sqrt_trace_ideal": trace, "sqrt_trace_uniform": 3.0})
    (path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    if monitors:
        # Step 3 was recorded twice, by a run that was killed while it wrote.
        numbers.insert(3, {**numbers[3], "sqrt_trace_ideal": 99.0})
        written = [json.dumps(row) + "\n" for row in numbers]
        written[3] = written[3][:-9]
        (path / "issgd.jsonl").write_text("".join(written))
    return path


def test_reports_draw_the_papers_figures(tmp_path):
    runs = [recorded(tmp_path / "issgd" / str(seed), seed, True) for seed in range(3)]
    runs += [recorded(tmp_path / "uniform" / str(seed), seed + 1, False) for seed in range(3)]
    table = report.write(runs, tmp_path / "out")
    for name in ("figure2.png", "figure3.svg", "figure4.png", "table.csv"):
        assert (tmp_path / "out" / name).stat().st_size > 0
    # Evaluations at 18 and 20 seconds are the last tenth of 20.
    means = [np.mean([0.5 / 10, 0.5 / 11]) + 0.01 * seed for seed in range(3)]
    assert f"{np.mean(means):.3g}" in table and "uniform" in table
    run = curves.read(runs[1])
    seconds, values = report.monitored(runs[1], run)["sqrt_trace_ideal"]
    assert seconds.tolist() == [2.0 * step for step in range(3, 11)] and set(values) == {2.0}
    tube = report.tube([curves.read(path).values("test_error") for path in runs[:3]])
    np.testing.assert_allclose(tube.high - tube.median, 0.005, atol=1e-9)
    assert tube.median[0] == pytest.approx(0.51)
