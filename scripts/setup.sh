#!/usr/bin/env bash
# Make .venv within constraints.txt: setup.sh PYTHON REQUIREMENT. Called by make; done once.
set -euo pipefail
python=$1 requirement=$2
fail() { echo "error: $*" >&2; exit 1; }

command -v "$python" >/dev/null || python=
[ -n "$python" ] || fail "No python3 found. Install Python 3.11, 3.12 or 3.13 (Debian: apt install python3 python3-venv), or name one: make PYTHON=/path/to/python3.12 ..."
"$python" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null ||
    fail "$python is $("$python" -V 2>&1); Python 3.11, 3.12 or 3.13 is needed. Install one, then: make PYTHON=/path/to/python3.12 ..."
"$python" -c 'import venv, ensurepip' 2>/dev/null ||
    fail "$python has no venv module. Install it (Debian: apt install python3-venv), or use another Python: make PYTHON=..."

case $requirement in *dev*) stamp=.venv/ready-dev ;; *) stamp=.venv/ready ;; esac
mkdir -p .cache
log=.cache/setup.log
[ -x .venv/bin/python ] || { echo "Making .venv with $("$python" -V) ..."; "$python" -m venv .venv; }
echo "Installing packages into .venv (about two minutes and 2 GB the first time; progress in $log) ..."
if ! .venv/bin/python -m pip install --disable-pip-version-check -c constraints.txt -e "$requirement" >"$log" 2>&1; then
    grep -E '^ERROR' "$log" | tail -n 3 >&2 || true
    if grep -qiE 'connection|resolve|timed out|Network is unreachable|from versions: none' "$log"; then
        fail "pip cannot reach the package index. Connect to the network or set PIP_INDEX_URL to a mirror, then run make again."
    fi
    fail "pip could not install the packages; the whole story is in $log."
fi
# sapien asks for opencv-python, whose cv2 needs a display's libraries; the version without that need is installed over it.
if .venv/bin/python -m pip show -q opencv-python 2>>"$log"; then
    .venv/bin/python -m pip install --disable-pip-version-check -c constraints.txt --force-reinstall --no-deps \
        opencv-python-headless >>"$log" 2>&1 || fail "pip could not install opencv-python-headless; the whole story is in $log."
fi
touch .venv/ready "$stamp"
