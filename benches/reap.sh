#!/usr/bin/env bash
# How long `reap` takes with 300 orphans that ignore SIGTERM, from the first SIGTERM to the end of the last, in the test box, as
# benches/reap.rs sees it from outside. docs/performance.md holds the figures.
#
#   benches/reap.sh [ROUNDS [ORPHANS [GRACE_MS]]]     # 7 rounds of 300 and 2000, some half a minute; as root
#   PORTREEVE=/usr/bin/portreeve benches/reap.sh      # this binary, not one built here
set -euo pipefail
cd "$(dirname "$0")/.."
rounds=${1:-7} orphans=${2:-300} grace_ms=${3:-2000}
target=${CARGO_TARGET_DIR:-$PWD/target}
[ -n "${PORTREEVE-}" ] || cargo build --quiet --release --bin portreeve
portreeve=$(realpath "${PORTREEVE:-$target/release/portreeve}")
cargo build --quiet --example mass-reap

name=bench-$$
tools=$(mktemp -d)
cp "$portreeve" "$tools/portreeve"
cp "$target/debug/examples/mass-reap" "$tools"
echo 'defaults: { min_age: 0s }' >"$tools/config.yaml"
coproc box { exec tests/box/box boot "$name" "$tools:/tools"; }
# shellcheck disable=SC2154 # coproc sets it
trap 'eval "exec ${box[1]}>&-"; wait "$box_PID" 2>/dev/null || :; rm -r "$tools"' EXIT
read -r -u "${box[0]}" _

processor=$(sed -n 's/^model name[^:]*: //p' /proc/cpuinfo | head -n 1)
load=$(cut -d ' ' -f 1 /proc/loadavg)
printf '%s × %s, Linux %s, %s, load average %s\n\n' "$(nproc)" "$processor" "$(uname -r)" "$(date +%F)" "$load"
nice -n -15 tests/box/box run "$name" /tools/mass-reap "$rounds" "$orphans" "$grace_ms" /tools/portreeve /tools/config.yaml </dev/null
