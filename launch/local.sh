#!/usr/bin/env bash
# launch/local.sh N --config FILE [...]: N processes on this machine as one run, to try it.
# One process uses all devices of a machine anyway. A signal is handed on to all of them.
set -euo pipefail
count=${1:?Usage: launch/local.sh N --config FILE [--workdir DIR ...]}
shift
port=${RKD_PORT:-$((20000 + RANDOM % 10000))}
pids=()
for ((number = 0; number < count; number++)); do
  RKD_COORDINATOR=localhost:$port RKD_PROCESSES=$count RKD_PROCESS=$number \
    python -m rkd_jax.main "$@" &
  pids+=($!)
done
trap 'kill -TERM "${pids[@]}" 2>/dev/null || true' INT TERM
status=0
for pid in "${pids[@]}"; do
  code=0
  wait "$pid" || code=$?
  while kill -0 "$pid" 2>/dev/null; do # a signal only interrupted the waiting
    code=0
    wait "$pid" || code=$?
  done
  ((status)) || status=$code
done
exit "$status"
