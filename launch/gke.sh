#!/usr/bin/env bash
# Runs emcid_jax as a Job on the TPUs of a GKE cluster, from your own machine. See launch/README.md.
#
#   launch/gke.sh [--dry-run] ACTION ...        --dry-run prints the commands and runs none
#
#   run --config=FILE ...   arguments of emcid_jax.main; after `delete`, again to go on
#   logs                    what the first host prints
#   delete                  the Job; the claim stays
#
# Settings: IMAGE, made of the Dockerfile with EXTRA=tpu; CLAIM, a PersistentVolumeClaim that all hosts can
# mount: it is /work, where requests, models and workdirs lie; NAME, of the Job; ACCELERATOR, TOPOLOGY and
# CHIPS per host, of the node pool.
set -euo pipefail

: "${IMAGE:=}"
: "${CLAIM:=emcid}"
: "${NAME:=emcid}"
: "${ACCELERATOR:=tpu-v6e-slice}"
: "${TOPOLOGY:=4x4}"
: "${CHIPS:=4}"

cd "$(dirname "$0")/.."

# shellcheck source-path=SCRIPTDIR source=step.sh
. launch/step.sh

quoted() { # as a list of JSON, which is one of YAML
  local argument list=
  for argument in "$@"; do
    [[ $argument != *[[:cntrl:]]* ]] || fail "an argument has a line break or another control character"
    argument=${argument//\\/\\\\}
    argument=${argument//"\$("/"\$\$("} # which Kubernetes would fill in
    list+="${list:+, }\"${argument//\"/\\\"}\""
  done
  printf '[%s]' "$list"
}

manifest() {
  [[ $IMAGE ]] || fail "IMAGE is not set; give the image that the cluster runs"
  [[ $TOPOLOGY =~ ^[0-9]+(x[0-9]+)+$ ]] ||
    fail "TOPOLOGY is '$TOPOLOGY'; give chips along each axis, e.g. 4x4"
  [[ $CHIPS =~ ^[1-9]$ ]] || fail "CHIPS is '$CHIPS'; give the chips of one host, e.g. 4"
  local hosts=$((${TOPOLOGY//x/ * } / CHIPS)) text arguments name value together=()
  ((hosts > 0)) || fail "TOPOLOGY is $TOPOLOGY, which has less than CHIPS=$CHIPS chips"
  ((hosts == 1)) || together=(--config.run.distributed=True)
  arguments=$(quoted "$@" "${together[@]}") || exit
  text=$(<launch/job.yaml)
  local -A values=(
    [NAME]=$NAME [IMAGE]=$IMAGE [CLAIM]=$CLAIM [ACCELERATOR]=$ACCELERATOR [TOPOLOGY]=$TOPOLOGY
    [CHIPS]=$CHIPS [HOSTS]=$hosts [RETRIES]=$((3 * hosts)) [ARGUMENTS]=$arguments
  )
  for name in NAME IMAGE CLAIM ACCELERATOR TOPOLOGY CHIPS HOSTS RETRIES ARGUMENTS; do
    value=${values[$name]} # The arguments come last: nothing in them is filled in.
    text=${text//"\$$name"/"$value"}
  done
  echo "$text"
}

run() {
  local text
  text=$(manifest "$@") || exit
  if [[ $dry ]]; then
    printf "kubectl apply --filename=- <<'END'\n%s\nEND\n" "$text"
  else
    kubectl apply --filename=- <<<"$text"
  fi
}

case ${1:-} in
  run) [[ $# -ge 2 ]] || usage && run "${@:2}" ;;
  logs) step kubectl logs --follow --selector="job-name=$NAME,batch.kubernetes.io/job-completion-index=0" ;;
  delete) step kubectl delete "job/$NAME" "service/$NAME" ;;
  *) usage ;;
esac
