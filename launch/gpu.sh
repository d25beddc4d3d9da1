#!/usr/bin/env bash
# Runs emcid_jax on the GPUs of this machine; installs it first if need be. See launch/README.md.
#
#   launch/gpu.sh --config=FILE ...   arguments of emcid_jax.main; the same again to go on
set -euo pipefail

: "${PYTHON:=python3}"   # 3.11 or newer
: "${VENV:=.venv}"

cd "$(dirname "$0")/.."

if [[ ! -x $VENV/bin/emcid_jax ]]; then
  "$PYTHON" -m venv "$VENV"
  "$VENV/bin/pip" install --quiet -e ".[cuda,tfds]"
fi
"$VENV/bin/python" -c '
import jax
if jax.default_backend() != "gpu":
    raise SystemExit(f"JAX sees no GPU, only {jax.devices()}; check the driver with nvidia-smi")
'
exec "$VENV/bin/python" -m emcid_jax.main "$@"
