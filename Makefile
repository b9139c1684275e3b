# Everything runs from a checkout: the first call makes the virtual environment it needs, the later
# ones use it until setup.cfg or pyproject.toml changes.

# The first of these that runs. The addons lane has wheels for Python 3.10 and 3.11 only.
runs = $(firstword $(foreach python,$(1),$(shell $(python) -c "print('$(python)')" 2>/dev/null)))
PYTHON ?= $(or $(call runs,python3.11 python3),python3)
PYTHON_ADDONS ?= $(or $(call runs,python3.11 python3.10),python3.11)

# Two processes: most tests keep one core busy with Python.
PYTEST = -m pytest --numprocesses 2 --dist worksteal
# Further arguments of pytest, such as ARGS="-k variance".
ARGS ?=

export TF_CPP_MIN_LOG_LEVEL ?= 2

.DEFAULT_GOAL := help
.PHONY: help install train test test-addons test-configs lint clean

help:  ## List what can be made.
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-12s %s\n", $$1, $$2 }' Makefile

install: .venv/installed  ## Make .venv: the newest TensorFlow and everything for tests and trainers.

train: .venv/installed  ## The main job: uniform against importance sampling, same seconds each.
	.venv/bin/python -m trainers.compare --flagfile=configs/main.cfg

test: .venv/installed  ## All tests on the newest TensorFlow and Keras 3.
	.venv/bin/python $(PYTEST) $(ARGS)

test-addons: .venv-addons/installed  ## All tests on TensorFlow 2.15, Keras 2.15, TensorFlow Addons.
	.venv-addons/bin/python $(PYTEST) $(ARGS)

test-configs: .venv/installed  ## Two steps by each config file of the trainers, on fixture data.
	.venv/bin/python $(PYTEST) -m every_config tests/trainers $(ARGS)

lint: .venv/installed  ## ruff over everything, mypy over the library.
	.venv/bin/ruff check
	.venv/bin/mypy

clean:  ## Remove the virtual environments and caches; runs/ stays.
	rm -rf .venv .venv-addons *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

.venv/installed: setup.cfg pyproject.toml
	$(PYTHON) -m venv .venv
	.venv/bin/python -m pip install --editable '.[test]'
	touch $@

.venv-addons/installed: setup.cfg pyproject.toml
	$(PYTHON_ADDONS) -m venv .venv-addons
	.venv-addons/bin/python -m pip install --editable '.[addons,test]'
	touch $@
