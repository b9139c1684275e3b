"""The site: every public name has its place in the reference, and the README is short."""

import inspect
import pathlib
import re
import runpy
import sys
import types

import pytest

import tf_importance as tfi

ROOT = pathlib.Path(__file__).parents[1]
REFERENCE = "\n".join(path.read_text("utf-8") for path in (ROOT / "docs/reference").glob("*.md"))
BENCHMARK = re.compile(r"python -m benchmarks\.(\w+)")
# Public for the library's own files, or types of what others give.
INTERNAL = {
    *("check", "refuse_other", "with_maintenance", "named", "warn_unless_followed", "RECORD"),
    *("BY_NAME", "norms", "Scorer", "OURS", "OTHERS", "SharedScores", "describe", "entropy"),
    *("Changes", "Layout", "Lease", "Mark", "Message", "Parameters", "Run"),
    *("without_credentials", "without_credentials_of"),
}


def public():
    for name in tfi.__all__:
        value = getattr(tfi, name)
        if not isinstance(value, types.ModuleType):
            yield f"tf_importance.{name}"
        elif not hasattr(value, "__all__"):
            # Equations: a page has all of a module; layers and schedules have some of theirs.
            if name not in ("layers", "schedules"):
                yield f"tf_importance.{name}"
        else:
            yield from (
                f"tf_importance.{name}.{one}" for one in value.__all__ if one not in INTERNAL
            )
    yield from (f"tf_importance.scorers.norms.{one}" for one in tfi.scorers.norms.__all__)


@pytest.mark.parametrize("name", sorted(public()))
def test_the_reference_has_it(name):
    # Some of a package's are at the top, too, and are there.
    top = f"tf_importance.{name.rpartition('.')[2]}"
    places = "|".join(re.escape(one) for one in (name, top))
    assert re.search(rf"^::: ({places})$", REFERENCE, flags=re.MULTILINE)


def test_what_the_reference_names_is_there():
    names = re.findall(r"^::: (\S+)$", REFERENCE, flags=re.MULTILINE)
    assert len(names) > 60 and len(set(names)) == len(names)
    for name in names:
        value = tfi
        for part in name.split(".")[1:]:
            value = getattr(value, part)
        assert value.__doc__, name


def test_each_has_an_example():
    entries = re.split(r"^::: ", REFERENCE, flags=re.MULTILINE)[1:]
    for entry in entries:
        name, _, rest = entry.partition("\n")
        value = tfi
        for part in name.split(".")[1:]:
            value = getattr(value, part)
        if isinstance(value, type) and tfi.stores.StoreError in value.__bases__:
            continue  # That of StoreError has them all.
        in_docstring = re.search(r"\n\n {4,}\S", inspect.getdoc(value))
        assert in_docstring or "```python\n" in rest, name


@pytest.mark.parametrize("module", ["gain", "proposals", "robust", "variance"])
def test_an_equation_s_example_is_that_of_its_module(module):
    entry = re.search(rf"^::: tf_importance\.{module}\n(.*?)(?=^:::|\Z)", REFERENCE, re.M | re.S)[1]
    shown = re.search(r"members: \[(.*)\]", entry)
    names = (
        shown[1].split(", ")
        if shown
        else [
            name
            for name, value in vars(getattr(tfi, module)).items()
            if getattr(value, "__module__", "") == f"tf_importance.{module}" and name[0] != "_"
        ]
    )
    assert len(names) > 7
    assert [name for name in names if not re.search(rf"\btfi\.{module}\.{name}\b", entry)] == []


def test_docstrings_come_apart_for_the_site(monkeypatch):
    monkeypatch.setitem(sys.modules, "griffe", types.SimpleNamespace(Extension=object))
    apart = runpy.run_path(str(ROOT / "docs/site/sections.py"))["apart"]
    text = "X.\n\nArgs:\n    a: one. b, c: two,\n        three. d: four.\nRaises:\n    E: no."
    items = "    a: one.\n    b, c: two,\n        three.\n    d: four.\n"
    assert apart(text) == f"X.\n\nArgs:\n{items}\nRaises:\n    E: no."
    assert apart(apart(text)) == apart(text)


def test_the_site_asks_nothing_of_other_hosts():
    config = (ROOT / "mkdocs.yml").read_text("utf-8")
    (polyfill,) = re.findall(r"polyfills: \[(.*iframe-worker.*)\]", config)
    assert (ROOT / "docs" / polyfill).exists() and "- offline" in config and "font: false" in config


def test_each_benchmark_of_the_pages_has_its_date():
    pages = [path for path in (ROOT / "docs").glob("*.md") if path.name != "benchmarks.md"]
    named = {name for path in pages for name in BENCHMARK.findall(path.read_text("utf-8"))}
    rows = re.findall(
        r"^\| (\w+) \| [^|]+ \| \[\S+\]\((\S+)\) \| (?:\d{4}‑\d\d‑\d\d)? \| [^|]*\|$",
        (ROOT / "docs/benchmarks.md").read_text("utf-8"),
        flags=re.MULTILINE,
    )
    assert {name for name, _ in rows} == named and len(rows) > 15
    for name, page in rows:
        assert name in BENCHMARK.findall((ROOT / "docs" / page).read_text("utf-8"))


def test_the_readme_is_short():
    text = (ROOT / "README.md").read_text("utf-8")
    assert len(text.splitlines()) <= 120
    assert text.count("![") == 1


def test_the_glossary_has_twelve_words():
    text = (ROOT / "docs/glossary.md").read_text("utf-8")
    assert len(re.findall(r"^\*\*[^*]+\.\*\*", text, flags=re.MULTILINE)) == 12
