#!/usr/bin/env bash
# Compile pyproject.toml into pinned, hashed requirement files (no index addresses in them).
# Run it after changing a dependency: `make lock`.
set -euo pipefail
cd "$(dirname "$0")/.."
compile() {
  uv pip compile --universal --python-version 3.11 --fork-strategy fewest --generate-hashes \
    --no-annotate --no-header --no-emit-index-url --quiet "$@"
}
# 2.13.0+cpu-like local builds of torch break torchvision; the pair below is released together.
compile pyproject.toml --extra demo --group dev --constraint requirements/pins.txt -o requirements/all.txt
compile --group service --constraint requirements/pins.txt -o requirements/service.txt
