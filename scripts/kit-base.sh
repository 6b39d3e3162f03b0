#!/usr/bin/env bash
# Make a base image for `glm4-deploy image build --base …` from this host, without a registry: Python, a shell and the
# kit's requirements from the virtual environment. For tests, and for machines that cannot pull python:3.12-slim.
# Prints the image's name.
set -euo pipefail
cd "$(dirname "$0")/.."
image=glm4-deploy/kit-base:local
python=$(readlink -f .venv/bin/python)
lib=$("$python" -c 'import sysconfig; print(sysconfig.get_path("stdlib"))')
site=$(.venv/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')

root=$(mktemp -d)
trap 'rm -rf "$root"' EXIT
mkdir -p "$root"/{tmp,proc,sys,dev,etc,run,usr/bin,usr/lib,usr/lib64,"${lib#/}"}
for link in bin lib lib64; do [ -L "/$link" ] && ln -s "usr/$link" "$root/$link"; done
tar -C "$lib" -c --exclude=__pycache__ --exclude=./site-packages --exclude=./dist-packages --exclude=./test \
  --exclude=./EXTERNALLY-MANAGED --exclude='./config-*' . | tar -C "$root$lib" -x
mkdir -p "$root$lib/site-packages"
# Without the development tools, and without the editable link to this tree.
tar -C "$site" -c --exclude=__pycache__ --exclude='mypy*' --exclude='hypothesis*' --exclude='_pytest' --exclude='*glm4_deploy*' \
  --exclude='importlinter*' --exclude='grimp*' --exclude='*docker_compose*' . | tar -C "$root$lib/site-packages" -x
install -D "$python" "$root$python"
ln -sf "$python" "$root/usr/bin/python3"
install "$(readlink -f /bin/sh)" "$root/usr/bin/sh"
{ ldd "$python" /bin/sh; find "$root$lib" -name '*.so*' -exec ldd {} + 2>/dev/null; } |
  grep -oE '/[^ ]+\.so[^ ]*' | grep -v "^$root" | sort -u | while read -r file; do
  [ -e "$root$file" ] || { mkdir -p "$root${file%/*}"; cp "$(readlink -f "$file")" "$root$file"; }
done
# Debian's Python looks into dist-packages, others into site-packages.
mkdir -p "$root/usr/lib/python3"
ln -s "$lib/site-packages" "$root/usr/lib/python3/dist-packages"
echo 'root:x:0:0:root:/:/bin/sh' >"$root/etc/passwd"
chmod 1777 "$root/tmp"
tar -C "$root" --numeric-owner --owner=0 --group=0 -c . |
  docker import --change 'ENV PATH=/usr/local/bin:/usr/bin:/bin' - "$image" >/dev/null
echo "$image"
