#!/usr/bin/env bash
# Makes .venv in the repository: Python 3.11+, torch (the CPU build where there is no NVIDIA GPU), then
# sktune with the versions of constraints.txt. A finished set-up is remembered: later calls take no time.
#
#   bash launchers/setup.sh        what training needs
#   bash launchers/setup.sh dev    and pytest, ruff, mypy
#
# PYTHON=/path/to/python picks the interpreter of a new .venv. To start over: rm -rf .venv
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

log=.venv/setup.log
stop() {
    echo "setup: $*" >&2
    exit 1
}
is_python_311() {
    "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null
}
find_python() {
    local candidate
    for candidate in ${PYTHON:+"$PYTHON"} python3.11 python3.12 python3.13 python3; do
        if is_python_311 "$candidate"; then
            echo "$candidate"
            return
        fi
    done
    stop "no Python 3.11 or newer found; install one, or name it: PYTHON=/path/to/python bash $0"
}
# Minutes of work, so every ten seconds a line says how far pip is.
pip_install() {
    local pip started=$SECONDS
    .venv/bin/python -m pip install --disable-pip-version-check --no-input --progress-bar off "$@" >>"$log" 2>&1 &
    pip=$!
    trap 'kill "$pip" 2>/dev/null' EXIT
    while sleep 1 && kill -0 "$pip" 2>/dev/null; do
        if (((SECONDS - started) % 9 == 8)); then
            echo "setup: $((SECONDS - started)) s: $(tail -n 1 "$log" | cut -c1-90)"
        fi
    done
    trap - EXIT
    wait "$pip"
}
failed() {
    tail -n 20 "$log" >&2
    stop "$* The end of $log is shown above."
}

install_torch() {
    local version
    version=$(sed -n 's/^torch==//p' constraints.txt)
    if .venv/bin/python -c "import torch, sys; sys.exit(torch.__version__.split('+')[0] != '$version')" 2>/dev/null; then
        return
    fi
    if nvidia-smi -L 2>/dev/null | grep -q '^GPU'; then
        echo "setup: installing torch $version with CUDA (gigabytes; NVIDIA GPU found)"
        pip_install "torch==$version" || failed "torch $version could not be installed."
        return
    fi
    echo "setup: installing torch $version for CPUs (no NVIDIA GPU found)"
    # Always with `+cpu`: without it PyPI offers the CUDA build. An index or folder of wheels that pip is
    # configured with may have the CPU build; PyTorch's own index has it.
    pip_install "torch==$version+cpu" \
        || pip_install --index-url https://download.pytorch.org/whl/cpu "torch==$version+cpu" \
        || failed "no CPU build of torch $version: neither pip's configured index nor download.pytorch.org has it."
}

extra=${1:-}
[[ $extra == "" || $extra == dev ]] || stop "unknown argument '$extra'; give nothing, or dev."
case "$(uname -s)-$(uname -m)" in
    Linux-x86_64 | Linux-aarch64) ;;
    *) stop "supported: Linux on x86_64 (tested) and aarch64, for which DeepSpeed and bitsandbytes are made." \
        "Elsewhere use WSL 2, or the container of docker/Dockerfile.cpu." ;;
esac

# A set-up with dev serves a call without it. The folder counts: a .venv that was moved does not work.
wanted=$(cat pyproject.toml constraints.txt <(pwd) | sha256sum | cut -d' ' -f1)
for stamp in .venv/.sktune-setup-dev ".venv/.sktune-setup-$extra"; do
    if [[ -x .venv/bin/python && -f $stamp && $(<"$stamp") == "$wanted" ]]; then
        exit 0
    fi
done

if ! { [[ -x .venv/bin/python ]] && is_python_311 .venv/bin/python; }; then
    python=$(find_python)
    echo "setup: making .venv with $("$python" --version)"
    "$python" -m venv --clear .venv \
        || stop "'$python -m venv' failed; on Debian and Ubuntu: apt-get install python3-venv"
fi
: >"$log"
install_torch
echo "setup: installing sktune${extra:+ with the extra $extra} (two to five minutes)"
# Without prebuilt DeepSpeed operators no compiler is needed; sktune uses none of them.
export DS_BUILD_OPS=0
pip_install -c constraints.txt -e ".${extra:+[$extra]}" || failed "sktune could not be installed."
echo "$wanted" >".venv/.sktune-setup-$extra"
echo "setup: done"
