"""Every config sets the flags that were recorded of it: `python -m tests.resolved_flags`."""

from __future__ import annotations

import copy
import pathlib

import pytest

from tests import resolved_flags

CONFIG = "configs/image_classification/mnist_upper_bound.cfg"
TRAINER = "image_classification"


@pytest.fixture(scope="module")
def now() -> resolved_flags.Document:
    return resolved_flags.resolved()


@pytest.fixture
def recorded() -> resolved_flags.Document:
    return resolved_flags.recorded()


def test_every_config_sets_the_flags_that_were_recorded(recorded, now):
    assert resolved_flags.differences(recorded, now) == []
    assert resolved_flags.RECORDED.read_text("utf-8") == f"{resolved_flags.text(now)}\n"


def test_a_flagfile_in_a_flagfile_gives_way_to_what_follows_it(tmp_path):
    (tmp_path / "base.cfg").write_text("--net=cnn\n--batch_size=8\n--follow_gain\n")
    lines = f"--flagfile={tmp_path / 'base.cfg'}\n--batch_size=16\n--nofollow_gain\n"
    (tmp_path / "other.cfg").write_text(lines)
    found = resolved_flags.parsed(TRAINER, f"--flagfile={tmp_path / 'other.cfg'}")
    assert (found["net"], found["batch_size"], found["follow_gain"]) == ("cnn", 16, False)


# Negative controls.


@pytest.mark.parametrize("value", [0.5, "0.05", None])
def test_another_value_is_told(recorded, value):
    changed = copy.deepcopy(recorded)
    changed[TRAINER]["configs"][CONFIG]["learning_rate"] = value
    (line,) = resolved_flags.differences(recorded, changed)
    assert line.startswith(f"{CONFIG}: learning_rate was 0.05, is ")


def test_another_default_is_told_by_each_config_that_relies_on_it(recorded):
    changed = copy.deepcopy(recorded)
    changed[TRAINER]["defaults"]["momentum"] = 0.5
    lines = resolved_flags.differences(recorded, changed)
    assert "trainers.image_classification: momentum was 0.0, is 0.5" in lines
    named = {line.partition(":")[0] for line in lines}
    assert "configs/image_classification/mnist_svrg.cfg" in named and CONFIG not in named


def test_configs_without_a_record_and_records_without_a_config_are_told(recorded):
    fewer = copy.deepcopy(recorded)
    del fewer[TRAINER]["configs"][CONFIG]
    difference = resolved_flags.differences
    assert difference(fewer, recorded) == [f"{CONFIG} is there, and is not recorded"]
    assert difference(recorded, fewer) == [f"{CONFIG} is recorded, and is not there"]


@pytest.mark.parametrize(
    "header, got",
    [
        ("# python -m trainers.recipe --flagfile=x.cfg", "trainers.recipe --flagfile=x.cfg"),
        ("# python -m trainers.compare --flagfile=y.cfg", "none"),
        ("--seeds=3", "none"),
    ],
)
def test_a_header_without_its_command_is_refused(tmp_path, monkeypatch, header, got):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x.cfg").write_text(f"{header}\n")
    with pytest.raises(ValueError, match=f"header of x.cfg must show its command.*got .*{got}"):
        resolved_flags.trainer_of(pathlib.Path("x.cfg"))
