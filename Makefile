# Two commands do everything: `make demo` and `make test`.
VENV ?= .venv
PYTHON ?= python3
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: env demo test test-fast lint docs results bench clean
.DEFAULT_GOAL := demo

env: $(STAMP)  ## the environment: torch first (its CPU build), then tokcomp with everything that development needs
$(STAMP): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check torch==2.13.0
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[dev]"
	touch $(STAMP)

demo: env  ## MustDrop on the embedded model: a table, and a picture of what it kept
	$(BIN)/tokcomp run preset=mustdrop benchmark.samples=100 hydra.run.dir=outputs/demo
	$(BIN)/tokcomp view docs/images/scene.png "what digit is red ?" preset=mustdrop --out outputs/demo/view.png

test: env  ## all tests, the long ones too
	$(BIN)/python -m pytest -n 2

test-fast: env  ## without the long ones
	$(BIN)/python -m pytest -n 2 -m "not slow"

lint: env  ## style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: env  ## the site, strict
	$(BIN)/mkdocs build --strict --quiet

results: env  ## the figures of README and docs, from runs on the embedded model
	$(BIN)/python docs/generate.py

bench: env  ## prefill speed against what the FLOPs promise
	$(BIN)/python benchmarks/prefill.py

clean:
	rm -rf $(VENV) outputs multirun site dist build .pytest_cache .mypy_cache .ruff_cache .hypothesis
