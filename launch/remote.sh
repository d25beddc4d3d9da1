# shellcheck shell=bash
# What one does with the VMs of a TPU, whichever interface makes them; read by the two scripts for it.
# They say how: `obtain` gives the VMs and waits for them, `state` is READY if they are there and empty
# if there are none, `send FILE... FOLDER` copies to all, `on_workers COMMAND` runs on all, `bring FOLDER`
# copies from the one that has it, and `delete`.

: "${BUCKET:=}"
: "${FILES:=}"
: "${PAUSE:=60}" # seconds between two looks at the state

install() {
  # A bundle keeps the commit's name, which every run records.
  local bundle=${TMPDIR:-/tmp}/emcid.bundle
  step git bundle create "$bundle" HEAD || return
  send "$bundle" . || return
  # The VM's own Python is older than 3.11; uv brings one.
  # shellcheck disable=SC2016 # expanded there
  on_workers '
    set -e
    [ -d emcid_jax ] || git init --quiet emcid_jax
    git -C emcid_jax fetch --quiet ../emcid.bundle HEAD
    git -C emcid_jax checkout --quiet --detach FETCH_HEAD
    uv=~/.local/bin/uv
    [ -x $uv ] || curl -LsSf https://astral.sh/uv/install.sh | sh
    [ -d venv ] || $uv venv --quiet --python=3.12 venv
    $uv pip install --quiet --python=venv/bin/python -e "emcid_jax[tpu,tfds]"
  '
}

push() {
  send "$@" emcid_jax/
}

run() {
  local command=(../venv/bin/python -m emcid_jax.main "$@")
  [[ $BUCKET ]] && command=(launch/kept.sh "$BUCKET" "${command[@]}")
  on_workers "cd emcid_jax && $(printf '%q ' "${command[@]}")"
}

keep() {
  [[ $BUCKET ]] || fail "keep needs BUCKET: a VM's disk goes with the VM"
  while true; do
    case $(state) in
      READY) ;;
      "") obtain ;;
      *) delete && obtain ;;
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
    bring "$1"
  fi
}

act() { # ACTIONS ACTION ...: an action of this file, or of those that only the script has
  local actions=$1 action=${2:-}
  [[ $action ]] || usage
  shift 2
  case $action in
    install | delete) "$action" ;;
    push | run | keep) [[ $# -ge 1 ]] || usage && "$action" "$@" ;;
    fetch) [[ $# -eq 1 ]] || usage && fetch "$1" ;;
    *) [[ " $actions " == *" $action "* ]] || usage && "$action" ;;
  esac
}
