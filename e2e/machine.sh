#!/bin/bash
# Debian packages: `base` for the virtual environment (pyfuse3 is built from source), `full` for real tests, demo and cluster.
# Does nothing when everything is there. usage: machine.sh base|full
set -eu
base="python3 python3-venv python3-dev gcc pkg-config fuse3 libfuse3-dev ca-certificates"
full="redis-server etcd-server postgresql mariadb-server containerd runc containernetworking-plugins busybox-static iproute2 iptables conntrack
 buildah debootstrap util-linux procps libc6-dev kmod acl attr"
# Services of these packages: every test and every node starts its own instance.
services="redis-server etcd containerd postgresql mariadb"
wanted=$base
[ "$1" = full ] && wanted="$base $full"
missing=""
# shellcheck disable=SC2086
installed=$(dpkg-query -W -f '${Package} ${db:Status-Status}\n' $wanted 2>/dev/null || true)
for package in $wanted; do
  grep -qx "$package installed" <<<"$installed" || missing="$missing $package"
done
[ -n "$missing" ] || exit 0
[ "$(id -u)" = 0 ] || { echo "run as root once, or install these packages:$missing" >&2; exit 1; }
missing=$(tr -s ' \n' ' ' <<<"$missing")
echo "… installing Debian packages:$missing" >&2
export DEBIAN_FRONTEND=noninteractive
has_service() { [ -e "/lib/systemd/system/$1.service" ] || [ -e "/etc/init.d/$1" ]; }
new=""
for service in $services; do has_service "$service" || new="$new $service"; done
# Packages must not start their services, nor leave new ones enabled for the next start of the machine.
policy=/usr/sbin/policy-rc.d
if [ ! -e $policy ]; then
  printf '#!/bin/sh\nexit 101\n' >$policy
  chmod +x $policy
  trap 'rm -f $policy' EXIT
fi
options=(-qq -o Acquire::Retries=5 -o DPkg::Lock::Timeout=300)
# An unreachable third-party source fails the update though Debian's own lists arrived: the installation decides.
apt-get "${options[@]}" update >&2 || echo "apt-get update failed; going on with the lists that are here" >&2
# shellcheck disable=SC2086
apt-get "${options[@]}" install -y --no-install-recommends $missing >/dev/null
for service in $new; do
  has_service "$service" || continue
  if command -v systemctl >/dev/null; then
    systemctl --quiet disable "$service"
  elif [ -e "/etc/init.d/$service" ]; then # a machine without systemd; a unit alone starts nothing there
    update-rc.d "$service" disable
  fi
done
echo "✓ installing Debian packages ($SECONDS s)" >&2
