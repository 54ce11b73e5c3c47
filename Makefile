# Python packages are installed into .venv, which is created when it is missing.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: run test fuzz test-clients screenshot test-faults lint lock audit openapi sql bench bench-quick bench-overload bench-growth capacity clean

PORT ?= 8000
# uvicorn would notice only after the service and its PostgreSQL have started.
OPEN_PORT = import socket; socket.create_server(("127.0.0.1", $(PORT)))
run: .venv/run  ## Start the service on http://127.0.0.1:8000; PORT=8001 chooses another port
	@$(BIN)/python -c '$(OPEN_PORT)' 2> /dev/null || \
		{ echo "Port $(PORT) is taken or not allowed. Choose another one: make run PORT=8001" >&2; exit 1; }
	$(BIN)/uvicorn main:app --http protocol:LimitedHttp --port $(PORT)

test: .venv/dev  ## Run all tests but the three below, in parallel, against a PostgreSQL of their own
	$(BIN)/pytest -n auto

EXAMPLES ?= 400
fuzz: .venv/dev  ## Send generated requests and compare with openapi.json; EXAMPLES=4000 runs longer, SEEDS='1 11' repeats
	$(BIN)/python -m tests.fuzz $(EXAMPLES) $(SEEDS)

# --dist loadfile: one worker for each file, because some files build an app for all of their tests.
test-clients: .venv/dev  ## Run the tests with real clients; needs Node and Chromium
	tests/clients/install.sh
	$(BIN)/pytest tests/clients -n auto --dist loadfile

screenshot: .venv/dev  ## Take the picture in the README again
	tests/clients/install.sh
	SCREENSHOT=docs/todo.png $(BIN)/pytest tests/clients -k picture_in_the_readme

test-faults: .venv/dev  ## Run the tests of failures and deployment; installs Debian packages
	tests/faults/install.sh
	$(BIN)/pytest tests/faults -p no:randomly

lint: .venv/dev  ## Check lint, format and types, and compose.yaml and .github against their schemas
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/check-jsonschema --builtin-schema vendor.compose-spec compose.yaml
	$(BIN)/check-jsonschema --builtin-schema vendor.github-workflows .github/workflows/*
	$(BIN)/check-jsonschema --builtin-schema vendor.dependabot .github/dependabot.yml

# The hashes are those of all files of a release, so one lock is for x86_64 and aarch64.
lock: .venv/dev  ## Write requirements.lock: what the image installs, with hashes; needs the internet
	sed '/^# All below is for development/,$$d' requirements.txt | $(BIN)/uv pip compile - --quiet --generate-hashes --no-annotate \
		--python-version 3.13 --python-platform linux --custom-compile-command 'make lock' -o requirements.lock

# pip-audit does not follow -r inside a file, so each file is named. --strict fails for a package that it cannot check.
audit: .venv/dev  ## Look up the pinned versions in PyPI's list of vulnerabilities; needs the internet
	$(BIN)/pip-audit --strict --progress-spinner off --no-deps --disable-pip \
		-r requirements.txt -r requirements-dev.txt -r benchmarks/requirements.txt -r examples/assistant/requirements.txt \
		-r constraints.txt

openapi: .venv/run  ## Write openapi.json
	$(BIN)/python -c 'import json, main; print(json.dumps(main.app.openapi(), indent=2))' > openapi.json

sql: .venv/run  ## Write docs/sql.md anew: every SQL statement, as PostgreSQL receives it
	$(BIN)/python -m docs.sql

BENCH := benchmarks/.venv/bin/python -m benchmarks.bench
bench: benchmarks/.venv/done benchmarks/.venv/3.13/done  ## Compare with other frameworks, in half an hour; OPTIONS='--parts core' for one part
	$(BENCH) $(OPTIONS)

bench-quick: benchmarks/.venv/done benchmarks/.venv/3.13/done  ## Try the benchmark out in about seven minutes; too short for reliable results, written to benchmarks/trial
	$(BENCH) --seconds 1 --turns 1 --out benchmarks/trial $(OPTIONS)

bench-overload: benchmarks/.venv/done  ## Measure the part overload: twice the requests that the database can carry out
	$(BENCH) --parts overload $(OPTIONS)

bench-growth: benchmarks/.venv/done  ## Measure how the cost grows with the number of tasks
	benchmarks/.venv/bin/python -m benchmarks.growth

capacity:  ## Compute the processes, cores, memory and storage that so many users need; USERS=50000 for another number
	$(PYTHON) -m benchmarks.capacity $(USERS)

clean:  ## Remove what was installed and generated; the data in .postgres stays
	rm -rf .venv examples/assistant/.venv examples/*/node_modules benchmarks/.venv benchmarks/peers/node_modules tests/clients/node_modules .pytest_cache .mypy_cache .ruff_cache

.venv/run: requirements.txt constraints.txt
	@echo "Installing the Python packages into .venv/. This takes about half a minute."
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check -r requirements.txt
	touch $@

.venv/dev: requirements-dev.txt .venv/run
	$(BIN)/pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	touch $@

benchmarks/.venv/done: benchmarks/requirements.txt requirements.txt constraints.txt benchmarks/peers/package-lock.json
	benchmarks/install.sh
	$(PYTHON) -m venv benchmarks/.venv
	benchmarks/.venv/bin/pip install --quiet --disable-pip-version-check -r benchmarks/requirements.txt
	npm ci --prefix benchmarks/peers --no-audit --no-fund
	touch $@

# The benchmark also measures memory with Python 3.13, if it is on the PATH or installed by pyenv.
PYTHON_3_13 := $(firstword $(shell python3.13 -c 'import sys; print(sys.executable)' 2> /dev/null) \
	$(wildcard $(HOME)/.pyenv/versions/3.13*/bin/python))
benchmarks/.venv/3.13/done: requirements.txt constraints.txt
	$(if $(PYTHON_3_13),$(PYTHON_3_13) -m venv $(@D),@echo "There is no Python 3.13: memory is measured without it")
	$(if $(PYTHON_3_13),$(@D)/bin/pip install --quiet --disable-pip-version-check -r requirements.txt && touch $@)
