#!/bin/sh
# Behaves as /opt/nvidia/nvidia_entrypoint.sh of NVIDIA's images: runs what is in entrypoint.d, prints the banner, then
# becomes the command. A command that begins with a flag fails there in the same way.
for part in /opt/nvidia/entrypoint.d/*; do
  case $part in
    *.txt) cat "$part" ;;
    *.sh) . "$part" ;;
  esac
done
echo
[ $# -gt 0 ] || set -- /bin/sh
exec "$@"
