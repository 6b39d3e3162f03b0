"""The rows of src/glm4_deploy/catalog/calibrations.yaml that come from this machine's measurements, on stdout.

python -m benchmarks.scale.example benchmarks/scale/results/cpu.json
"""

import json
import sys
from pathlib import Path

import yaml
from benchmarks.scale.evaluate import calibration_file

NAME = "cpu-26m"
NOTE = (
    "benchmarks/scale; a model of 26 million parameters with dummy weights on a shared machine: to try the command with"
)


def main() -> None:
    data = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    row = calibration_file(data) | {"note": NOTE}
    row["runs"] = row.pop("runs")
    print(yaml.dump({NAME: row}, Dumper=yaml.SafeDumper, sort_keys=False, default_flow_style=None, width=160))


if __name__ == "__main__":
    main()
