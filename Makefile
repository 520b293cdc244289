# make demo · make real · make test · make test-slow · make test-portable · make bench · make notebooks · make lint,
# each alone on a fresh clone.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo real test test-slow test-portable bench notebooks lint clean

# Made anew only when the pins change. torch comes first, by its exact pin: an open range may fetch gigabytes of CUDA.
$(VENV)/ready: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "nanoreason needs Python 3.10 or newer")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check "$$(grep '^torch==' constraints.txt)"
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[figures,dev,notebooks]'
	touch $@

demo: $(VENV)/ready
	$(BIN)/python train.py reproduce star --preset demo --seeds 1 --out runs/demo/star
	$(BIN)/python train.py reproduce r1 --preset demo --seeds 1 --threads 2 --out runs/demo/r1

# R1-Zero on a pretrained model of 135 million parameters, which is downloaded (93 MB); resumes where it was stopped.
real: $(VENV)/ready
	$(BIN)/python tools/real.py --threads 2

test: $(VENV)/ready
	$(BIN)/python -m pytest -n 2

test-slow: $(VENV)/ready
	$(BIN)/python -m pytest -n 2 -m slow

# What trains must not hang on rounding: the same tests on the kernels of other processors, with one thread and two.
test-portable: $(VENV)/ready
	for cpu in ATEN_CPU_CAPABILITY=default \
	           "ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2 MKL_ENABLE_INSTRUCTIONS=AVX2"; do \
	    for threads in 1 2; do \
	        echo "$$cpu, $$threads thread(s)"; \
	        env $$cpu NANOREASON_TEST_THREADS=$$threads $(BIN)/python -m pytest -n 2 -m "trains and not slow" || exit 1; \
	    done; \
	done

bench: $(VENV)/ready
	for name in sample grpo_step learner search; do $(BIN)/python benchmarks/$$name.py || exit 1; done

# The .ipynb from the .py beside them.
notebooks: $(VENV)/ready
	$(BIN)/python notebooks/build.py

lint: $(VENV)/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

clean:
	rm -rf $(VENV) runs
