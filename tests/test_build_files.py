"""The BUILD files: every Python file has one target, and a target's deps are what it imports."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

import pytest

from tests import imports

RULES = ("py_library", "py_binary", "py_test")
PROGRAM = 'if __name__ == "__main__":'


class Target(NamedTuple):
    """A py_library, py_binary or py_test; its files by the names of their modules.

    The main of a py_binary or py_test is not among them: a library has it, and Bazel wants it in
    srcs once more.
    """

    label: str
    rule: str
    large: bool
    modules: frozenset[str]
    main: str
    deps: frozenset[str]


def targets(root: Path, package: str) -> list[Target]:
    """Those of package/BUILD, a file in Python's syntax: run with rules that note their calls."""
    folder, found = root / package, []

    def matching(patterns) -> set[str]:
        paths = {path for pattern in patterns for path in folder.glob(pattern)}
        return {path.relative_to(folder).as_posix() for path in paths}

    def note(rule, name, srcs, main=None, deps=(), size=None, **_):
        main = main or f"{name}.py"
        sources = set(srcs) - ({main} if rule != "py_library" else set())
        label, *labels = (absolute(label, package) for label in (name, *deps))
        modules = frozenset(imports.module_name(Path(package, file)) for file in sources)
        main = imports.module_name(Path(package, main))
        found.append(Target(label, rule, size == "large", modules, main, frozenset(labels)))

    names = {rule: partial(note, rule) for rule in RULES}
    names |= dict.fromkeys(("package", "filegroup"), lambda **_: None)
    names["glob"] = lambda include, exclude=(): sorted(matching(include) - matching(exclude))
    exec((folder / "BUILD").read_text("utf-8"), names)
    return found


def absolute(label: str, package: str) -> str:
    """`:a` and `a` → `//package:a`, `//b` → `//b:b`."""
    if not label.startswith("//"):
        return f"//{package}:{label.removeprefix(':')}"
    return label if ":" in label else f"{label}:{label.rsplit('/', 1)[-1]}"


def faults(root: Path) -> list[str]:
    """What is wrong with a project's BUILD files, a line each."""
    builds = sorted(root.glob("*/BUILD"))
    found = [target for build in builds for target in targets(root, build.parent.name)]
    files = imports.files(root)
    nested = [build for name in imports.PACKAGES for build in root.glob(f"{name}/*/**/BUILD")]
    return [
        *(f"{build.parent.relative_to(root)}: its BUILD hides it from globs" for build in nested),
        *twice(found),
        *wrong_files(found, files),
        *wrong_deps(found, files),
    ]


def twice(found: list[Target]) -> Iterator[str]:
    """Targets of one name, which Bazel refuses."""
    labels = Counter(target.label for target in found)
    yield from (f"{label}: there {count} times" for label, count in labels.items() if count > 1)


def wrong_files(found: list[Target], files: dict[str, Path]) -> Iterator[str]:
    """Tests not in one py_test, other files not in one py_library, programs without a py_binary."""
    runs = {target.main for target in found if target.rule == "py_binary"}
    for module, path in files.items():
        rules = [target.rule for target in found if module in target.modules]
        wanted = "py_test" if path.name.startswith("test_") else "py_library"
        if rules != [wanted]:
            yield f"{module}: in {rules}, not in one {wanted}"
        # Those in tests/ are run by `python -m`, from the checkout, or by tests.
        is_program = not module.startswith("tests.") and PROGRAM in path.read_text("utf-8")
        if is_program and module not in runs:
            yield f"{module}: no py_binary"


def wrong_deps(found: list[Target], files: dict[str, Path]) -> Iterator[str]:
    """Deps imported and not declared, or declared and not imported, which large tests may have."""
    owner = {module: target.label for target in found for module in target.modules}
    for target in found:
        used = {target.main}.union(*(imports.imports_of(m, files) for m in target.modules))
        needed = {owner[module] for module in used if module in owner} - {target.label}
        yield from (f"{target.label}: add {label}" for label in needed - target.deps)
        if not target.large:
            yield from (f"{target.label}: remove {label}" for label in target.deps - needed)


def test_the_build_files_have_no_faults():
    assert faults(imports.ROOT) == []


# Controls: a small project without faults, and what changes to it bring.

TRAINERS = """
py_library(name = "trainers", srcs = glob(["**/*.py"]))
[py_binary(name = name, srcs = [name + ".py"], deps = [":trainers"]) for name in ["compare"]]
"""
TESTS = """
package(default_visibility = ["//visibility:public"])
py_library(name = "tests", srcs = glob(["**/*.py"], exclude = ["**/test_*.py"]))
SMALL = {"test_compare": ["//trainers"], "nets/test_cnn": []}
[
    py_test(
        name = name,
        size = "small" if name in SMALL else "large",
        srcs = ["pytest_main.py", name + ".py"],
        main = "pytest_main.py",
        deps = [":tests"] + SMALL.get(name, ["//trainers"]),
    )
    for name in ["test_compare", "nets/test_cnn", "test_large"]
]
"""
PROJECT = {
    "trainers/BUILD": TRAINERS,
    "trainers/compare.py": f"from trainers.nets import cnn\n{PROGRAM}\n    cnn.compare()",
    "trainers/nets/cnn.py": "import keras",
    "tests/BUILD": TESTS,
    "tests/pytest_main.py": f"import pytest\n{PROGRAM}\n    pytest.main()",
    "tests/test_compare.py": "from trainers import compare",
    "tests/nets/test_cnn.py": "import keras",
    "tests/test_large.py": "import keras",
}


def faults_of(folder: Path, project: dict[str, str]) -> list[str]:
    for name, text in project.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, "utf-8")
    return faults(folder)


@pytest.mark.parametrize("more", [{}, {"trainers/data/digits.py": "from trainers import compare"}])
def test_a_new_file_of_a_library_needs_no_line(tmp_path, more):
    assert faults_of(tmp_path, PROJECT | more) == []


@pytest.mark.parametrize(
    "name, text, fault",
    [
        ("tests/BUILD", TESTS.replace('": ["//trainers"]', '": []'), "add //trainers:trainers"),
        ("tests/BUILD", TESTS.replace("[]}", '["//trainers"]}'), "remove //trainers:trainers"),
        ("tests/BUILD", TESTS.replace('[":tests"] +', ""), "add //tests:tests"),
        ("tests/BUILD", TESTS.replace("**/test_*", "test_*"), "nets.test_cnn: in"),
        ("tests/BUILD", TESTS.replace(', "nets/test_cnn", ', ", "), "nets.test_cnn: in []"),
        ("tests/test_new.py", "", "tests.test_new: in []"),
        ("trainers/test_new.py", "", "trainers.test_new: in ['py_library']"),
        ("trainers/BUILD", TRAINERS.replace("**/", ""), "trainers.nets.cnn: in []"),
        ("trainers/BUILD", TRAINERS.replace('"compare"', ""), "trainers.compare: no py_binary"),
        ("trainers/BUILD", TRAINERS.replace('"compare"', '"compare", "compare"'), "there 2 times"),
        ("trainers/new.py", f"{PROGRAM} pass", "trainers.new: no py_binary"),
        ("trainers/nets/BUILD", "", "trainers/nets: its BUILD hides it"),
    ],
)
def test_faults_are_found(tmp_path, name, text, fault):
    found = faults_of(tmp_path, PROJECT | {name: text})
    assert found and all(fault in line for line in found)


@pytest.mark.parametrize(
    "label, full",
    [(":a", "//p:a"), ("a", "//p:a"), ("//b/c", "//b/c:c"), ("//b:c", "//b:c")],
)
def test_labels(label, full):
    assert absolute(label, "p") == full
