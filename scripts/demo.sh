#!/usr/bin/env bash
# Everything without a GPU: render, start, follow, check and stop a tiny GLM-4 on the CPU.
set -euo pipefail
cd "$(dirname "$0")/.."
export PATH="$PWD/.venv/bin:$PATH"
state=.glm4/demo
say() { printf '\n== %s\n' "$*" >&2; }

say "The CPU engine (built once)"
GLM4_CPU_PYTHON=$(scripts/cpu-engine.sh)
export GLM4_CPU_PYTHON
settings=(--profile cpu --model-dir demo/glm-4-tiny-chat --port "${PORT:-18080}"
  --set project=glm4-demo --set container_name=glm4-demo --set restart=no)

if docker info >/dev/null 2>&1; then
  say "Docker answers: the demo runs with Docker Compose"
  scripts/cpu-image.sh "$state/override.yaml"
  how=(--runner compose --override "$state/override.yaml")
else
  say "No Docker engine answers: the demo runs as a local process"
  how=(--runner process)
fi

say "glm4-deploy render ${settings[*]}"
glm4-deploy render "${settings[@]}" -o "$state/rendered.yaml"
trap 'say "Stopping"; glm4-deploy down --state-dir "$state"' EXIT
say "glm4-deploy up"
glm4-deploy up "${settings[@]}" "${how[@]}" --state-dir "$state"
say "glm4-deploy smoke --suite quick"
glm4-deploy smoke --state-dir "$state" --suite quick
