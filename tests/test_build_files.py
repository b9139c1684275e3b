"""The BUILD files say what the imports say: a target per module, its deps what it imports."""

import ast
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import pytest

from tests import imports

PYTEST_MAIN = "tests.pytest_main"
RULES = ("py_library", "py_binary", "py_test")

FILES = imports.files()


class Target(NamedTuple):
    """A py_library, py_binary or py_test."""

    label: str
    rule: str
    modules: tuple[str, ...]
    deps: frozenset[str]


def targets(text: str, package: str) -> list[Target]:
    """The Python targets of a BUILD file, whose syntax is Python's; package is its directory."""
    calls = [node.value for node in ast.parse(text).body if isinstance(node, ast.Expr)]
    rules = [call for call in calls if isinstance(call, ast.Call) and call.func.id in RULES]
    return [_target(rule, package) for rule in rules]


def _target(rule: ast.Call, package: str) -> Target:
    wanted = ("name", "srcs", "deps")
    values = {k.arg: ast.literal_eval(k.value) for k in rule.keywords if k.arg in wanted}
    sources = [absolute(label, package).removeprefix("//") for label in values["srcs"]]
    modules = [imports.module_name(Path(source.replace(":", "/"))) for source in sources]
    return Target(
        absolute(values["name"], package),
        rule.func.id,
        tuple(module for module in modules if module != PYTEST_MAIN),
        frozenset(absolute(label, package) for label in values.get("deps", [])),
    )


def absolute(label: str, package: str) -> str:
    """`:a` and `a` → `//package:a`, `//b/c` → `//b/c:c`."""
    if not label.startswith("//"):
        return f"//{package}:{label.removeprefix(':')}"
    return label if ":" in label else f"{label}:{label.rsplit('/', 1)[-1]}"


def all_targets() -> list[Target]:
    paths = [path for name in imports.PACKAGES for path in (imports.ROOT / name).rglob("BUILD")]
    return [
        target
        for path in sorted(paths)
        for target in targets(path.read_text("utf-8"), str(path.parent.relative_to(imports.ROOT)))
    ]


def needed(target: Target, owner: dict[str, str], imported: set[str]) -> set[str]:
    """The deps that a target's imports ask for, and the conftest.py files that pytest reads."""
    read = conftests(target.modules[0]) if target.rule == "py_test" else set()
    return {owner[module] for module in imported | read if module in owner} - {target.label}


def conftests(module: str) -> set[str]:
    """a.b.c → a.conftest and a.b.conftest, be they there or not."""
    parts = module.split(".")
    return {".".join([*parts[:depth], "conftest"]) for depth in range(1, len(parts))}


def needs_a_target(module: str) -> bool:
    """All but an __init__.py of at most a docstring: Bazel makes those itself."""
    path = FILES[module]
    body = ast.parse(path.read_text("utf-8")).body
    docstring_only = len(body) <= 1 and all(isinstance(node, ast.Expr) for node in body)
    return module != PYTEST_MAIN and not (path.name == "__init__.py" and docstring_only)


TARGETS = all_targets()
OWNER = {module: target.label for target in TARGETS for module in target.modules}


def test_every_file_has_one_target():
    owned = Counter(module for target in TARGETS for module in target.modules)
    wanted = Counter(module for module in FILES if needs_a_target(module))
    assert {**(wanted - owned)} == {}, "have no target in their directory's BUILD"
    assert {**(owned - wanted)} == {}, "have a target too much, or no file"


def test_a_target_is_one_module_of_its_own_name():
    for target in TARGETS:
        (module,) = target.modules
        assert target.label.rsplit(":", 1)[1] == module.rsplit(".", 1)[-1]


def test_deps_are_the_imports():
    wrong = {}
    for target in TARGETS:
        imported = set().union(*(imports.imports_of(module, FILES) for module in target.modules))
        wanted = needed(target, OWNER, imported)
        if target.deps != wanted:
            wrong[target.label] = f"add {wanted - target.deps}, remove {target.deps - wanted}"
    assert wrong == {}


# Negative controls.

BUILD = """
py_library(name = "a", srcs = ["a.py"], deps = ["//tf_importance:compat"])
py_test(name = "test_a", srcs = ["pytest_main.py", "test_a.py"], deps = [":a", ":conftest"])
"""


def test_missing_and_surplus_deps_are_caught():
    losses, a, conftest = "//tf_importance:losses", "//tests:a", "//tests:conftest"
    owner = {"tf_importance.losses": losses, "tests.a": a, "tests.conftest": conftest}
    library, test = targets(BUILD, "tests")
    assert library.modules == ("tests.a",)
    assert needed(library, owner, {"tf_importance.losses", "keras"}) == {losses}
    assert library.deps == {"//tf_importance:compat"}
    assert test.modules == ("tests.test_a",)
    assert needed(test, owner, {"tests.a"}) == test.deps == {a, conftest}
    assert needed(test, owner, set()) != test.deps


@pytest.mark.parametrize(
    "label, full",
    [(":a", "//p:a"), ("a", "//p:a"), ("//b/c", "//b/c:c"), ("//b:c", "//b:c")],
)
def test_labels(label, full):
    assert absolute(label, "p") == full
