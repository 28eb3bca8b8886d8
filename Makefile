# Two commands set up everything: `make demo` (the main job) and `make test` (the suite).
SHELL := bash
.DELETE_ON_ERROR:
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
export UV_PYTHON_DOWNLOADS := never
# Bytecode is kept, whatever the caller's environment says: otherwise each of the hundreds of processes that tests start
# compiles every library it imports, which takes twice as long as all else it does until it is ready.
export PYTHONDONTWRITEBYTECODE :=
PYTEST_ARGS ?=
# The suite is bound by real processes starting, not by the processor: a few more workers than cores.
WORKERS ?= 3

.PHONY: help demo test faults simulations check bench format generate lock deb clean

help:  ## What can be made
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

$(BIN)/uv:
	$(PYTHON) -c 'import sys; sys.exit("variantd needs Python 3.11 or newer; set PYTHON=") if sys.version_info < (3, 11) else None'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv

$(VENV)/.run: $(BIN)/uv requirements/run.txt pyproject.toml
	$(BIN)/uv pip install --quiet --python $(BIN)/python --require-hashes -r requirements/run.txt
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --editable .
	@touch $@

$(VENV)/.dev: $(VENV)/.run requirements/dev.txt
	$(BIN)/uv pip install --quiet --python $(BIN)/python --require-hashes -r requirements/dev.txt
	@touch $@

# gbstats, an oracle of some tests, asks for older libraries than ours: an environment of its own, where it can be had.
$(VENV)/.gbstats: $(BIN)/uv requirements/gbstats.txt
	if $(BIN)/python -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))'; then \
		$(BIN)/uv venv --quiet --allow-existing --python $(BIN)/python $(VENV)/gbstats && \
		$(BIN)/uv pip install --quiet --python $(VENV)/gbstats/bin/python --require-hashes -r requirements/gbstats.txt; \
	fi
	@touch $@

# Clients that other systems' vendors publish, in an environment of their own: where there is no npm, or no registry,
# their tests say so and are skipped.
$(VENV)/.clients: $(VENV)/.dev requirements/clients/package-lock.json
	mkdir -p $(VENV)/clients && cp requirements/clients/package*.json $(VENV)/clients/
	if command -v npm > /dev/null; then \
		npm ci --prefix $(VENV)/clients --ignore-scripts --omit=peer --omit=optional --legacy-peer-deps --no-audit --no-fund \
			--loglevel=error || rm -rf $(VENV)/clients/node_modules; \
	fi
	@touch $@

demo: $(VENV)/.run  ## Run a real experiment on this machine (ONCE=1: finish by itself)
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python deploy/demo/run.py $(if $(ONCE),--once)

test: $(VENV)/.dev $(VENV)/.gbstats $(VENV)/.clients  ## Run the whole suite
	OPENBLAS_NUM_THREADS=1 PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m pytest -n $(WORKERS) $(PYTEST_ARGS)

# Sizes: FAULTS_SEED, FAULTS_SCHEDULES, FAULTS_EVENTS, FAULTS_TRIES, FAULTS_HISTORIES, FAULTS_FLEET, FAULTS_CUTS, FAULTS_ERRORS.
faults: $(VENV)/.dev  ## Run the tests that inject faults at their larger sizes; a failure tells its seed
	FAULTS=large OPENBLAS_NUM_THREADS=1 PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m pytest -n $(WORKERS) --timeout 7200 tests/faults $(PYTEST_ARGS)

simulations: $(VENV)/.dev  ## Simulate experiments ten times as often (TIMES=10), told as the table simulations.md
	rm -f simulations.md
	OPENBLAS_NUM_THREADS=1 VARIANTD_SIMULATIONS=$(or $(TIMES),10) VARIANTD_SIMULATIONS_TABLE=simulations.md \
		$(BIN)/python -m pytest -n $(WORKERS) --timeout 0 tests/domain/test_simulations.py

bench: $(VENV)/.dev  ## Measure beside a limit in the same run: BENCH=api; BENCH_ARGS are its options
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m tests.bench.$(or $(BENCH),$(error say which, as in make bench BENCH=api: $(basename $(notdir $(filter-out %/__init__.py,$(wildcard tests/bench/*.py)))))) $(BENCH_ARGS)

check: $(VENV)/.dev  ## Lint, types, import contracts, freshness of generated code, protocol lint
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python protos/generate.py --check
	PYTHONPATH=. $(BIN)/python docs/generate.py --check
	cd protos && ../$(BIN)/buf lint

format: $(VENV)/.dev  ## Put the code into its one format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

generate: $(VENV)/.dev  ## Write shared/pb from protos/, and the reference pages from the code
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python protos/generate.py
	PYTHONPATH=. $(BIN)/python docs/generate.py

lock: $(BIN)/uv  ## Write requirements/ from pyproject.toml
	$(BIN)/uv pip compile --quiet --universal --generate-hashes --no-emit-index-url --no-emit-find-links --no-header \
		--python-version 3.11 --extra control-plane --extra docs -o requirements/run.txt pyproject.toml
	$(BIN)/uv pip compile --quiet --universal --generate-hashes --no-emit-index-url --no-emit-find-links --no-header \
		--python-version 3.11 -c requirements/run.txt -o requirements/agent.txt pyproject.toml
	$(BIN)/uv pip compile --quiet --universal --generate-hashes --no-emit-index-url --no-emit-find-links --no-header \
		--python-version 3.11 --group build -o requirements/build.txt
	$(BIN)/uv pip compile --quiet --universal --generate-hashes --no-emit-index-url --no-emit-find-links --no-header \
		--python-version 3.11 --extra control-plane --extra docs --extra oidc --extra postgres --extra analytics --extra report --group dev -c requirements/run.txt -o requirements/dev.txt pyproject.toml
	$(BIN)/uv pip compile --quiet --universal --generate-hashes --no-emit-index-url --no-emit-find-links --no-header \
		--python-version 3.11 --group gbstats -o requirements/gbstats.txt
	if command -v npm > /dev/null; then npm install --prefix requirements/clients --package-lock-only --ignore-scripts \
		--legacy-peer-deps --omit-lockfile-registry-resolved --no-audit --no-fund; fi

deb: $(BIN)/uv  ## Build the agent's Debian package into dist/ (DEB_ARGS: --python, --output, --revision)
	$(BIN)/python deploy/debian/build.py $(DEB_ARGS)

clean:  ## Remove the environment and caches
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache build dist
