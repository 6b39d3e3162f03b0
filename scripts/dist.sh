#!/usr/bin/env bash
# Build what a release publishes into DIR (default: dist), and check it: sdist, wheel, constraints for reproducible
# installs, an SBOM (CycloneDX) of the wheel and its dependencies, and the SHA-256 sums of all of them.
# Needs uv on PATH or in .venv. The checking tools run in their own environments.
set -euo pipefail
cd "$(dirname "$0")/.."
export PATH="$PATH:$PWD/.venv/bin"
out=$(mkdir -p "${1:-dist}" && cd "${1:-dist}" && pwd)
rm -f "$out"/glm4_deploy-* "$out"/{constraints.txt,sbom.json,SHA256SUMS}

uv build --quiet --out-dir "$out"  # the sdist, and the wheel from that sdist
rm -f "$out/.gitignore"
uvx --quiet twine@7.0.0 check --strict "$out"/glm4_deploy-*
uvx --quiet check-wheel-contents@0.6.3 "$out"/*.whl
# The versions of the kit's image, without the hashes: a constraints file with hashes would refuse the wheel itself.
grep -oE '^[a-z0-9.-]+==[^ ]+( ; [^\\]+[^ \\])?' templates/image/requirements.txt >"$out/constraints.txt"
uvx --quiet --from cyclonedx-bom@7.5.0 cyclonedx-py requirements --pyproject pyproject.toml --mc-type application \
  --output-reproducible --of JSON -o "$out/sbom.json" templates/image/requirements.txt 2>/dev/null
(cd "$out" && sha256sum glm4_deploy-* constraints.txt sbom.json >SHA256SUMS)
