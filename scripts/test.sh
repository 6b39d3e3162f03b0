#!/usr/bin/env bash
# Run pytest with Compose from the virtual environment on PATH and the CPU engine's Python in GLM4_CPU_PYTHON.
set -euo pipefail
cd "$(dirname "$0")/.."
GLM4_CPU_PYTHON=$(scripts/cpu-engine.sh)
export GLM4_CPU_PYTHON PATH="$PWD/.venv/bin:$PATH"
exec .venv/bin/pytest -rs --durations=10 "$@"
