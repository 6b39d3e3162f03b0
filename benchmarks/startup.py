"""Wall time of the light commands relative to `python -c pass`, and the heavy packages that they import, if any.

.venv/bin/python -m benchmarks.startup
"""

import argparse
import statistics
import subprocess
import sys
import time

RUNS = 15
HEAVY = ("torch", "vllm", "docker", "httpx", "numpy", "transformers")
COMMANDS = {
    "python -c pass": ["-c", "pass"],
    "glm4-deploy --help": ["-m", "glm4_deploy", "--help"],
    "glm4-deploy version": ["-m", "glm4_deploy", "version"],
    "glm4-deploy render": ["-m", "glm4_deploy", "render"],
    "python -c 'import pydantic_settings'": ["-c", "import pydantic_settings"],
}


def seconds(words: list[str]) -> float:
    begin = time.perf_counter()
    subprocess.run([sys.executable, *words], check=True, capture_output=True)
    return time.perf_counter() - begin


def heavy_imports(words: list[str]) -> list[str]:
    done = subprocess.run([sys.executable, "-X", "importtime", *words], check=True, capture_output=True, text=True)
    names = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines() if line.startswith("import time:")}
    return sorted(name for name in HEAVY if name in names)


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    # Interleaved, so that other load on the machine affects all of them alike.
    times: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for _ in range(RUNS):
        for name, words in COMMANDS.items():
            times[name].append(seconds(words))
    base = statistics.median(times["python -c pass"])
    print("| command | median s | fastest s | × `python -c pass` | heavy imports |")
    print("|---|---|---|---|---|")
    for name, words in COMMANDS.items():
        median = statistics.median(times[name])
        heavy = ", ".join(heavy_imports(words)) or "none"
        print(f"| `{name}` | {median:.3f} | {min(times[name]):.3f} | {median / base:.1f} | {heavy} |")


if __name__ == "__main__":
    main()
