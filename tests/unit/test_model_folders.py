"""Model folders from the web: nothing in them runs, leads out of them or explodes."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoConfig, AutoModelForVisualQuestionAnswering, AutoProcessor

from m2i2 import M2I2Config, M2I2ForVisualQuestionAnswering, M2I2Processor
from m2i2.data.text.tokenizer import load_tokenizer
from m2i2.errors import M2I2Error
from m2i2.models.start import stored_architecture
from m2i2.training.checkpoint import seal
from m2i2.workflows.answering import load_model
from tests.conftest import ROOT
from tests.fuzz.harness import refuses

DEEP = "[" * 5000 + "]" * 5000


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model of version 0.1."""
    return Path(shutil.copytree(ROOT / "tests" / "golden" / "artefacts" / "hugging_face", tmp_path / "model"))


def change(path: Path, **values: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def plant(folder: Path, marker: Path) -> None:
    """Code in the folder, named wherever transformers looks for some."""
    (folder / "evil.py").write_text(
        f"from pathlib import Path\nPath({str(marker)!r}).touch()\nfrom transformers import BertTokenizer as Evil\n"
    )
    names = {"AutoConfig": "evil.Evil", "AutoModelForVisualQuestionAnswering": "evil.Evil", "AutoProcessor": "evil.Evil"}
    change(folder / "config.json", auto_map=names)
    change(folder / "processor_config.json", auto_map=names)
    change(folder / "tokenizer_config.json", auto_map={"AutoTokenizer": ["evil.Evil", "evil.Evil"]}, tokenizer_class="Evil")


@pytest.mark.filterwarnings("ignore:Keys of the model's config.json")
def test_no_code_of_a_folder_runs_and_nobody_is_asked(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plant(folder, tmp_path / "marker")
    monkeypatch.setattr("builtins.input", lambda *words: pytest.fail("the user was asked to run the folder's code"))
    for trust in (None, True):
        kwargs = {} if trust is None else {"trust_remote_code": trust}
        assert M2I2Processor.from_pretrained(folder, **kwargs).own_tokenizer.size == 131
        assert M2I2ForVisualQuestionAnswering.from_pretrained(folder, **kwargs).processor.image_size == 32
    assert isinstance(AutoProcessor.from_pretrained(folder), M2I2Processor)
    assert isinstance(AutoConfig.from_pretrained(folder), M2I2Config)
    assert isinstance(AutoModelForVisualQuestionAnswering.from_pretrained(folder), M2I2ForVisualQuestionAnswering)
    assert load_model(folder).answerer(["yes", "no"]).candidates == ("yes", "no")
    assert not (tmp_path / "marker").exists()


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("_attn_implementation", "evil/kernel"),
        ("attn_implementation", "evil/kernel"),
        ("_attn_implementation_internal", "evil/kernel"),
        ("_experts_implementation", "evil/kernel"),
        ("quantization_config", {"quant_method": "gptq", "bits": 4}),
        ("configuration_files", ["config.1.0.0.json"]),
        ("transformers_weights", "../elsewhere.safetensors"),
        ("fusion_config", {"a": "b"}),
    ],
)
def test_keys_that_lead_elsewhere_are_not_followed(folder: Path, key: str, value: Any) -> None:
    change(folder / "config.json", **{key: value})
    with pytest.warns(UserWarning, match=f"config.json that are not followed: .'{key}'"):
        model = M2I2ForVisualQuestionAnswering.from_pretrained(folder)
    assert model.config._attn_implementation == "sdpa"
    assert not hasattr(model.config, "quantization_config") and getattr(model.config, "transformers_weights", None) is None


def test_a_choice_of_the_caller_s_own_is_followed(folder: Path) -> None:
    model = M2I2ForVisualQuestionAnswering.from_pretrained(folder, attn_implementation="eager")
    assert model.config._attn_implementation == "eager"


def rewritten(file: str, text: str) -> Callable[[Path], Any]:
    return lambda folder: (folder / file).write_text(text)


@pytest.mark.parametrize(
    ("prepare", "message"),
    [
        (lambda f: change(f / "config.json", dtype="load"), "dtype='load'; it must be one of"),
        (lambda f: change(f / "config.json", architectures={"a": 1}), "architectures"),
        (lambda f: change(f / "config.json", vision=DEEP), "vision|settings"),
        (rewritten("config.json", DEEP), "nested too deeply|JSON object"),
        (rewritten("processor_config.json", DEEP), "nested too deeply"),
        (lambda f: change(f / "processor_config.json", image_size=1 << 40), "image_size=1099511627776"),
        (lambda f: change(f / "config.json", vision={"depth": 10**9}), "describe a model of at least"),
        (lambda f: change(f / "config.json", vision={"image_size": 16 << 20}), "describe a model of at least"),
        (lambda f: change(f / "config.json", text={"width": 12 << 20}), "describe a model of at least"),
        (rewritten("adapter_config.json", '{"base_model_name_or_path": "evil/model"}'), "an adapter of another model"),
        (rewritten("model.safetensors.index.json", '{"weight_map": {"a": "../x.safetensors"}}'), "a file outside its folder"),
        (rewritten("model.safetensors.index.json", '{"weight_map": {"a": "/etc/passwd"}}'), "a file outside its folder"),
    ],
)
def test_folders_that_are_refused(folder: Path, prepare: Callable[[Path], Any], message: str) -> None:
    prepare(folder)

    def read(data: bytes) -> None:
        M2I2ForVisualQuestionAnswering.from_pretrained(folder).processor  # noqa: B018

    with pytest.raises(M2I2Error, match=message):
        read(b"")


def test_a_checkpoint_describes_no_more_than_it_holds(tmp_path: Path) -> None:
    run = Path(shutil.copytree(ROOT / "tests" / "golden" / "artefacts" / "finetuning_run", tmp_path / "run"))
    (path,) = run.rglob("step-*/config.json")
    stored = json.loads(path.read_text())
    change(path, text={**stored["text"], "depth": 10**9})
    seal(path.parent)
    for read in (load_model, lambda run: stored_architecture(path.parent)):
        with pytest.raises(M2I2Error, match="describe a model of at least"):
            read(run)


# --- tokenizer.json

GROWING = {"type": "Sequence", "normalizers": [{"type": "Replace", "pattern": {"String": "a"}, "content": "a" * 100}] * 8}
ENDLESS = {"type": "Split", "pattern": {"Regex": "(a+)+$"}, "behavior": "Isolated", "invert": False}
CHARSMAP = {"type": "Precompiled", "precompiled_charsmap": "AAAAAAAA"}


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda t: t.update(normalizer=GROWING), "normalizer 'Replace', which is not read"),
        (lambda t: t.update(normalizer=CHARSMAP), "normalizer 'Precompiled', which is not read"),
        (lambda t: t.update(pre_tokenizer=ENDLESS), "pre_tokenizer 'Split', which is not read"),
        (lambda t: t.update(decoder={"type": "Replace", "pattern": {"String": ""}, "content": "x"}), "decoder 'Replace'"),
        (lambda t: t.update(post_processor={"type": "ByteLevel"}), "post_processor 'ByteLevel'"),
        (lambda t: t["model"].update(type="BPE", merges=[]), "is 'BPE', not WordPiece"),
        (lambda t: t["model"].update(max_input_chars_per_word=1 << 40), "more than 1000"),
        (lambda t: t["model"].update(unk_token="nowhere"), "not in its vocabulary"),
        (lambda t: t["model"]["vocab"].update({"x" * 5000: 200}), "a token of more than 1000 characters"),
        (lambda t: t["model"].update(vocab=[]), "its vocabulary is not valid"),
        (lambda t: t.update(added_tokens=[{"id": 1, "content": ""}]), "not a short text"),
        (lambda t: t.update(added_tokens=[{"id": n, "content": str(n)} for n in range(10_001)]), "adds more than 10000 tokens"),
        (lambda t: t.update(normalizer={"type": "Sequence", "normalizers": [t["normalizer"]] * 17}), "at most 16 parts"),
    ],
)
def test_tokenizers_are_made_of_bert_s_parts(folder: Path, edit: Callable[[dict[str, Any]], Any], message: str) -> None:
    path = folder / "tokenizer.json"
    values = json.loads(path.read_text())
    edit(values)
    path.write_text(json.dumps(values))

    def read(data: bytes) -> None:
        load_tokenizer(folder).encode("a" * 1000, 100)

    with pytest.raises(M2I2Error, match=message):
        read(b"")
    assert refuses(read, b""), "within bounds of time and memory"


def test_a_tokenizer_that_makes_the_library_panic_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class PanicException(BaseException):
        """As the library's bindings raise it."""

    class Panicking:
        @staticmethod
        def from_str(text: str) -> Any:
            raise PanicException("called `Option::unwrap()` on a `None` value")

    monkeypatch.setattr("m2i2.data.text.tokenizer_file.tokenizers.Tokenizer", Panicking)
    with pytest.raises(M2I2Error, match="Cannot read the tokenizer"):
        load_tokenizer(folder)


def test_settings_of_padding_and_truncation_are_ours(folder: Path) -> None:
    before = load_tokenizer(folder)
    padding = {"strategy": {"Fixed": 1 << 40}, "direction": "Right", "pad_to_multiple_of": None}
    change(folder / "tokenizer.json", padding={**padding, "pad_id": 0, "pad_type_id": 0, "pad_token": "[PAD]"})
    after = load_tokenizer(folder)
    assert after.fingerprint == before.fingerprint and after.encode("is there", 9) == before.encode("is there", 9)
