#!/usr/bin/env bash
# pytest with the real parts on its PATH: Compose from the virtual environment, the CPU engine's Python.
set -euo pipefail
cd "$(dirname "$0")/.."
GLM4_CPU_PYTHON=$(scripts/cpu-engine.sh)
export GLM4_CPU_PYTHON PATH="$PWD/.venv/bin:$PATH"
exec .venv/bin/pytest -rs --durations=10 "$@"
