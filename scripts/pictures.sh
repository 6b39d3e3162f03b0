#!/usr/bin/env bash
# docs/pictures/: the terminal of a real `make demo-fault` as a film, and the page of the release that failed its gate.
set -euo pipefail
cd "$(dirname "$0")/.."
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
rm -rf .glm4/demo
script --quiet --return --log-out "$work/typescript" --log-timing "$work/timing" --logging-format classic \
  --command "stty cols 104 rows 40; scripts/demo.sh fault" </dev/null
failed=$(grep -l 'Do not use this engine' .glm4/demo/releases/*/report.html | head -1)
.venv/bin/python -m scripts.pictures "$work/typescript" "$work/timing" "$failed"
