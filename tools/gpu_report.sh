#!/usr/bin/env bash
# Fills the table of a GPU's targets by itself, in ten minutes and offline: OUT=FOLDER bash tools/gpu_report.sh [--quick] [--help]
# It takes the first Python that has what is needed: $PYTHON, .venv, python3. Where none has, it makes an environment in OUT from the
# wheels in $WHEELS (default: wheels/ in the checkout or beside it) over the packages of python3, such as the machine's own torch.
set -euo pipefail
here=$(cd "$(dirname "$0")/.." && pwd)
export OUT=${OUT:-runs/gpu-report}
mkdir -p "$OUT"
OUT=$(cd "$OUT" && pwd)
export PYTHONPATH="$here${PYTHONPATH:+:$PYTHONPATH}" HF_HUB_OFFLINE=1 PYTHONUNBUFFERED=1

# the packages are found rather than imported: importing them takes seconds
ready() {
  command -v "$1" >/dev/null && "$1" -c 'import importlib.util as u, sys
names = "torch deepspeed transformers timm tokenizers safetensors webdataset numpy PIL rich jinja2".split()
sys.exit(any(u.find_spec(name) is None for name in names))' 2>/dev/null
}

python=
for one in "${PYTHON:-}" "$here/.venv/bin/python" "$OUT/venv/bin/python" python3; do
  if [ -n "$one" ] && ready "$one"; then python=$one; break; fi
done
if [ -z "$python" ]; then
  wheels=
  for one in "${WHEELS:-}" "$here/wheels" "$here/../wheels"; do
    if [ -n "$one" ] && ls "$one"/*.whl >/dev/null 2>&1; then wheels=$one; break; fi
  done
  [ -n "$wheels" ] || { echo "No Python here has torch, deepspeed and the rest, and there are no wheels: set PYTHON or WHEELS." >&2; exit 2; }
  echo "Making an environment from $wheels ..."
  "${PYTHON:-python3}" -m venv --system-site-packages "$OUT/venv"
  "$OUT/venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-index --no-deps "$wheels"/*.whl
  python=$OUT/venv/bin/python
  ready "$python" || { echo "The wheels in $wheels do not hold everything that is needed; see setup.py." >&2; exit 2; }
fi
PATH="$(dirname "$(command -v "$python")"):$PATH" \
  exec "$python" -c 'from m2i2.cli.gpu_report import main; raise SystemExit(main())' "$@"
