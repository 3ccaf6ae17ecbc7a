#!/usr/bin/env bash
# The action's one step (action.yml): runs portreeve as the inputs say and passes its answer on. portreeve writes the annotations,
# the job summary and the outputs itself ('--format github').
set -euo pipefail
set -f # Words of the inputs are no patterns for files.

# Text in a workflow command: '%' and line ends would change or end it.
escaped() {
    local text=${1//'%'/%25}
    text=${text//$'\r'/%0D}
    printf '%s' "${text//$'\n'/%0A}"
}

# Says that portreeve could not run, and what to do.
refuse() {
    printf '::error title=portreeve::%s%%0Anext: %s\n' "$(escaped "$1")" "$(escaped "$2")"
    printf 'exit-code=2\n' >>"$GITHUB_OUTPUT"
    exit 2
}

# The words of an input, into 'words'. One that begins with '-' would be an option, or a command to run.
split() {
    words=()
    read -r -d '' -a words <<<"$2" || true
    local word
    for word in ${words[@]+"${words[@]}"}; do
        if [[ $word == -* ]]; then
            refuse "'$1' holds '$word', which begins with '-'" "give names, ports or GPUs only"
        fi
    done
}

case $PORTREEVE_MODE in
    scan | reap | gate) ;;
    *) refuse "mode '$PORTREEVE_MODE' is unknown" 'say scan, reap or gate' ;;
esac
case $PORTREEVE_FAIL_ON in
    any | not-clear | never) ;;
    *) refuse "fail-on '$PORTREEVE_FAIL_ON' is unknown" 'say any, not-clear or never' ;;
esac
case $PORTREEVE_SUDO in
    true | false) ;;
    *) refuse "sudo '$PORTREEVE_SUDO' is unknown" 'say true or false' ;;
esac

program=$(command -v -- "${PORTREEVE_PATH:-portreeve}") ||
    refuse "there is no program '${PORTREEVE_PATH:-portreeve}' on this runner" \
        "install portreeve on it (docs/install.md), or say where it is: 'path: /opt/portreeve'"

folder=$(mktemp -d "${RUNNER_TEMP:-/tmp}/portreeve.XXXXXX")
report=$folder/report.json
arguments=("$PORTREEVE_MODE" --format github --json-file "$report")
split services "$PORTREEVE_SERVICES"
services=(${words[@]+"${words[@]}"})
split ports "$PORTREEVE_PORTS"
for word in ${words[@]+"${words[@]}"}; do arguments+=("--port=$word"); done
split gpus "$PORTREEVE_GPUS"
for word in ${words[@]+"${words[@]}"}; do arguments+=("--gpu=$word"); done
[ -z "$PORTREEVE_CONFIG" ] || arguments+=("--config=$PORTREEVE_CONFIG")
if [ -n "$PORTREEVE_TIMEOUT" ]; then
    [ "$PORTREEVE_MODE" = gate ] || refuse "'timeout' is for gates" "say 'mode: gate', or leave it out"
    arguments+=("--timeout=$PORTREEVE_TIMEOUT")
fi

command=("$program")
# sudo empties the environment; these two name the files of this step.
[ "$PORTREEVE_SUDO" = false ] ||
    command=(sudo -n "--preserve-env=GITHUB_STEP_SUMMARY,GITHUB_OUTPUT" -- "$program")
code=0
"${command[@]}" "${arguments[@]}" ${services[@]+"${services[@]}"} 2>"$folder/errors" || code=$?

# Errors quote what others wrote, and a line of theirs must not be a command.
if [ -s "$folder/errors" ]; then
    token=$(od -An -N16 -tx1 /dev/urandom | tr -d ' \n')
    printf '::stop-commands::%s\n' "$token"
    cat "$folder/errors"
    printf '\n::%s::\n' "$token"
fi
[ -e "$report" ] ||
    refuse "portreeve did not come to a report (exit code $code)" 'see its message in the log of this step'
printf 'report=%s\n' "$report" >>"$GITHUB_OUTPUT"

case $PORTREEVE_FAIL_ON:$code in
    never:[12] | not-clear:2) exit 0 ;;
    *) exit "$code" ;;
esac
