#!/usr/bin/env bash
# Quantize a demo model: demo/nvfp4.sh [MODEL] writes MODEL-nvfp4. Its environment (6 GB) is built in the cache.
# glm-4-tiny-chat is left as llm-compressor writes it (--raw), so that there is something to repair.
set -euo pipefail
cd "$(dirname "$0")/.."
model=${1:-demo/glm-4-tiny-chat}
out=$model-nvfp4
cache=${GLM4_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/glm4-deploy}
venv=${GLM4_QUANTIZE_VENV:-$cache/quantize}
if [ ! -f "$venv/.complete" ]; then
  python3 -m venv "$venv"
  "$venv/bin/python" -m pip install -qq --disable-pip-version-check '.[quantize]'
  touch "$venv/.complete"
fi
case $model in
  *tools*) kind=--tools raw= ;;
  *) kind= raw=--raw ;;
esac
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
name=$(basename "$out")
"$venv/bin/python" demo/calibration.py $kind >"$work/chats.jsonl"
root=$PWD
(cd "$work" && CUDA_VISIBLE_DEVICES='' HF_HUB_OFFLINE=1 PYTHONPATH=$root/src "$venv/bin/python" -m glm4_deploy \
  checkpoint quantize "$root/$model" --output "$name" --dataset chats.jsonl --samples ${SAMPLES:-64} --seed 0 $raw)
rm "$work/$name/README.md" # it describes GLM-4-9B and its licence; these weights have nothing of it
rm -rf "$out"
mv "$work/$name" "$out"
