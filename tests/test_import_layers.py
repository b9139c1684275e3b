"""Who may import whom: the library file by file, and the project's parts."""

import ast

import pytest

from tests import imports

# A file imports only from lines above its own. A line that names a package stands for all its
# files that have no line of their own; its __init__ collects them.
ROOMS = (
    "arguments",
    "graphs",
    "compat",
    "schedules",
    "callbacks",
    "draws",
    "journal",
    "marks",
    "datasets",
    "proposals",
    "variance",
    "gain",
    "observed",
    "meter",
    "plans",
    "switches.base",
    "switches.costs",
    "switches.trial",
    "switches",
    "robust",
    "epochs",
    "processes",
    "gathering",
    "losses",
    "metrics",
    "normalization",
    "batch_statistics",
    "layers",
    "coupling",
    "scorers.forward",
    "scorers.base",
    "scorers.norms.contributions",
    "scorers.norms.convolution",
    "scorers.norms.recording",
    "scorers.norms.registry",
    "scorers.norms.fallback",
    "scorers.norms.dense",
    "scorers.norms.convolutional",
    "scorers.norms.embedding",
    "scorers.norms.normalization",
    "scorers.norms.activations",
    "scorers.norms.recurrent",
    "scorers.norms.wrappers",
    "scorers.norms.addons",
    "scorers.norms.plan",
    "scorers.norms.independence",
    "scorers.norms.gradient_norms",
    "scorers.norms",
    "scorers",
    "scorers.last_layer",
    "fresh",
    "stores.errors",
    "stores.records",
    "stores.base",
    "stores.lua",
    "stores.memory",
    "stores.redis",
    "stores",
    "strata",
    "inclusion",
    "keys",
    "log_odds",
    "reservoirs",
    "mixing",
    "samplers.state",
    "samplers.gain",
    "samplers.base",
    "samplers.history_features",
    "samplers.side_features",
    "samplers.sum_tree",
    "samplers.sound",
    "samplers.visits",
    "samplers.uniform",
    "samplers.over",
    "samplers.presampled",
    "samplers",
    "random_access",
    "blocks",
    "element_specs",
    "cascade",
    "groups",
    "stream",
    "source",
    "fitting",
    "step",
    "model",
    "estimate.result",
    "estimate.clock",
    "estimate.examples",
    "estimate.measure",
    "estimate",
    "comparison.scale",
    "comparison.classes",
    "comparison.methods",
    "comparison.training",
    "comparison.plot",
    "comparison.result",
    "comparison",
    "reporting.runs",
    "reporting.examples",
    "reporting.recorder",
    "reporting.pictures",
    "reporting.page",
    "reporting",
    "variance_reduced.base",
    "variance_reduced.svrg",
    "variance_reduced",
    "distributed.parameters",
    "distributed.description",
    "distributed.smoothing",
    "distributed.mirror",
    "distributed.exchange",
    "distributed.shared",
    "distributed",
    "callbacks",
    "export",
    "__main__",
)

# The library has no flags and, but for a comparison's and a report's, no plots, and knows nobody
# who uses it. `reports` are drawn from files, on a machine without TensorFlow, which the library's
# own import would need.
FORBIDDEN = {
    "tf_importance": "absl argparse matplotlib trainers reports benchmarks tests",
    "trainers": "benchmarks tests",
    "reports": "tensorflow keras tensorflow_datasets tf_importance trainers benchmarks tests",
    "benchmarks": "tests",
}
# The library's one program.
COMMAND = "tf_importance.__main__"
# Imported only where a plot is drawn.
PLOTS = ("tf_importance.comparison.plot", "tf_importance.reporting.pictures")

FILES = imports.files()
LIBRARY = [module for module in FILES if module.split(".")[0] == "tf_importance"]


def room(module: str) -> str | None:
    """The line of ROOMS that holds a module of the library; the longest where several do."""
    inside = module.removeprefix("tf_importance").removeprefix(".")
    holding = [line for line in ROOMS if f"{inside}.".startswith(f"{line}.")]
    return max(holding, key=len, default=None)


def wrong_layers(module: str, imported: set[str], is_package: bool = False) -> list[str]:
    """Those of a library module's imports that are not above it."""
    own = ROOMS.index(room(module))
    inside = {name for name in imported if name.split(".")[0] == "tf_importance"}
    if is_package:
        inside = {name for name in inside if not name.startswith(f"{module}.")}
    rooms = {name: room(name) for name in inside}
    return sorted(n for n, line in rooms.items() if line is None or ROOMS.index(line) >= own)


def forbidden(module: str, imported: set[str]) -> list[str]:
    """Those of a module's imports that its part of the project must do without."""
    outlaws = FORBIDDEN.get(module.split(".")[0], "").split()
    for exempt, name in ((PLOTS, "matplotlib"), ((COMMAND,), "argparse")):
        if module in exempt:
            outlaws.remove(name)
    return sorted(name for name in imported if name.split(".")[0] in outlaws)


def prints(source: str) -> list[int]:
    """The lines that call print or tf.print."""
    calls = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)]
    named = [getattr(call.func, "id", getattr(call.func, "attr", None)) for call in calls]
    return [call.lineno for call, name in zip(calls, named) if name == "print"]


def test_every_library_file_has_a_room():
    homeless = [module for module in LIBRARY if module != "tf_importance" and not room(module)]
    assert homeless == [], "needs a line in ROOMS: above whom and below whom does it stand?"


def test_library_files_import_only_from_above():
    packages = {module for module in LIBRARY if FILES[module].name == "__init__.py"}
    housed = [module for module in LIBRARY if room(module)]
    wrong = {m: wrong_layers(m, imports.imports_of(m, FILES), m in packages) for m in housed}
    assert {module: names for module, names in wrong.items() if names} == {}


def test_no_part_imports_what_it_must_do_without():
    wrong = {module: forbidden(module, imports.imports_of(module, FILES)) for module in FILES}
    assert {module: names for module, names in wrong.items() if names} == {}


def test_the_library_does_not_print():
    lines = {module: prints(FILES[module].read_text("utf-8")) for module in LIBRARY}
    assert {module: numbers for module, numbers in lines.items() if numbers} == {}


# Negative controls: each is caught.


@pytest.mark.parametrize(
    "module, source, caught",
    [
        ("compat", "from tf_importance import losses", "losses"),
        ("compat", "from . import losses", "losses"),
        ("compat", "from .losses import Objective", "losses"),
        ("proposals", "def f():\n  import tf_importance.model", "model"),
        ("stream", "from tf_importance import model", "model"),
        ("scorers.base", "from tf_importance import scorers", "scorers"),
        ("scorers.base", "from .loss import loss", "scorers.loss"),
        ("scorers.loss", "from . import upper_bound", "scorers.upper_bound"),
        ("model", "import tf_importance as tfi", ""),
        ("model", "from tf_importance import ISModel", ""),
    ],
)
def test_an_import_from_below_is_caught(module, source, caught):
    module, caught = f"tf_importance.{module}", f"tf_importance.{caught}".rstrip(".")
    assert wrong_layers(module, imports.imported(source, module, FILES)) == [caught]


@pytest.mark.parametrize(
    "module, source",
    [
        ("tf_importance.model", "from absl import flags"),
        ("tf_importance.model", "import matplotlib.pyplot as plt"),
        ("tf_importance.model", "from trainers import nets"),
        ("reports.curves", "def draw():\n  import tensorflow as tf"),
        ("reports.curves", "import tf_importance as tfi"),
    ],
)
def test_a_forbidden_import_is_caught(module, source):
    assert len(forbidden(module, imports.imported(source, module, FILES))) == 1


@pytest.mark.parametrize("source", ["print(1)", "import tensorflow as tf\ntf.print(1)"])
def test_printing_is_caught(source):
    assert prints(source)


def test_a_file_without_a_room_is_caught():
    assert room("tf_importance.utils") is None
    assert room("tf_importance.model_utils") is None


def test_imports_from_above_pass():
    source = "import keras\nfrom .. import compat\nfrom . import base\nfrom .forward import Forward"
    module = "tf_importance.scorers.loss"
    imported = imports.imported(source, module, FILES)
    assert imported == {
        *("keras", "tf_importance.compat"),
        *("tf_importance.scorers.base", "tf_importance.scorers.forward"),
    }
    assert wrong_layers(module, imported) == []
