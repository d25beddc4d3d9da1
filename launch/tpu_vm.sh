#!/usr/bin/env bash
# Runs emcid_jax on a Cloud TPU VM, from your own machine. See launch/README.md.
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
: "${BUCKET:=}"
: "${FILES:=}"
: "${PAUSE:=60}" # seconds between two looks at the state

here=$(cd "$(dirname "$0")" && pwd)
cd "$here/.."

# shellcheck source-path=SCRIPTDIR source=step.sh
. launch/step.sh

tpu() {
  step gcloud compute tpus tpu-vm "$1" --zone="$ZONE" "${@:2}"
}

queued() {
  step gcloud compute tpus queued-resources "$1" "$TPU_NAME" --zone="$ZONE" "${@:2}"
}

on_workers() {
  tpu ssh "$TPU_NAME" --worker=all --command="$1"
}

state() { # READY, PREEMPTED, ...; nothing where there is no VM
  [[ $dry ]] || gcloud compute tpus tpu-vm describe "$TPU_NAME" --zone="$ZONE" \
    --format='value(state)' 2>/dev/null || true
}

usage() {
  sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//;p}' "$here/tpu_vm.sh" >&2
  exit 2
}

create() {
  tpu create "$TPU_NAME" --accelerator-type="$ACCELERATOR" --version="$RUNTIME" ${SPOT:+--spot}
}

queue() {
  queued create --node-id="$TPU_NAME" --accelerator-type="$ACCELERATOR" \
    --runtime-version="$RUNTIME" ${SPOT:+--spot}
  until [[ $dry || $(state) == READY ]]; do sleep "$PAUSE"; done
}

install() {
  # A bundle keeps the commit's name, which every run records.
  local bundle=${TMPDIR:-/tmp}/emcid.bundle
  step git bundle create "$bundle" HEAD || return
  tpu scp "$bundle" "$TPU_NAME:" --worker=all || return
  # The VM's own Python is older than 3.11; uv brings one.
  on_workers '
    set -e
    [ -d emcid_jax ] || git init --quiet emcid_jax
    git -C emcid_jax fetch --quiet ../emcid.bundle HEAD
    git -C emcid_jax checkout --quiet --detach FETCH_HEAD
    python3 -m pip install --quiet --user uv
    [ -d venv ] || python3 -m uv venv --quiet --python=3.12 venv
    python3 -m uv pip install --quiet --python=venv/bin/python -e "emcid_jax[tpu,tfds]"
  '
}

push() {
  tpu scp "$@" "$TPU_NAME:emcid_jax/" --worker=all --recurse
}

run() {
  local command=(../venv/bin/python -m emcid_jax.main "$@")
  [[ $BUCKET ]] && command=(launch/kept.sh "$BUCKET" "${command[@]}")
  on_workers "cd emcid_jax && $(printf '%q ' "${command[@]}")"
}

delete() {
  # A queued resource owns its VM; both go.
  if [[ $dry || $(queued describe --format='value(name)' 2>/dev/null) ]]; then
    queued delete --force --quiet
  else
    tpu delete "$TPU_NAME" --quiet
  fi
}

keep() {
  [[ $BUCKET ]] || { echo "error: keep needs BUCKET: a VM's disk goes with the VM" >&2 && exit 2; }
  while true; do
    case $(state) in
      READY) ;;
      "") queue ;;
      *) delete && queue ;;
    esac
    # A VM may be taken away at any of these; what failed on a VM that stays is a real failure.
    # shellcheck disable=SC2086 # FILES is a list
    if install && { [[ -z $FILES ]] || push $FILES; } && run "$@"; then return; fi
    [[ $dry ]] && return
    sleep "$PAUSE"
    [[ $(state) == READY ]] && { echo "error: the run failed; the VM is still there" >&2 && exit 1; }
    echo "preempted; going on with a new VM" >&2
  done
}

fetch() {
  step mkdir -p "$1"
  if [[ $BUCKET ]]; then
    step gcloud storage rsync --recursive "$BUCKET/$1" "$1"
  else
    tpu scp "$TPU_NAME:emcid_jax/$1" "$(dirname "$1")" --worker=0 --recurse
  fi
}

[[ $# -ge 1 ]] || usage
action=$1
shift
case $action in
  create | queue | install | delete) "$action" ;;
  push | run | keep) [[ $# -ge 1 ]] || usage && "$action" "$@" ;;
  fetch) [[ $# -eq 1 ]] || usage && fetch "$1" ;;
  *) usage ;;
esac
