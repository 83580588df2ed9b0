#!/bin/sh
# Installs the tested versions with PYTHON: every file's hash compared where there is a file of hashes for this kind of Python,
# else by version alone. Usage: tools/setup.sh PYTHON [yes|no]    (no: by version alone anyway)
set -eu
python=$1
hashes=${2:-yes}
kind=$("$python" -c 'import platform as p, sys; print(sys.platform, p.machine(), p.python_implementation().lower(), "%d.%d" % sys.version_info[:2], sep="-")')
install() { "$python" -m pip install --quiet --disable-pip-version-check "$@"; }

# sizes of the files of requirements/linux-x86_64-cpython-3.11.txt, and of .venv after it; other systems' wheels are smaller
echo "Downloading about 3.3 GB: 3.0 GB PyTorch and NVIDIA's libraries, 0.3 GB some 180 other packages. .venv will take 6.7 GB."
echo "Nothing is shown while pip works, some minutes with a fast connection."
if [ "$hashes" = yes ] && [ -e "requirements/$kind.txt" ]; then
    install --require-hashes --no-deps -r requirements/build.txt
    # what comes as source is built with what was just installed, not with what an index has newest
    install --require-hashes --no-deps --no-build-isolation -r "requirements/$kind.txt"
    install --no-deps --no-build-isolation -e .
else
    if [ "$hashes" = yes ]; then
        echo "There is no requirements/$kind.txt: installing the versions of constraints.txt, without comparing hashes."
    else
        echo "Installing the versions of constraints.txt, without comparing hashes, as asked."
    fi
    install -c constraints.txt -e '.[dev]'
fi
