#!/usr/bin/env bash
# An upgrade on real engines and a real Docker engine, by hand: vLLM 0.13.0 with the NVFP4 demo checkpoint to 0.32.0,
# which needs it repaired, and back. docs/lab/releases.md has an output.
# Usage: scripts/upgrade-lab.sh DIRECTORY STEP…
#   start    images, the checkpoint repaired for 0.13.0, `up`
#   upgrade  to 0.32.0, with its own cache
#   back     `rollback` to 0.13.0, with the cache that it had
#   end      `down --volumes`, and remove the images
set -euo pipefail
lab=$(mkdir -p "${1:?usage: upgrade-lab.sh DIRECTORY STEP…}" && cd "$1" && pwd)
shift
here=$(cd "$(dirname "$0")" && pwd)
root=${here%/*}
old=0.13.0 new=0.32.0
kit() { (cd "$lab" && echo "\$ glm4-deploy $*" && glm4-deploy "$@") || echo "(exit $?)"; }
volume() { docker inspect glm4-upgrade-lab --format '{{range .Mounts}}{{if eq .Destination "/cache"}}{{.Name}}{{end}}{{end}}'; }

image() { # image VERSION: directories, and the PATH of that engine
  local work
  work=$(mktemp -d)
  mkdir -p "$work"/{usr,etc,tmp,cache,mnt/models,proc,sys,dev,run,root}
  for link in bin sbin lib lib64; do [ ! -L "/$link" ] || ln -s "usr/$link" "$work/$link"; done
  echo 'root:x:0:0:root:/root:/bin/sh' >"$work/etc/passwd"
  tar -C "$work" --numeric-owner --owner=0 --group=0 -c . | docker import \
    --change "ENV PATH=$(dirname "$("$here/cpu-engine.sh" "$1")"):/usr/bin:/bin" \
    --change "ENV PYTHONPATH=$root/tests/nvfp4_rig PYTHONDONTWRITEBYTECODE=1" - "glm4-deploy/vllm-cpu:$1-lab" >/dev/null
  rm -rf "$work"
}

override() { # the files of both engines, and the rig, read-only
  local python paths=(/usr "$root/tests/nvfp4_rig")
  for version in "$old" "$new"; do
    python=$("$here/cpu-engine.sh" "$version")
    paths+=("${python%/bin/*}" "$("$python" -c 'import sys; print(sys.base_prefix)')")
  done
  for path in /etc/ld.so.cache /etc/alternatives; do [ ! -e "$path" ] || paths+=("$path"); done
  printf 'services:\n  glm4-9b-nvfp4:\n    volumes:\n'
  printf '%s\n' "${paths[@]}" | sort -u | grep -v '^/usr/.' |
    while read -r path; do printf '      - {type: bind, source: "%s", target: "%s", read_only: true}\n' "$path" "$path"; done
}

for step; do
  echo "== $step"
  case $step in
    start)
      image "$old" && image "$new" && override >"$lab/mounts.yaml"
      kit checkpoint repair "$root/demo/glm-4-tiny-chat-nvfp4" --for "$old" --output "$lab/glm-4-tiny"
      kit up --profile cpu --image "glm4-deploy/vllm-cpu:$old-lab" --set quantization=compressed-tensors \
        --set project=glm4-upgrade-lab --set container_name=glm4-upgrade-lab --port "${PORT:-18391}" \
        --model-dir "$lab/glm-4-tiny" --override "$lab/mounts.yaml" --timeout 600
      ;;
    upgrade) kit upgrade "$new-lab" --timeout 600 && volume ;;
    back) kit rollback 1 --timeout 600 && volume ;;
    end)
      kit releases
      kit down --volumes --yes
      docker image rm "glm4-deploy/vllm-cpu:$old-lab" "glm4-deploy/vllm-cpu:$new-lab" >/dev/null
      ;;
    *) echo "unknown step $step" >&2 && exit 2 ;;
  esac
done
