# Sourced by the other scripts: makes .venv when it is missing and installs the project with the tested versions.
# Installs again only when what it depends on has changed. Honours pip's own configuration.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

find_python() {
    local candidate
    for candidate in "${PYTHON:-}" python3 python3.14 python3.13 python3.12 python3.11; do
        if [ -n "$candidate" ] && command -v "$candidate" >/dev/null &&
            "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
            echo "$candidate"
            return
        fi
    done
    echo "error: Python 3.11 or newer is needed: apt-get install python3 python3-venv" >&2
    exit 2
}

as_root() {
    if [ "$(id -u)" = 0 ]; then "$@"; else sudo "$@"; fi
}

make_venv() {
    local python
    python=$(find_python)
    # Debian and Ubuntu ship Python without ensurepip, which is in python3-venv
    if ! "$python" -c 'import ensurepip' 2>/dev/null; then
        echo "Installing python3-venv ..."
        as_root apt-get update -qq
        as_root apt-get install -qq -y python3-venv
    fi
    "$python" -m venv --clear .venv
}

stamp=.venv/installed
wanted=$(cat pyproject.toml scripts/constraints.txt | sha256sum)
if [ "$(cat $stamp 2>/dev/null)" != "$wanted" ]; then
    .venv/bin/python -m pip --version >/dev/null 2>&1 || make_venv
    echo "Installing the project and its tested versions into .venv (some minutes the first time) ..."
    .venv/bin/python -m pip install --quiet --disable-pip-version-check \
        --constraint scripts/constraints.txt --editable '.[dev]'
    echo "$wanted" >$stamp
fi
