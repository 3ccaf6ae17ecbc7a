#!/bin/sh
# Times `portreeve model list` beside the sqlite3 command, which reads the same rows of the same registry: 1,000 models and
# 100,000 events. docs/performance.md holds the figures.
#
#   benches/list.sh [ROUNDS]                          # 101 rounds, some ten seconds
#   PORTREEVE=/usr/bin/portreeve benches/list.sh      # this binary, not one built here
#
# Needs sqlite3; as root on Debian or Ubuntu it installs it. The registry lies in a folder of its own, and as root all is run by
# another user, lest it be the system's.
set -eu
# No local configuration, as in benches/peers.sh.
if [ "$(id -u)" = 0 ] && [ -n "$(ls -A /etc/portreeve 2>/dev/null)" ]; then
    # shellcheck disable=SC2016 # for the shell in the namespace
    exec unshare --mount sh -euc 'mount -t tmpfs -o mode=755 tmpfs /etc/portreeve; exec "$@"' sh "$0" "$@"
fi
rounds=${1:-101}
cd "$(dirname "$0")/.."
target=${CARGO_TARGET_DIR:-$PWD/target}
if ! command -v sqlite3 >/dev/null; then
    if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
        echo "error: 'sqlite3' is not installed" >&2
        exit 1
    fi
    apt-get -q install --yes --no-install-recommends sqlite3 >&2
fi
[ -n "${PORTREEVE-}" ] || cargo build --quiet --release --bin portreeve
cargo build --quiet --example race

folder=$(mktemp -d)
trap 'rm -r "$folder"' EXIT
trap 'exit 1' INT TERM
cp "${PORTREEVE:-$target/release/portreeve}" "$folder/portreeve"
cp "$target/debug/examples/race" "$folder/race"
portreeve=$folder/portreeve registry=$folder/state/portreeve/models.db
mkdir "$folder/state"
as=
if [ "$(id -u)" = 0 ]; then
    as='setpriv --reuid=65534 --regid=65534 --clear-groups'
    chown -R 65534:65534 "$folder"
fi
export XDG_STATE_HOME="$folder/state" HOME="$folder"

# The tables are its own making, and so is the first row; the others differ in name, port and state.
$as "$portreeve" model register model-0001 --backend vllm --path meta-llama/Llama-3.1-8B-Instruct --container \
    --port 20001 --gpus 0,1 --memory 32G --max-model-len 8192 --extra-args --enforce-eager >/dev/null
$as sqlite3 "$registry" >/dev/null <<'END'
WITH RECURSIVE n (n) AS (SELECT 2 UNION ALL SELECT n + 1 FROM n WHERE n < 1000)
INSERT INTO models (name, spec, state, since_ms)
SELECT printf('model-%04d', n), json_set(spec, '$.port', 20000 + n), iif(n % 3, 'running', 'stopped'), since_ms - n * 60000
FROM n, models;
UPDATE models SET state = 'failed', why = 'it ended by itself with 137' WHERE name LIKE '%7';
WITH RECURSIVE n (n) AS (SELECT 2 UNION ALL SELECT n + 1 FROM n WHERE n < 100000)
INSERT INTO events (at_ms, model, kind, detail)
SELECT at_ms + n, printf('model-%04d', n % 1000 + 1), 'running', 'it is healthy and serves its model' FROM n, events;
PRAGMA wal_checkpoint(TRUNCATE);
END

list="$portreeve model list"
# Without asking engines what runs: sqlite3 asks none.
case $($portreeve model list --help) in *--as-recorded*) list="$list --as-recorded" ;; esac
# First the answer, then the time.
# shellcheck disable=SC2086 # words
lines=$($as $list | grep -c '^model-')
[ "$lines" = 1000 ] || { echo "error: $lines of 1000 models are listed" >&2; exit 1; }

processor=$(sed -n 's/^model name[^:]*: //p' /proc/cpuinfo | head -n 1)
load=$(cut -d ' ' -f 1 /proc/loadavg)
printf '%s × %s, Linux %s, %s, %s rounds, load average %s\n' "$(nproc)" "$processor" "$(uname -r)" "$(date +%F)" "$rounds" "$load"
printf 'sqlite3 %s, a registry of %s kB\n\n' "$(sqlite3 --version | cut -d ' ' -f 1)" "$(du -k "$registry" | cut -f 1)"
# Words are split at spaces, which SQL does without.
query='SELECT/**/name,spec,state,since_ms,why/**/FROM/**/models/**/ORDER/**/BY/**/name'
# shellcheck disable=SC2086 # words
nice -n -15 $as "$folder/race" "$rounds" <<END
portreeve: a table | $list
portreeve: JSON | $list --json
sqlite3 | sqlite3 $registry $query
sqlite3: JSON | sqlite3 -json $registry $query
/bin/true | /bin/true
END
