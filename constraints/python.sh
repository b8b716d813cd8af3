#!/usr/bin/env bash
# Which Python, and the virtual environment made by it.
#
#   constraints/python.sh find [VERSION...]   prints the first interpreter of these versions that works (default: all supported, newest first)
#   constraints/python.sh venv PYTHON FOLDER  makes FOLDER with PYTHON, unless it is there; refuses one that another version made
#
# A name on PATH proves nothing: pyenv has a shim for every version, and those that are not switched on fail. So each candidate is run.
set -euo pipefail

SUPPORTED=(3.12 3.11)  # newest first; each has its constraints/pyXYZ.txt

fail() { echo "make: $*" >&2; exit 1; }

# Its version, where it runs and can make virtual environments (Debian's needs python3-venv for that).
version_of() {
  "$1" -c 'import ensurepip, sys, venv; print("%d.%d" % sys.version_info[:2])' 2>/dev/null
}

candidates() {
  echo "python$1"; echo python3; echo python
  local root; root=$(pyenv root 2>/dev/null) || return 0
  compgen -G "$root/versions/$1.*/bin/python" | sort -rV || true
}

find_python() {
  local version candidate
  for version in "$@"; do
    while read -r candidate; do
      if [ "$(version_of "$candidate")" = "$version" ]; then
        "$candidate" -c 'import sys; print(sys.executable)'
        return
      fi
    done < <(candidates "$version")
  done
  return 1
}

make_venv() {
  local python=$1 folder=$2 version made
  [ -n "$python" ] || fail "found no Python ${SUPPORTED[*]} that runs and has venv and ensurepip (Debian, Ubuntu: apt-get install python3-venv); name one with PYTHON=/path/to/python3.12"
  version=$(version_of "$python") || fail "$python does not run, or lacks venv or ensurepip (Debian, Ubuntu: apt-get install python3-venv); name another with PYTHON=/path/to/python3.12"
  [[ " ${SUPPORTED[*]} " = *" $version "* ]] || fail "$python is Python $version; needs one of ${SUPPORTED[*]}: PYTHON=/path/to/python3.12"
  if [ -e "$folder/pyvenv.cfg" ]; then
    made=$(sed -nE 's/^version(_info)? *= *([0-9]+\.[0-9]+).*/\2/p' "$folder/pyvenv.cfg" | head -n 1)
    [ "$made" = "$version" ] || fail "$folder was made by Python $made, and Python $version is chosen ($python); keep it with PYTHON=/path/to/python$made, make it anew with \`make clean\`, or take another folder with VENV=.venv-$version"
    if "$folder/bin/python" -c '' 2>/dev/null; then return; fi  # else: the Python that made it has moved, its packages are still right
    rm -f "$folder"/bin/python*
  fi
  "$python" -m venv "$folder"
}

case ${1:-} in
  find) shift; [ $# -gt 0 ] || set -- "${SUPPORTED[@]}"; find_python "$@" ;;
  venv) make_venv "$2" "$3" ;;
  *) sed -n '2,7s/^# \{0,1\}//p' "$0" >&2; exit 2 ;;
esac
