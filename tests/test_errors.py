"""What errors say: what came, what is needed, and what to do."""

import ast
import inspect
import pathlib
import re

import keras
import numpy as np
import pytest
import tensorflow as tf

import tf_importance as tfi
from tf_importance import arguments

LIBRARY = pathlib.Path(tfi.__file__).parent
# "x must be so; got that." says what to do by what is needed; all others say it in a clause of its
# own, which a verb begins.
NEEDED = re.compile(r"\bmust\b.*\bgot\b|\bmust\b.*\{named", re.DOTALL)
REMEDY = re.compile(
    r"(?:^|[.;:,] |\bor |\band )(?:(?:to|for|in|of|where|otherwise)\b[^,:]*[,:] )?"
    r"(?:give|make|apply|use|call|compile|choose|leave|set|train|draw|score|save|evaluate|cache|ask|"
    r"derive|look|install|wrap|start|put|cast|map|let|take|return|stack|remove|turn|validate|"
    r"define|join|stop|see|raise|publish)\b"
    r"|\{(again|_REMEDY|_EXPLANATION|_SOURCES|random_access\.conversion\(x\) or _SOURCES)\}",
    re.IGNORECASE,
)
KINDS = (
    *("TypeError", "ValueError", "RuntimeError", "ImportError", "OSError", "FileNotFoundError"),
    # A ValueError of this library.
    "Unscorable",
)
# What nobody outside of the library is shown as it is.
INTERNAL = {"gathering.py", "parameters.py", "redis.py"}


def message(node) -> str:
    """The text of an error in the source, with {…} for what is put in."""
    if isinstance(node, ast.Constant):
        return str(node.value)
    if isinstance(node, ast.JoinedStr):
        return "".join(map(message, node.values))
    if isinstance(node, ast.BinOp):
        return message(node.left) + message(node.right)
    if isinstance(node, ast.FormattedValue):
        return "{" + ast.unparse(node.value) + "}"
    return "{" + ast.unparse(node) + "}"


def calls():
    """(file, name of what is called, call) of all calls in the library."""
    for path in sorted(LIBRARY.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call):
                yield path, getattr(node.func, "id", getattr(node.func, "attr", "")), node


def errors():
    """(file, line, text) of all errors that the library makes, raised on the spot or later."""
    for path, name, call in calls():
        if name in KINDS:
            yield path, call.lineno, message(call.args[0]) if call.args else ""


def says_what_to_do(text: str) -> bool:
    clauses = re.split(r"(?<=[.;:,]) ", text)
    return bool(NEEDED.search(text) or REMEDY.search(" ".join(clauses[-8:])))


@pytest.mark.parametrize(
    "text, well",
    [
        ("n must be positive; got {n}.", True),
        ("the net is not built; call it first.", True),
        ("the net takes no class_weight.", False),
        ("the data are used by {x}, and got {y}.", False),
        ("it needs two batches; got {n}.", False),
    ],
)
def test_the_rule_tells_a_remedy_from_none(text, well):
    assert says_what_to_do(text) == well


def test_each_error_says_what_to_do():
    found = [one for one in errors() if one[0].name not in INTERNAL]
    assert len(found) > 150
    lacking = [
        f"{path.relative_to(LIBRARY)}:{line}: {text}"
        for path, line, text in found
        if not (text.rstrip().endswith((".", "}")) and says_what_to_do(text))
    ]
    assert not lacking, "\n".join(lacking)


def test_each_error_of_a_store_has_its_remedy():
    """`store.error(kind, what, remedy)`, whose text puts role, store and run around the two."""
    # Not a logger's or a parser's, which begin with a text.
    found = [
        (path, call)
        for path, name, call in calls()
        if name == "error" and ast.unparse(call.args[0]).split(".")[0] in ("errors", "stores")
    ]
    assert len(found) > 10
    lacking = [
        f"{path.relative_to(LIBRARY)}:{call.lineno}: {text}"
        for path, call in found
        for text in [message(call.args[2])]
        if not text.endswith((".", "}")) or not (text.startswith("{") or says_what_to_do(text))
    ]
    assert not lacking, "\n".join(lacking)


@pytest.mark.parametrize(
    "value, said",
    [
        (np.arange(10_000.0), "an array of shape (10000,) and dtype float64"),
        (tf.zeros([3, 4]), "a tensor of shape (3, 4) and dtype float32"),
        (tfi.samplers.RAIS, "the class RAIS"),
        (tfi.scorers.loss, "tfi.scorers.loss"),
        (np.sum, "the function sum"),
        ("a name", "'a name'"),
        ("x" * 1000, "'" + "x" * 79 + "…"),
        ([1, 2], "[1, 2]"),
        ([np.zeros(3)] * 2, "a list of 2"),
        ({"x": np.zeros(3)}, "a dict of 1"),
        (list(range(1000)), "a list of 1000"),
        (object(), "an object"),
        (None, "None"),
        (0.5, "0.5"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_value_is_named_and_not_shown(value, said):
    assert arguments.named(value) == said


@pytest.fixture(scope="module")
def model():
    made = tfi.ISModel(keras.Sequential([keras.Input((2,)), keras.layers.Dense(3)]))
    made.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    return made


X, Y = np.zeros([64, 2], np.float32), np.zeros([64], np.int32)


@pytest.mark.parametrize(
    "sampler, said",
    [
        (tfi.samplers.RAIS, "got the class RAIS. Give an object: tfi.samplers.RAIS()."),
        ("rais", "got 'rais'. Give an object: tfi.samplers.RAIS()."),
        ("rank_based", "Give an object: tfi.samplers.RankBased()."),
        (X, "got an array of shape (64, 2) and dtype float32."),
    ],
)
def test_what_is_no_sampler(model, sampler, said):
    for give in (
        lambda: model.compile("sgd", "mse", sampler=sampler),
        lambda: tfi.history_sample((X, Y), sampler),
        lambda: tfi.samplers.Fresh(64, over=sampler),
    ):
        with pytest.raises(TypeError, match=re.escape(said)):
            give()


@pytest.mark.parametrize(
    "options, said",
    [
        ({"switch": "gain"}, "got 'gain'. Give an object: tfi.switches.Gain()."),
        ({"switch": tfi.switches.Gain}, "got the class Gain. Give an object: tfi.switches.Gain()."),
        ({"score_in": "steps"}, "got 'steps'. Did you mean 'step'?"),
        ({"tau_threshold": "garanteed"}, "got 'garanteed'. Did you mean 'guaranteed'?"),
        ({"tau_threshold": X}, "got an array of shape (64, 2)"),
        ({"resampling": "systematik"}, "got 'systematik'. Did you mean 'systematic'?"),
        ({"scorer": "loss"}, "such as tfi.scorers.loss; got 'loss'."),
        ({"jit_compile": "no"}, "jit_compile must be one of True, False, 'auto'; got 'no'."),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_options_of_a_stream(model, options, said):
    dataset = tf.data.Dataset.from_tensor_slices((X, Y))
    with pytest.raises((TypeError, ValueError), match=re.escape(said)):
        dataset.apply(tfi.importance_sample(model, 16, 64, **options))


def test_an_output_without_labels_is_named(model):
    inputs = keras.Input((2,))
    outputs = {name: keras.layers.Dense(3, name=name)(inputs) for name in ("a", "b")}
    two = tfi.ISModel(keras.Model(inputs, outputs))
    two.compile("sgd", {"a": model.objective.loss, "b": "mse"})
    data = tf.data.Dataset.from_tensor_slices((X, {"a": Y}))
    with pytest.raises(ValueError, match="labels must have a part .* got none for output 'b'"):
        data.apply(tfi.importance_sample(two, 16, 64))
    with pytest.raises(
        ValueError, match="a part for each output with a loss; got none for output[.]"
    ):
        tfi.per_example_gradient_norms(model, X, None)


def test_objects_print_as_they_are_written():
    sampler = tfi.samplers.RAIS(training_set_size=64)
    assert repr(sampler) == "RAIS(training_set_size=64)"
    assert repr(tfi.samplers.Fresh(32, over=sampler)) == f"Fresh(32, over={sampler!r})"
    assert repr(tfi.switches.Gain(hysteresis=0.2)) == "Gain(hysteresis=0.2)"
    assert repr(tfi.schedules.GainAdapted(0.1, ceiling=3)) == "GainAdapted(0.1, ceiling=3.0)"
    members = [tfi.samplers.Uniform(), sampler]
    switched = tfi.samplers.Switched(members, by=tfi.switches.Gain())
    assert repr(switched) == f"Switched([Uniform(), {sampler!r}], by=Gain())"
    assert repr(tfi.Recorder("runs/mine", every=2)) == "Recorder('runs/mine', every=2)"
    assert repr(tfi.distributed.TargetEntropy(0.9)) == "TargetEntropy(0.9)"


def test_no_object_prints_its_address():
    packages = ["samplers", "switches", "schedules", "distributed", "stores", "layers"]
    for package in [tfi, *(getattr(tfi, name) for name in packages)]:
        kinds = [kind for kind in vars(package).values() if inspect.isclass(kind)]
        for kind in (kind for kind in kinds if kind.__module__.startswith("tf_importance")):
            # Layers and models print as Keras has it.
            printed = kind.__repr__ is not object.__repr__
            assert printed or issubclass(kind, keras.layers.Layer), kind


# What came of a training ----------------------------------------------------------------------


def fitted(verbose, **options):
    net = tfi.ISModel(keras.Sequential([keras.Input((2,)), keras.layers.Dense(3)]))
    x = np.random.default_rng(0).normal(size=(64, 2)).astype(np.float32)
    net.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    data = tf.data.Dataset.from_tensor_slices((x, Y)).repeat()
    drawn = data.apply(tfi.importance_sample(net, 8, 16, **options))
    net.fit(drawn, steps_per_epoch=8, epochs=2, verbose=verbose, shuffle=None)
    return net


def test_fit_says_how_much_was_drawn(capsys):
    fitted(2, tau_threshold="always")
    assert "importance sampling: 100% of the batches drawn" in capsys.readouterr().out
    fitted(0, tau_threshold="always")
    assert capsys.readouterr().out == ""


def test_pre_samples_that_could_not_be_drawn_from_are_said(capsys):
    unusable = lambda model, x, y: tf.where(y > 0, 1.0, -1.0)  # noqa: E731
    with pytest.warns(UserWarning, match="scores of all .* pre-samples were unusable"):
        fitted(2, tau_threshold="always", scorer=unusable)
    assert "importance sampling" not in capsys.readouterr().out


def test_a_summary_has_the_net_and_what_is_kept_beside_it():
    net = tfi.ISModel(keras.Sequential([keras.Input((2,)), keras.layers.Dense(3)]))
    rate = tfi.schedules.GainAdapted(0.1)
    net.compile(keras.optimizers.SGD(rate), "mse", sampler=tfi.samplers.RAIS())
    lines = []
    net.summary(print_fn=lambda line, **_: lines.append(line))
    text = "\n".join(lines)
    assert "dense" in text and "tau, mean_weight, counts, monitors (10 numbers" in text
    assert "Sampler: RAIS()" in text and "Learning rate: GainAdapted(0.1)" in text


@pytest.mark.parametrize(
    "values",
    [[3, 1], (3, 1), np.array([3, 1]), range(3, 0, -2), iter([3, 1])],
    ids=lambda values: type(values).__name__,
)
def test_a_collection_of_any_type_will_do(values):
    assert arguments.positive_integers("after", values) == [3, 1]
