#!/usr/bin/env bash
# ACTIONS_RUNNER_HOOK_JOB_STARTED of a self-hosted runner: ends what was left behind on this host and says what remains. The job
# runs in any case; one that needs a port or a GPU asks for it itself, by the action's 'mode: gate'. docs/ci.md says what is seen.
set -uo pipefail

program=(/usr/bin/portreeve)
# /etc/sudoers.d has this one command line, no other: 'gate' runs whatever it is told to.
[ "$(id -u)" = 0 ] || program=(sudo -n /usr/bin/portreeve)
"${program[@]}" reap --format github 2>/dev/null
code=$?
[ "$code" -le 1 ] || echo "::warning title=portreeve::what earlier jobs left could not be told (exit code $code)%0Anext: sudo portreeve doctor"
exit 0
