# The everyday commands. `make demo` and `make test` work from a fresh clone: they build their own environment.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# On a machine without a GPU, TORCH_INDEX=https://download.pytorch.org/whl/cpu fetches the much smaller CPU build.
TORCH_INDEX ?=
TORCH_ARGS := $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX))
# Another torch than the pinned one: make test TORCH=2.11.0 PYTHON=python3.12 VENV=/tmp/oldest
TORCH ?=
PINS := $(if $(TORCH),$(VENV)/constraints.txt,constraints.txt)

# Tests that run side by side, with a thread each; WORKERS=0 runs them one after the other. They start many processes:
# compiled modules are kept even where the environment says not to.
WORKERS ?= 2
QUICKLY := OMP_NUM_THREADS=1 PYTHONDONTWRITEBYTECODE=
KILLS ?= 100
MINUTES ?= 10

.PHONY: help demo test soak attack check format docs clean

help:
	@echo "make demo    fine-tune the bundled tiny Llama on this machine and look at the result"
	@echo "make test    run every test: no network, no GPU"
	@echo "make soak    kill runs at random moments, KILLS=100 times each, and compare how they end"
	@echo "make attack  read mutated files of strangers for MINUTES=10 and keep those that fell"
	@echo "make check   ruff, ruff format, mypy --strict"
	@echo "make format  let ruff mend what it can"
	@echo "make docs    write the table of families in docs/models.md anew"
	@echo "make clean   remove the environment and the demo's output"

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "tune needs Python 3.11 or newer, this is %d.%d; set PYTHON=..." % sys.version_info[:2])'
	$(PYTHON) -m venv $(VENV)

$(VENV)/constraints.txt: constraints.txt | $(VENV)/bin/python
	sed -e 's/^torch==.*/torch==$(TORCH)/' -e '/^triton==/d' $< > $@

# torch comes first and by itself, so that nothing else gets to choose another build of it.
$(VENV)/.torch: $(PINS) | $(VENV)/bin/python
	$(BIN)/pip install -q $(TORCH_ARGS) -c $(PINS) torch
	@touch $@

$(VENV)/.demo: setup.py $(PINS) $(VENV)/.torch
	$(BIN)/pip install -q -c $(PINS) -e .
	@touch $@

$(VENV)/.dev: setup.py $(PINS) $(VENV)/.torch
	$(BIN)/pip install -q -c $(PINS) -e '.[dev]'
	@touch $@ $(VENV)/.demo

demo: $(VENV)/.demo
	$(BIN)/python scripts/demo.py

test: $(VENV)/.dev
	$(QUICKLY) $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal

soak: $(VENV)/.dev
	$(BIN)/python -m tests.distributed.soak --kills $(KILLS)

attack: $(VENV)/.dev
	$(BIN)/python -m tests.hostile.attack --minutes $(MINUTES)

check: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/.dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(VENV)/.dev
	$(BIN)/python tests/models/family_table.py

clean:
	rm -rf $(VENV) out
