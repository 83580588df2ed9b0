"""What the questions of a data set give away without their images: the baselines alone, before any model is trained."""

from pathlib import Path
from typing import Any

from m2i2.config import AnsweringConfig, CacheConfig
from m2i2.data.shards.opening import storage_of
from m2i2.data.shards.split import read_index
from m2i2.evaluation.protocols import protocol
from m2i2.evaluation.results import blind, show
from m2i2.evaluation.scoring import by_kind
from m2i2.files import write_json
from m2i2.provenance import provenance
from m2i2.terminal import say
from m2i2.workflows.evaluation import asked_questions


def score_baselines(
    folder: str, split: str, rules: str, output: Path | None = None, cache: CacheConfig | None = None
) -> dict[str, Any]:
    """Score and show the baselines on a split of question shards, and write what was found to ``output``; returns it."""
    followed, shards = protocol(rules), storage_of(folder, cache)
    settings = AnsweringConfig(protocol="clean" if rules == "clean" else "paper")
    there = asked_questions(shards, split, rules, settings.selection)
    asked = [(question.key, question.question) for question in there.split.questions()]
    answered, source, views = blind(asked, there.learned, settings.form), str(read_index(shards)["source"]), {}
    for view in followed.views(source, split):
        rows = {who: [a for a in all_ if view.contains(a.question)] for who, all_ in answered.items()}
        if any(rows.values()):
            views[view.name] = {who: {kind: a.to_json() for kind, a in by_kind(mine).items()} for who, mine in rows.items()}
    results = {
        "protocol": {"name": followed.name},
        "normalisation": settings.form,
        "views": views,
        "split": split,
        "splits": there.counts,
        "learned_from": len(there.learned),
        "shards": {"folder": shards.place, "source": source, "fingerprint": there.split.fingerprint},
        **provenance(),
    }
    show(results)
    say(f"The baselines learned from {len(there.learned):,} training questions.")
    if output is not None:
        write_json(output, results, ascii=False)
        say(f"Written to {output}.")
    return results
