#!/usr/bin/env bash
# The tests, from a clean checkout: sets up .venv with the dev extra, then runs pytest with the arguments.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
bash launchers/setup.sh dev
export PATH="$PWD/.venv/bin:$PATH" # `deepspeed` and `ninja` are looked up there
exec .venv/bin/python -m pytest "$@"
