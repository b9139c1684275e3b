"""What the documents show is so: their code runs as written and without a warning, and their links
and make targets exist. Their commands are run by `.ci/commands`.

All code of a page is one program. A page may prepare what its code takes for granted, such as a net
and data, in a comment that readers do not see: `<!-- setup`, code, `-->`. What only the reader has,
such as a server, is replaced: `<!-- run with memory:// for redis://host -->`.
"""

import json
import logging
import pathlib
import re
import runpy
import warnings

import pytest

from tests.cases import quick

ROOT = pathlib.Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
NOTEBOOKS = sorted((ROOT / "docs").rglob("*.ipynb"))
# Where the checkout lies on the web: README's links have to lead somewhere from an index, too.
ON_THE_WEB = "https://github.com/tf-importance/tf-importance/blob/main/"

CODE = re.compile(r"^(?:```python|<!-- setup)\n(.*?)^(?:```|-->)$", flags=re.DOTALL | re.MULTILINE)
REPLACED = re.compile(r"^<!-- run with (\S+) for (\S+) -->$", flags=re.MULTILINE)

# What Keras warns of whoever calls it: Keras 3 of its own default, for every tf.data.Dataset;
# Keras 2 of how it draws a seed, and of callbacks (its own bar among them) that take longer than a
# step, which on a busy machine is chance; NumPy 2 of how Keras 3.12, the last for Python 3.10,
# converts its variables; Python 3.13 of how AutoGraph notes what it parses.
NOT_OURS = re.compile(
    r"`shuffle=True` was passed|non-integer arguments to randrange\(\)"
    r"|^Callback method `\w+` is slow compared to the batch time"
    r"|__array__ implementation doesn't accept a copy keyword.*/keras/src/backend/tensorflow/"
    r"|__init__ got an unexpected keyword argument '___pyct_anno'.*/gast/"
    # What these two do is theirs.
    r"|\(.*/(?:tensorflow_datasets|keras_tuner)/"
)


def page_of(notebook: pathlib.Path) -> str:
    """A notebook as a page: its text, and its code as code."""
    cells = json.loads(notebook.read_text("utf-8"))["cells"]
    parts = ("".join(cell["source"]) for cell in cells)
    fenced = (
        f"```python\n{part}\n```" if cell["cell_type"] == "code" else part
        for cell, part in zip(cells, parts)
    )
    return "\n\n".join(fenced) + "\n"


TEXTS = {
    **{str(page.relative_to(ROOT)): page.read_text("utf-8") for page in PAGES},
    **{str(page.relative_to(ROOT)): page_of(page) for page in NOTEBOOKS},
}


def program(text: str) -> str:
    """A page's code, all other lines blank: the lines of a traceback are the page's."""
    lines, end = [], 0
    for found in CODE.finditer(text):
        lines += ["\n" * text.count("\n", end, found.start(1)), found[1]]
        end = found.end(1)
    code = "".join(lines)
    for ours, theirs in REPLACED.findall(text):
        assert theirs in code, f"{theirs} is not there to be replaced"
        code = code.replace(theirs, ours)
    return code


CODED = [name for name, text in TEXTS.items() if CODE.search(text)]


@pytest.mark.parametrize("page", quick(CODED, "README.md"))
def test_the_code_of_a_page_runs(page, tmp_path, monkeypatch, caplog, capsys):
    path = tmp_path / pathlib.Path(page).with_suffix(".py").name
    path.write_text(program(TEXTS[page]), "utf-8")
    monkeypatch.chdir(tmp_path)
    # Not raised: Keras 2 takes an exception inside of a layer for a net that has no graph.
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        runpy.run_path(str(path))
    warned = [f"{one.category.__name__}: {one.message} ({one.filename})" for one in caught]
    assert [text for text in warned if not NOT_OURS.search(text)] == []
    logged = [
        record.getMessage()
        for record in caplog.records
        if record.levelno >= logging.WARNING and "/tensorflow_datasets/" not in record.pathname
    ]
    assert [text for text in logged if not NOT_OURS.search(text)] == []
    if page == "README.md":
        assert (tmp_path / "saved_model" / "saved_model.pb").exists()
        shares = re.findall(r"importance: ([\d.e+-]+)", capsys.readouterr().out)
        assert max(map(float, shares)) > 0, "nothing was drawn by importance"


def test_commands_are_written_out():
    """As `.ci/commands` finds them: nothing is left out, and what they name is there."""
    makefile = (ROOT / "Makefile").read_text("utf-8")
    commands = runpy.run_path(str(ROOT / ".ci" / "commands"))["commands"]()
    assert len(commands) > 50
    for text, page in commands:
        assert "…" not in text, page
        for module in re.findall(r"-m ((?:trainers|reports|benchmarks)[\w.]*)", text):
            assert (ROOT / (module.replace(".", "/") + ".py")).exists(), (module, page)
        for target in re.findall(r"\bmake ([a-z-]+)", text):
            assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE), (target, page)


@pytest.mark.parametrize("page", TEXTS)
def test_its_configs_exist(page):
    for path in re.findall(r"configs/[\w./-]+\.(?:cfg|sh|yml)", TEXTS[page]):
        assert (ROOT / path).exists(), path


@pytest.mark.parametrize("page", TEXTS)
def test_its_links_lead_somewhere(page):
    text = TEXTS[page]
    inside = re.findall(r"\]\(([^)#:]+)(?:#[\w-]+)?\)", text)
    outside = re.findall(re.escape(ON_THE_WEB) + r"([\w./-]+)", text)
    for target in [(ROOT / page).parent / link for link in inside] + [ROOT / o for o in outside]:
        assert target.exists(), target
    defined = set(re.findall(r"^\[([^\]]+)\]: ", text, flags=re.MULTILINE))
    for name in re.findall(r"\[((?:docs/)?[\w-]+\.md)\](?![(:\[])", text):
        assert name in defined, f"[{name}] is defined nowhere"


def test_readme_links_by_address():
    assert not re.findall(r"\]\(([^)#:]+)\)", TEXTS["README.md"])


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_shows_what_it_printed(notebook):
    cells = json.loads(notebook.read_text("utf-8"))["cells"]
    assert len(NOTEBOOKS) >= 2
    for cell in cells:
        prints = cell["cell_type"] == "code" and "print(" in "".join(cell["source"])
        outputs = "".join(text for out in cell.get("outputs", ()) for text in out.get("text", ()))
        assert bool(outputs) == prints or "def told" in "".join(cell["source"])
        assert "/tmp" not in outputs and "/home" not in outputs and "Traceback" not in outputs


# Negative controls.


def test_a_program_keeps_the_lines_of_its_page():
    page = "# Page\n\n<!-- setup\nx = 1\n-->\n\n```python\ny = x\nurl = 'a://b'\n```\n"
    replaced = "<!-- run with memory:// for a://b -->\n"
    lines = program(page + replaced).split("\n")
    assert lines[3] == "x = 1"
    assert lines[7:9] == ["y = x", "url = 'memory://'"]
    assert not any(lines[:3] + lines[4:7])
    with pytest.raises(AssertionError, match="a://b is not there"):
        program(replaced)
