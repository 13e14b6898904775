#!/bin/sh
# One day's training: from the newest published version, on the logs that have come since, and its export as the next
# version, which is refused where it answers worse than the one it began from. A run is named by its day, so that a job
# that was killed goes on where it was. CONFIG and MODEL are set, RATE_FACTOR may be (docs/daily.md).
set -eu
# The shell is the container's first process and would not hear SIGTERM: it passes it on, and ends as the job does.
child=
ended=
trap 'ended=yes; [ -z "$child" ] || kill -TERM "$child" 2>/dev/null || true' TERM
job() {
    [ -z "$ended" ] || exit 143
    python -m training "$@" &
    child=$!
    # A trap ends `wait` before the job has ended.
    while :; do
        status=0
        wait "$child" || status=$?
        kill -0 "$child" 2>/dev/null || return "$status"
    done
}

models="${MODELS:-/models}"
today="runs/daily/$(date -u +%F)"
if [ -e "$today/published" ]; then exit 0; fi
newest=0
for version in "$models/$MODEL"/*/; do
    number="$(basename "$version")"
    case "$number" in *[!0-9]*) continue ;; esac
    if [ "$number" -gt "$newest" ]; then newest="$number"; fi
done
set -- --set "output=$today"
# By key: a tolerance that CONFIG gives stays.
if [ "$newest" -gt 0 ]; then
    set -- "$@" --set "init_from.path=$models/$MODEL/$newest" --set "init_from.rate_factor=${RATE_FACTOR:-0.25}"
fi
job train "$CONFIG" "$@"
job evaluate "$today"
job export "$today" --models "$models" --name "$MODEL"
touch "$today/published"
