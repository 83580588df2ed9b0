"""Which jobs a pipeline and a sweep consist of."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from m2i2.cluster.study import Member, Stage, grid, member_name
from m2i2.cluster.submission import Task
from m2i2.errors import M2I2Error

Plan = tuple[list[Stage], list[Member]]


def _free_of(words: Sequence[str], taken: Sequence[str], what: str) -> None:
    for option in taken:
        if any(word == option or word.startswith(f"{option}=") for word in words):
            raise M2I2Error(f"{what} sets {option} itself; leave it out of the launcher's options.")


def pipeline(
    output: Path,
    questions: Sequence[str],
    pretrain: Sequence[str] | None,
    finetune: Sequence[str],
    evaluate: Sequence[str],
    checkpoint: str = "",
) -> Plan:
    """Pretraining (unless a ``checkpoint`` stands in for it), then finetuning and evaluation on each shard folder in ``questions``.

    ``pretrain``, ``finetune``, ``evaluate``: further options of those launchers.
    """
    _free_of(pretrain or (), ("--output",), "A pipeline")
    _free_of(finetune, ("--output", "--shards", "--checkpoint"), "A pipeline")
    _free_of(evaluate, ("--output", "--shards", "--checkpoint"), "A pipeline")
    names = [shards.rstrip("/").rsplit("/", 1)[-1] for shards in questions]
    if len(set(names)) != len(names):
        raise M2I2Error(f"Two of the folders {', '.join(questions)} have the same name, and the runs are named after it.")
    stages = []
    if pretrain is not None:
        stages.append(Stage("pretrain", (Task("pretrain", "pretrain", (*pretrain, "--output", str(output / "pretrain"))),)))
    finetunings, evaluations, members = [], [], []
    for name, shards in zip(names, questions, strict=True):
        run, answers = output / name, output / name / "evaluation"
        source = ("--checkpoint", checkpoint or str(output / "pretrain"), "--shards", shards, "--output", str(run))
        finetunings.append(Task(f"finetune-{name}", "finetune", (*finetune, *source)))
        asked = ("--checkpoint", str(run), "--shards", shards, "--output", str(answers))
        evaluations.append(Task(f"evaluate-{name}", "evaluate", (*evaluate, *asked)))
        members.append(Member(name, {}, str(run.absolute()), str(answers.absolute())))
    return [*stages, Stage("finetune", tuple(finetunings)), Stage("evaluate", tuple(evaluations))], members


def sweep(
    output: Path, stage: str, words: Sequence[str], axes: Mapping[str, Sequence[str]], evaluate: Sequence[str] | None = None
) -> Plan:
    """One run of ``stage`` with ``words`` for every combination of the settings in ``axes``; each evaluated where ``evaluate``
    (options of that launcher, --shards at least) is given."""
    _free_of(words, ("--output",), "A sweep")
    _free_of(evaluate or (), ("--output", "--checkpoint"), "A sweep")
    runs, evaluations, members = [], [], []
    for settings in grid(axes):
        name = member_name(settings)
        run, answers = output / name, output / name / "evaluation"
        assignments = [f"{key}={value}" for key, value in settings.items()]
        runs.append(Task(name, stage, (*words, "--output", str(run), *assignments)))
        if evaluate is not None:
            asked = (*evaluate, "--checkpoint", str(run), "--output", str(answers))
            evaluations.append(Task(f"evaluate {name}", "evaluate", asked))
        members.append(Member(name, settings, str(run.absolute()), str(answers.absolute()) if evaluate is not None else ""))
    if len({member.name for member in members}) != len(members):
        raise M2I2Error("Two runs of the sweep would have the same name; the settings' last words or their values must differ.")
    stages = [Stage(stage, tuple(runs))]
    return ([*stages, Stage("evaluate", tuple(evaluations))] if evaluations else stages), members
