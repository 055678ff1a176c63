#!/usr/bin/env bash
# Compile pyproject.toml into pinned, hashed requirement files (no index addresses in them).
# Run it after changing a dependency: `make lock`.
set -euo pipefail
cd "$(dirname "$0")/.."
compile() {
  uv pip compile --universal --python-version 3.11 --fork-strategy fewest --generate-hashes \
    --no-annotate --no-header --no-emit-index-url --quiet "$@"
}
# torch and torchvision are released in pairs; requirements/pins.txt names the pair.
compile pyproject.toml --extra demo --group dev --constraint requirements/pins.txt -o requirements/all.txt
compile requirements/uv.in -o requirements/uv.txt
compile --group service --constraint requirements/pins.txt -o requirements/service.txt
# What docker/train.Dockerfile installs: both jobs and every optional part, no tests.
compile pyproject.toml --extra export --extra postgres --extra stores --constraint requirements/pins.txt --constraint requirements/all.txt -o requirements/train.txt
