#!/usr/bin/env bash
# Runs emcid_jax on a Cloud TPU VM, from your own machine, by the older Cloud TPU API: for v4 and v5e.
# Google mends it but adds nothing to it. launch/compute.sh is for v5p, v6e and TPU7x. See launch/README.md.
#
#   launch/tpu_vm.sh [--dry-run] ACTION ...     --dry-run prints the commands and runs none
#
#   create                  the VM; it costs money until `delete`
#   queue                   the same as a queued resource: waits until there is room
#   install                 this checkout's last commit and its packages, on all workers
#   push FILE...            request files, caption files or model folders
#   run --config=FILE ...   arguments of emcid_jax.main, on all workers; again to go on
#   keep --config=FILE ...  queue, install, push $FILES, run; again after each preemption
#   fetch WORKDIR           results into the same folder here
#   delete
#
# Settings: TPU_NAME ZONE ACCELERATOR RUNTIME; SPOT=1: cheaper, may be taken away at any time;
# BUCKET=gs://BUCKET/FOLDER: the workdir is kept there and outlives the VM; FILES: what `keep` pushes.
set -euo pipefail

: "${TPU_NAME:=emcid}"
: "${ZONE:=us-west4-a}"
: "${ACCELERATOR:=v5litepod-8}"
: "${RUNTIME:=v2-alpha-tpuv5-lite}"
: "${SPOT:=}"

cd "$(dirname "$0")/.."

# shellcheck source-path=SCRIPTDIR source=step.sh
. launch/step.sh
# shellcheck source-path=SCRIPTDIR source=remote.sh
. launch/remote.sh

tpu() {
  step gcloud compute tpus tpu-vm "$1" --zone="$ZONE" "${@:2}"
}

queued() {
  step gcloud compute tpus queued-resources "$1" "$TPU_NAME" --zone="$ZONE" "${@:2}"
}

state() { # READY, PREEMPTED, ...; nothing where there is no VM
  [[ $dry ]] || gcloud compute tpus tpu-vm describe "$TPU_NAME" --zone="$ZONE" \
    --format='value(state)' 2>/dev/null || true
}

create() {
  tpu create "$TPU_NAME" --accelerator-type="$ACCELERATOR" --version="$RUNTIME" ${SPOT:+--spot}
}

queue() {
  queued create --node-id="$TPU_NAME" --accelerator-type="$ACCELERATOR" \
    --runtime-version="$RUNTIME" ${SPOT:+--spot}
  until [[ $dry || $(state) == READY ]]; do sleep "$PAUSE"; done
}

obtain() {
  queue
}

send() { # FILE... FOLDER
  tpu scp "${@:1:$#-1}" "$TPU_NAME:${*: -1}" --worker=all --recurse
}

on_workers() {
  tpu ssh "$TPU_NAME" --worker=all --command="$1"
}

bring() {
  tpu scp "$TPU_NAME:emcid_jax/$1" "$(dirname "$1")" --worker=0 --recurse
}

delete() {
  # A queued resource owns its VM; both go.
  if [[ $dry || $(queued describe --format='value(name)' 2>/dev/null) ]]; then
    queued delete --force --quiet
  else
    tpu delete "$TPU_NAME" --quiet
  fi
}

act "create queue" "$@"
