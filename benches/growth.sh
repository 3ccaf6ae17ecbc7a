#!/usr/bin/env bash
# Times who holds 1, 16 and 200 ports on a host that grows: processes, descriptors, listeners, connections, containers, and the ports
# asked for; then once more with the kernel's caches dropped before each run. portreeve and its peers run round-robin, beside them the
# floor: a bare walk of every descriptor and a bare dump of every listener. docs/performance.md says how to read it.
#
#   benches/growth.sh [ROUNDS]                        # 5 rounds, some twelve minutes; as root
#   SERIES='ports cold' benches/growth.sh             # of: ports processes descriptors listeners connections containers cold
#   PORTREEVE=/usr/bin/portreeve benches/growth.sh    # this binary, not one built here
#
# All series: the rows go to docs/picture/growth.tsv, and docs/picture/growth.svg is drawn of them. Some series: to the output.
#
# Needs root, a cgroup2 mount, python3 and what tests/box needs. As root on Debian or Ubuntu it installs lsof, fuser (psmisc) and ss
# (iproute2) where they are missing; killport goes below the build folder. Everything runs in namespaces of its own, the containers in
# the test box. `cold` drops the caches of the whole machine: everybody on it is slower for a while.
set -euo pipefail

# The host that grows: a tenth of the processes are servers and hold the sockets, each server with nine others in a group of its own.
declare -A base=([processes]=1000 [descriptors]=50 [listeners]=1000 [connections]=1000)
declare -A steps=(
    [ports]='1 4 16 64 200'
    [processes]='300 1000 3000 6000'
    [descriptors]='10 50 150 500'
    [listeners]='300 1000 3000 10000 30000'
    [connections]='100 1000 3000 10000 30000'
    [containers]='0 5 10 20 40'
    [cold]='1'
)
all_series='ports processes descriptors listeners connections containers cold'

die() {
    printf 'error: %s\n' "$*" >&2
    exit 1
}

# So many ports: the first is of server 0, the second of server 1, and so on.
ports() {
    seq -s ' ' 10000 $((9999 + $1))
}

# The command of one peer for some ports: command NAME PORT…
command_of() {
    local name=$1
    shift
    case $name in
    portreeve) printf '%s scan' "$tools/portreeve" && printf -- ' --port %s' "$@" ;;
    ss) printf 'ss -Htlnp sport = :%s' "$1" && if [ $# -gt 1 ]; then printf ' or sport = :%s' "${@:2}"; fi ;;
    fuser) printf 'fuser -n tcp %s' "$*" ;;
    # A list of 200 is too long for it.
    lsof) printf '%s -nP -sTCP:LISTEN -iTCP:%s-%s' "$tools/lsof" "$1" "${*: -1}" ;;
    killport) printf '%s --dry-run %s' "$tools/killport" "$*" ;;
    netstat2 | procfs) printf '%s %s' "$tools/$name-holders" "$*" ;;
    *) die "'$name' is not known" ;;
    esac
}

peers='ss fuser lsof killport netstat2 procfs'

# A line for the race: entry NAME PORTS
entry() {
    # shellcheck disable=SC2046 # one word a port
    printf '%s\t%s | %s\n' "$1" "$2" "$(command_of "$1" $(ports "$2"))"
}

floor() {
    printf 'bare walk\t- | %s\nbare dump\t- | %s\n/bin/true\t- | /bin/true\n' "$tools/bare-walk" "$tools/bare-dump"
}

# What races at one point of a series. In one group: the kernel's word on who made a socket narrows nothing.
racers() {
    local series=$1 step=$2 layout=$3 name
    if [ "$layout" = one-group ]; then
        entry portreeve 1
        entry portreeve 16
    elif [ "$series" = ports ]; then
        for name in portreeve $peers; do entry "$name" "$step"; done
    else
        for name in 1 16 200; do entry portreeve "$name"; done
        for name in $peers; do
            # It walks everything anew for each port.
            case $name in killport) entry "$name" 1 ;; *) entry "$name" 16 ;; esac
        done
    fi
    floor
}

# First the answer, then the time: everyone must find the holders of 16 ports.
everyone_finds_them() {
    local name command said found
    for name in portreeve $peers; do
        # shellcheck disable=SC2046 # words
        command=$(command_of "$name" $(ports 16))
        if [ "$name" = portreeve ]; then
            found=$($command --format json | grep -c '"state": *"held"') || :
        else
            said=$($command 2>&1) || :
            found=$(grep -oE '\b100(0[0-9]|1[0-5])\b' <<<"$said" | sort -u | wc -l)
        fi
        [ "$found" = 16 ] || die "$name finds the holders of $found of 16 ports"
    done
}

# Rows of one point, in its namespaces: what it is stands before each.
race_at() {
    local series=$1 step=$2 layout=$3 rounds=$4
    shift 4
    if [ "$layout" != one-group ]; then everyone_finds_them; fi
    racers "$series" "$step" "$layout" | "$tools/race" "$rounds" --rows --enough 10 "$@" | sed "s/^/$series\t$step\t$layout\t/"
}

# A second part of this script, run where it says: within the namespaces, in the load, in the box.
case ${1-} in
--host)
    series=$2 step=$3 layout=$4 rounds=$5 cgroups=$6 tools=$7
    # As in benches/peers.sh: systemd, engines and a local configuration are out of sight, so that none is asked.
    mount -t tmpfs tmpfs /run
    if [ -d /etc/portreeve ]; then mount -t tmpfs tmpfs /etc/portreeve; fi
    ip link set lo up
    echo 50000 60999 >/proc/sys/net/ipv4/ip_local_port_range
    base[$series]=$step
    groups=$((base[processes] / 10))
    if [ "$layout" = one-group ]; then groups=1; fi
    exec "$tools/load" --cgroups "$cgroups" --groups "$groups" --processes "${base[processes]}" --descriptors "${base[descriptors]}" \
        --listeners "${base[listeners]}" --connections "${base[connections]}" -- "$0" --race "$series" "$step" "$layout" "$rounds" "$tools"
    ;;
--race)
    tools=$6
    if [ "$2" = cold ]; then race_at "$2" "$3" "$4" "$5" --cold; else race_at "$2" "$3" "$4" "$5"; fi
    exit
    ;;
--box)
    rounds=$3 tools=/tools
    systemctl start docker
    image=$(mktemp -d)
    install -D "$tools/plant" "$image/bin/plant"
    for library in $(ldd "$tools/plant" | grep -o '/[^ ]*'); do install -D "$library" "$image$library"; done
    tar -C "$image" -c . | docker import - plant >/dev/null
    # Beside the containers, whose ports are others, a plain server with 200 ports.
    # shellcheck disable=SC2046 # words
    systemd-run --quiet --unit=server "$tools/plant" --as 'server' $(printf -- '--listen %s ' $(ports 200)) --ready /run/server
    timeout 20 sh -c 'until [ -s /run/server ]; do sleep 0.02; done'
    count=0
    for step in $2; do
        while [ "$count" -lt "$step" ]; do
            port=$((30000 + count)) count=$((count + 1))
            docker run --detach --publish "127.0.0.1:$port:$port" plant plant --as server --listen "0.0.0.0:$port" >/dev/null
        done
        everyone_finds_them
        # Who is asked, systemd and Docker, is ahead of the neighbours, too.
        for session in /proc/[0-9]*/autogroup; do { echo -15 >"$session"; } 2>/dev/null || :; done
        {
            racers containers "$step" spread
            if [ "$step" -gt 0 ]; then
                # shellcheck disable=SC2046 # words
                printf 'portreeve: containers\t%s | %s\n' "$step" "$(command_of portreeve $(seq 30000 $((29999 + step))))"
                # shellcheck disable=SC2046 # words
                printf 'killport: containers\t%s | %s\n' "$step" "$(command_of killport $(seq 30000 $((29999 + step))))"
            fi
        } | "$tools/race" "$rounds" --rows --enough 10 | sed "s/^/containers\t$step\tspread\t/"
    done
    exit
    ;;
esac

rounds=${1:-5}
script=$(realpath "$0")
cd "$(dirname "$script")/.."
[ "$(id -u)" = 0 ] || die "it needs root, for namespaces and control groups"
for pair in lsof:lsof fuser:psmisc ss:iproute2; do
    command -v "${pair%:*}" >/dev/null && continue
    command -v apt-get >/dev/null || die "'${pair%:*}' is not installed"
    apt-get -q install --yes --no-install-recommends "${pair#*:}" >&2
done
target=${CARGO_TARGET_DIR:-$PWD/target}
mkdir -p "$target"
target=$(realpath "$target")
# By itself: built together with examples, it would get the features that only tests ask of its dependencies.
[ -n "${PORTREEVE-}" ] || cargo build --quiet --release --bin portreeve
cargo build --quiet --example load --example race --example plant
cargo build --quiet --release --locked --manifest-path benches/peers/Cargo.toml --target-dir "$target/peers"
killport=$(benches/killport)
mount=$(awk '$3 == "cgroup2" { print $2; exit }' /proc/mounts)
[ -n "$mount" ] || die "no cgroup2 mount"

tools=$(mktemp -d) cgroups=$mount/portreeve-growth-$$
mkdir "$cgroups"
# Ahead of the neighbours, all alike. Where the kernel groups by session, niceness counts within a session only, and the session has one
# of its own (sched(7)).
session=/proc/$$/autogroup
niceness=$(sed -n 's/.* nice //p' "$session" 2>/dev/null || :)
clean_up() {
    if [ -n "$niceness" ]; then echo "$niceness" >"$session"; fi
    if [ -n "${box_PID-}" ]; then
        eval "exec ${box[1]}>&-"
        wait "$box_PID" 2>/dev/null || :
    fi
    rmdir "$cgroups"/group-* "$cgroups" 2>/dev/null || :
    rm -r "$tools"
}
trap clean_up EXIT
trap 'exit 1' INT TERM
cp "${PORTREEVE:-$target/release/portreeve}" "$tools/portreeve"
cp "$target/debug/examples/"{load,race,plant} "$target/peers/release/"{netstat2-holders,procfs-holders,bare-walk,bare-dump} \
    "$killport" "$script" "$tools"
# The box has ss and fuser of the same release, and no lsof.
cp "$(command -v lsof)" "$tools/lsof"
chmod 755 "$tools"

if [ -n "$niceness" ]; then echo -15 >"$session"; fi

measure() {
    local series=$1 step layout
    case $series in
    containers)
        local name=growth-$$
        coproc box { exec tests/box/box boot "$name" "$tools:/tools"; }
        read -r -u "${box[0]}" _
        nice -n -15 tests/box/box run "$name" /tools/growth.sh --box "${steps[containers]}" "$rounds" </dev/null
        ;;
    *)
        if [ "$series" = cold ] && ! [ -w /proc/sys/vm/drop_caches ]; then
            echo "not measured: cold, as the kernel's caches cannot be dropped here" >&2
            return
        fi
        for step in ${steps[$series]}; do
            for layout in spread one-group; do
                case $series:$layout in processes:* | descriptors:* | *:spread) ;; *) continue ;; esac
                nice -n -15 unshare --net --pid --mount --fork --kill-child --mount-proc \
                    "$tools/growth.sh" --host "$series" "$step" "$layout" "$rounds" "$cgroups" "$tools"
            done
        done
        ;;
    esac
}

rows=$tools/rows
{
    processor=$(sed -n 's/^model name[^:]*: //p' /proc/cpuinfo | head -n 1)
    echo "# $(nproc) × $processor, Linux $(uname -r), $(date +%F), $rounds rounds; portreeve $(git rev-parse --short HEAD 2>/dev/null || echo '?')"
    echo "# lsof $(lsof -v 2>&1 | sed -n 's/^ *revision: //p'), $(fuser -V 2>&1 | head -n 1), $(ss -V), $("$killport" --version)," \
        "$(sed -n '/^name = "\(netstat2\|procfs\)"/ { s/.*"\(.*\)".*/\1/; N; s/\nversion = "\(.*\)"/ \1/; p }' benches/peers/Cargo.lock | paste -sd, | sed 's/,/, /')"
    printf 'series\tstep\tlayout\tcommand\tports\texit\truns\tmedian ms\tquarter ms\tthree quarters ms\tcpu ms\tpeak MB\n'
} >"$rows"
for series in ${SERIES:-$all_series}; do
    printf '%s (load average %s)\n' "$series" "$(cut -d ' ' -f 1 /proc/loadavg)" >&2
    echo "# $series: load average $(cut -d ' ' -f 1 /proc/loadavg)" >>"$rows"
    measure "$series" >>"$rows"
done
if [ -n "${SERIES-}" ]; then
    cat "$rows"
else
    cp "$rows" docs/picture/growth.tsv
    docs/picture/curves docs/picture/growth.tsv >docs/picture/growth.svg
fi
