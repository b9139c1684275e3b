"""The digits, prepared once for all tests of the trainers."""

from __future__ import annotations

import pytest
from absl import flags

from trainers import flags as trainer_flags


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory) -> str:
    return str(tmp_path_factory.mktemp("tensorflow_datasets"))


@pytest.fixture
def parser_of(data_dir, tmp_path):
    """Makes of a trainer's `define` what parses its command line.

    --out and --data_dir are given already; no examples are looked at for a report.
    """

    def parser(define):
        def parse(*arguments: str) -> flags.FlagValues:
            values = flags.FlagValues()
            define(values)
            given = [f"--data_dir={data_dir}", f"--out={tmp_path / 'run'}", "--shown_examples=0"]
            values(["trainer", *given, *arguments])
            return values

        return parse

    return parser


@pytest.fixture
def settings_of(parser_of):
    """Parses the command line of a trainer without flags of its own."""
    return parser_of(trainer_flags.define)
