# Two commands do everything: `make demo` and `make test`. PYTHON and VENV choose another Python and another place.
PYTHON ?= python3
VENV ?= .venv
OLDEST ?= .venv-oldest
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check
OUT ?= outputs/demo
WORKERS ?= 2
SAMPLES ?= 200

export HF_HUB_OFFLINE := 1
export NO_MKDOCS_2_WARNING := 1

.PHONY: demo env check test test-fast test-oldest test-ray lint format docs gallery notebooks results support library bench bench-gpu bench-sweeps clean help
.DEFAULT_GOAL := demo

demo: $(VENV)/.demo  ## the embedded model, dense and compressed in all three stages: a table, and a picture of what it kept
	$(BIN)/tokcomp run preset=mustdrop vision.merge_layer=5 benchmark.samples=100 measure.repeats=3 hydra.run.dir=$(OUT)
	$(BIN)/tokcomp view docs/images/scene.png "describe all the digits" preset=tome+fastv+h2o vision.r=12 --out $(OUT)/view.png

env: $(VENV)/.dev  ## .venv with everything that development needs

$(VENV)/.torch:  # first and pinned: its wheel for the CPU
	$(PYTHON) -m venv $(VENV)
	$(PIP) torch==2.13.0
	@touch $@

$(VENV)/.demo: $(VENV)/.torch pyproject.toml
	$(PIP) --editable ".[demo]"
	@touch $@

$(VENV)/.dev: $(VENV)/.torch pyproject.toml
	$(PIP) --editable ".[dev]"
	@touch $(VENV)/.demo $@

test: env  ## all tests, the long ones too
	$(BIN)/python -m pytest -n 2

test-fast: env  ## without the long ones
	$(BIN)/python -m pytest -n 2 -m "not slow"

test-oldest: $(OLDEST)/.dev  ## the tests that run models, on the oldest transformers that is supported
	$(OLDEST)/bin/python -m pytest -n 2 tests/runner tests/models tests/contracts tests/examples

$(OLDEST)/.dev: pyproject.toml
	$(PYTHON) -m venv $(OLDEST)
	$(OLDEST)/bin/python -m pip install --quiet --disable-pip-version-check torch==2.13.0
	$(OLDEST)/bin/python -m pip install --quiet --disable-pip-version-check transformers==5.18.0 --editable ".[demo,checkpoints,test]"
	@touch $@

test-ray: env  ## real sweeps by Ray's launcher, whose packages (400 MB) stand in a folder of their own
	$(PIP) --target $(VENV)/ray "hydra-ray-launcher>=1.2.2,<1.3" "ray>=2.40" "joblib<1.6"
	PYTHONPATH=$(VENV)/ray $(BIN)/python -m pytest tests/experiment/test_ray.py

lint: env  ## style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: env  ## repair what ruff can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

check: env  ## every registered strategy against the contract, with many drawn inputs (1-2 minutes)
	$(BIN)/tokcomp check --all

support: env  ## what works where: every family x strategy x way of use, for docs/support.md and `tokcomp list models`
	$(BIN)/python -m tests.support.matrix

docs: env  ## the site, strict, in site/
	$(BIN)/mkdocs build --strict --quiet

gallery: env  ## what every strategy keeps of the same scenes, for the site (some minutes)
	$(BIN)/python docs/gallery.py

notebooks: env  ## execute the notebooks of examples/ (some minutes)
	$(BIN)/python docs/notebooks.py

results: env  ## the tables and pictures of README and site, from runs on the embedded model (half an hour)
	$(BIN)/python docs/generate.py

library: env  ## every strategy at 50, 25, 11 and 6 %: records, tables and curves of the site; goes on where it stopped
	OMP_NUM_THREADS=1 $(BIN)/python docs/library.py --workers $(WORKERS) --samples $(SAMPLES)

bench: env  ## speed and memory of small shapes on the CPU, beside bounds and published code paths (8 minutes)
	$(BIN)/python -m benchmarks.cpu --minutes 8

bench-sweeps: env  ## sweeps and reports: overhead, launchers, kills, ten thousand runs (half an hour)
	PYTHONPATH=$(VENV)/ray $(BIN)/python -m benchmarks.launchers
	$(BIN)/python -m benchmarks.overhead
	$(BIN)/python -m benchmarks.kills
	$(BIN)/python -m benchmarks.report

bench-gpu: env  ## speed and memory of 7B shapes on a CUDA device (5 minutes on an H200)
	$(BIN)/python -m benchmarks.gpu --minutes 5

clean:  ## remove what the other targets made
	rm -rf $(VENV) outputs multirun site dist build .pytest_cache .mypy_cache .ruff_cache .hypothesis

help:  ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /|/' | column -t -s '|'
