"""Data with rare classes: what is left out, what weights restore, and the flights."""

from __future__ import annotations

import csv
import io
import zipfile

import numpy as np
import pytest

from trainers.datasets import flights, made_up, rare


def test_thinning_leaves_the_share_and_all_of_the_common_class():
    labels = np.arange(1000) % 10 == 3
    kept = rare.thinned(labels.astype(int), 0.01)
    assert labels[kept].sum() == round(0.01 / 0.99 * 900) == 9
    assert set(np.flatnonzero(~labels)) <= set(kept) and len(kept) == 909


@pytest.mark.parametrize("share", [0.5, 1e-6])
def test_a_share_that_cannot_be_left_is_refused(share):
    with pytest.raises(ValueError, match=r"between 1 and 100 examples.*leaves \d+"):
        rare.thinned((np.arange(1000) % 10 == 3).astype(int), share)


def test_a_long_tail_falls_exponentially():
    labels = np.repeat(np.arange(3), [500, 400, 450])
    counts = np.bincount(labels[rare.long_tailed(labels, 3, 100)])
    np.testing.assert_array_equal(counts, [400, 40, 4])


def test_weights_restore_the_shares():
    y = np.repeat([0, 1], [30, 10]).astype(np.int32)
    part = rare.weighted(rare.Part(np.zeros([40, 1]), y, np.ones(40)), np.array([0.99, 0.01]))
    assert np.average(y, weights=part.weights) == pytest.approx(0.01, rel=1e-6)
    assert part.weights.mean() == pytest.approx(1, rel=1e-6)


def test_images_are_thinned_in_training_alone(data_dir):
    data = rare.load("digits", data_dir, rare_class=8, share=0.02)
    assert data.num_classes == 2 and data.prior[1] == pytest.approx(0.02, abs=1e-3)
    for part in (data.validation, data.test):
        assert 0.05 < part.y.mean() < 0.15
        assert np.average(part.y, weights=part.weights) == pytest.approx(data.prior[1], rel=1e-5)
    trained = {image.tobytes() for image in data.train.x}
    assert not trained & {image.tobytes() for image in data.validation.x}


def test_all_classes_of_a_long_tail_are_there(data_dir):
    data = rare.load("digits", data_dir, long_tail=20)
    counts = np.bincount(data.train.y)
    assert data.num_classes == len(counts) == 10 and list(counts) == sorted(counts, reverse=True)
    assert counts[0] / counts[-1] == pytest.approx(20, rel=0.15)


@pytest.mark.parametrize(
    "name, options, message",
    [
        ("imagenet", {}, "--dataset must be one of flights_late.*'imagenet'"),
        ("digits", {"share": 1.5}, "--share must be between 0 and 1; got 1.5"),
        ("digits", {"rare_class": 10}, "--rare_class must be from 0 to 9; got 10"),
        ("digits", {"long_tail": 0.5}, "--long_tail must be at least 1"),
        ("flights_late", {"split": "weeks"}, "--split must be one of days, rows; got 'weeks'"),
    ],
)
def test_what_is_not_there_is_refused(data_dir, name, options, message):
    with pytest.raises(ValueError, match=message):
        rare.load(name, data_dir, **options)


@pytest.mark.parametrize("name", rare.NAMES)
def test_made_up_examples_have_both_classes(name):
    data = made_up.rare_classes(name, long_tail=False)
    assert set(data.train.y) == {0, 1} and data.num_classes == 2
    if name in rare.FLIGHTS:
        assert data.train.x.shape[1] == len(flights.SIZES) + len(flights.NUMBERS)


# Flights ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def as_published() -> list[dict[str, str]]:
    """The rows of the package's file, read by Python alone."""
    with zipfile.ZipFile(flights._folder() / "flights.csv.zip") as archive:
        (name,) = archive.namelist()
        return list(csv.DictReader(io.TextIOWrapper(archive.open(name), "utf-8")))


@pytest.fixture(scope="module")
def by_days(data_dir) -> rare.Rare:
    return rare.load("flights_late", data_dir, split="days")


@pytest.mark.slow  # It prepares them.
def test_every_flight_is_in_one_part_with_its_labels(data_dir, as_published, by_days):
    late = [
        row["arr_delay"] not in ("", "NA") and float(row["arr_delay"]) > 180 for row in as_published
    ]
    cancelled = [row["dep_time"] in ("", "NA") for row in as_published]
    of_cancelled = rare.load("flights_cancelled", data_dir, split="days")
    for data, expected in ((by_days, late), (of_cancelled, cancelled)):
        labels = np.concatenate([part.y for part in data[:3]])
        assert len(labels) == len(as_published) == 336_776
        assert labels.sum() == sum(expected)
    assert sum(late) == 3843 and sum(cancelled) == 8255


@pytest.mark.slow  # It prepares them.
def test_days_are_in_one_part_and_rows_are_not(data_dir, by_days):
    def days(part: rare.Part) -> set[tuple[int, int]]:
        return set(map(tuple, part.x[:, :2].astype(int)))

    first, second, third = map(days, by_days[:3])
    assert len(first) + len(second) + len(third) == 365
    assert not first & second and not first & third and not second & third
    by_rows = rare.load("flights_late", data_dir, split="rows")
    sizes = [len(part.y) for part in by_rows[:3]]
    np.testing.assert_allclose(np.array(sizes) / 336_776, [0.7, 0.1, 0.2], atol=1e-4)
    assert len(days(by_rows.test)) == 365


def test_codes_and_numbers_are_those_of_the_file(as_published):
    table = flights.read()
    for place in (0, 1, 99_999, 336_775):
        row, mine = as_published[place], table.iloc[place]
        assert mine["month"] == int(row["month"]) - 1 and mine["day"] == int(row["day"]) - 1
        assert mine["hour"] == int(row["hour"]) and mine["distance"] == float(row["distance"])
    for name in ("carrier", "origin", "dest"):
        names = sorted({row[name] for row in as_published})
        assert [names[code] for code in table[name][:50]] == [
            row[name] for row in as_published[:50]
        ]


@pytest.mark.slow  # It prepares them.
def test_inputs_are_codes_behind_each_other_and_standardized_numbers(by_days):
    x = by_days.train.x
    first = np.cumsum([0, *flights.SIZES])
    for place in range(len(flights.SIZES)):
        codes = x[:, place]
        assert first[place] <= codes.min() and codes.max() < first[place + 1]
        assert np.array_equal(codes, np.rint(codes))
    numbers = x[:, len(flights.SIZES) :]
    assert np.isfinite(x).all() and np.abs(numbers.mean(axis=0)).max() < 1e-3
    assert numbers.std(axis=0).max() < 1.001
