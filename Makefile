# Python packages go into .venv, which is made when it is not there.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: run test fuzz test-clients screenshot test-faults lint audit openapi sql bench bench-quick bench-overload bench-growth clean

run: .venv/run  ## Start the service on http://127.0.0.1:8000
	$(BIN)/uvicorn main:app --http protocol:LimitedHttp

test: .venv/dev  ## Run all tests, in parallel, against a PostgreSQL of their own
	$(BIN)/pytest -n auto

EXAMPLES ?= 400
fuzz: .venv/dev  ## Hold the service against its openapi.json; EXAMPLES=4000 takes ten times as long, SEEDS='1 11' repeats
	$(BIN)/python -m tests.fuzz $(EXAMPLES) $(SEEDS)

test-clients: .venv/dev  ## Run the tests with real clients, which need Node and Chromium
	tests/clients/install.sh
	$(BIN)/pytest tests/clients -n auto

screenshot: .venv/dev  ## Take the picture in the README anew
	tests/clients/install.sh
	SCREENSHOT=docs/todo.png $(BIN)/pytest tests/clients -k picture_in_the_readme

test-faults: .venv/dev  ## Run the tests of what production does, which need servers of Debian's
	tests/faults/install.sh
	$(BIN)/pytest tests/faults -p no:randomly

lint: .venv/dev  ## Check lint, format and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Each file by name: those that a file includes are not looked at. --strict: what cannot be looked up is no pass.
audit: .venv/dev  ## Look the installed versions up in PyPI's list of vulnerabilities; needs the internet
	$(BIN)/pip-audit --strict --progress-spinner off --no-deps --disable-pip \
		-r requirements.txt -r requirements-dev.txt -r benchmarks/requirements.txt -r constraints.txt

openapi: .venv/run  ## Write openapi.json anew, as the service answers it
	$(BIN)/python -c 'import json, main; print(json.dumps(main.app.openapi(), indent=2))' > openapi.json

sql: .venv/run  ## Write docs/sql.md anew: every SQL statement, as PostgreSQL receives it
	$(BIN)/python -m docs.sql

BENCH := benchmarks/.venv/bin/python -m benchmarks.bench
bench: benchmarks/.venv/done benchmarks/.venv/3.13/done  ## Compare with what people would pick instead, in half an hour; OPTIONS='--parts core' for a part
	$(BENCH) $(OPTIONS)

bench-quick: benchmarks/.venv/done benchmarks/.venv/3.13/done  ## The same for trying out: too short to say much, and written to benchmarks/trial
	$(BENCH) --seconds 1 --turns 1 --out benchmarks/trial $(OPTIONS)

bench-overload: benchmarks/.venv/done  ## Send twice what the database can take; the part overload of the same
	$(BENCH) --parts overload $(OPTIONS)

bench-growth: benchmarks/.venv/done  ## Measure how the cost grows with the number of tasks
	benchmarks/.venv/bin/python -m benchmarks.growth

clean:  ## Remove what was installed and made; the data in .postgres stays
	rm -rf .venv benchmarks/.venv benchmarks/peers/node_modules .pytest_cache .mypy_cache .ruff_cache

.venv/run: requirements.txt constraints.txt
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

# Memory is measured with this Python too, where it is there: on the path, or installed by pyenv.
PYTHON_3_13 := $(firstword $(shell python3.13 -c 'import sys; print(sys.executable)' 2> /dev/null) \
	$(wildcard $(HOME)/.pyenv/versions/3.13*/bin/python))
benchmarks/.venv/3.13/done: requirements.txt constraints.txt
	$(if $(PYTHON_3_13),$(PYTHON_3_13) -m venv $(@D),@echo "There is no Python 3.13: memory is measured without it")
	$(if $(PYTHON_3_13),$(@D)/bin/pip install --quiet --disable-pip-version-check -r requirements.txt && touch $@)
