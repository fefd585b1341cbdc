#!/bin/sh
# tools/make_venv.sh PYTHON VENVDIR: makes or refreshes a virtual environment for this project, with nothing but pip.
# Python 3.11 and 3.12 get their hashed lock; newer ones the floors of requirements.txt; older ones are refused.
# VENVDIR/.installed says what is in there; while that is still right, nothing is done.
set -eu

fail() {
    echo "mtnlg: error: $1" >&2
    exit "${2:-75}"
}

[ $# -eq 2 ] || fail "two arguments are needed. Try: tools/make_venv.sh python3 .venv" 2
python=$1
venv=$2
cd "$(dirname "$0")/.."

version_of() { "$1" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null; }

version=$(version_of "$python") || fail "'$python' does not run (PYTHON). Try: make PYTHON=python3.11" 2
hashes=--require-hashes
case $version in
    2.* | 3.? | 3.10) fail "Python $version is too old, 3.11 or newer is needed ($python). Try: make PYTHON=python3.11" 2 ;;
    3.11) list=requirements/py311-jax0.10.lock ;;
    3.12) list=requirements/py312-jax0.12.lock ;;
    *) list=requirements.txt hashes= ;;
esac

# So that a script or a notebook anywhere finds `import mtnlg`.
name_project() {
    "$venv/bin/python" -c 'import pathlib, sys, sysconfig
pathlib.Path(sysconfig.get_path("purelib"), "mtnlg.pth").write_text(sys.argv[1] + "\n")' "$PWD"
}

wanted="python $version, $list $(cksum <"$list")"
if [ -x "$venv/bin/python" ] && [ "$(cat "$venv/.installed" 2>/dev/null)" = "$wanted" ]; then
    name_project
    # Touched only if make would ask again: what is installed on top, as torch, is younger than this stamp.
    [ -z "$(find requirements.txt requirements tools -newer "$venv/.installed")" ] || touch "$venv/.installed"
    exit 0
fi

if [ -d "$venv" ] && [ ! -e "$venv/pyvenv.cfg" ] && [ -n "$(ls -A "$venv")" ]; then
    fail "this folder is no virtual environment, so it is left alone ($venv). Try: another name, or move it away" 73
fi
[ -n "$hashes" ] || echo "$venv: no lock for Python $version, so the newest versions that requirements.txt allows are taken"
echo "$venv: installing $list for Python $version (a minute or two, about 1 GB)"
rm -f "$venv/.installed"
if [ "$(version_of "$venv/bin/python")" != "$version" ] || ! "$venv/bin/python" -m pip --version >/dev/null 2>&1; then
    "$python" -m venv --clear "$venv" || fail "cannot make a virtual environment ($venv). Try: the python3-venv package of your system" 73
fi
"$venv/bin/python" -m pip install -qq --disable-pip-version-check $hashes -r "$list" ||
    fail "pip could not install $list (see above). Try: the same again, with the network up"
name_project
echo "$wanted" >"$venv/.installed"
