#!/usr/bin/env bash
# Makes one recorded cell of an ablation again and prints its results beside the recorded ones:
#   bash tools/reproduce.sh RECIPE CELL [DATA]      such as: bash tools/reproduce.sh small-vit vqa-rad-full-seed-0 data
# CELL is a record in docs/results/RECIPE; DATA (default: data) is where the recipe's data sets lie. The pretraining that the cell
# starts from is made too. Without arguments it lists recipes and cells. A second start goes on where the first was stopped.
set -euo pipefail
here=$(cd "$(dirname "$0")/.." && pwd)
python=${PYTHON:-$here/.venv/bin/python}
[ -x "$python" ] || python=python3
if [ $# -lt 2 ]; then
  for folder in "$here"/docs/results/*/; do
    echo "$(basename "$folder"):"
    for record in "$folder"*.json; do [ -e "$record" ] && echo "  $(basename "$record" .json)"; done
  done
  [ $# -eq 0 ] || echo "Name a recipe and a cell: bash tools/reproduce.sh RECIPE CELL [DATA]" >&2
  [ $# -eq 0 ] && exit 0 || exit 2
fi
recipe=$here/docs/recipes/$1.json stored=$here/docs/results/$1/$2.json work=runs/reproduced/$1
[ -e "$recipe" ] || { echo "There is no recipe $1 in docs/recipes." >&2; exit 2; }
[ -e "$stored" ] || { echo "There is no record $2 in docs/results/$1; without arguments this script lists them." >&2; exit 2; }
mkdir -p "$work"
PYTHONPATH="$here${PYTHONPATH:+:$PYTHONPATH}" "$python" "$here/launchers/ablate.py" "$recipe" --data "${3:-data}" --work "$work" \
  --results "$work/records" --output "$work/report.md" --only "$2"
"$python" - "$stored" "$work/records/$2.json" <<'PYTHON'
import json, sys

for path in sys.argv[1:]:
    record = json.load(open(path))
    print(f"{path} (commit {record['git'][:12]}, torch {record['versions']['torch']})")
    for name, view in record.get("results", {}).get("views", {}).items():
        rows = [f"{kind} {row['accuracy']:.1f} of {row['total']}" for kind, row in view["model"].items() if isinstance(row, dict)]
        print(f"  {name}: {', '.join(rows)}")
    if "results" not in record:
        print(f"  last line of the log: {json.dumps(record['log']['last'])}")
PYTHON
