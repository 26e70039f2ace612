# Two commands do everything on a fresh machine: make demo, make test.
# PIP_ARGS chooses another torch build, e.g. make demo PIP_ARGS="--extra-index-url URL_OF_THE_CPU_WHEELS"
PYTHON ?= python3
PIP_ARGS ?=
BIN := .venv/bin
DEMO := demo
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: demo install develop test test-all test-wheel mutants torture lint docs bench clean

# Renders motion videos, then the three commands. The flags make R3D-18 learn from nothing in three
# minutes on two CPU cores: small pictures, 8 frames, no colour jitter.
demo: install
	rm -rf $(DEMO)
	$(BIN)/vidcache demo $(DEMO)/raw
	$(BIN)/vidcache build $(DEMO)/raw $(DEMO)/cache.h5 --workers 2 --size 28
	$(BIN)/vidtrain $(DEMO)/cache.h5 --weights none --num-frames 8 --epochs 7 --min-epochs 7 --lr 1e-3 \
		--lr-schedule cosine --warmup-epochs 1 --batch-size 8 --balance sampler --augment none --out $(DEMO)/best.pt
	$(BIN)/videval $(DEMO)/cache.h5 --ckpt $(DEMO)/best.pt
	@echo "Report: $(CURDIR)/$(DEMO)/best.eval"

install: .venv/installed

.venv/installed: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet $(PIP_ARGS) -e . --config-settings editable_mode=strict
	touch $@

# What a contributor runs: lint, types and every test that takes less than a second, and one of each slow family.
# One thread for each of JOBS processes: two OpenMP teams on two cores wait for each other most of the time.
# In a random order; SEED=... is the one of an earlier run.
JOBS ?= 2
SEED ?= $(shell date +%s)
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n $(JOBS)
test: develop
	$(MAKE) lint
	$(PYTEST) --dist worksteal --randomly-seed=$(SEED) -m "not slow"

# Everything: the slow tests too (kills, power losses, several processes, real networks, a browser), coverage of at
# least 95 %, and the commands from a wheel that has nothing else of the checkout beside it.
test-all: develop
	$(MAKE) lint
	$(PYTEST) --dist loadfile --randomly-seed=$(SEED) --cov
	$(MAKE) test-wheel WHEEL_TESTS="tests/test_wheel.py tests/test_cli.py"

# Every time: an editable install only links the files that were there.
develop:
	test -d .venv || $(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet $(PIP_ARGS) -e '.[dev,docs]' --config-settings editable_mode=strict
	touch .venv/installed

# The tests against the wheel, in a folder that has nothing else of the checkout, in a venv without the extras.
WHEEL ?= /tmp/vidcache-wheel
WHEEL_TESTS ?= tests
test-wheel:
	rm -rf $(WHEEL) build/lib
	$(PYTHON) -m venv $(WHEEL)/venv
	$(WHEEL)/venv/bin/pip wheel --quiet --no-deps --wheel-dir $(WHEEL)/dist .
	$(WHEEL)/venv/bin/pip install --quiet $(PIP_ARGS) $(WHEEL)/dist/*.whl 'hypothesis>=6.100' 'pytest>=8.2' 'pytest-xdist>=3.6'
	cp -r tests $(WHEEL)/tests
	cd $(WHEEL) && VIDCACHE_WHEEL=1 OMP_NUM_THREADS=1 venv/bin/python -m pytest -q -p no:cacheprovider \
		-n $(JOBS) --dist loadfile -c '$(CURDIR)/pyproject.toml' --rootdir . $(WHEEL_TESTS)

# Changes one thing in the code at a time: do its tests notice? ONLY: some modules, as cache/reader.py,cache/format.py.
# MUTANTS: at most so many of each module, drawn with a fixed seed.
MUTANTS ?= 30
mutants:
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.mutants --at-most $(MUTANTS) --only "$(ONLY)"

# N random accidents of each kind (kills, power losses, mutated videos and caches, ...); see tests/test_torture.py.
N ?= 1000
torture: install
	$(BIN)/pip install --quiet $(PIP_ARGS) -e '.[dev]' --config-settings editable_mode=strict
	VIDCACHE_TORTURE=$(N) $(BIN)/python -m pytest -q -s tests/test_torture.py tests/test_fuzz.py

lint:
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# The site, in site/index.html. The theme would advertise its successor with every build.
docs: install
	$(BIN)/pip install --quiet $(PIP_ARGS) -e '.[docs]' --config-settings editable_mode=strict
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict
	@echo "Site: $(CURDIR)/site/index.html"

# Each figure is a ratio of two things measured in turn, its floor beside it; what is printed goes to
# tests/benchmarks/RESULTS.md. DATA: RAW/<class>/<video>. ONLY: some parts, as train,predict. An hour or two on 2 cores.
DATA ?= ../shared/data/overhead_home
SCRATCH ?= /tmp/vidcache-bench
ONLY ?=
bench: install
	$(BIN)/pip install --quiet $(PIP_ARGS) -e '.[bench]' --config-settings editable_mode=strict
	case ",$(ONLY)," in ,,|*,learned,*) test -f $(DEMO)/best.pt || $(MAKE) demo;; esac
	$(BIN)/python tests/benchmarks/run_all.py --data $(DATA) --scratch $(SCRATCH) --only "$(ONLY)"

clean:
	rm -rf .venv build site $(DEMO) *.egg-info
