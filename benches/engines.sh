#!/usr/bin/env bash
# What it costs to ask an engine: `scan` of one port that a container holds, with Docker asked and with Docker off, round-robin
# in the test box; beside them the engine's own time for the same two answers, over one connection. docs/performance.md holds the
# figures.
#
#   benches/engines.sh [ROUNDS]                       # 101 rounds, some twenty seconds; as root
#   PORTREEVE=/usr/bin/portreeve benches/engines.sh   # this binary, not one built here
set -euo pipefail
cd "$(dirname "$0")/.."
rounds=${1:-101}
target=${CARGO_TARGET_DIR:-$PWD/target}
[ -n "${PORTREEVE-}" ] || cargo build --quiet --release --bin portreeve
portreeve=$(realpath "${PORTREEVE:-$target/release/portreeve}")
cargo build --quiet --example race --example plant

name=bench-$$
tools=$(mktemp -d)
cp "$portreeve" "$target/debug/examples/race" "$target/debug/examples/plant" "$tools"
coproc box { exec tests/box/box boot "$name" "$tools:/tools"; }
# shellcheck disable=SC2154 # coproc sets it
trap 'eval "exec ${box[1]}>&-"; wait "$box_PID" 2>/dev/null || :; rm -r "$tools"' EXIT
read -r -u "${box[0]}" _

tests/box/box run "$name" bash -s "$rounds" <<'END'
set -euo pipefail
systemctl start docker
root=$(mktemp -d)
mkdir -p "$root/bin" "$root/etc"
cp /tools/plant "$root/bin"
for library in $(ldd /tools/plant | grep -o '/[^ ]*'); do install -D "$library" "$root$library"; done
tar -C "$root" -c . | docker import - plant >/dev/null
docker run -d --network host --name aidb plant plant --as 'python3 -u /app/server.py --config /etc/x.yaml' --listen 8091 >/dev/null
echo 'engines: { docker: off, podman: off }' >/etc/off.yaml
id=$(docker inspect -f '{{.Id}}' aidb)
until /tools/portreeve scan --port 8091 | grep -q 'container aidb'; do :; done

cat >/run/ask.py <<'PYTHON'
import socket, sys, time

def answer(engine, path):
    engine.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
    text = b""
    while b"\r\n\r\n" not in text:
        text += engine.recv(65536)
    head, body = text.split(b"\r\n\r\n", 1)
    if b"transfer-encoding: chunked" in head.lower():
        while not body.endswith(b"\r\n0\r\n\r\n"):
            body += engine.recv(65536)
    else:
        length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
        while len(body) < length:
            body += engine.recv(65536)

times = []
for _ in range(int(sys.argv[2])):
    began = time.perf_counter()
    engine = socket.socket(socket.AF_UNIX)
    engine.connect("/run/docker.sock")
    answer(engine, "/version")
    answer(engine, f"/v1.41/containers/{sys.argv[1]}/json")
    times.append(time.perf_counter() - began)
    engine.close()
print(f"Docker's own time for both answers: median {sorted(times)[len(times) // 2] * 1000:.2f} ms")
PYTHON
python3 /run/ask.py "$id" "$1"
/tools/race "$1" <<COMMANDS
portreeve: Docker off | /tools/portreeve scan --port 8091 --config /etc/off.yaml
Docker asked | /tools/portreeve scan --port 8091
COMMANDS
python3 /run/ask.py "$id" "$1"
END
