#!/usr/bin/env bash
# Run pytest with Compose from the virtual environment on PATH and the CPU engine's Python in GLM4_CPU_PYTHON.
set -euo pipefail
cd "$(dirname "$0")/.."
GLM4_CPU_PYTHON=$(scripts/cpu-engine.sh)
export GLM4_CPU_PYTHON PATH="$PWD/.venv/bin:$PATH"
unset PYTHONDONTWRITEBYTECODE # each of some thousand programs would compile what it imports
if [ $# -gt 0 ]; then exec .venv/bin/pytest -rs --durations=10 "$@"; fi
# An engine leaves about half of two cores idle. What needs none runs there, and yields to the rest.
others=$(mktemp)
trap 'rm -f "$others"' EXIT
nice -n 10 .venv/bin/pytest -rs --durations=10 -n 2 --dist worksteal tests/journeys tests/unit tests/fuzz >"$others" 2>&1 &
failed=0
.venv/bin/pytest -rs --durations=20 tests/e2e || failed=$?
wait $! || failed=$?
cat "$others"
exit "$failed"
