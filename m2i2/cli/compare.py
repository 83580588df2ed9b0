"""``tools/compare.py``: whether one evaluation is better than another, whether the two may be compared, and by which rule."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from m2i2.evaluation.comparison import Result, asked_of_shards, compare, imported_result, read_both
from m2i2.evaluation.rosetta import scored_by_every_rule, show_rules
from m2i2.exits import guarded
from m2i2.files import write_json
from m2i2.terminal import say

DESCRIPTION = """Compare two results question by question: McNemar's exact test and the 95 % interval of the difference
(bootstrap over images), and both scored by every rule in use. Warns where protocol, clean-up, data or method differ.

One of them may be a file of any system's answers, JSON Lines of {"id": question id, "prediction": answer}; its answers are
scored as the other result's are. With question shards in place of the first, the answers are scored alone."""

EXAMPLES = """examples:
  python tools/compare.py runs/scratch/evaluation-test-rank runs/pretrained/evaluation-test-rank
  python tools/compare.py runs/rad/evaluation-test-rank-clean others.jsonl
  python tools/compare.py shards/slake others.jsonl --split test --output others-by-every-rule.json
"""


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    parser = argparse.ArgumentParser(
        prog="compare.py",
        description=DESCRIPTION,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("first", type=Path, help="a folder that evaluate.py wrote, or a folder of question shards")
    add("second", type=Path, help="another one on the same questions, or a file of answers")
    add("--split", default="test", help="which questions of the shards (%(default)s)")
    add("--output", type=Path, metavar="JSON", help="write the scores by every rule here")
    arguments = parser.parse_args(argv)
    return guarded(lambda: _compare(arguments))


def _compare(arguments: argparse.Namespace) -> int:
    if (arguments.first / "index.json").is_file():
        asked, source = asked_of_shards(arguments.first, arguments.split)
        alone = imported_result(arguments.second, asked, source, "fixed")
        _warn(alone.warnings)
        _by_every_rule({str(arguments.second): alone}, arguments.output)
        return 0
    first, second = read_both(arguments.first, arguments.second)
    found = compare(first, second)
    _warn(found.warnings)
    say(f"{found.questions} questions: first {found.accuracies[0]:.1f} %, second {found.accuracies[1]:.1f} %")
    say(
        f"second - first: {found.difference:+.1f} points, 95 % interval {found.interval[0]:+.1f} to {found.interval[1]:+.1f} "
        f"(bootstrap over images)"
    )
    say(f"right in the first only {found.only_first}, in the second only {found.only_second}; McNemar's exact p = {found.p:.3g}")
    _by_every_rule({"first": first, "second": second}, arguments.output)
    return 0


def _warn(warnings: Sequence[str]) -> None:
    for warning in warnings:
        say(f"warning: {warning}", file=sys.stderr)


def _by_every_rule(systems: dict[str, Result], output: Path | None) -> None:
    """Each system's answers by every rule in use, over the questions that it answered; as a table and, where asked for, as JSON."""
    scored = {}
    for name, result in systems.items():
        rows = [(image, question, answer) for (image, _), (question, answer) in result.rows.items()]
        scored[name] = scored_by_every_rule(rows, result.source)
        show_rules(f"{name}: {len(rows)} questions, in percent (questions)", {name: scored[name]})
    if output:
        write_json(output, scored, ascii=False)
        say(f"written to {output}")
