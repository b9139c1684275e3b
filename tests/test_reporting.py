"""A page about runs: what is recorded, what is read, and what the page shows."""

from __future__ import annotations

import html.parser
import json
import re

import keras
import numpy as np
import pytest
import tensorflow as tf

import tf_importance as tfi
from tests.cases import quick
from tf_importance import __main__ as program
from tf_importance.reporting import examples, runs

L = keras.layers


def net(units: int = 3) -> keras.Model:
    return keras.Sequential([keras.Input((8, 8)), L.Flatten(), L.Dense(8, "relu"), L.Dense(units)])


def data(size: int = 96):
    rng = np.random.default_rng(0)
    y = rng.integers(3, size=size)
    x = rng.normal(size=(size, 8, 8)).astype("float32")
    x[:, 0, 0] += 3 * y
    return x, y


def compiled(model, **options):
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(0.1), loss, metrics=["accuracy"], **options)
    return model


def written(folder, losses, seconds=1.0, **columns):
    """A run as a trainer leaves it."""
    folder.mkdir(parents=True)
    rows = [
        {"step": 10 * i, "seconds": seconds * i, "train_loss": loss, **columns}
        for i, loss in enumerate(losses)
    ]
    (folder / runs.METRICS).write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "run.json").write_text(json.dumps({"flags": {"net": "<mlp>"}}))


class Page(html.parser.HTMLParser):
    """What a page refers to, what of it has no text in its place, and its words."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links, self.silent, self.words, self.tags = [], [], "", []
        self.feed(text)

    def handle_starttag(self, tag, attributes) -> None:
        given = dict(attributes)
        self.tags.append(tag)
        self.links += [v for k, v in attributes if k in ("src", "href", "xlink:href", "srcset")]
        if tag == "img" and not given.get("alt"):
            self.silent.append(tag)
        if tag == "svg" and not given.get("aria-label"):
            self.silent.append(tag)

    def handle_data(self, text) -> None:
        self.words += text


def page_of(path) -> Page:
    text = path.read_text("utf-8")
    shown = Page(text)
    asked = [link for link in shown.links if not link.startswith(("data:", "#"))]
    assert (
        asked == [] and "url(http" not in text and "@import" not in text and "<script" not in text
    )
    assert shown.silent == []
    return shown


# Runs -----------------------------------------------------------------------------------------


def test_runs_with_several_seeds_are_one_curve(tmp_path):
    for seed in range(2):
        written(tmp_path / "uniform" / str(seed), [2.0, 1.0])
        written(tmp_path / "a" / "b" / str(seed), [2.0, 0.5])
    curves = runs.by_label(runs.read(tmp_path))
    assert {label: len(of) for label, of in curves.items()} == {"uniform": 2, "a/b": 2}
    assert list(curves)[0] == "uniform", "the baseline comes first"
    (alone,) = runs.read(tmp_path / "uniform" / "1")
    assert alone.label == "uniform"


def test_the_share_counts_by_steps(tmp_path):
    written(tmp_path / "run", [1.0])
    rows = [(0, None), (10, 0.0), (40, 1.0)]
    lines = [json.dumps({"step": s, "seconds": s, "importance": i}) for s, i in rows]
    (tmp_path / "run" / runs.METRICS).write_text("\n".join(lines) + "\n")
    assert runs.read(tmp_path)[0].share == pytest.approx(30 / 40)


@pytest.mark.parametrize(
    "losses, said",
    [
        (
            [[2.0, 0.4, 0.2], [2.0, 0.4, 0.3]],
            "lower in every run. To get to the latter it took 50%",
        ),
        (
            [[2.0, 0.9, 0.2], [2.0, 0.9, 0.3]],
            "lower in every run. To get to the latter it took 100%",
        ),
        (
            [[2.0, 1.4, 1.2], [2.0, 1.4, 1.3]],
            "higher in every run. Its runs took 100% of the time.",
        ),
        (
            [[2.0, 1.4, 0.2], [2.0, 1.4, 0.7]],
            "the ranges overlap, no clear difference. Its runs took 100% of the time.",
        ),
    ],
)
def test_the_verdict_is_of_every_run(tmp_path, losses, said):
    for seed, loss in enumerate((0.5, 0.6)):
        written(tmp_path / "uniform" / str(seed), [2.0, 1.0, loss])
        written(tmp_path / "ours" / str(seed), losses[seed])
    (sentence,) = runs.verdict(runs.by_label(runs.read(tmp_path)))
    assert said in sentence and "ours" in sentence


@pytest.mark.parametrize(
    "seconds, said", [(0.4, "took 40% of the time."), (2.5, "took 2.5 times as long.")]
)
def test_the_verdict_tells_the_time_of_equal_losses(tmp_path, seconds, said):
    written(tmp_path / "uniform", [2.0, 0.5])
    written(tmp_path / "ours", [2.0, 0.5], seconds)
    (sentence,) = runs.verdict(runs.by_label(runs.read(tmp_path)))
    assert sentence.endswith(f"no clear difference. Its runs {said}")


def test_without_runs_it_says_what_is_needed(tmp_path):
    with pytest.raises(
        FileNotFoundError, match=r"holds no metrics.jsonl.*give the folder of a run"
    ):
        tfi.report(tmp_path)


@pytest.mark.parametrize(
    "given, said",
    [
        ([], r"got \[\]"),
        ({}, r"got \{\}"),
        ([1, 2], r"got \[1, 2\]"),
        (3, "got 3"),
        (b"a", "got b'a'"),
    ],
    ids=str,
)
def test_what_is_no_run(given, said):
    with pytest.raises(TypeError, match=f"run must be a folder of runs.*{said}"):
        tfi.report(given)


@pytest.mark.parametrize("line", ["not JSON", '{"seconds": 1}', "[1, 2]", "3"])
def test_a_damaged_line_is_named(tmp_path, line):
    folder = tmp_path / "a"
    written(folder, [2.0, 1.0])
    with (folder / runs.METRICS).open("a") as file:
        file.write(line + "\n")
    with pytest.raises(ValueError, match=f"line 3 of .*a/{runs.METRICS} is no JSON object.*remove"):
        tfi.report(folder)
    (folder / "run.json").write_text("{")
    (folder / runs.METRICS).write_text('{"step": 1, "seconds": 1.0}\n')
    with pytest.raises(ValueError, match=r"run.json is no JSON .*; remove it, or give"):
        tfi.report(folder)


# Examples ---------------------------------------------------------------------------------------


def test_weights_are_those_of_the_scores():
    x, y = data()
    model = compiled(tfi.ISModel(net()))
    told = examples.described(model, (x, y), count=5)
    scores = np.asarray(tfi.scorers.upper_bound(model, tf.constant(x), tf.constant(y)), float)
    weights = scores.mean() / scores
    order = np.argsort(weights)
    assert [one["index"] for one in told["most"]] == order[:5].tolist()
    assert [one["index"] for one in told["least"]] == order[::-1][:5].tolist()
    np.testing.assert_allclose(
        [one["weight"] for one in told["most"]], weights[order[:5]], rtol=1e-4
    )
    size = scores.sum() ** 2 / (len(y) * (scores**2).sum())
    assert told["effective_sample_size"] == pytest.approx(size, rel=1e-4)
    assert sum(told["histogram"]["counts"]) == len(y) and told["by"] == "scores"
    predicted = np.argmax(model(x[order[:5]]), axis=1)
    assert [one["prediction"] for one in told["most"]] == [str(one) for one in predicted]
    assert [one["label"] for one in told["most"]] == [str(one) for one in y[order[:5]]]


def test_a_memory_tells_its_own_weights():
    x, y = data()
    sampler = tfi.samplers.Proportional()
    model = compiled(tfi.ISModel(net()), sampler=sampler)
    model.fit(x, y, batch_size=16, epochs=3, verbose=0)
    told = examples.described(model, (x, y), count=4)
    own = getattr(type(sampler), "weights_of", None) is not tfi.samplers.Sampler.weights_of
    assert told["by"] == ("memory" if own else "scores")
    rais = tfi.samplers.RAIS(training_set_size=32)
    model = compiled(tfi.ISModel(net()), sampler=rais)
    model.fit(x, y, batch_size=16, epochs=12, verbose=0)
    told = examples.described(model, (x, y), count=4)
    assert told["by"] == "memory"
    weights = np.asarray(rais.weights_of(tf.range(len(y), dtype=tf.int64)))
    assert told["most"][0]["weight"] == pytest.approx(weights.min())
    # Of other examples it knows nothing.
    assert examples.described(model, (x[:50], y[:50]))["by"] == "scores"


@pytest.mark.parametrize(
    "inputs, show, kind, said",
    [
        (np.zeros((8, 8), np.float32), None, "image", ""),
        (np.zeros((9, 8, 3), np.uint8), None, "image", ""),
        (np.full((5,), 1.25, np.float32), None, "text", "1.25 1.25 1.25 1.25 1.25"),
        (np.arange(20), None, "text", "0 1 2 3 4 5 6 7 …"),
        (np.array(b"a text"), None, "text", "a text"),
        (np.arange(3), lambda x: f"{len(x)} words", "text", "3 words"),
        (np.arange(64.0), lambda x: x.reshape(8, 8), "image", ""),
        ({"a": np.arange(2), "b": np.zeros((8, 8))}, None, "image", ""),
        ((np.arange(2), np.arange(3)), None, "text", "0 1; 0 1 2"),
        (np.full((8, 8), np.nan), None, "image", ""),
    ],
)
def test_inputs_are_shown_as_what_they_look_like(inputs, show, kind, said):
    shown = examples._shown(inputs, show)
    assert list(shown) == [kind]
    assert shown["text"] == said if kind == "text" else len(shown["image"]) > 50


def test_scores_of_zero_have_no_weight():
    x, y = data(32)
    model = compiled(tfi.ISModel(net(), scorer=lambda model, x, y: tf.cast(y > 0, tf.float32)))
    told = examples.described(model, (x, y), count=3)
    assert [one["weight"] for one in told["least"]] == [None] * 3
    assert all(one["weight"] is not None for one in told["most"])


def test_of_a_loss_without_scores_a_warning_says_so(tmp_path):
    x, y = data()
    model = net(1)
    model.compile("sgd", lambda labels, outputs: tf.reduce_mean(outputs))
    with pytest.warns(UserWarning, match="the report will show no examples"):
        model.fit(x, y, verbose=0, callbacks=[tfi.Recorder(tmp_path / "run", (x, y))])
    assert "no clear" not in page_of(tfi.report(tmp_path / "run")).words


# Recording ------------------------------------------------------------------------------------


def rows_of(folder):
    return [json.loads(line) for line in (folder / runs.METRICS).read_text().splitlines()]


@pytest.mark.parametrize("kind", quick(["plain", "memory", "fresh"], "memory"))
def test_a_training_is_recorded_and_shown(tmp_path, kind):
    x, y = data()
    batches = 6
    recorder = tfi.Recorder(tmp_path / "run", (x, y), every=1, class_names=["<a>", "b", "c"])
    if kind == "plain":
        model, given = compiled(net()), (x, y)
    elif kind == "memory":
        model = compiled(tfi.ISModel(net()), sampler=tfi.samplers.Proportional())
        given = (x, y)
    else:
        model = compiled(tfi.ISModel(net()))
        stream = tf.data.Dataset.from_tensor_slices((x, y)).repeat()
        drawn = tfi.importance_sample(model, 16, 32, tau_threshold="always")
        given = (stream.apply(drawn),)
    model.fit(
        *given,
        **({"batch_size": 16} if len(given) > 1 else {}),
        steps_per_epoch=batches,
        epochs=3,
        validation_data=(x, y),
        verbose=0,
        shuffle=None if kind == "fresh" else True,
        callbacks=[recorder],
    )
    rows = rows_of(tmp_path / "run")
    assert [row["step"] for row in rows] == [6, 12, 18] and [r["epoch"] for r in rows] == [1, 2, 3]
    seconds = [row["seconds"] for row in rows]
    assert seconds == sorted(seconds) and seconds[0] > 0
    assert {"loss", "val_loss", "accuracy"} <= {*rows[0]}
    told = json.loads((tmp_path / "run" / runs.EXAMPLES).read_text())
    if kind == "plain":
        assert told["seconds"] is None
    else:
        assert sum(told["seconds"].values()) == pytest.approx(seconds[-1], rel=1e-6)
        assert (told["seconds"]["scoring"] > 0) == (kind == "fresh")
    events = list((tmp_path / "run" / "tensorboard").glob("*"))
    tags = {
        value.tag
        for path in events
        for event in tf.compat.v1.train.summary_iterator(str(path))
        for value in event.summary.value
    }
    assert {
        "loss",
        "val_loss",
        "log10 of the importance weights",
        "drawn most",
        "drawn least",
    } <= tags
    shown = page_of(tfi.report(tmp_path / "run"))
    assert shown.tags.count("img") == 24 and "<a>" in shown.words


def test_a_line_that_a_killed_process_left_half_is_none(tmp_path):
    x, y = data()
    model = compiled(net())
    model.fit(x, y, batch_size=32, epochs=1, verbose=0, callbacks=[tfi.Recorder(tmp_path)])
    with (tmp_path / runs.METRICS).open("a") as file:
        file.write('{"epoch": 2, "st')
    assert len(runs.read(tmp_path)[0].rows) == 1
    model.fit(x, y, batch_size=32, epochs=1, verbose=0, callbacks=[tfi.Recorder(tmp_path)])
    assert [row["step"] for row in rows_of(tmp_path)] == [3, 6]


def test_a_second_fit_goes_on_with_the_lines_and_a_new_training_begins_anew(tmp_path):
    x, y = data()
    model = compiled(net())
    for _ in range(2):
        recorder = tfi.Recorder(tmp_path)
        model.fit(x, y, batch_size=32, epochs=2, verbose=0, callbacks=[recorder])
    rows = rows_of(tmp_path)
    assert [row["step"] for row in rows] == [3, 6, 9, 12]
    assert [row["seconds"] for row in rows] == sorted(row["seconds"] for row in rows)
    compiled(fresh := net())
    fresh.fit(x, y, batch_size=32, epochs=1, verbose=0, callbacks=[tfi.Recorder(tmp_path)])
    assert [row["step"] for row in rows_of(tmp_path)] == [3]


def test_looking_often_is_quiet(tmp_path, caplog):
    x, y = data(300)
    x, y = {"image": x, "number": x[:, 0]}, y
    inputs = {"image": keras.Input((8, 8)), "number": keras.Input((8,))}
    joined = L.Concatenate()([L.Flatten()(inputs["image"]), inputs["number"]])
    model = compiled(tfi.ISModel(keras.Model(inputs, L.Dense(3)(joined))))
    stream = tf.data.Dataset.from_tensor_slices((x, y)).repeat()
    drawn = stream.apply(tfi.importance_sample(model, 16, 32, tau_threshold="always"))
    recorder = tfi.Recorder(tmp_path, (x, y), every=1)
    model.fit(drawn, steps_per_epoch=2, epochs=7, verbose=0, shuffle=None, callbacks=[recorder])
    assert [one.getMessage() for one in caplog.records if "retracing" in one.getMessage()] == []
    told = json.loads((tmp_path / runs.EXAMPLES).read_text())
    assert told["seconds"]["scoring"] > 0 and "image" in told["most"][0]


def test_wrong_arguments():
    with pytest.raises(ValueError, match="every must be a positive integer; got 0"):
        tfi.Recorder("run", every=0)
    with pytest.raises(TypeError, match="folder of runs, several.*got 3"):
        tfi.report(3, "out.html")
    with pytest.raises(ValueError, match="out must name the file"):
        tfi.report(["a", "b"])


def test_rows_of_a_table_and_texts_are_shown_as_text(tmp_path):
    x, y = data()
    model = compiled(net())
    # By number: pairs are a row of examples.
    recorder = tfi.Recorder(tmp_path, list(zip(x, y)), show=lambda one: f"<row {one[0, 0]:.2f}>")
    model.fit(x, y, verbose=0, callbacks=[recorder])
    shown = page_of(tfi.report(tmp_path))
    assert "img" not in shown.tags and shown.tags.count("blockquote") == 24
    assert shown.words.count("<row ") == 24
    flat = compiled(keras.Sequential([keras.Input((4,)), L.Dense(3)]))
    flat.fit(x[:, 0, :4], y, verbose=0, callbacks=[tfi.Recorder(tmp_path / "a", (x[:, 0, :4], y))])
    assert page_of(tfi.report(tmp_path / "a")).tags.count("blockquote") == 24


# The page -------------------------------------------------------------------------------------


def test_what_a_run_says_is_no_html(tmp_path):
    written(tmp_path / "<script>alert(1)</script>", [2.0, 1.0], importance=0.5, gain=1.5, tau=2.0)
    shown = page_of(tfi.report(tmp_path, title="<b>mine</b>"))
    assert "<b>mine</b>" in shown.words and "<mlp>" in shown.words
    assert "script" not in shown.tags and "b" not in shown.tags


def test_names_in_a_page_are_one_things(tmp_path):
    written(tmp_path / "a", [2.0, 1.0], importance=0.5, gain=1.5, tau=2.0)
    text = tfi.report(tmp_path).read_text()
    figures = re.findall(r'id="((?:figure|axes|text|line2d|xtick|ytick|legend)_\d+)"', text)
    assert figures == []
    assert text.count("<svg ") >= 5 and "#010203" not in text and "currentColor" in text


def test_several_folders_and_names(tmp_path):
    written(tmp_path / "a", [2.0, 1.0])
    written(tmp_path / "b", [2.0, 0.5])
    given = {"the old way": tmp_path / "a", "ours": [tmp_path / "b"]}
    shown = page_of(tfi.report(given, tmp_path / "page.html"))
    assert "0.5 against 1 of the old way: lower in every run" in shown.words
    both = page_of(tfi.report([tmp_path / "a", tmp_path / "b"], tmp_path / "both.html"))
    assert "b has a training loss" in both.words


def test_a_comparison_has_a_page_of_its_own(tmp_path):
    x, y = data()

    def build():
        return compiled(net())

    found = tfi.compare(
        build, (x, y), ["memory"], budget=4, seeds=1, rates=[1], out=tmp_path / "found", verbose=0
    )
    loaded = tfi.comparison.Comparison.load(tmp_path / "found")
    assert json.dumps(loaded.to_json()) == json.dumps(found.to_json())
    assert str(loaded) == str(found)
    of_object = page_of(tfi.report(found, tmp_path / "object.html", title="found"))
    of_folder = page_of(tfi.report(tmp_path / "found"))
    for shown in (of_object, of_folder):
        assert found.verdict in shown.words and "memory" in shown.words
        assert shown.tags.count("svg") == 1


def test_the_command(tmp_path, capsys):
    written(tmp_path / "a", [2.0, 1.0])
    program.main(["report", str(tmp_path)])
    assert capsys.readouterr().out.strip() == str(tmp_path / "report.html")
    with pytest.raises(SystemExit):
        program.main(["report", str(tmp_path / "nothing")])
    assert "holds no metrics.jsonl" in capsys.readouterr().err
