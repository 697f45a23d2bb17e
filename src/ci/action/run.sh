#!/usr/bin/env bash
# Runs the input script in a machine. Inputs come as variables and leave as whole arguments: none is
# read by a shell.
set -euo pipefail

place=$(mktemp -d "${RUNNER_TEMP:-/tmp}/sekexe-ci-XXXXXX")
printf '%s\n' "$INPUT_RUN" >"$place/script"

# The files by which a script speaks to the runner lie below RUNNER_TEMP.
arguments=(exec "--script=$place/script" "--result=$place/result.json" "--outputs=$GITHUB_OUTPUT"
    "--rw=$GITHUB_WORKSPACE" "--rw=$RUNNER_TEMP")

option() {
    if [ -n "$2" ]; then arguments+=("$1=$2"); fi
}

# On one line, whatever the input contains.
fail() {
    printf '::error title=sekexe-ci::%s\n' "${1//[$'\r\n']/ }"
    exit 125
}

each_line() {
    while IFS= read -r line; do option "$1" "${line%$'\r'}"; done <<<"$2"
}

case ${INPUT_FAIL_ON_FALLBACK:-false}:${INPUT_ISOLATION:-auto} in
true:auto) INPUT_ISOLATION=namespaces ;;
true:* | false:*) ;;
*) fail "fail-on-fallback: it is true or false, not $INPUT_FAIL_ON_FALLBACK" ;;
esac

option --shell "$INPUT_SHELL"
option --isolation "$INPUT_ISOLATION"
option --need "$INPUT_NEED"
option --kernel "$INPUT_KERNEL"
option --memory "$INPUT_MEMORY"
option --cpus "$INPUT_CPUS"
option --timeout "$INPUT_TIMEOUT"
option --network "$INPUT_NETWORK"
option --matchers "$INPUT_MATCHERS"
each_line --rw "$INPUT_RW"
each_line --env "$INPUT_ENV"
each_line --allow-net "$INPUT_ALLOW_NET"

directory=$GITHUB_WORKSPACE/${INPUT_WORKING_DIRECTORY:-.}
[ -d "$directory" ] || fail "working-directory: there is no $INPUT_WORKING_DIRECTORY in the workspace"
cd "$directory"
echo "result-file=$place/result.json" >>"$GITHUB_OUTPUT"
status=0
"$SEKEXE_CI" "${arguments[@]}" </dev/null || status=$?
# What was refused before it was understood has no outcome of its own.
grep -q '^exit-code=' "$GITHUB_OUTPUT" || printf 'exit-code=%s\noutcome=failed\n' "$status" >>"$GITHUB_OUTPUT"
exit "$status"
