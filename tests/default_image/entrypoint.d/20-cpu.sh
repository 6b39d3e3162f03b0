# What this CPU engine needs to start with the unmodified command line of compose/seed.yaml and compose/gb10.yaml.
export PYTHONPATH=/opt/plugins                # cpu_bridge.py: no FP8 KV cache on a CPU; nvfp4_rig.py: NVFP4 by emulation
export VLLM_ALLOW_LONG_MAX_MODEL_LEN=1        # --max-model-len 32768 for a demo model of 4096
export VLLM_CPU_KVCACHE_SPACE=1               # GiB; a CPU engine does not read --gpu-memory-utilization
export TORCHDYNAMO_DISABLE=1                  # no compilation: it cannot trace the emulation, and takes minutes on a CPU
export VLLM_USE_AOT_COMPILE=0                 # from torch 2.10 on compilation has a second way, which cannot be without the first
export PYTHONDONTWRITEBYTECODE=1
