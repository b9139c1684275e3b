"""The main job."""

from __future__ import annotations

import subprocess
import sys

import pytest

from reports import curves
from trainers import compare, plan
from trainers.budget import Budget


def test_a_grid_gives_every_curve_the_same_learning_rates():
    found = plan.variants(["configs/a.cfg", "configs/b.cfg"], ["0.1", "0.2"])
    assert [variant.label for variant in found] == ["a, 0.1", "a, 0.2", "b, 0.1", "b, 0.2"]
    assert found[3].arguments == ("--flagfile=configs/b.cfg", "--learning_rate=0.2")


def test_curves_take_turns_and_swap_places():
    a, b = plan.variants(["a.cfg", "b.cfg"])
    assert plan.in_turns([a, b], 3) == [(a, 0), (b, 0), (b, 1), (a, 1), (a, 2), (b, 2)]


def test_the_plan_says_what_runs_and_for_how_long():
    a, b, c = plan.variants(["a.cfg", "b.cfg", "c.cfg"])
    budgets = {a: Budget(seconds=20), b: Budget(seconds=30, steps=7), c: Budget(steps=1000)}
    said = plan.described(budgets, 3, best_of_grid=False).splitlines()
    assert said[0] == "3 curves, 3 runs of each:"
    assert said[1:4] == [
        "  a  20 s  --flagfile=a.cfg",
        "  b  30 s or 7 steps  --flagfile=b.cfg",
        "  c  1,000 steps  --flagfile=c.cfg",
    ]
    assert said[4].startswith("9 runs, 2.5 minutes of training and 3,000 steps in all")


def test_the_plan_of_a_grid_is_each_rate_once_and_the_best_with_every_seed():
    budgets = dict.fromkeys(plan.variants(["a.cfg", "b.cfg"], ["1", "2"]), Budget(seconds=1))
    said = plan.described(budgets, 3, best_of_grid=True)
    assert "4 curves, one run of each; then 3 runs of the best:" in said
    assert "10 runs, 10 s of training in all" in said


def test_the_flags_of_a_run_are_its_flagfiles_with_overrides(tmp_path):
    (tmp_path / "curve.cfg").write_text("# comment\n--net=cnn\n--learning_rate=0.5\n")
    (variant,) = plan.variants([str(tmp_path / "curve.cfg")])
    values = compare.settings(variant, "--seed=7")
    assert (values.net, values.learning_rate, values.seed) == ("cnn", 0.5, 7)


@pytest.mark.slow
def test_the_main_job_prints_a_table_and_what_it_shows(data_dir, tmp_path):
    common = f"--net=linear\n--batch_size=16\n--steps=4\n--evaluations=2\n--data_dir={data_dir}\n"
    for name in ("uniform", "upper_bound"):
        (tmp_path / f"{name}.cfg").write_text(f"{common}--sampling={name}\n")
    command = [sys.executable, "-m", "trainers.compare", "--seeds=2", f"--out={tmp_path / 'out'}"]
    command.append(f"--curves={tmp_path / 'uniform.cfg'},{tmp_path / 'upper_bound.cfg'}")
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("2 curves, 2 runs of each:")
    assert "4 runs, 16 steps in all" in done.stdout and str(tmp_path / "out") in done.stdout
    assert "upper_bound, seed 1" in done.stdout and "100/100" in done.stdout
    assert "| uniform     | 2 " in done.stdout
    assert "train loss of upper_bound against uniform: " in done.stdout
    assert done.stdout.splitlines()[-1].endswith(str(tmp_path / "out" / "comparison.png"))
    assert (tmp_path / "out" / "comparison.png").stat().st_size > 0
    assert (tmp_path / "out" / "upper_bound" / "1" / "metrics.jsonl").exists()


def test_the_best_of_the_grid_is_each_curves_own():
    found = {}
    losses = {"a": [0.3, 0.1, float("nan")], "b": [0.2, 0.4, 0.3]}
    for variant in plan.variants(["a.cfg", "b.cfg"], ["1", "2", "3"]):
        curve, number = variant.label.split(", ")
        row = {"train_loss": losses[curve][int(number) - 1]}
        found[variant] = curves.Run(variant.label, {}, [{"train_loss": 0.0}, row])
    assert [variant.label for variant in compare.best_of_grid(found)] == ["a, 2", "b, 1"]
