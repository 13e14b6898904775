# For scripts of several commands, which source it (sh): `job COMMAND ...` runs `python -m training COMMAND ...`.
# The shell is the container's first process and would not hear SIGTERM: it passes it on, and ends as the job does.
child=
ended=
trap 'ended=yes; [ -z "$child" ] || kill -TERM "$child" 2>/dev/null || true' TERM
job() {
    [ -z "$ended" ] || exit 143
    python -m training "$@" &
    child=$!
    # One that came before the line above found no child.
    [ -z "$ended" ] || kill -TERM "$child" 2>/dev/null || true
    # A trap ends `wait` before the job has ended.
    while :; do
        status=0
        wait "$child" || status=$?
        kill -0 "$child" 2>/dev/null || return "$status"
    done
}
