#!/usr/bin/env bash
# Run tests/fuzz again and again with new inputs until MINUTES are over, and print what each round tried.
set -euo pipefail
cd "$(dirname "$0")/.."
end=$((SECONDS + ${1:-30} * 60))
while [ "$SECONDS" -lt "$end" ]; do
  GLM4_FUZZ_EXAMPLES=${GLM4_FUZZ_EXAMPLES:-1000} .venv/bin/pytest tests/fuzz --hypothesis-seed="$RANDOM"
done
