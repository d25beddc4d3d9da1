#!/usr/bin/env bash
# Runs emcid_jax as a Slurm job, one process per GPU; goes on by itself after its time is over.
#
#   launch/slurm.sh [--dry-run] --config=FILE ...   arguments of emcid_jax.main
#
# Settings: NODES, GPUS (per node), HOURS; SBATCH: more options, e.g. "--partition=a100 --account=x".
# The checkout and its .venv lie on a disk that all nodes see.
set -euo pipefail

: "${NODES:=1}"
: "${GPUS:=1}"
: "${HOURS:=4}"
: "${SBATCH:=}"
: "${VENV:=.venv}"

dry=
if [[ ${1:-} == --dry-run ]]; then
  dry=1
  shift
fi

step() { # runs a command, or prints it
  if [[ $dry ]]; then
    printf '%q ' "$@"
    echo
  else
    "$@"
  fi
}

if [[ -z ${SLURM_JOB_ID:-} ]]; then
  cd "$(dirname "$0")/.."
  # The processes get SIGTERM two minutes before the end, save, and leave.
  # shellcheck disable=SC2086 # SBATCH is a list
  step sbatch --job-name=emcid --nodes="$NODES" --ntasks-per-node="$GPUS" --gpus-per-node="$GPUS" \
    --time="$HOURS:00:00" --signal=TERM@120 --requeue --open-mode=append $SBATCH \
    launch/slurm.sh "$@"
  exit
fi

# Slurm runs a copy of this script, in the folder it was submitted from.
together=()
[[ ${SLURM_NTASKS:-1} -gt 1 ]] && together=(--config.run.distributed=True)
code=0
step srun --kill-on-bad-exit=0 "$VENV/bin/python" -m emcid_jax.main "$@" "${together[@]}" || code=$?
[[ $code -ne 143 ]] || { step scontrol requeue "$SLURM_JOB_ID" && exit; }
exit $code
