#!/usr/bin/env bash
# Make demo/glm-4-tiny-chat-nvfp4 from demo/glm-4-tiny-chat: `glm4-deploy checkpoint quantize --raw`, so that it has
# everything that llm-compressor leaves to repair. Its environment (6 GB) is built in the cache.
set -euo pipefail
cd "$(dirname "$0")/.."
out=${1:-demo/glm-4-tiny-chat-nvfp4}
cache=${GLM4_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/glm4-deploy}
venv=${GLM4_QUANTIZE_VENV:-$cache/quantize}
if [ ! -f "$venv/.complete" ]; then
  python3 -m venv "$venv"
  "$venv/bin/python" -m pip install -qq --disable-pip-version-check '.[quantize]'
  touch "$venv/.complete"
fi
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
name=$(basename "$out")
"$venv/bin/python" demo/calibration.py >"$work/chats.jsonl"
root=$PWD
(cd "$work" && CUDA_VISIBLE_DEVICES='' HF_HUB_OFFLINE=1 PYTHONPATH=$root/src "$venv/bin/python" -m glm4_deploy \
  checkpoint quantize "$root/demo/glm-4-tiny-chat" --output "$name" --dataset chats.jsonl --samples 64 --seed 0 --raw)
rm "$work/$name/README.md" # it describes GLM-4-9B and its licence; these weights have nothing of it
rm -rf "$out"
mv "$work/$name" "$out"
