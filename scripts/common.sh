# Sourced by the scripts beside it: an ignored .venv of the project's own, from committed versions.
# shellcheck shell=bash

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
venv="$root/.venv"

# prepare GROUP: make the environment and install what GROUP needs (demo or test).
prepare() {
    local group=$1 python=${PYTHON:-python3} stamp="$venv/.installed-$1" wanted
    if ! command -v "$python" >/dev/null 2>&1; then
        echo "$python is not installed: apt install python3 python3-venv (or set PYTHON=)" >&2
        exit 2
    fi
    if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
        echo "Python 3.11 or newer is needed; $python is $("$python" -V 2>&1). Set PYTHON=" >&2
        exit 2
    fi
    if ! "$python" -c 'import ensurepip, venv' 2>/dev/null; then
        echo "$python cannot make environments: apt install python3-venv (or set PYTHON=)" >&2
        exit 2
    fi
    wanted=$(cd "$root" && cat pyproject.toml constraints.txt | cksum; "$python" -V; echo "$root")
    if [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$wanted" ] && "$venv/bin/python" -c '' 2>/dev/null
    then
        return
    fi
    if ! "$venv/bin/python" -c 'import pip' 2>/dev/null ||
        [ "$("$venv/bin/python" -V)" != "$("$python" -V)" ]; then
        echo "making $venv with $("$python" -V)"
        "$python" -m venv --clear "$venv"
    fi
    echo "installing (once; a minute or two)"
    (
        cd "$root"
        export PIP_CONSTRAINT="$root/constraints.txt" PIP_DISABLE_PIP_VERSION_CHECK=1
        requirements=(-e ".[$([ "$group" = test ] && echo performance || echo demo)]")
        if [ "$group" = test ]; then
            mapfile -t -O "${#requirements[@]}" requirements < <(
                "$venv/bin/python" - <<'PY'
import tomllib
with open("pyproject.toml", "rb") as file:
    print(*tomllib.load(file)["dependency-groups"]["test"], sep="\n")
PY
            )
        fi
        "$venv/bin/python" -m pip install --quiet "${requirements[@]}" 2>&1 | grep -v '^WARNING' >&2 ||
            [ "${PIPESTATUS[0]}" -eq 0 ]
    )
    printf '%s' "$wanted" >"$stamp"
}
