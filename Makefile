# make test   everything that must hold: lint, types, import layers, all tests
# make demo   a real model answers through a stored credential
# make bench  the tables of figures; bench-commands and bench-gateway are its two halves
# make soak   the long trials
# make lock   resolve the dependencies anew

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Measured on two cores: one worker takes half as long again, three take longer than two.
WORKERS ?= 2
COMPILE := $(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes \
	--no-emit-index-url --no-emit-find-links --no-annotate --no-header

.NOTPARALLEL:
.PHONY: test check install lint types imports tests demo bench bench-commands bench-gateway soak lock clean

test: install lint types imports tests

check: lint types imports tests

# --- what it needs ----------------------------------------------------------------------------

install: $(VENV)/.installed node_modules/.installed
	@scripts/debian-packages

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed"; exit 1; }
	$(PYTHON) -m venv $(VENV) || { scripts/debian-packages --first && $(PYTHON) -m venv --clear $(VENV); }

# uv comes first, by its hash, and then installs the rest in seconds.
$(VENV)/.installed: requirements.lock pyproject.toml | $(VENV)/bin/python
	sed -n '/^uv==/,/[^\\]$$/p' requirements.lock > $(VENV)/uv.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --require-hashes -r $(VENV)/uv.lock
	$(BIN)/uv pip sync --quiet --python $(BIN)/python --require-hashes requirements.lock
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation --editable .
	touch $@

node_modules/.installed: package-lock.json .npmrc
	@command -v npm > /dev/null || { echo "Node 20 and npm are needed for the test servers"; exit 1; }
	npm ci --silent
	touch $@

# --- what must hold ---------------------------------------------------------------------------

lint:
	$(BIN)/ruff check
	$(BIN)/ruff format --check

types:
	$(BIN)/mypy

imports:
	$(BIN)/lint-imports

# Three minutes that are nearly all sleep go beside the others, not behind them; where they fail, it is shown at the end.
# What is no verdict on the others (interrupted, not collected) ends them too.
tests:
	@$(BIN)/pytest -n 0 -p no:cacheprovider -m beside tests/e2e/test_run_long.py > .beside.log 2>&1 & beside=$$!; \
	trap 'kill $$beside; wait $$beside; exit 130' INT TERM; \
	$(BIN)/pytest -n $(WORKERS) --dist loadgroup; status=$$?; \
	[ $$status -le 1 ] || kill $$beside; \
	wait $$beside || [ $$status -ne 0 ] || status=1; cat .beside.log; exit $$status

# --- what it shows ----------------------------------------------------------------------------

demo: $(VENV)/.installed
	$(BIN)/valetkey demo

bench: bench-commands bench-gateway

bench-commands: install $(VENV)-bench/.installed
	$(BIN)/python bench/run.py
	$(BIN)/python -m bench.sandbox

# ARGS="--quick" for a minute's worth, ARGS="load --only nginx --only valetkey" for a part, ARGS=--profile for a profile.
bench-gateway: install $(VENV)-bench/.installed $(VENV)-bench-litellm/.installed $(VENV)-bench-mitmproxy/.installed
	@scripts/debian-packages --bench
	$(BIN)/python -m bench.gateway $(ARGS)

soak: install
	$(BIN)/python bench/soak.py

# The programs that Valetkey is compared with live apart, so that none changes another's start.
$(VENV)-bench/.installed: bench/requirements.lock
$(VENV)-bench-litellm/.installed: bench/litellm.lock
$(VENV)-bench-mitmproxy/.installed: bench/mitmproxy.lock
$(VENV)-bench/.installed $(VENV)-bench-litellm/.installed $(VENV)-bench-mitmproxy/.installed: | $(VENV)/.installed
	$(BIN)/uv venv --quiet --clear --python $(PYTHON) $(@D)
	$(BIN)/uv pip sync --quiet --python $(@D)/bin/python --require-hashes $<
	touch $@

# --- upkeep -----------------------------------------------------------------------------------

lock:
	$(COMPILE) --upgrade --all-extras --group dev -o requirements.lock pyproject.toml
	$(COMPILE) --upgrade --group bench -o bench/requirements.lock
	$(COMPILE) --upgrade --group bench-litellm -o bench/litellm.lock
	$(COMPILE) --upgrade --group bench-mitmproxy -o bench/mitmproxy.lock
	npm update --silent --package-lock-only

clean:
	rm -rf $(VENV) $(VENV)-bench* node_modules .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
