#!/usr/bin/env bash
# Runs a command on a VM with its workdir kept in a bucket; the other scripts call it.
#
#   launch/kept.sh gs://BUCKET/FOLDER COMMAND ... --workdir=WORKDIR
set -euo pipefail

: "${PAUSE:=60}" # seconds between two copies

bucket=$1
shift
workdir=
for argument in "$@"; do
  [[ $argument == --workdir=* ]] && workdir=${argument#--workdir=}
done
[[ $workdir ]] || { echo "error: give --workdir=FOLDER, which is kept in $bucket" >&2 && exit 2; }

# Of several workers of a TPU VM the first has the workdir; see emcid_jax/runtime/parallel.py.
[[ ${HOSTNAME:-$(hostname)} =~ -w-[1-9][0-9]*$ ]] && exec "$@"

save() { # without the lock and what is being written
  gcloud storage rsync --recursive --delete-unmatched-destination-objects \
    --exclude='(^|.*/)(\.lock|\.emcid_jax\..*\.tmp(/.*)?)$' "$workdir" "$bucket/$workdir"
}

mkdir -p "$workdir"
gcloud storage rsync --recursive "$bucket/$workdir" "$workdir" || true # nothing there yet
"$@" &
command=$!
trap 'kill -TERM $command' TERM # The notice before the VM is taken away: finish, save, stop.
while kill -0 $command 2>/dev/null; do
  for ((i = 0; i < PAUSE; i++)); do
    sleep 1
    kill -0 $command 2>/dev/null || break 2
  done
  save || true
done
code=0
wait $command || code=$?
save
exit $code
