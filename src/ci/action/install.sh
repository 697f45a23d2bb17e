#!/usr/bin/env bash
# Finds sekexe-ci, or fetches the release that belongs to the Action's own ref, and puts it on PATH.
# What is fetched must have the digest that the release names, and where gh is at hand, its provenance.
set -euo pipefail

fail() {
    printf '::error title=sekexe-ci::%s\n' "${1//[$'\r\n']/ }"
    exit 1
}

fetch() {
    curl --fail --silent --show-error --location --retry 3 --output "$2" "$1" ||
        fail "$1 cannot be fetched; name a release with version, or a program with binary"
}

[ "${RUNNER_OS:-Linux}" = Linux ] || fail "there is no sekexe-ci for $RUNNER_OS; use a Linux runner"

if [ -n "${INPUT_BINARY:-}" ]; then
    { [ -f "$INPUT_BINARY" ] && [ -x "$INPUT_BINARY" ]; } || fail "binary: $INPUT_BINARY cannot be executed; give the path of a program"
    program=$(realpath "$INPUT_BINARY")
elif [ -z "${INPUT_VERSION:-}" ] && program=$(command -v sekexe-ci); then
    :
else
    case ${RUNNER_ARCH:-X64} in
    X64) arch=x86_64 ;;
    *) fail "there is no sekexe-ci for $RUNNER_ARCH yet; use an x86-64 runner" ;;
    esac
    version=${INPUT_VERSION:-${ACTION_REF:-}}
    [ -n "$version" ] || fail "which release shall be used? Name it with version, or a program with binary"
    name=sekexe-ci-$arch-linux
    directory=${RUNNER_TOOL_CACHE:-$RUNNER_TEMP}/sekexe-ci/$version/$arch
    program=$directory/sekexe-ci
    if [ ! -x "$program" ]; then
        release=${GITHUB_SERVER_URL:-https://github.com}/$ACTION_REPOSITORY/releases/download/$version
        fetched=$(mktemp -d)
        trap 'rm -rf "$fetched"' EXIT
        fetch "$release/SHA256SUMS" "$fetched/SHA256SUMS"
        fetch "$release/$name" "$fetched/$name"
        (cd "$fetched" && grep " [ *]$name\$" SHA256SUMS | sha256sum --check --status) ||
            fail "$release/$name does not have the digest that its release names"
        if command -v gh >/dev/null && [ -n "${GH_TOKEN:-}" ]; then
            gh attestation verify "$fetched/$name" --repo "$ACTION_REPOSITORY" >/dev/null ||
                fail "$release/$name has no valid provenance"
        fi
        mkdir -p "$directory"
        chmod 755 "$fetched/$name"
        mv "$fetched/$name" "$program"
    fi
fi

dirname "$program" >>"$GITHUB_PATH"
{
    echo "program=$program"
    echo "digest=$(sha256sum "$program" | cut -c1-16)"
} >>"$GITHUB_OUTPUT"
