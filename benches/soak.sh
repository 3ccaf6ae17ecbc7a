#!/usr/bin/env bash
# 10,000 looks in one process, on a host of 2,000 processes and in a box where systemd, Docker and Podman are asked: nothing may
# grow. benches/soak.rs says what is counted, docs/proof.md holds the figures.
#
#   benches/soak.sh [COUNT [COUNT IN THE BOX]]        # 10,000 and 500; as root, some ten minutes
#   SCENES=host benches/soak.sh 10000                 # of: host box
set -euo pipefail

# On the host, in namespaces of its own: systemd, engines and a local configuration are out of sight, so that none is asked.
if [ "${1-}" = --inside ]; then
    count=$2 cgroups=$3 tools=$4
    mount -t tmpfs tmpfs /run
    if [ -d /etc/portreeve ]; then mount -t tmpfs tmpfs /etc/portreeve; fi
    ip link set lo up
    # Connections leave from here, so that none has a port of the default configuration by chance.
    echo 50000 60999 >/proc/sys/net/ipv4/ip_local_port_range
    mapfile -t flags < <(seq -f '--port=%.0f' 10000 187 12805)
    exec "$tools/load" --cgroups "$cgroups" --groups 300 --processes 2000 -- "$tools/soak" "$count" -- scan "${flags[@]}"
fi

count=${1:-10000} in_box=${2:-500}
cd "$(dirname "$0")/.."
here=$PWD
target=${CARGO_TARGET_DIR:-$here/target}
profile=${PORTREEVE_PROFILE:-release}
cargo build --quiet --profile "${profile/debug/dev}" --example load --example soak
cargo build --quiet --example plant
tools=$(mktemp -d)
cp "$target/$profile/examples/load" "$target/$profile/examples/soak" "$target/debug/examples/plant" "$tools"
trap 'rm -r "$tools"' EXIT
trap 'exit 1' INT TERM

processor=$(sed -n 's/^model name[^:]*: //p' /proc/cpuinfo | head -n 1)
printf '%s × %s, Linux %s, %s\n' "$(nproc)" "$processor" "$(uname -r)" "$(date +%F)"

# Each in a shell of its own, which ends what it began.
host() (
    mount=$(awk '$3 == "cgroup2" { print $2; exit }' /proc/mounts)
    [ -n "$mount" ] || { echo 'error: no cgroup2 mount' >&2 && return 1; }
    cgroups=$mount/portreeve-soak-$$
    mkdir "$cgroups"
    trap 'rmdir "$cgroups"/group-* "$cgroups" 2>/dev/null || :' EXIT
    printf '\nOn a host of 2,000 processes, 16 ports:\n\n'
    unshare --net --pid --mount --fork --kill-child --mount-proc "$here/benches/soak.sh" --inside "$count" "$cgroups" "$tools"
)

box() (
    name=soak-$$
    coproc box { exec tests/box/box boot "$name" "$tools:/tools"; }
    # shellcheck disable=SC2154 # coproc sets it
    trap 'eval "exec ${box[1]}>&-"; wait "$box_PID" 2>/dev/null || :' EXIT
    read -r -u "${box[0]}" _
    printf '\nIn a box: a container of Docker'"'"'s, one of Podman'"'"'s, a unit and an orphan, each on a guarded port:\n\n'
    tests/box/box run "$name" bash -s "$in_box" <<'END'
set -euo pipefail
systemctl start docker podman.socket
root=$(mktemp -d)
install -D /tools/plant "$root/bin/plant"
for library in $(ldd /tools/plant | grep -o '/[^ ]*'); do install -D "$library" "$root$library"; done
tar -C "$root" -cf /run/plant.tar .
docker import /run/plant.tar plant >/dev/null
podman --log-level error import --quiet /run/plant.tar plant >/dev/null
docker run --detach --network host plant plant --as 'server in docker' --listen 7501 >/dev/null
podman run --detach --network host plant plant --as 'server in podman' --listen 7502 >/dev/null
systemd-run --quiet --unit=served /tools/plant --as 'server in a unit' --listen 7503
/tools/plant --daemonise --title VLLM::EngineCore --listen 7504
for port in 7501 7502 7503 7504; do
    timeout 20 bash -c "until ss -Htln 'sport = :$port' | grep -q .; do sleep 0.1; done"
done
/tools/soak "$1" -- scan --port 7501 --port 7502 --port 7503 --port 7504
END
)

for scene in ${SCENES:-host box}; do
    "$scene"
done
