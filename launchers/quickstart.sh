#!/usr/bin/env bash
# From a clean checkout to a comparison table: sets up .venv, then trains and compares the methods of
# recipes/quickstart.yaml with two processes. Arguments go to launchers/quickstart.py (see its --help).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
bash launchers/setup.sh
export PATH="$PWD/.venv/bin:$PATH" # `deepspeed` and `ninja` are looked up there
exec .venv/bin/python launchers/quickstart.py "$@"
