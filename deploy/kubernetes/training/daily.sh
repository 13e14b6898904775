#!/bin/sh
# One day's training: from the newest published version, on the logs that have come since, and its export as the next
# version, which is refused where it answers worse than the one it began from. A run is named by its day, so that a job
# that was killed goes on where it was. CONFIG and MODEL are set, RATE_FACTOR may be (docs/daily.md).
set -eu
. "${0%/*}/job.sh"

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
