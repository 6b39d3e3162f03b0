#!/usr/bin/env bash
# Install what the tests need besides Python packages: a running Docker engine, a browser, the CPU engines, …
# As root on Debian or Ubuntu it installs and starts them. Elsewhere it reports what is missing and goes on: the tests
# that need it are skipped (or fail if GLM4_E2E_REQUIRED is set, as in CI).
set -euo pipefail
cd "$(dirname "$0")/.."
say() { printf 'test-needs: %s\n' "$*" >&2; }

# Debian packages start their services, now and at every boot. The tests need only the programs, and running services
# (dockerd) must not be disturbed. An existing policy-rc.d is left alone.
policy=/usr/sbin/policy-rc.d
install_without_starting() (
  if [ ! -e "$policy" ]; then
    trap 'rm -f "$policy"' EXIT
    printf '#!/bin/sh\nexit 101\n' >"$policy"
    chmod 755 "$policy"
  fi
  # needrestart, if present, would restart services after an installation.
  DEBIAN_FRONTEND=noninteractive NEEDRESTART_SUSPEND=1 \
    apt-get install -y -qq --no-upgrade --no-install-recommends "$@" >/dev/null
  [ -d /run/systemd/system ] || return 0
  for name in "$@"; do
    case $name in
      prometheus*) systemctl disable --quiet "$name.service" || say "$name is still enabled" ;;
      openssh-server) systemctl disable --quiet ssh.service ssh.socket || say "sshd is still enabled" ;;
    esac
  done
)

missing=()
command -v dockerd >/dev/null || docker info >/dev/null 2>&1 || missing+=(docker.io iptables)
command -v chromium >/dev/null || missing+=(chromium)
command -v debootstrap >/dev/null || missing+=(debootstrap)
command -v ip >/dev/null || missing+=(iproute2)
command -v sshd >/dev/null || [ -x /usr/sbin/sshd ] || missing+=(openssh-server)
command -v promtool >/dev/null || missing+=(prometheus)
command -v prometheus-node-exporter >/dev/null || missing+=(prometheus-node-exporter)
if [ ${#missing[@]} -gt 0 ]; then
  if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    say "installing ${missing[*]}"
    apt-get update -qq
    install_without_starting "${missing[@]}"
  else
    say "missing: ${missing[*]} (apt-get install ${missing[*]})"
  fi
fi
if ! docker info >/dev/null 2>&1 && [ "$(id -u)" = 0 ] && command -v dockerd >/dev/null; then
  say "starting a Docker engine"
  log=${TMPDIR:-/tmp}/glm4-dockerd.log
  if [ -d /run/systemd/system ]; then
    systemctl start docker >"$log" 2>&1 || true
  else
    setsid dockerd >"$log" 2>&1 </dev/null &
  fi
  for _ in $(seq 60); do docker info >/dev/null 2>&1 && break; sleep 1; done
  docker info >/dev/null 2>&1 || { say "the Docker engine did not start:"; tail -5 "$log" >&2; }
fi
# 0.13.0: the publisher's image, in the demo and in compose/seed.yaml.
for engine in default newest 0.13.0; do scripts/cpu-engine.sh "$engine" >/dev/null; done
