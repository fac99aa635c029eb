# `make demo` and `make test` do everything on a machine with Python 3.11 and make; each installs no more than it needs.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
RUN ?= runs/demo

.PHONY: base install demo test test-transformerlens-4 test-pretrained test-wheel lint types contracts wheel notebooks \
	notebooks-run docs figures pretrained pretrained-more pretrained-text benchmark soak clean

# Modules are compiled when they are first imported, since most never are: that saves a quarter of the time and of the space.
# Where the environment says that what is compiled must not be kept, every process would compile all of it again.
unexport PYTHONDONTWRITEBYTECODE
PIP_INSTALL := pip install --quiet --disable-pip-version-check --no-compile

# What the package itself needs: enough for the demo.
$(VENV)/base: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/$(PIP_INSTALL) -c constraints.txt torch -e .
	touch $@

# Every extra, and what tests, linters, notebooks and the documentation need.
$(VENV)/installed: $(VENV)/base
	$(BIN)/$(PIP_INSTALL) -c constraints.txt -e '.[dev]'
	touch $@

base: $(VENV)/base

install: $(VENV)/installed

demo: base
	$(BIN)/langneurons demo --out $(RUN)

# Two processes of one thread each: a file's tests stay together, so that what they share is made once. Ray's have a
# process to themselves and a second try: when Ray's services are lost, Ray ends the process that uses them.
RAY := $(addprefix tests/running/,test_run.py test_cluster.py test_analyses.py)
# Rooms that hold tensors are tested with the check of shapes, which takes up to half of the time; all else, with the
# examples of docstrings, without it, as users run it. The latter waits for programs, so three processes run at once.
TENSORS := $(addprefix tests/,corpora models recording identification patches training)
ELSEWHERE := $(foreach path,$(TENSORS) $(RAY) tests/pretrained,--ignore $(path))
PYTEST = HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q
WITHOUT_SHAPES := -p no:jaxtyping --override-ini addopts='--strict-markers --doctest-modules'
BY_FILE := --dist loadfile --no-loadscope-reorder --max-worker-restart 0
test: install
	$(PYTEST) -n 2 $(BY_FILE) $(TENSORS)
	$(PYTEST) -n 3 $(BY_FILE) $(WITHOUT_SHAPES) $(ELSEWHERE)
	for file in $(RAY); do $(PYTEST) $(WITHOUT_SHAPES) $$file || $(PYTEST) $(WITHOUT_SHAPES) $$file || exit 1; done

# TransformerLens 4 has TransformerBridge alone: what faces models is tested under it too, in an environment of its own.
VENV_4 ?= build/transformer-lens-4
TESTS_4 := tests/models tests/patches tests/recording/test_recorder.py tests/recording/test_caches_and_looking.py \
	tests/recording/test_experts.py \
	tests/training/test_lora.py tests/training/test_adapters.py tests/training/test_finetuning.py \
	tests/analysis/test_ablation.py tests/analysis/test_features.py tests/tasks/test_completing.py

test-transformerlens-4:
	$(PYTHON) -m venv $(VENV_4)
	sed 's/^transformer-lens==.*/transformer-lens==4.3.0/' constraints.txt > $(VENV_4)/constraints.txt
	$(VENV_4)/bin/$(PIP_INSTALL) -c $(VENV_4)/constraints.txt torch
	$(VENV_4)/bin/$(PIP_INSTALL) -c $(VENV_4)/constraints.txt -e '.[large,gguf]' \
		beartype hypothesis peft pytest pytest-timeout pytest-xdist
	HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(VENV_4)/bin/python -m pytest -q -n 2 --dist loadfile -p no:jaxtyping \
		--override-ini addopts=--strict-markers $(TESTS_4)

# A cut of `make pretrained` in three minutes: skipped, with the reason, where the model cannot be downloaded.
test-pretrained: install
	$(PYTEST) -rs tests/pretrained

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: install
	$(BIN)/pyright

contracts: install
	$(BIN)/lint-imports

notebooks: install
	HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 --nbmake --nbmake-timeout 900 --no-header -p no:jaxtyping \
		--override-ini addopts= notebooks

# Runs the notebooks anew and keeps what they show, with pictures for where no script runs.
notebooks-run: install
	OMP_NUM_THREADS=2 $(BIN)/python -m scripts.run_notebooks notebooks/*.ipynb

# FROM draws larger results in place of the study's: make figures FROM='--from matrix=runs/large/matrix'
figures: install
	test -d $(RUN)/statistics || $(BIN)/langneurons demo --out $(RUN)
	$(BIN)/python scripts/draw_figures.py $(RUN) $(FROM)

docs: install
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

wheel: install
	rm -rf dist
	$(BIN)/python -m build --wheel --sdist --outdir dist

# As users install it, in an environment of its own: the README's lines run in an empty folder, and the demo writes its page.
VENV_WHEEL ?= build/wheel
test-wheel: wheel
	$(PYTHON) -m venv --clear $(VENV_WHEEL)
	$(VENV_WHEEL)/bin/$(PIP_INSTALL) -c constraints.txt torch
	$(VENV_WHEEL)/bin/$(PIP_INSTALL) -c constraints.txt dist/*.whl
	mkdir -p $(VENV_WHEEL)/empty
	sed -n '/^```python$$/,/^```$$/{//!p}' README.md > $(VENV_WHEEL)/readme.py
	cd $(VENV_WHEEL)/empty && ../bin/python -P ../readme.py
	cd $(VENV_WHEEL)/empty && ../bin/langneurons demo --out demo && test -s demo/index.html

# Everything that langneurons finds in a pretrained model, in about four hours of two cores; the same command goes on.
DATA ?= ../shared/data
pretrained: install
	$(BIN)/python -m scripts.pretrained $(if $(wildcard $(DATA)/articles),--data $(DATA))

# Other numbers of neurons and other values there, and benchmarks of the field: about four hours of one core.
pretrained-more: install
	$(BIN)/python -m scripts.pretrained $(if $(wildcard $(DATA)/articles),--data $(DATA)) --study studies/smollm2-more.toml

# Chosen neurons of it trained on text of their language: about four hours of one core.
pretrained-text: install
	$(BIN)/python -m scripts.pretrained $(if $(wildcard $(DATA)/text),--data $(DATA)) --study studies/smollm2-text.toml

# One table, on the processor and on a GPU where there is one; or some of it: make benchmark OPTIONS='--only record'
benchmark: install
	HF_HUB_OFFLINE=1 $(BIN)/python -m benchmarks $(OPTIONS)

# Every loader damaged, every result forged and shown in a browser, every step killed, two processes in every folder, no
# number that is not finite let through, 200 steps without a leak; or some of it: make soak PARTS=fuzz
soak: install
	HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(BIN)/python -m scripts.soak $(PARTS)

clean:
	rm -rf $(VENV) dist build site
