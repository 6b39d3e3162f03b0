#!/usr/bin/env bash
# What this kit is for, without a GPU and without Docker: NVFP4 W4A4 in the publisher's version of vLLM, on the CPU.
#   scripts/demo.sh        verify finds what breaks the checkpoint, repair fixes it, up gates it, down removes it
#   scripts/demo.sh fault  then the broken checkpoint is forced into the engine; the gate fails, the good one returns
set -euo pipefail
cd "$(dirname "$0")/.."
export PATH="$PWD/.venv/bin:$PATH"
story=${1:-sound}
vllm=0.13.0 # that of the publisher's image, 26.01
state=.glm4/demo
shipped=demo/glm-4-tiny-chat-nvfp4
repaired=$state/glm-4-tiny-chat-nvfp4-repaired
broken=$state/glm-4-tiny-chat-nvfp4-broken
# A first start reads 3 GB of engine from the disk, which on a busy machine takes longer than `up` waits by default.
settings=(--timeout 900 --profile cpu --set quantization=compressed-tensors --set "image_tag=$vllm"
  --port "${PORT:-18080}" --runner process --state-dir "$state")

say() { printf '\n== %s\n' "$*" >&2; }
run() {
  say "glm4-deploy $*"
  glm4-deploy "$@"
}
expect() { # expect CODE COMMAND…: ends the demo if the command ends otherwise
  local wanted=$1 code=0
  shift
  run "$@" || code=$?
  [ "$code" = "$wanted" ] || { say "exit code $code, $wanted was expected"; exit 1; }
}

say "The CPU engine, vLLM $vllm (built once)"
GLM4_CPU_PYTHON=$(scripts/cpu-engine.sh "$vllm")
# vLLM offers its software emulation of NVFP4 on GPUs only; this test rig, which is not part of the kit, offers it here.
PYTHONPATH=$PWD/tests/nvfp4_rig${PYTHONPATH:+:$PYTHONPATH}
export GLM4_CPU_PYTHON PYTHONPATH

mkdir -p "$state"
rm -rf "$repaired" "$broken"
expect 1 checkpoint verify "$shipped" --vllm "$vllm"
run checkpoint repair "$shipped" --output "$repaired" --for "$vllm"

trap 'say "Stopping"; glm4-deploy down --state-dir "$state"' EXIT
run up "${settings[@]}" --model-dir "$repaired"
run status --state-dir "$state"
[ "$story" = fault ] || exit 0

say "The fused gate_up stays, the rest is mended so that this engine loads it at all"
expect 1 checkpoint repair "$shipped" --output "$broken" --for "$vllm" --only quantization-keys --only tokenizer-class
say "Memory as a busy process leaves it: glibc fills each new block with bytes (MALLOC_PERTURB_=185)"
export MALLOC_PERTURB_=185
expect 10 up "${settings[@]}" --model-dir "$broken"
expect 15 up "${settings[@]}" --model-dir "$broken" --force
run releases --state-dir "$state"
