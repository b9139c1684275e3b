"""Tables and figures from stored metrics."""

from __future__ import annotations

import csv
import io
import json
import statistics
import subprocess
import sys

import pytest

from reports import curves


def _write(directory, losses, importance=(None, None)):
    directory.mkdir(parents=True)
    (directory / "run.json").write_text(json.dumps({"flags": {"learning_rate": 0.1}}))
    rows = [
        {
            "step": 10 * index,
            "seconds": 0.5 * index,
            "train_loss": loss,
            "test_error": loss / 10,
            "tau": None if share is None else 2.0,
            "importance": share,
        }
        for index, (loss, share) in enumerate(zip(losses, (None, *importance)))
    ]
    (directory / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture
def stored(tmp_path):
    """Two curves of three runs each, importance better throughout."""
    for seed in range(3):
        _write(tmp_path / "uniform" / str(seed), [2.0, 0.5, 0.3 + seed / 10])
        _write(tmp_path / "importance" / str(seed), [2.0, 0.4, 0.1 + seed / 100], (0.0, 1.0))
    return tmp_path


@pytest.fixture
def compared(stored):
    return {
        label: [curves.read(stored / label / str(seed)) for seed in range(3)]
        for label in ("uniform", "importance")
    }


def test_a_run_is_read_with_the_name_of_its_curve(stored):
    run = curves.read(stored / "importance" / "1")
    assert run.label == "importance" and run.last["train_loss"] == 0.11
    assert run.importance == 0.5


def test_plain_keras_has_no_share_of_importance_steps(compared):
    assert compared["uniform"][0].importance is None


def test_the_tables_have_median_and_range_mean_and_deviation(compared):
    uniform, importance = csv.DictReader(io.StringIO(curves.comma_separated(compared)))
    assert [uniform[f"train_loss{part}"] for part in ("", "_smallest", "_largest")] == [
        "0.4",
        "0.3",
        "0.5",
    ]
    losses = [run.last["train_loss"] for run in compared["uniform"]]
    assert float(uniform["train_loss_mean"]) == pytest.approx(sum(losses) / len(losses))
    assert float(uniform["train_loss_deviation"]) == pytest.approx(statistics.stdev(losses))
    assert importance["importance"] == "0.5" and uniform["importance"] == ""
    assert "4.00e-01 (3.00e-01 to 5.00e-01)" in curves.markdown(compared)


@pytest.mark.parametrize(
    "mine, theirs, expected",
    [
        ([0.1, 0.2], [0.3, 0.4], "lower in every run"),
        ([0.3, 0.4], [0.1, 0.2], "higher in every run"),
        ([0.1, 0.3], [0.2, 0.4], "no clear difference"),
        ([0.1, 0.1], [0.1, 0.1], "no clear difference"),
    ],
)
def test_a_verdict_claims_no_more_than_the_runs_show(mine, theirs, expected):
    runs, others = (
        [curves.Run("", {}, [{"train_loss": value}]) for value in values]
        for values in (mine, theirs)
    )
    sentence = curves.verdict("a", runs, "b", others, "train_loss")
    assert expected in sentence and f"{sum(mine) / 2:.3g}" in sentence


def test_the_command_writes_figure_and_tables(stored, tmp_path):
    directories = [str(path.parent) for path in sorted(stored.glob("*/*/run.json"))]
    command = [sys.executable, "-m", "reports.curves", str(tmp_path / "out"), *directories]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "| importance" in done.stdout
    for name in ("comparison.png", "table.md", "table.csv"):
        assert (tmp_path / "out" / name).stat().st_size > 0


def test_reports_need_no_tensorflow():
    code = "import sys, reports.curves; assert 'tensorflow' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_an_empty_run_is_refused(tmp_path):
    _write(tmp_path / "run", [])
    with pytest.raises(ValueError, match="recorded nothing"):
        curves.read(tmp_path / "run")
