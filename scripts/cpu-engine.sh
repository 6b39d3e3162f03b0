#!/bin/sh
# Build a CPU engine once, and print the path of its Python: scripts/cpu-engine.sh [VERSION | default | newest].
# Without an argument: the newest version of scripts/engines.toml. See scripts/engines.py.
exec python3 "$(dirname "$0")/engines.py" "$@"
