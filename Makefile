# make demo · make test · make test-slow · make bench · make lint, each alone on a fresh clone.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test test-slow bench lint clean

# Made anew only when the pins change. torch comes first, by its exact pin: an open range may fetch gigabytes of CUDA.
$(VENV)/ready: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "nanoreason needs Python 3.10 or newer")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check "$$(grep '^torch==' constraints.txt)"
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[figures,dev,notebooks]'
	touch $@

demo: $(VENV)/ready
	$(BIN)/python train.py reproduce star --preset demo --seeds 1 --out runs/demo

test: $(VENV)/ready
	$(BIN)/python -m pytest -n 2

test-slow: $(VENV)/ready
	$(BIN)/python -m pytest -n 2 -m slow

bench: $(VENV)/ready
	$(BIN)/python benchmarks/sample.py
	$(BIN)/python benchmarks/grpo_step.py

lint: $(VENV)/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

clean:
	rm -rf $(VENV) runs
