"""The one place where a trained answering model is loaded, whatever its format; and the answers it may choose from."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from m2i2.backends.choice import install
from m2i2.config import FinetuningConfig
from m2i2.data.loading.subset import questions_of
from m2i2.data.shards.split import ShardSplit
from m2i2.data.text.cleaning import candidate_answers
from m2i2.data.text.tokenizer import Tokenizer, load_tokenizer, require_same, require_size
from m2i2.errors import M2I2Error
from m2i2.files import MOST_JSON, parse_json, read_bytes
from m2i2.inference.answering import Answerer
from m2i2.models.bounds import require_described
from m2i2.models.start import official_answering
from m2i2.models.vqa import VQAModel
from m2i2.models.weights import load, read_state
from m2i2.options import override
from m2i2.training.checkpoint import Checkpoints, find_checkpoint, read_config


@dataclass(frozen=True)
class Loaded:
    """An answering model, in evaluation mode and on its device, with what belongs to it."""

    model: VQAModel
    tokenizer: Tokenizer
    config: FinetuningConfig
    checkpoint: Path
    """The checkpoint, file or folder that it was read from."""
    trained: dict[str, str]
    """How it was trained: ``protocol``, ``step``, ``chosen_by``."""

    def answerer(self, candidates: Sequence[str] = ()) -> Answerer:
        """The model, ready to be asked single questions; without ``candidates`` it writes its answers.

        ``candidates``: as the data spells them, as often as they come.
        """
        form = self.config.answering.form
        return Answerer(self.model, self.tokenizer, form, candidate_answers(candidates, form))


def load_model(source: Path, tokenizer: str = "", settings: Sequence[str] = (), *, best: bool = False) -> Loaded:
    """The answering model of a finetuning run, of a checkpoint of it, of an official ``.pth``, or of a Hugging Face folder.

    ``tokenizer``: required for official files; otherwise it must match the stored one. ``settings``: architecture of an
    official file that its shapes do not show. ``best``: of a run, the checkpoint that its selection chose, where it has one.
    """
    if (source / "processor_config.json").exists():
        found = _from_hugging_face(source)
    else:
        checkpoint = find_checkpoint(source, best=best)
        found = _from_run(checkpoint) if checkpoint.is_dir() else _from_official(checkpoint, tokenizer, settings)
    config, state, own, checkpoint, trained = found
    if not checkpoint.is_file():
        if settings:
            raise M2I2Error(f"{checkpoint} stores its settings; {settings[0]} is for official files only.")
        if tokenizer:
            require_same(load_tokenizer(tokenizer), own, str(checkpoint))
    require_size(own, config.text.vocabulary_size, str(checkpoint))
    require_described(config.vision, config.text, sum(t.numel() * t.element_size() for t in state.values()), str(checkpoint))
    model = VQAModel(config.vision, config.text)
    load(model, state, str(checkpoint))
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    install(device)
    model.to(device).eval().requires_grad_(False)
    return Loaded(model, own, config, checkpoint, trained)


_Found = tuple[FinetuningConfig, dict[str, torch.Tensor], Tokenizer, Path, dict[str, str]]


def finetune_first(run: Path) -> str:
    """What to do with a pretrained model that is asked questions."""
    return (
        f" It answers no questions yet. Finetune it first: python launchers/finetune.py --checkpoint {run} --shards QUESTIONS "
        f"--output runs/FINETUNED; then name runs/FINETUNED."
    )


def _from_run(checkpoint: Path) -> _Found:
    run = checkpoint.parent.parent if checkpoint.parent.name == "checkpoints" else checkpoint
    config = read_config(FinetuningConfig, checkpoint, finetune_first(run))
    protocol = config.answering.protocol + (", with rewrites of test questions" if config.answering.rewrites else "")
    chosen = Checkpoints(checkpoint.parent).best() == checkpoint
    trained = {
        "protocol": protocol,
        "step": checkpoint.name,
        "chosen_by": "selection" if chosen else "none (a checkpoint by its step)",
    }
    return config, read_state(checkpoint / "model.safetensors"), load_tokenizer(checkpoint / "tokenizer"), checkpoint, trained


def _from_official(path: Path, tokenizer: str, settings: Sequence[str]) -> _Found:
    if not tokenizer:
        raise M2I2Error(
            f"{path} is an official file, which carries no tokenizer: name the one it was trained with (evaluate.py "
            f"--tokenizer bert-base-uncased), or convert it first: "
            f"python tools/convert.py {path} --to checkpoint --tokenizer ... --output ..."
        )
    own = load_tokenizer(tokenizer)
    state, vision, text = official_answering(path)
    config = override(FinetuningConfig(preset="official", vision=vision, text=text), settings)
    return config, state, own, path, {"protocol": "unknown (an official file)", "step": path.name, "chosen_by": "unknown"}


def _from_hugging_face(folder: Path) -> _Found:
    from m2i2.hub.conversion import read

    weights = read(folder)
    if not isinstance(weights.settings, FinetuningConfig) or weights.tokenizer is None:
        raise M2I2Error(
            f"{folder} is a pretrained model, not a finetuned one. Convert it first: python tools/convert.py {folder} "
            f"--to checkpoint --output runs/NAME.{finetune_first(Path('runs/NAME'))}"
        )
    trained = {"protocol": weights.settings.answering.protocol, "step": folder.name, "chosen_by": "unknown"}
    return weights.settings, weights.student, weights.tokenizer, folder, trained


def read_candidates(source: Path) -> tuple[str, ...]:
    """Answers to choose from, as they are spelled: a text file, one per line; a JSON list; or the training answers of question
    shards."""
    if source.is_dir():
        return tuple(question.answer for question in questions_of(ShardSplit.open(source, "train", "vqa")))
    try:
        content = read_bytes(source, MOST_JSON)
        found = parse_json(content) if source.suffix == ".json" else content.decode("utf-8-sig").split("\n")
    except (OSError, ValueError) as e:
        raise M2I2Error(f"Cannot read the candidates {source}: {e}.") from e
    if not isinstance(found, list) or not all(isinstance(answer, str) for answer in found):
        raise M2I2Error(f"{source} is not a list of answers; write one per line, or a JSON list of texts.")
    answers = tuple(answer.strip() for answer in found if answer.strip())
    if not answers:
        raise M2I2Error(f"{source} holds no answers.")
    return answers
