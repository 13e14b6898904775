#!/bin/sh
# One day's training: from the last run that finished, on the logs that have come since, and its export as the next
# version. A run is named by its day, so that a job that was killed goes on where it was. CONFIG and MODEL are set.
set -eu
today="runs/daily/$(date -u +%F)"
previous=
for run in runs/daily/*/; do
    run="${run%/}"
    if [ "$run" != "$today" ] && grep -qs '"status": "finished"' "$run/summary.json"; then previous="$run"; fi
done
set -- --set "output=$today"
if [ -n "$previous" ]; then set -- "$@" --set "init_from=$previous"; fi
python -m training train "$CONFIG" "$@"
python -m training evaluate "$today"
python -m training export "$today" --models /models --name "$MODEL"
