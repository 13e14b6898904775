#!/usr/bin/env bash
# Runs a command in an unpacked image as a cluster would: any uid, root file system read-only but for /tmp, no capability,
# no new privileges, processes of its own, the host's network.
# Usage: unshare --mount --pid --fork --kill-child run_image.sh ROOT UID "FROM:TO ..." [NAME=VALUE ...] COMMAND ...
# FROM:TO mounts a folder of the host, writable. Needs root.
set -euo pipefail
root="$1" uid="$2" binds="$3"
shift 3
mount --make-rprivate /
mount --bind "$root" "$root"
mount -o remount,bind,ro "$root"
mount -t tmpfs -o nosuid,nodev,mode=1777,size=256m tmpfs "$root/tmp"
mount -t proc proc "$root/proc"
mount --rbind /dev "$root/dev"
for bind in $binds; do mount --bind "${bind%%:*}" "$root${bind#*:}"; done
cd /
exec chroot "$root" setpriv --reuid "$uid" --regid "$uid" --clear-groups --no-new-privs --bounding-set=-all \
    --inh-caps=-all env --ignore-environment --chdir=/app "$@"
