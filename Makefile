# `make demo` and `make test` need Python 3.11 or later and make; they set up the rest in .venv, once.
# Overridable: PYTHON=python3.12, WORKERS=4, ARGS="--help".

PYTHON ?= python3
WORKERS ?= 2
ARGS ?=

VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --quiet --disable-pip-version-check
READY := $(VENV)/.ready

# One thread a worker: several pools of threads on the same cores slow each other down.
TEST_SETTINGS := TF_CPP_MIN_LOG_LEVEL=2 TF_NUM_INTRAOP_THREADS=1 OMP_NUM_THREADS=1
PYTEST := $(TEST_SETTINGS) $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal
JAX_TESTS = $(wildcard tests/losses tests/test_contract.py)
JAX_TESTS_CORE = $(wildcard tests/losses/test_response.py tests/losses/test_loss_classes.py \
	tests/losses/test_trained_loss.py)
ON_JAX := KERAS_BACKEND=jax $(PYTEST)

# $(call BOTH_BACKENDS,tests for JAX,marks for JAX,options of the main run): the run on JAX comes first,
# so that the output ends with the main run's closing line; a failure of either is a failure.
define BOTH_BACKENDS
@failed=; \
$(if $(1),echo '== On JAX'; $(ON_JAX) -m "$(2)" $(1) || failed=jax;) \
echo '== On TensorFlow'; $(PYTEST) $(3) $(ARGS) || exit 1; \
if [ -n "$$failed" ]; then echo 'The run on JAX failed: see its summary above.'; exit 1; fi
endef

.DEFAULT_GOAL := help
.PHONY: help demo test test-fast test-jax test-learning lint format benchmark docs reproduce notebooks wheel check-wheel clean distclean
.DELETE_ON_ERROR:

help:  ## Show the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: $(READY)-demo  ## Train a teacher ensemble and a student on real digits, compare, export to TF Lite
	$(BIN)/keras-distill demo $(ARGS)

test: $(READY)-test  ## Run the whole suite, on JAX a core of losses (35 minutes at most on 2 cores)
	$(call BOTH_BACKENDS,$(JAX_TESTS_CORE),not tensorflow and not slow,-m "not learning")

test-fast: $(READY)-test  ## Run the suite without its slow tests, on JAX the response losses alone
	$(call BOTH_BACKENDS,$(wildcard tests/losses/test_response.py),not tensorflow and not slow,-m "not slow")

test-jax: $(READY)-test  ## Run on JAX all losses and all wrappers
	$(ON_JAX) -m "not tensorflow" $(ARGS) $(JAX_TESTS)

test-learning: $(READY)-test  ## Train every scheme, precision and int8 on real images in TFDS_DATA_DIR, with five seeds
	$(PYTEST) -m learning $(ARGS) tests/test_learning.py

lint: $(READY)-dev  ## Check style and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(READY)-dev  ## Mend style and format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

benchmark: $(READY)-test  ## Measure speed against the bounds (ARGS="--all --out run.json" for all of them)
	$(BIN)/python scripts/benchmark.py $(ARGS)

docs: $(READY)-docs  ## Build the documentation into build/docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict $(ARGS)
	@echo 'Open build/docs/index.html'

reproduce: $(READY)-test  ## Carry out experiments (ARGS="mutual", ARGS=--list), on TFDS_DATA_DIR, into results/
	$(BIN)/python scripts/reproduce.py $(ARGS)

notebooks: $(READY)-test  ## Generate the notebooks from their scripts and execute them
	$(BIN)/python scripts/make_notebooks.py $(ARGS)

wheel: $(READY)-test  ## Build the wheel into dist/
	$(BIN)/python -m build --wheel --no-isolation --outdir dist .

check-wheel: wheel  ## Install the wheel's demo extra into an empty environment and run it
	@set -e; place=$$(mktemp -d); trap 'rm -rf "$$place"' EXIT; \
	wheel=$$(ls -t dist/keras_distill-*.whl | head -n 1); \
	echo "Installing $$wheel[demo] into an empty environment"; \
	$(PYTHON) -m venv "$$place/venv"; \
	"$$place/venv/bin/python" -m pip --quiet --disable-pip-version-check install "$$wheel[demo]" -c constraints.txt; \
	cd "$$place"; venv/bin/keras-distill --version; venv/bin/keras-distill demo --seeds 1 --epochs 2 --out run

clean:  ## Remove build results and caches
	rm -rf build dist .pytest_cache .ruff_cache .hypothesis
	find keras_distill tests scripts -name __pycache__ -type d -prune -exec rm -rf {} +

distclean: clean  ## Remove the environment too
	rm -rf $(VENV)

# Set-up. A stamp for each extra: newer than what it was installed from, so a second call installs
# nothing. `dev` holds `test`, and `test` holds `demo` and `docs`; the larger one stamps the smaller
# ones too.

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo 'Expected Python 3.11 or later. Received: PYTHON=$(PYTHON). Call `make PYTHON=python3.12 ...`.'; exit 1; }
	$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); exit 1; }

INSTALL = @echo 'Installing keras-distill[$(1)] into $(VENV) (once; a few minutes)'; \
	$(PIP) install --editable ".[$(1)]" --constraint constraints.txt

$(READY)-demo: pyproject.toml constraints.txt | $(BIN)/python
	$(call INSTALL,demo)
	@touch $@

$(READY)-docs: pyproject.toml constraints.txt | $(BIN)/python
	$(call INSTALL,docs)
	@touch $@

$(READY)-test: pyproject.toml constraints.txt | $(BIN)/python
	$(call INSTALL,test)
	@touch $(READY)-demo $(READY)-docs $@

$(READY)-dev: pyproject.toml constraints.txt | $(BIN)/python
	$(call INSTALL,dev)
	@touch $(READY)-demo $(READY)-docs $(READY)-test $@
