# `make demo` and `make test` do everything on a machine with Python 3.11 and make.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
RUN ?= runs/demo

.PHONY: install demo test lint types contracts wheel notebooks docs figures benchmark clean

$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

install: $(VENV)/installed

demo: install
	$(BIN)/langneurons demo --out $(RUN)

# Two processes of one thread each: a file's tests stay together, so that what they share is made once.
test: install
	HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 --dist loadfile

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: install
	$(BIN)/pyright

contracts: install
	$(BIN)/lint-imports

notebooks: install
	HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -q --nbmake --no-header -p no:jaxtyping --override-ini addopts= notebooks

# FROM draws larger results in place of the study's: make figures FROM='--from matrix=runs/large/matrix'
figures: install
	test -d $(RUN)/statistics || $(BIN)/langneurons demo --out $(RUN)
	$(BIN)/python scripts/draw_figures.py $(RUN) $(FROM)

docs: install
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

wheel: install
	rm -rf dist
	$(BIN)/python -m build --wheel --sdist --outdir dist

benchmark: install
	$(BIN)/python benchmarks/record.py
	$(BIN)/python benchmarks/patches.py
	$(BIN)/python benchmarks/lora.py
	$(BIN)/python benchmarks/ablation.py

clean:
	rm -rf $(VENV) dist build site
