# Everything runs from a checkout. The first call makes the virtual environment it needs, by the
# versions in constraints/; later calls use it until setup.cfg or the constraints change.

# The first of these that runs. TensorFlow 2.15 has wheels for Python 3.10 and 3.11 only.
runs = $(firstword $(foreach python,$(1),$(shell $(python) -c "print('$(python)')" 2>/dev/null)))
PYTHON ?= $(or $(call runs,python3.11 python3),python3)
PYTHON_ADDONS ?= $(or $(call runs,python3.11 python3.10),python3.11)

# Two processes: most tests keep one core busy with Python.
PYTEST = -m pytest --numprocesses 2 --dist worksteal
# Further arguments of pytest, such as ARGS="-k variance".
ARGS ?=
# Arguments of the main job, such as TRAIN="--short --verbose".
TRAIN ?=

# The lock of a lane: for Python 3.10 and later, whatever machine it is made on.
COMPILE = .venv-lock/bin/uv pip compile setup.cfg --universal --python-version 3.10 --upgrade \
	--no-annotate --quiet --custom-compile-command "make lock"

.DEFAULT_GOAL := help
.PHONY: help install train test test-slow test-addons test-addons-slow test-minimum test-newest \
	screenshots notebooks measured lint docs docs-serve lock package clean

help:  ## List what can be made.
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-17s %s\n", $$1, $$2 }' Makefile

install: .venv/installed  ## Make .venv: the pinned TensorFlow and everything for tests and trainers.

train: .venv/installed  ## The main job: uniform against importance sampling, same seconds each.
	.venv/bin/python -m trainers.compare --flagfile=configs/main.cfg $(TRAIN)

test: .venv/installed  ## The tests on the newest TensorFlow and Keras 3.
	.venv/bin/python $(PYTEST) $(ARGS)

test-slow: .venv/installed  ## The tests that take minutes, steps by the config files among them.
	.venv/bin/python $(PYTEST) -m slow $(ARGS)

test-addons: .venv-addons/installed  ## The tests on TensorFlow 2.15, Keras 2.15, TensorFlow Addons.
	.venv-addons/bin/python $(PYTEST) $(ARGS)

test-addons-slow: .venv-addons/installed  ## The slow tests on TensorFlow 2.15.
	.venv-addons/bin/python $(PYTEST) -m slow $(ARGS)

test-minimum: .venv-minimum/installed  ## The tests on the oldest versions that setup.cfg allows.
	.venv-minimum/bin/python $(PYTEST) $(ARGS)

test-newest: .venv-newest/installed  ## The tests on the newest versions there are, not the pinned.
	.venv-newest/bin/python $(PYTEST) $(ARGS)

screenshots: .venv/installed  ## Draw the pictures of docs/report.md anew; needs Chromium.
	.venv/bin/python docs/pictures/report.py

lint: .venv/installed  ## ruff over everything, mypy over the library.
	.venv/bin/ruff check
	.venv/bin/mypy

notebooks: .venv/installed  ## Run docs/notebooks anew, and keep what they print.
	.venv/bin/python docs/notebooks/execute.py

measured:  ## Write docs/benchmarks.md anew, by the history of the figures.
	$(PYTHON) -m reports.measured docs/benchmarks.md

docs: .venv-docs/installed  ## The site, build/site; a link that leads nowhere is an error.
	NO_MKDOCS_2_WARNING=1 .venv-docs/bin/mkdocs build --strict --quiet

docs-serve: .venv-docs/installed  ## Show the site while one writes: http://127.0.0.1:8000.
	NO_MKDOCS_2_WARNING=1 .venv-docs/bin/mkdocs serve

lock: .venv-lock/installed  ## Pin each lane anew to the newest versions: constraints/.
	$(COMPILE) --extra test --output-file constraints/current.txt
	$(COMPILE) --extra test --extra addons --output-file constraints/addons.txt
	$(COMPILE) constraints/minimum.in --extra test --output-file constraints/minimum.txt
	$(subst setup.cfg,constraints/docs.in,$(COMPILE)) --output-file constraints/docs.txt

package: .venv-lock/installed  ## Build the wheel and the sdist: dist/.
	rm -rf dist
	.venv-lock/bin/python -m build --outdir dist

clean:  ## Remove the virtual environments and caches; runs/ stays.
	rm -rf .venv .venv-addons .venv-minimum .venv-newest .venv-lock .venv-docs
	rm -rf build dist *.egg-info .cache .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

.venv/installed: setup.cfg pyproject.toml constraints/current.txt
	$(PYTHON) -m venv .venv
	.venv/bin/python -m pip install --quiet --constraint constraints/current.txt --editable '.[test]'
	touch $@

.venv-addons/installed: setup.cfg pyproject.toml constraints/addons.txt
	$(PYTHON_ADDONS) -m venv .venv-addons
	.venv-addons/bin/python -m pip install --quiet --constraint constraints/addons.txt \
		--editable '.[addons,test]'
	touch $@

.venv-minimum/installed: setup.cfg pyproject.toml constraints/minimum.txt
	$(PYTHON_ADDONS) -m venv .venv-minimum
	.venv-minimum/bin/python -m pip install --quiet --constraint constraints/minimum.txt \
		--editable '.[test]'
	touch $@

# Made anew each time: what is newest changes.
.PHONY: .venv-newest/installed
.venv-newest/installed:
	rm -rf .venv-newest
	$(PYTHON) -m venv .venv-newest
	.venv-newest/bin/python -m pip install --quiet --editable '.[test]'

.venv-docs/installed: constraints/docs.in constraints/docs.txt
	$(PYTHON) -m venv .venv-docs
	.venv-docs/bin/python -m pip install --quiet --constraint constraints/docs.txt \
		--requirement constraints/docs.in
	touch $@

.venv-lock/installed:
	$(PYTHON) -m venv .venv-lock
	.venv-lock/bin/python -m pip install --quiet build uv
	touch $@
