# Cloister. `make demo` and `make test` set up what they need in .venv; nothing else is required.
#
#   make demo         set up, then run the whole story with real processes   (KEEP=1 leaves it running)
#   make test         set up, then all quick tests
#   make test-all     the long ones too
#   make lint         ruff and mypy --strict
#   make docs         build the documentation into site/, offline
#   make bench        the benchmarks behind docs/performance.md in small: ten minutes once models and peers are made
#   make bench-full   all of them, into docs/performance.md: about an hour
#   make soak         a mixed load with workers that are killed, for SOAK_SECONDS (1800)
#   make protos       compile the .proto files of gRPC anew
#   make fuzz         every parser under a fuzzer for FUZZ_SECONDS each (900)
#
# Needs Linux, Python 3.11 or newer with its venv module (Debian: apt-get install python3-venv), and make.
# PyTorch is pinned: on a machine without a GPU, point pip at a CPU build to avoid the CUDA packages.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV   ?= .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip --disable-pip-version-check install --quiet
TORCH  ?= torch==2.13.0

.PHONY: demo test test-all lint format docs bench bench-full soak protos fuzz clean help
.DEFAULT_GOAL := help

help:
	@sed -n 's/^# \{0,1\}//p' Makefile | head -16

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Cloister needs Python 3.11 or newer; set PYTHON=/path/to/python3.11"; exit 1; }
	@echo "setting up $(VENV) (once; about a minute)"
	@$(PYTHON) -m venv $(VENV) || \
	  { rm -rf $(VENV); echo "no venv module: apt-get install python3-venv"; exit 1; }

# PyTorch first and by its exact version, so that no other package's range can bring another build.
$(VENV)/.demo: pyproject.toml $(BIN)/python
	@echo "installing Cloister with PyTorch and scikit-learn"
	@$(PIP) '$(TORCH)'
	@$(PIP) -e '.[demo]'
	@touch $@

$(VENV)/.dev: $(VENV)/.demo
	@echo "installing what tests and checks need"
	@$(PIP) -e '.[demo,dev]'
	@touch $@

$(VENV)/.docs: $(VENV)/.dev
	@$(PIP) -e '.[demo,dev,docs]'
	@touch $@

demo: $(VENV)/.demo
	@$(BIN)/cloister demo $(if $(KEEP),--keep)

# Some tests talk to a program from Debian: SoftHSM2 (PKCS #11), PostgreSQL, swtpm (TPM 2.0), Chromium. They are
# installed where that is possible; elsewhere those tests are skipped and say so.
SYSTEM := softhsm2 postgresql swtpm swtpm-tools libtss2-dev pkg-config chromium
$(VENV)/.system: $(VENV)/.dev
	@if command -v apt-get >/dev/null && [ "$$(id -u)" = 0 ] && ! dpkg -s $(SYSTEM) >/dev/null 2>&1; then \
	  echo "installing $(SYSTEM) by apt-get"; \
	  { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq $(SYSTEM); } >/dev/null 2>&1 \
	    || echo "not installed: the tests that need them will be skipped"; \
	fi
	@$(PIP) -e '.[tpm]' >/dev/null 2>&1 || echo "tpm2-pytss does not build here: its tests will be skipped"
	@touch $@

# TorchServe's request collections are run by newman, and the JavaScript client's types are checked by tsc, where
# npm is there and its registry can be reached.
$(VENV)/.newman: $(BIN)/python
	@if command -v npm >/dev/null; then \
	  npm install --prefix $(VENV)/newman --no-audit --no-fund --silent newman@6 typescript@5 >/dev/null 2>&1 \
	    || echo "newman and tsc could not be installed: the tests that need them will be skipped"; \
	fi
	@touch $@

# OHTTP and HPKE of npm, for clients that share no code with Cloister (tests/ohttp/test_outside.py).
$(VENV)/.outside: $(BIN)/python
	@if command -v npm >/dev/null; then \
	  npm install --prefix $(VENV)/outside --no-audit --no-fund --silent @hpke/core@1 @hpke/hybridkem-x-wing@0.7 \
	    >/dev/null 2>&1 || echo "@hpke could not be installed: the tests that need it will be skipped"; \
	  npm install --prefix $(VENV)/outside --no-audit --no-fund --silent ohttp-ts@0.5 hpke@1 \
	    >/dev/null 2>&1 || echo "ohttp-ts could not be installed: the tests that need it will be skipped"; \
	fi
	@touch $@

# Files of tests are shared out to so many processes.
TEST_PROCESSES ?= 2
PYTEST := $(BIN)/python -m pytest -n $(TEST_PROCESSES) --dist loadfile --no-loadscope-reorder
test: $(VENV)/.dev $(VENV)/.system $(VENV)/.newman $(VENV)/.outside
	$(PYTEST)

test-all: $(VENV)/.dev $(VENV)/.system $(VENV)/.newman $(VENV)/.outside
	$(PYTEST) -m ''

lint: $(VENV)/.dev
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/mypy tests/typecheck

format: $(VENV)/.dev
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

docs: $(VENV)/.docs
	$(BIN)/mkdocs build --strict --quiet

# The peers and the heavy models get their environments and files below .peers; PEERS= leaves the peers out.
PEERS  ?= mosec
HEAVY  ?= torchserve,mosec-openvino
BENCH  := $(BIN)/python benchmarks
bench: $(VENV)/.bench $(VENV)/.load
	$(BENCH)/bench_seal.py
	$(BENCH)/bench_ohttp.py
	$(BENCH)/bench_attest.py
	$(BENCH)/bench_torch.py
	$(BENCH)/bench_serve.py --peers "$(PEERS)" --rounds 1 --seconds 2 --cases speed,protected
	$(BENCH)/bench_protection.py --tasks tiny,resnet50 --precisions fp32,int8 --rounds 1 --seconds 5
	$(BENCH)/bench_peers.py --tasks resnet50 --peers "$(HEAVY)" --rounds 1 --seconds 5
	$(BENCH)/bench_limit.py --tasks resnet50 --rounds 1 --seconds 5
	$(BENCH)/bench_start.py --rounds 1

RESULTS ?= .peers/results
ALL_PEERS := mosec,torchserve,litserve,mlserver,fastapi
bench-full: $(VENV)/.bench $(VENV)/.load
	$(BENCH)/bench_seal.py
	$(BENCH)/bench_ohttp.py
	$(BENCH)/bench_attest.py
	$(BENCH)/bench_torch.py
	$(BENCH)/bench_release.py
	$(BENCH)/bench_serve.py --peers $(ALL_PEERS) --page --save $(RESULTS)/serve.json
	$(BENCH)/bench_grpc.py --page --save $(RESULTS)/grpc.json
	$(BENCH)/bench_protection.py --page --save $(RESULTS)/protection.json
	$(BENCH)/bench_peers.py --page --save $(RESULTS)/peers.json
	$(BENCH)/bench_limit.py --page --save $(RESULTS)/limit.json
	$(BENCH)/bench_start.py --page --save $(RESULTS)/start.json
	$(BENCH)/bench_scaling.py --page --save $(RESULTS)/scaling.json

# Fails if a request is lost, memory grows or anything is left behind; SOAK_KILL_EVERY is in seconds.
SOAK_SECONDS ?= 1800
SOAK_KILL_EVERY ?= 30
soak: $(VENV)/.dev
	$(BIN)/python benchmarks/soak.py --seconds $(SOAK_SECONDS) --kill-every $(SOAK_KILL_EVERY)

$(VENV)/.bench: $(VENV)/.dev
	@$(PIP) '$(TORCH)' -e '.[demo,dev,bench]'
	@touch $@

LOAD := wrk nghttp2-client
$(VENV)/.load: $(VENV)/.dev
	@{ command -v wrk && command -v h2load; } >/dev/null \
	  || { apt-get update -qq && apt-get install -y -qq $(LOAD); } >/dev/null 2>&1 \
	  || { echo "the benchmarks need wrk and h2load: apt-get install $(LOAD)"; exit 1; }
	@touch $@

PROTOS := src/cloister/serve/grpc/protos
protos: $(VENV)/.dev
	$(BIN)/python -m grpc_tools.protoc -I$(PROTOS) --include_imports \
	  --descriptor_set_out=$(PROTOS)/descriptors.binpb inference.proto management.proto open_inference.proto \
	  health.proto google/rpc/error_details.proto

# A finding is written to fuzz/findings; a hang over 1 s or 100 MiB of growth is one too.
FUZZ_SECONDS ?= 900
fuzz: $(VENV)/.dev
	@$(PIP) -e '.[fuzz]'
	@mkdir -p fuzz/findings
	@for target in fuzz/fuzz_*.py; do \
	  name=$$(basename $$target .py); mkdir -p fuzz/corpus/$$name; echo "== $$name"; \
	  $(BIN)/python $$target fuzz/corpus/$$name -max_total_time=$(FUZZ_SECONDS) -timeout=1 \
	    -rss_limit_mb=1024 -malloc_limit_mb=100 -artifact_prefix=fuzz/findings/$$name- \
	    -print_final_stats=1 -verbosity=0 || exit 1; \
	done
	@if command -v node >/dev/null; then \
	  echo "== fuzz_client"; node --no-warnings fuzz/fuzz_client.mjs $(FUZZ_SECONDS); \
	fi

clean:
	rm -rf $(VENV) site build dist demo .pytest_cache .mypy_cache .ruff_cache .hypothesis
