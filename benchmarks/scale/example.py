"""Write src/glm4_deploy/catalog/calibrations.yaml, from the measurements in this repository, to stdout.

python -m benchmarks.scale.example > src/glm4_deploy/catalog/calibrations.yaml
"""

import argparse
import json
from pathlib import Path
from typing import Any

import yaml
from benchmarks.scale.evaluate import calibration_file, load

ROOT = Path(__file__).parents[2]
HEAD = "# Example measurements, not of the reader's own engine. Written by benchmarks/scale/example.py."
H100 = ("512-128", "128-256", "1536-64")


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    rows = {"h100-marlin": h100(), "cpu-26m": cpu()}
    print(HEAD)
    print(yaml.safe_dump({"calibrations": rows}, sort_keys=False, default_flow_style=None, width=160), end="")


def h100() -> dict[str, Any]:
    """docs/lab/gpu.md, the planner's setting for 256 users of 2048 tokens."""
    runs = [read(ROOT / f"benchmarks/gpu/results/h100-plan-256x2k-{lengths}.json") for lengths in H100]
    return {
        "card": "NVIDIA H100 80GB HBM3 (NOT Blackwell: NVFP4 through Marlin)",
        "vllm": "0.24.0",
        "date": "2026-11-25",
        "model": "GLM-4-9B's shape in NVFP4, dummy weights",
        "note": "benchmarks/gpu/results, docs/lab/gpu.md; one run a load",
        "max_num_seqs": 256,
        "max_num_batched_tokens": 8192,
        "kv_cache_tokens": 544_368,
        "runs": runs,
    }


def cpu() -> dict[str, Any]:
    data, _ = load(ROOT / "benchmarks/scale/results/cpu.json")
    file = calibration_file(data)
    note = "benchmarks/scale; a model of 26 million parameters, dummy weights, on a busy machine: to try the command"
    return {**{key: value for key, value in file.items() if key != "runs"}, "note": note, "runs": file["runs"]}


def read(path: Path) -> dict[str, Any]:
    report = json.loads(path.read_text(encoding="utf-8"))
    levels = [
        {
            "concurrency": level["concurrency"],
            "requests": level["requests"],
            "ttft": {share: round(level["ttft"][share], 2) for share in ("p50", "p95")},
            "tpot": {share: round(level["tpot"][share], 3) for share in ("p50", "p95")},
            "output_tokens_per_s": round(level["output_tokens_per_s"], 1),
        }
        for level in report["levels"]
    ]
    return {"input_len": report["input_len"], "output_len": report["output_len"], "levels": levels}


if __name__ == "__main__":
    main()
