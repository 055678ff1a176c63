# The one door: every command a newcomer, a contributor and CI type.
PYTHON ?= python3
BIN := .venv/bin
TESTS ?= tests

.PHONY: setup demo test test-all browser check bench lock clean

setup: .venv/.installed

# uv installs the pinned set several times faster than pip; it is fetched by pip if need be
.venv/.installed: requirements/all.txt requirements/uv.txt pyproject.toml
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
	$(BIN)/python -m pytest $(TESTS) -m "not slow and not gpu"

test-all: setup
	$(BIN)/python -m pytest $(TESTS)

# what the page's tests open; without it they are skipped
browser:
	command -v chromium >/dev/null || { [ "$$(id -u)" = 0 ] && apt-get install --yes --no-install-recommends chromium; }

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
	rm -rf .venv build *.egg-info demo-out
