# shellcheck shell=bash
# What the scripts share, read from the checkout's folder: --dry-run, if it comes first, is taken off
# the arguments, and `step` then prints commands.

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

usage() { # the comment at the top of the script
  sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//;p}' "launch/${0##*/}" >&2
  exit 2
}

fail() {
  echo "error: $1" >&2
  exit 2
}
