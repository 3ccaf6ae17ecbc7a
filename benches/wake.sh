#!/bin/sh
# Times how soon a port's release is known (benches/wake.rs): the gate beside a loop that tries to bind every 50 ms, each seen
# from outside. docs/performance.md holds the figures.
#
#   benches/wake.sh [ROUNDS [storm]]                  # 500 rounds, some four minutes; as root
#   PORTREEVE=/usr/bin/portreeve benches/wake.sh      # this binary, not one built here
#
# Runs in network and mount namespaces of its own, with a /run of its own.
set -eu
rounds=${1:-500} storm=${2-}
cd "$(dirname "$0")/.."
target=${CARGO_TARGET_DIR:-$PWD/target}
[ -n "${PORTREEVE-}" ] || cargo build --quiet --release --bin portreeve
portreeve=$(realpath "${PORTREEVE:-$target/release/portreeve}")
cargo build --quiet --example wake

processor=$(sed -n 's/^model name[^:]*: //p' /proc/cpuinfo | head -n 1)
load=$(cut -d ' ' -f 1 /proc/loadavg)
printf '%s × %s, Linux %s, %s, load average %s\n\n' "$(nproc)" "$processor" "$(uname -r)" "$(date +%F)" "$load"
# No local configuration, and as in benches/peers.sh: ahead of the neighbours, all alike.
# shellcheck disable=SC2016 # for the shell in the namespaces
exec nice -n -15 unshare --net --mount sh -euc '
    ip link set lo up
    mount -t tmpfs tmpfs /run
    if [ -d /etc/portreeve ]; then mount -t tmpfs tmpfs /etc/portreeve; fi
    exec "$@"' sh "$target/debug/examples/wake" "$rounds" "$portreeve" ${storm:+"$storm"}
