#!/usr/bin/env bash
# Runs emcid_jax on a Cloud TPU VM, from your own machine. See launch/README.md.
#
#   launch/tpu_vm.sh create                  the VM; it costs money until `delete`
#   launch/tpu_vm.sh install                 this checkout's last commit and its packages
#   launch/tpu_vm.sh push FILE...            request files, caption files or model folders
#   launch/tpu_vm.sh run --config=FILE ...   arguments of emcid_jax.main; again to go on
#   launch/tpu_vm.sh fetch WORKDIR           results into the same folder here
#   launch/tpu_vm.sh delete
set -euo pipefail

: "${TPU_NAME:=emcid}"
: "${ZONE:=us-west4-a}"
: "${ACCELERATOR:=v5litepod-8}"    # one host; more hosts are not supported
: "${RUNTIME:=v2-alpha-tpuv5-lite}"

cd "$(dirname "$0")/.."

tpu() {
  gcloud compute tpus tpu-vm "$1" --zone="$ZONE" "${@:2}"
}

on_workers() {
  tpu ssh "$TPU_NAME" --worker=all --command="$1"
}

usage() {
  sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//;p}' "$0" >&2
  exit 2
}

[[ $# -ge 1 ]] || usage
action=$1
shift

case $action in
  create)
    tpu create "$TPU_NAME" --accelerator-type="$ACCELERATOR" --version="$RUNTIME"
    ;;
  install)
    # A bundle keeps the commit's name, which every run records.
    bundle=$(mktemp -d)/emcid.bundle
    git bundle create "$bundle" HEAD
    tpu scp "$bundle" "$TPU_NAME:" --worker=all
    # The VM's own Python is older than 3.11; uv brings one.
    on_workers '
      set -e
      [ -d emcid_jax ] || git init --quiet emcid_jax
      git -C emcid_jax fetch --quiet ../emcid.bundle HEAD
      git -C emcid_jax checkout --quiet --detach FETCH_HEAD
      python3 -m pip install --quiet --user uv
      [ -d venv ] || python3 -m uv venv --quiet --python=3.12 venv
      python3 -m uv pip install --quiet --python=venv/bin/python -e "emcid_jax[tpu,tfds]"
      venv/bin/python -c "import jax; print(jax.devices())"
    '
    ;;
  push)
    [[ $# -ge 1 ]] || usage
    tpu scp "$@" "$TPU_NAME:emcid_jax/" --worker=all --recurse
    ;;
  run)
    [[ $# -ge 1 ]] || usage
    on_workers "cd emcid_jax && ../venv/bin/python -m emcid_jax.main $(printf '%q ' "$@")"
    ;;
  fetch)
    [[ $# -eq 1 ]] || usage
    mkdir -p "$(dirname "$1")"
    tpu scp "$TPU_NAME:emcid_jax/$1" "$(dirname "$1")" --worker=0 --recurse
    ;;
  delete)
    tpu delete "$TPU_NAME"
    ;;
  *)
    usage
    ;;
esac
