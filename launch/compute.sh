#!/usr/bin/env bash
# Runs emcid_jax on TPU VMs of Compute Engine (v5p, v6e, TPU7x), from your own machine. See launch/README.md.
#
#   launch/compute.sh [--dry-run] ACTION ...    --dry-run prints the commands and runs none
#
#   create                  the VMs; waits until there is room. They cost money until `delete`
#   install                 this checkout's last commit and its packages, on all VMs
#   push FILE...            request files, caption files or model folders
#   run --config=FILE ...   arguments of emcid_jax.main, on all VMs; again to go on
#   keep --config=FILE ...  create, install, push $FILES, run; again after each preemption
#   fetch WORKDIR           results into the same folder here
#   delete
#
# Settings: TPU_NAME ZONE MACHINE; TOPOLOGY=4x4: chips along each axis, for several VMs, and PROJECT with it;
# PROVISION: STANDARD, SPOT (cheaper, may be taken away at any time), FLEX_START (waits for room, at most
# DAYS days) or RESERVATION_BOUND (of RESERVATION); BUCKET=gs://BUCKET/FOLDER: the workdir of a single VM is
# kept there and outlives the VM; FILES: what `keep` pushes.
set -euo pipefail

: "${TPU_NAME:=emcid}"
: "${ZONE:=us-east5-a}"
: "${MACHINE:=ct6e-standard-8t}"
: "${TOPOLOGY:=}"
: "${PROJECT:=}"
: "${PROVISION:=STANDARD}"
: "${DAYS:=1}"
: "${RESERVATION:=}"

cd "$(dirname "$0")/.."

# shellcheck source-path=SCRIPTDIR source=step.sh
. launch/step.sh
# shellcheck source-path=SCRIPTDIR source=remote.sh
. launch/remote.sh

# A machine's name ends with its number of chips: ct6e-standard-4t.
[[ $MACHINE =~ -([0-9]+)t$ ]] ||
  fail "MACHINE is '$MACHINE'; give one that ends with its chips, e.g. ct6e-standard-4t"
chips=${BASH_REMATCH[1]}
[[ -z $TOPOLOGY || $TOPOLOGY =~ ^[0-9]+(x[0-9]+)+$ ]] ||
  fail "TOPOLOGY is '$TOPOLOGY'; give chips along each axis, e.g. 4x4"
hosts=1
[[ -z $TOPOLOGY ]] || hosts=$((${TOPOLOGY//x/ * } / chips))
((hosts > 0)) || fail "TOPOLOGY is $TOPOLOGY, which has less chips than $MACHINE; leave it out"
region=${ZONE%-*}
if ((hosts > 1)); then
  [[ $PROJECT ]] || fail "several VMs need PROJECT, the Google Cloud project's name"
  [[ -z $BUCKET ]] ||
    fail "BUCKET is for a single VM: of several, none knows in advance that it has the workdir"
fi

group() {
  step gcloud compute instance-groups managed "$1" "$TPU_NAME" --zone="$ZONE" "${@:2}"
}

state() { # READY if all VMs run; nothing where there is no group
  [[ $dry ]] && return
  local found
  found=$(group list-instances --format='value(instanceStatus)' 2>/dev/null) || return 0
  [[ $(grep -c '^RUNNING$' <<<"$found") == "$hosts" ]] && echo READY || echo "${found:-EMPTY}"
}

find_vms() { # sets `names`, in an order that stays
  if [[ $dry ]]; then
    mapfile -t names < <(seq -f "$TPU_NAME-%g" "$hosts")
    return
  fi
  mapfile -t names < <(group list-instances --format='value(instance.basename())' | sort)
  ((${#names[@]} == hosts)) && return
  echo "error: $TPU_NAME has ${#names[@]} of $hosts VMs; run create, or delete and create" >&2
  return 1
}

create() {
  local image=ubuntu-accel-2204-amd64-tpu-v5e-v5p-v6e template=() together=()
  if [[ $MACHINE == tpu7x* ]]; then
    image=ubuntu-accel-2404-amd64-tpu-tpu7x
    template+=(--boot-disk-type=hyperdisk-balanced)
  fi
  case $PROVISION in
    STANDARD) ;;
    SPOT) template+=(--instance-termination-action=STOP) ;;
    FLEX_START) template+=(--instance-termination-action=DELETE --max-run-duration="${DAYS}d") ;;
    RESERVATION_BOUND)
      [[ $RESERVATION ]] || fail "PROVISION=RESERVATION_BOUND needs RESERVATION, its name"
      template+=(--instance-termination-action=DELETE --reservation-affinity=specific)
      template+=(--reservation="$RESERVATION")
      ;;
    *) fail "PROVISION is '$PROVISION'; give STANDARD, SPOT, FLEX_START or RESERVATION_BOUND" ;;
  esac
  if ((hosts > 1)); then # The policy wires the VMs' chips together.
    step gcloud compute resource-policies create workload-policy "$TPU_NAME" --region="$region" \
      --type=HIGH_THROUGHPUT --accelerator-topology="$TOPOLOGY"
    together=(--workload-policy="projects/$PROJECT/regions/$region/resourcePolicies/$TPU_NAME")
  fi
  step gcloud compute instance-templates create "$TPU_NAME" --machine-type="$MACHINE" \
    --provisioning-model="$PROVISION" --maintenance-policy=TERMINATE --boot-disk-size=200GB \
    --image-project=ubuntu-os-accelerator-images --image-family="$image" --scopes=cloud-platform \
    "${template[@]}"
  group create --template="$TPU_NAME" --size="$hosts" --target-size-policy-mode=bulk \
    --default-action-on-vm-failure=do-nothing "${together[@]}"
  [[ $dry ]] && return
  until [[ $(state) == READY ]]; do sleep "$PAUSE"; done
  for _ in {1..20}; do # They run as soon as they boot, and answer later.
    on_workers true && return
    sleep "$PAUSE"
  done
  fail "the VMs run, but do not answer to gcloud compute ssh"
}

obtain() {
  create
}

send() { # FILE... FOLDER
  local names name
  find_vms || return
  for name in "${names[@]}"; do
    step gcloud compute scp --recurse --zone="$ZONE" "${@:1:$#-1}" "$name:${*: -1}" || return
  done
}

on_workers() { # on all at once; with several, each knows its place
  local names place='' i code=0 started=()
  find_vms || return
  for i in "${!names[@]}"; do
    if ((hosts > 1)); then
      place="export JAX_COORDINATOR_ADDRESS=${names[0]}:8476 JAX_NUM_PROCESSES=$hosts JAX_PROCESS_ID=$i; "
    fi
    if [[ $dry ]]; then
      step gcloud compute ssh "${names[i]}" --zone="$ZONE" --command="$place$1" | sed 's/$/\&/'
    else
      gcloud compute ssh "${names[i]}" --zone="$ZONE" --command="$place$1" &
      started+=($!)
    fi
  done
  [[ $dry ]] && echo wait && return
  trap 'kill "${started[@]}"; exit 130' INT TERM
  for i in "${started[@]}"; do wait "$i" || code=$?; done
  trap - INT TERM
  return $code
}

bring() { # Only one VM has the workdir.
  local names name found=
  find_vms || return
  for name in "${names[@]}"; do
    step gcloud compute scp --recurse --zone="$ZONE" "$name:emcid_jax/$1" "$(dirname "$1")" && found=1
  done
  [[ $found ]] || fail "no VM has $1"
}

delete() { # all of it, also what a `create` that failed has left
  local code=0
  group delete --quiet || code=$?
  step gcloud compute instance-templates delete "$TPU_NAME" --quiet || code=$?
  ((hosts == 1)) ||
    step gcloud compute resource-policies delete "$TPU_NAME" --region="$region" --quiet || code=$?
  return $code
}

act "create" "$@"
