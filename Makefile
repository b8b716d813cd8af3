# Needs Python 3.12 or 3.11, and make. Everything else goes into .venv; a stamp for each set of packages keeps repeated calls quick.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
.ONESHELL:

# The newest supported one that runs, unless PYTHON names another.
PYTHON ?= $(shell constraints/python.sh find)
VENV ?= .venv
OUT ?= runs/demo
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --no-input
# The versions that the environment's own Python takes.
LOCK = constraints/py$$($(BIN)/python -c 'import sys; print("%d%d" % sys.version_info[:2])').txt
PACKAGES := setup.py $(wildcard constraints/py*.txt)

.PHONY: data-kill data-grow data-cost data-select data-plan data-hosts data-bad any-clip interpreter corpus trackers gpu slurm image browser chaos scale bench bench-checkpoint docs help venv demo theatre test test-core test-slow loss-curves collectives compile-cost parity weights-1b codec-memory check format lock clean

help:  ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

# One environment in three layers: what the demo needs, what `make check` adds, what `make test` adds (torch).
# Looked at with every call: packages of two Pythons in one folder would be found by neither.
interpreter:
	@constraints/python.sh venv "$(PYTHON)" "$(VENV)"

$(VENV)/.demo: $(PACKAGES) | interpreter
	@echo "installing the pinned packages of the demo into $(VENV)"
	$(PIP) install -q -c "$(LOCK)" -e '.[demo]'
	$(BIN)/python -c 'import cv2' || { echo "make: OpenCV lacks a library of the system; on Debian or Ubuntu: apt-get install libgl1 libglib2.0-0" >&2; exit 1; }
	touch $@

$(VENV)/.dev: $(VENV)/.demo
	@$(PIP) install -q -c "$(LOCK)" -e '.[demo,dev]'
	touch $@

$(VENV)/.torch: $(VENV)/.dev
	@echo "adding torch (for the tests alone; a CPU build will do, see docs/installation.md)"
	$(PIP) install -q -c "$(LOCK)" -e '.[all]'
	touch $@

venv: $(VENV)/.demo  ## the virtual environment of the demo

demo: $(VENV)/.demo  ## videos -> trained, resumed, sampled and exported model, on 8 simulated devices
	@$(BIN)/omnihuman demo --out $(OUT)

# A file's tests stay in one process, which compiles what they share once; more than four would want much memory.
WORKERS ?= auto
PYTEST := $(BIN)/python -m pytest -n $(WORKERS) --maxprocesses 4 --dist loadfile

$(VENV)/.theatre: $(VENV)/.demo
	@echo "adding the theatre: skia, and the neural voice (piper, GPL-3, a process of its own)"
	$(PIP) install -q -c "$(LOCK)" -e '.[demo,theatre,theatre-speech]'
	touch $@

THEATRE ?= runs/theatre
MEDIA := $(THEATRE)/media
theatre: $(VENV)/.theatre  ## drawn people who speak -> a model that moves mouths to speech it has not heard, against the truth (docs/theatre.md)
	@$(BIN)/omnihuman theatre --out $(THEATRE) --hours 0.25 --seed 1 --programme faces
	$(BIN)/omnihuman sample-media --out $(MEDIA)
	$(BIN)/omnihuman encode $(THEATRE)/clips --out $(THEATRE)/dataset --codec dct --text-encoder $(MEDIA)/all-MiniLM-L6-v2 \
	  --speech-encoder $(MEDIA)/whisper-tiny.en-encoder --speech-layers 0,2,4 --area 48x48 --window-frames 25 --stride 10 --references 3 --margin 2
	JAX_PLATFORMS=cpu $(BIN)/omnihuman train --config configs/theatre.py --config.data.dataset=$(THEATRE)/dataset --run $(THEATRE)/run \
	  --config.samples.interval=400 --config.samples.clips=$(THEATRE)/clips --config.samples.truth=$(THEATRE)/truth
	$(BIN)/omnihuman evaluate --suite theatre --run $(THEATRE)/run --truth $(THEATRE)/truth --out $(THEATRE) --windows 48 --batch 16 --guidance-scale 5

ANY_CLIP ?= runs/any_clip
any-clip: $(VENV)/.theatre  ## half of the clips silent, a third without a pose, a tenth corrupt: they train; beside it, what is left without them (docs/any_clip_trains.md)
	@JAX_PLATFORMS=cpu $(BIN)/python -m tests.any_clip.run --out $(ANY_CLIP)

test: $(VENV)/.torch  ## the whole suite, 8 simulated devices, a process a core (WORKERS=0: all in one)
	@$(PYTEST)

# Services whose pins contradict constraints/, with what reads our half of them: neither JAX nor this package.
TRACKERS := .venv-trackers
$(TRACKERS)/.done: setup.py
	@$(PYTHON) -m venv $(TRACKERS)
	$(TRACKERS)/bin/python -m pip --disable-pip-version-check --no-input install -q mlflow==3.17.2 trackio==0.43.0 'etils[epath]'
	touch $@

trackers: $(VENV)/.torch $(TRACKERS)/.done  ## W&B, MLflow and trackio for real, the latter two in an environment of their own (docs/tracking.md)
	@$(BIN)/python -m pytest -q -n 0 tests/telemetry/test_trackers.py

gpu:  ## the acceptance of one NVIDIA GPU, under ten minutes (docs/gpu.md); the environment's own python, GPU_OUT for the results
	@$(PYTHON) -m tests.gpu.acceptance --out $(GPU_OUT)
GPU_OUT ?= runs/gpu

bench: $(VENV)/.torch  ## speed and memory of a train step beside PyTorch's, on this machine, in one run (20 minutes)
	@$(BIN)/python -m tests.benchmarks.reader_speed
	@$(BIN)/python -m tests.benchmarks.step_speed

chaos: $(VENV)/.torch  ## thirty faults at random moments on real processes; the bits must be those of an undisturbed run (40 minutes)
	@$(BIN)/python -m tests.chaos.run --faults 30 --write

# What must hold on every supported Python and JAX (the suite is run on one, see .ci/run).
CORE := tests/test_architecture.py tests/test_private_apis.py tests/models/test_mmdit.py tests/serving/test_modeling_omnihuman.py \
  tests/training/test_train_step.py tests/integration/test_train_resume.py
test-core: $(VENV)/.torch  ## the core of the suite alone: architecture, private APIs, model and its parity, train step, resume
	@$(PYTEST) $(CORE)

SLOW ?= all
test-slow: $(VENV)/.torch  ## the heavier proofs alone; SLOW=K/N runs a part of them
	@status=0; $(PYTEST) --slow=$(SLOW) || status=$$?
	# 5: this part has no test.
	[ $$status -eq 0 ] || [ $$status -eq 5 ] || exit $$status

CORPUS ?= runs/corpus
corpus: $(VENV)/.dev  ## curate on 240 videos with planted faults, made of real clips: tables of what it finds (docs/data.md)
	@$(BIN)/python -m tests.data_pipelines.corpus.make --out $(CORPUS)
	$(BIN)/omnihuman curate --source $(CORPUS)/videos --out $(CORPUS)/table
	$(BIN)/python -m tests.data_pipelines.corpus.score --corpus $(CORPUS) --table $(CORPUS)/table

# The acceptance of the data side, by what has to hold (docs/data.md).
DATA := tests/data_pipelines
data-kill: $(VENV)/.torch  ## curate and encode killed at seeded moments, on processes, workers and Ray: the same bytes (an hour)
	@$(PYTEST) --slow=all $(DATA)/test_kill.py $(DATA)/test_ray.py
data-grow: $(VENV)/.torch  ## new videos, another threshold, another stage: what is opened and what is run (half an hour)
	@$(PYTEST) $(DATA)/test_curate.py $(DATA)/test_cascade.py $(DATA)/test_append.py
	$(PYTEST) --slow=all $(DATA)/test_append.py
data-cost: $(VENV)/.dev  ## what curate costs by stage, in CPU seconds a minute of video, at 480 and 1080 lines, and beside its stages
	@$(BIN)/omnihuman sample-media --out $(CORPUS)/media
	for lines in '' '--lines 1080'; do $(BIN)/python -m tests.benchmarks.curate_cost --videos $(CORPUS)/media/videos --names jwpIntro $$lines; done
	$(BIN)/python -m tests.benchmarks.engine_cost
data-select: $(VENV)/.dev  ## select of 15 M rows, and a sweep of 20 thresholds: seconds and memory (8 GB of disk)
	@$(BIN)/python -m tests.benchmarks.select_cost table --out $(CORPUS)/table_15m
	$(BIN)/python -m tests.benchmarks.select_cost select --table $(CORPUS)/table_15m
	$(BIN)/python -m tests.benchmarks.select_cost select --table $(CORPUS)/table_15m --sweep min_lip_sync_confidence=0.2:0.58:0.02
data-plan: $(VENV)/.dev  ## first batch and batches of a catalog of 15 M rows, and how full sequences are
	@$(BIN)/python -m tests.benchmarks.data_plan catalog --rows 15000000 --out $(CORPUS)/catalog_15m
	$(BIN)/python -m tests.benchmarks.data_plan cost --catalog $(CORPUS)/catalog_15m --steps 0,1000000
	$(BIN)/python -m tests.benchmarks.data_plan packing --catalog $(CORPUS)/catalog_15m
data-hosts: $(VENV)/.torch  ## 1, 2, 4 and 8 processes make the same 200 global batches, over a change of stage and a corrupt record
	@$(PYTEST) --slow=all tests/data/test_hosts.py
data-bad: $(VENV)/.torch  ## every kind of bad input, and what data check and data report say of planted defects
	@$(PYTEST) $(DATA)/test_bad_input.py $(DATA)/test_sources.py $(DATA)/test_footage.py $(DATA)/test_data_check.py

slurm: $(VENV)/.torch  ## `omnihuman submit` on a real SLURM of two nodes on this machine (15 minutes and more; says what to install)
	@$(BIN)/python -m pytest --slow=slurm tests/slurm

image: $(VENV)/.torch  ## the trainer's image, built by buildah and started as its user (10 minutes, 10 GB, root; says what to install)
	@$(BIN)/python -m pytest --slow=image tests/image

browser: $(VENV)/.dev  ## our pages in a headless browser: videos play, nothing else is loaded (a minute; says what to install)
	@$(BIN)/python -m pytest --slow=browser tests/browser

codec-memory: $(VENV)/.torch  ## memory of the full-size video codecs, compiled for a 16 GiB chip (a few minutes)
	@$(BIN)/python -m omnihuman_jax.scale.codec_memory

BENCH_OUT ?= runs/bench
bench-checkpoint: $(VENV)/.demo  ## what a checkpoint costs on the disk of BENCH_OUT: stall, write speed beside the disk's own
	@$(BIN)/omnihuman --simulate-devices 4 bench-checkpoint --out $(BENCH_OUT) --gib 3

parity: $(VENV)/.torch  ## ours against the original libraries: the table in docs/parity.md, measured anew (10 minutes or more)
	@$(BIN)/python -m tests.parity.table

loss-curves: $(VENV)/.torch  ## the same loss curve on every mesh, in micro-batches, with offload, in two processes: a table
	@$(BIN)/python -m pytest -q --slow=all tests/integration/test_loss_curves.py

collectives: $(VENV)/.torch  ## what the step of each sharding strategy sends: a table
	@$(BIN)/python -m pytest -q --slow=all tests/scale/test_strategies.py

compile-cost: $(VENV)/.dev  ## what depth costs to compile, as ratios
	@$(BIN)/python -m tests.scale.compile_cost

scale: $(VENV)/.torch  ## docs/scale.md: compiles for TPU slices what is not compiled yet (minutes each), writes its tables
	@$(BIN)/python docs/scale/tables.py --compile

weights-1b: $(VENV)/.demo  ## a 1 B model imported and exported for real, with the peak of host memory (20 GB of disk, 8 GiB)
	@$(BIN)/python -m tests.interop.stream_1b runs/weights_1b

DOCS_VENV ?= .venv-docs
docs:  ## the documentation as a site in site/, strict: a broken link fails (an environment of its own)
	@if [ ! -e $(DOCS_VENV)/bin/mkdocs ] || [ docs/requirements.txt -nt $(DOCS_VENV)/bin/mkdocs ]; then
	  "$(PYTHON)" -m venv $(DOCS_VENV)
	  $(DOCS_VENV)/bin/python -m pip --disable-pip-version-check --no-input install -q -r docs/requirements.txt
	  touch $(DOCS_VENV)/bin/mkdocs
	fi
	NO_MKDOCS_2_WARNING=1 $(DOCS_VENV)/bin/mkdocs build --strict --quiet
	echo "site/index.html"

check: $(VENV)/.dev  ## lint, format, types, spelling
	@$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/codespell

format: $(VENV)/.dev  ## rewrite in the house format
	@$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

lock:  ## resolve setup.py anew, in fresh environments, into constraints/: both Pythons, the same versions but for JAX and Flax
	@resolve() {
	  python=$$(constraints/python.sh find $$1) || { echo "make: needs Python $$1 too" >&2; exit 1; }
	  rm -rf .venv-lock
	  "$$python" -m venv .venv-lock
	  .venv-lock/bin/python -m pip install -q "$${@:3}" -e '.[all]'
	  # A torch for CUDA brings these, one for CPUs does not.
	  { sed -n '/^#/p' $$2; .venv-lock/bin/python -m pip freeze --exclude-editable | sed -E 's/\+cpu$$//' | grep -Ev '^(nvidia|cuda|triton)'; } > lock.tmp
	  mv lock.tmp $$2
	  rm -rf .venv-lock
	}
	resolve 3.11 constraints/py311.txt
	grep -Ev '^(jax|jaxlib|flax)==' constraints/py311.txt > shared.tmp
	resolve 3.12 constraints/py312.txt -c shared.tmp
	rm shared.tmp

clean:  ## remove the environment and the caches (runs/ stays)
	rm -rf $(VENV) .venv-lock .venv-docs site *.tmp .cache .pytest_cache .mypy_cache .ruff_cache *.egg-info
