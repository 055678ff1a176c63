# The one door: every command a newcomer, a contributor and CI type.
PYTHON ?= python3
BIN := .venv/bin
TESTS ?= tests
# a process a core; the tests of one file share their fixtures
PYTEST = $(BIN)/python -m pytest $(TESTS) -n auto --maxprocesses 8 --dist loadfile

.PHONY: setup demo test test-all test-models browser check bench lock clean

setup: .venv/.installed

# uv installs the pinned set several times faster than pip; it is fetched by pip if need be
.venv/.installed: requirements/all.txt requirements/uv.txt pyproject.toml setup.py $(wildcard teacher_cache/pixels/csrc/*)
	@$(PYTHON) -c 'import sys; assert sys.version_info >= (3, 11)' 2>/dev/null || \
	  { echo "Python 3.11 or later is needed, $$($(PYTHON) --version) was found; set PYTHON=..." >&2; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements/uv.txt
	$(BIN)/uv pip install --quiet --python $(BIN)/python --require-hashes -r requirements/all.txt
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation -e .
	@touch $@

demo: setup
	$(BIN)/python cli.py demo

test: setup
	$(PYTEST) -m "not slow and not models"

test-all: test
	$(PYTEST) -m slow

# every network of the paper's Table 9 as a student: an hour
test-models: setup
	$(BIN)/python -m pytest tests/student/models/test_table9.py -n auto --maxprocesses 8

# what the page's tests open, and the proxy before it; without them these tests are skipped
browser:
	{ command -v chromium && PATH="$$PATH:/usr/sbin" command -v nginx; } >/dev/null || { [ "$$(id -u)" = 0 ] && apt-get update --quiet=2 && apt-get install --yes --quiet=2 --no-install-recommends chromium nginx-light; }

check: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy cli.py teacher_cache student service
	$(BIN)/lint-imports

bench: setup
	$(BIN)/python -m benchmarks

lock:
	requirements/compile.sh

clean:
	rm -rf .venv build *.egg-info demo-out teacher_cache/pixels/*.so
