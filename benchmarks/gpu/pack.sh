#!/usr/bin/env bash
# Pack vLLM 0.24 (50 MB) for a machine with a Hopper GPU and no network, which must have Python 3.12, torch 2.11+cu130
# and Transformers 5.17:   benchmarks/gpu/pack.sh OUT
# Left out: FlashAttention 2 (Hopper uses 3), the Rust server, MLA, DeepGEMM, code for other GPUs.
set -euo pipefail
out=$(realpath -m "$1")
here=$(dirname "$(realpath "$0")")
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
platforms=()
for minor in $(seq 5 39); do platforms+=(--platform "manylinux_2_${minor}_x86_64"); done
fetch=(python3 -m pip download -q --no-deps --only-binary=:all: --python-version 3.12 --implementation cp "${platforms[@]}"
  --platform manylinux2014_x86_64 --platform manylinux1_x86_64)
mkdir -p "$out" "$work/vllm" "$work/deps" "$work/wheels"

"${fetch[@]}" -d "$work" vllm==0.24.0
"${fetch[@]}" -d "$work/wheels" -r "$here/requirements.txt"
unzip -q "$work"/vllm-*.whl -d "$work/vllm"
for wheel in "$work"/wheels/*.whl; do unzip -qo "$wheel" -d "$work/deps"; done
cd "$work/vllm/vllm"
rm -rf vllm_flash_attn/_vllm_fa2_C.abi3.so vllm-rs _flashmla*.so _qutlass_C.abi3.so third_party/{deep_gemm,fmha_sm100}
libraries=(vllm_flash_attn/_vllm_fa3_C.abi3.so _C_stable_libtorch.abi3.so _moe_C_stable_libtorch.abi3.so)
python3 "$here/thin.py" 90 "${libraries[@]}"
rm _moe_C_stable_libtorch.abi3.so # mixtures of experts only; vLLM warns and goes on
tar -C "$work/vllm" -cf - . | xz -T0 -7 >"$out/vllm.tar.xz"
tar -C "$work/deps" -cf - . | xz -T0 -7 >"$out/deps.tar.xz"
ls -l "$out"
