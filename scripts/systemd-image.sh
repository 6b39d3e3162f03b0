#!/usr/bin/env bash
# Make an image of a Debian machine for tests: systemd as process 1, and Podman with its Quadlet generator.
# Built once from Debian packages (about a minute); this host's packages are not changed.
# Prints the image's name.
set -euo pipefail

suite=trixie # the first Debian whose Podman (5.4) has Quadlet
packages=systemd,systemd-sysv,dbus,podman,crun,netavark,nftables,iptables,ca-certificates,curl,procps
image=glm4-deploy/test-machine:$suite-4

docker image inspect "$image" >/dev/null 2>&1 && { echo "$image"; exit 0; }
command -v debootstrap >/dev/null || { echo "systemd-image: debootstrap is not installed" >&2; exit 1; }
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
debootstrap --variant=minbase --include="$packages" "$suite" "$work/root" >"$work/log" 2>&1 ||
  { tail -5 "$work/log" >&2; exit 1; }
rm -rf "$work"/root/var/{cache/apt/archives/*.deb,lib/apt/lists/*}
# The machine gets a cgroup tree of version 2, even on a host with version 1.
cat >"$work/root/sbin/start-machine" <<'EOF'
#!/bin/sh
if [ "$(stat -fc %T /sys/fs/cgroup)" != cgroup2fs ]; then
  umount -R /sys/fs/cgroup && mount -t cgroup2 cgroup2 /sys/fs/cgroup || exit 97
  mkdir -p "/sys/fs/cgroup/$HOSTNAME" && echo $$ >"/sys/fs/cgroup/$HOSTNAME/cgroup.procs" || exit 98
  exec unshare -C sh -c 'umount /sys/fs/cgroup && mount -t cgroup2 cgroup2 /sys/fs/cgroup && exec /sbin/init'
fi
exec /sbin/init
EOF
chmod 755 "$work/root/sbin/start-machine"
tar -C "$work/root" -c . | docker import --change 'CMD ["/sbin/start-machine"]' - "$image" >/dev/null
echo "$image"
