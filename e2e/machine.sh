#!/bin/bash
# Debian packages: `base` for the virtual environment (pyfuse3 is built from source), `full` for real tests, demo and cluster.
# Does nothing when everything is there. usage: machine.sh base|full
set -eu
base="python3 python3-venv python3-dev gcc pkg-config fuse3 libfuse3-dev ca-certificates"
full="redis-server etcd-server containerd runc containernetworking-plugins busybox-static iproute2 iptables conntrack
 buildah debootstrap util-linux procps libc6-dev kmod"
wanted=$base
[ "$1" = full ] && wanted="$base $full"
missing=""
for package in $wanted; do
  [ "$(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null)" = installed ] || missing="$missing $package"
done
[ -n "$missing" ] || exit 0
[ "$(id -u)" = 0 ] || { echo "run as root once, or install these packages:$missing" >&2; exit 1; }
echo "installing Debian packages:$missing"
export DEBIAN_FRONTEND=noninteractive
# Packages must not start their services: the tests start their own.
policy=/usr/sbin/policy-rc.d
if [ ! -e $policy ]; then
  printf '#!/bin/sh\nexit 101\n' >$policy
  chmod +x $policy
  trap 'rm -f $policy' EXIT
fi
apt-get update -qq
# shellcheck disable=SC2086
apt-get install -y -qq --no-install-recommends $missing >/dev/null
