#!/usr/bin/env bash
# Runs emcid_jax on the GPUs of this machine; installs it first if need be. See launch/README.md.
#
#   launch/gpu.sh [--dry-run] --config=FILE ...   arguments of emcid_jax.main; again to go on
set -euo pipefail

: "${PYTHON:=python3}" # 3.11 or newer
: "${VENV:=.venv}"

cd "$(dirname "$0")/.."

# shellcheck source-path=SCRIPTDIR source=step.sh
. launch/step.sh

if [[ ! -x $VENV/bin/emcid_jax ]]; then
  step "$PYTHON" -m venv "$VENV"
  step "$VENV/bin/pip" install --quiet -e ".[cuda,tfds]"
fi
[[ $dry ]] || "$VENV/bin/python" -c '
import jax
if jax.default_backend() != "gpu":
    raise SystemExit(f"JAX sees no GPU, only {jax.devices()}; check the driver with nvidia-smi")
'
step exec "$VENV/bin/python" -m emcid_jax.main "$@"
