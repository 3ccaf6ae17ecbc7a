#!/usr/bin/env bash
# How long ten models take that are started side by side, each with a loading time of its own from 0.5 to 5 seconds, beside the
# slowest of them alone: on a real Docker in the test box, their servers played; and how long Docker itself takes to create and start
# one such container and ten. docs/performance.md holds the figures.
#
#   benches/start.sh [ROUNDS]                         # 7 rounds, some two minutes; as root
#   PORTREEVE=/usr/bin/portreeve benches/start.sh     # this binary, not one built here
set -euo pipefail
cd "$(dirname "$0")/.."
rounds=${1:-7}
target=${CARGO_TARGET_DIR:-$PWD/target}
[ -n "${PORTREEVE-}" ] || cargo build --quiet --release --bin portreeve
portreeve=$(realpath "${PORTREEVE:-$target/release/portreeve}")
cargo build --quiet --example model-server

name=bench-$$
tools=$(mktemp -d)
cp "$portreeve" "$target/debug/examples/model-server" "$tools"
coproc box { exec tests/box/box boot "$name" "$tools:/tools"; }
# shellcheck disable=SC2154 # coproc sets it
trap 'eval "exec ${box[1]}>&-"; wait "$box_PID" 2>/dev/null || :; rm -r "$tools"' EXIT
read -r -u "${box[0]}" _

processor=$(sed -n 's/^model name[^:]*: //p' /proc/cpuinfo | head -n 1)
load=$(cut -d ' ' -f 1 /proc/loadavg)
printf '%s × %s, Linux %s, %s, %s rounds, load average %s\n' "$(nproc)" "$processor" "$(uname -r)" "$(date +%F)" "$rounds" "$load"
nice -n -15 tests/box/box run "$name" bash -s "$rounds" <<'END'
set -euo pipefail
systemctl start docker
root=$(mktemp -d)
install -D /tools/model-server "$root/bin/vllm"
for library in $(ldd /tools/model-server | grep -o '/[^ ]*'); do install -D "$library" "$root$library"; done
tar -C "$root" -c . | docker import --change 'ENTRYPOINT ["vllm","serve"]' - vllm >/dev/null
printf 'Docker %s\n\n' "$(docker version --format '{{.Server.Version}}')"

all=
for n in 0 1 2 3 4 5 6 7 8 9; do
    seconds=$(((n + 1) / 2)).$(((n + 1) % 2 * 5))
    /tools/portreeve model register "m$n" --backend vllm --path org/qwen --container --image vllm --port "820$n" \
        --extra-args=--load-for --extra-args="$seconds" >/dev/null
    all="$all m$n"
done

# In milliseconds, until it serves; then it is stopped.
start() {
    local began=${EPOCHREALTIME/./}
    /tools/portreeve model start "$@" >/dev/null 2>/run/said || { cat /run/said >&2; exit 1; }
    echo $(((${EPOCHREALTIME/./} - began) / 1000))
    /tools/portreeve model stop --all >/dev/null 2>&1
}

cat >/run/engine.py <<'PYTHON'
import socket, sys, threading, time

failed = []

def ask(method, path, body=""):
    engine = socket.socket(socket.AF_UNIX)
    engine.connect("/run/docker.sock")
    head = f"{method} /v1.41/containers/{path} HTTP/1.0\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    engine.sendall((head + body).encode())
    text = b"".join(iter(lambda: engine.recv(65536), b""))
    if text.split()[1][:1] != b"2":
        failed.append(text.decode())

def start(n):
    port = f'"PortBindings":{{"8000/tcp":[{{"HostIp":"127.0.0.1","HostPort":"830{n}"}}]}}'
    told = '"Cmd":["org/qwen","--host","0.0.0.0","--port","8000"],"ExposedPorts":{"8000/tcp":{}}'
    ask("POST", f"create?name=bare{n}", f'{{"Image":"vllm",{told},"HostConfig":{{{port}}}}}')
    ask("POST", f"bare{n}/start")

many = int(sys.argv[1])
began = time.perf_counter()
threads = [threading.Thread(target=start, args=(n,)) for n in range(many)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
if failed:
    sys.exit(failed[0])
print(round((time.perf_counter() - began) * 1000))
for n in range(many):
    ask("DELETE", f"bare{n}?force=true")
PYTHON

# The first one warms the caches.
start m0 >/dev/null
for ((round = 0; round < $1; round++)); do
    start m0 >>/run/quickest
    start m9 >>/run/slowest
    # shellcheck disable=SC2086 # words
    start $all >>/run/together
    python3 /run/engine.py 1 >>/run/one
    python3 /run/engine.py 10 >>/run/ten
done

median() {
    sort -n "$1" | sed -n "$((($(wc -l <"$1") + 1) / 2))p"
}

row() {
    printf '| %s | %s | %s | %s |\n' "$1" "$(median "$2")" "$(sort -n "$2" | head -n 1)" "$(sort -n "$2" | tail -n 1)"
}

echo '| what | median ms | least | most |'
echo '|---|---|---|---|'
row 'the quickest model alone (loads for 0.5 s)' /run/quickest
row 'the slowest alone (loads for 5 s)' /run/slowest
row 'all ten side by side' /run/together
row 'Docker itself: one container' /run/one
row 'Docker itself: ten side by side' /run/ten
printf '\nAll ten take %s ms longer than the slowest alone; Docker itself %s ms longer for ten than for one.\n' \
    $(($(median /run/together) - $(median /run/slowest))) $(($(median /run/ten) - $(median /run/one)))
END
