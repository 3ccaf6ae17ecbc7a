#!/bin/sh
# Times whole processes round-robin, portreeve beside its peers, on a busy host (benches/load.rs) and on an idle one.
# docs/performance.md holds the figures and says how to read them.
#
#   benches/peers.sh [ROUNDS]                 # 21 rounds, some four minutes
#   SCENES=spread benches/peers.sh 51         # of: spread one-group idle
#   PORTREEVE=/usr/bin/portreeve benches/peers.sh     # this binary, not one built here
#
# Needs root, a cgroup2 mount, unshare (util-linux), ip and ss (iproute2), fuser (psmisc), lsof. Everything runs in pid, network
# and mount namespaces of its own and ends with them; outside there is only a folder of control groups while it runs.
set -eu

# The scene, in its namespaces: systemd, engines and a local configuration are out of sight, so that none is asked.
if [ "${1-}" = --inside ]; then
    scene=$2 rounds=$3 cgroups=$4 tools=$5 portreeve=$6
    mount -t tmpfs tmpfs /run
    if [ -d /etc/portreeve ]; then mount -t tmpfs tmpfs /etc/portreeve; fi
    ip link set lo up
    # Connections leave from here, so that none has a port of the default configuration by chance.
    echo 50000 60999 >/proc/sys/net/ipv4/ip_local_port_range
    ports=$(seq -s ' ' 10000 187 12805)
    # shellcheck disable=SC2086 # sixteen words
    flags=$(printf -- '--port %s ' $ports)
    case $scene in
    idle)
        exec "$tools/race" "$rounds" <<-END
			portreeve: the default config | $portreeve scan
			portreeve: one port | $portreeve scan --port 10000
			/bin/true | /bin/true
		END
        ;;
    spread) groups=300 ;;
    one-group) groups=1 ;;
    esac
    commands=$(
        cat <<-END
			portreeve: 16 ports | $portreeve scan $flags
			portreeve: one port | $portreeve scan --port 10000
			portreeve: the default config | $portreeve scan
			ss | ss -Htlnp
			fuser | fuser -n tcp $ports
			lsof | lsof -nP -iTCP -sTCP:LISTEN
			/bin/true | /bin/true
		END
    )
    # First the answer, then the time: every port must have its holder.
    export tools portreeve flags rounds commands
    # shellcheck disable=SC2016 # for the shell in the load
    exec "$tools/load" --cgroups "$cgroups" --groups "$groups" -- sh -c '
        held=$("$portreeve" scan $flags --format json | grep -c "\"state\": *\"held\"") || :
        [ "$held" = 16 ] || { echo "error: holders of $held of 16 ports found" >&2; exit 1; }
        echo "$commands" | "$tools/race" "$rounds"'
fi

rounds=${1:-21}
cd "$(dirname "$0")/.."
here=$PWD
target=${CARGO_TARGET_DIR:-$here/target}
if [ -z "${PORTREEVE-}" ]; then
    # By itself: built together with examples, it would get the features that only tests ask of its dependencies.
    cargo build --quiet --release --bin portreeve
fi
portreeve=$(realpath "${PORTREEVE:-$target/release/portreeve}")
cargo build --quiet --example load --example race
mount=$(awk '$3 == "cgroup2" { print $2; exit }' /proc/mounts)
[ -n "$mount" ] || { echo "error: no cgroup2 mount" >&2; exit 1; }
cgroups=$mount/portreeve-bench-$$
mkdir "$cgroups"
# Ahead of the neighbours, all alike. Where the kernel groups by session, niceness counts within a session only, and the session has one
# of its own (sched(7)).
session=/proc/$$/autogroup
niceness=$(sed -n 's/.* nice //p' "$session" 2>/dev/null || :)
trap 'rmdir "$cgroups"/group-* "$cgroups" 2>/dev/null || :; [ -z "$niceness" ] || echo "$niceness" >"$session"' EXIT
trap 'exit 1' INT TERM
[ -z "$niceness" ] || echo -15 >"$session"

echo "$(nproc) × $(sed -n 's/^model name[^:]*: //p' /proc/cpuinfo | head -n 1), Linux $(uname -r), $(date +%F), $rounds rounds"
for scene in ${SCENES:-spread one-group idle}; do
    printf '\n%s (load average %s)\n\n' "$scene" "$(cut -d ' ' -f 1 /proc/loadavg)"
    nice -n -15 unshare --net --pid --mount --fork --kill-child --mount-proc \
        "$here/benches/peers.sh" --inside "$scene" "$rounds" "$cgroups" "$target/debug/examples" "$portreeve"
done
