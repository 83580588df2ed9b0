"""Tokenizers: trained, stored, read again, refused where they do not fit."""

import json
import pickle
from pathlib import Path

import pytest
import tokenizers

from m2i2.cli.make_shards import main as make_shards
from m2i2.cli.make_tokenizer import main as make_tokenizer
from m2i2.data.text.tokenizer import SPECIAL, Tokenizer, load_tokenizer, require_same, require_size, train_tokenizer
from m2i2.errors import M2I2Error

TEXTS = ["left lower lobe opacity", "a chest x ray without opacity", "right upper lobe nodule", "no nodule"]


def test_words_survive_the_way_through_ids() -> None:
    tokenizer = train_tokenizer(TEXTS, 200)
    ids = tokenizer.encode("Left lower lobe NODULE", 32)
    assert ids[0] == tokenizer.cls_id and ids[-1] == tokenizer.sep_id
    assert tokenizer.decode(ids) == "left lower lobe nodule"
    assert tokenizer.unk_id not in ids


def test_long_texts_are_cut_before_the_separator() -> None:
    tokenizer = train_tokenizer(TEXTS, 200)
    ids = tokenizer.encode("left lower lobe nodule " * 10, 6)
    assert len(ids) == 6 and ids[-1] == tokenizer.sep_id


def test_the_same_texts_give_the_same_vocabulary() -> None:
    one, other = train_tokenizer(TEXTS, 120), train_tokenizer(reversed(TEXTS), 120)
    assert one.fingerprint == other.fingerprint
    assert train_tokenizer(TEXTS[:2], 120).fingerprint != one.fingerprint


@pytest.mark.parametrize("file", ["tokenizer.json", "vocab.txt"])
def test_a_stored_tokenizer_reads_back(tmp_path: Path, file: str) -> None:
    tokenizer = train_tokenizer(TEXTS, 200)
    tokenizer.save(tmp_path / "all")
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / file).write_bytes((tmp_path / "all" / file).read_bytes())
    again = load_tokenizer(tmp_path / "one")
    assert again.encode("right opacity", 9) == tokenizer.encode("right opacity", 9)
    assert again.size == tokenizer.size
    require_same(again, tokenizer, "the run")
    assert pickle.loads(pickle.dumps(tokenizer)).encode("right", 9) == tokenizer.encode("right", 9)


def test_transformers_reads_the_stored_folder(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = train_tokenizer(TEXTS, 200)
    tokenizer.save(tmp_path)
    assert AutoTokenizer.from_pretrained(tmp_path)("right upper lobe")["input_ids"] == tokenizer.encode("right upper lobe", 99)


ODD = "\u2028"
"""A line separator to Python, a token to BERT's Chinese vocabulary."""
VOCABULARIES = {
    "cased": ("Left lung, Knötchen left", ["Left", "left", "lung", ",", "Kn", "##ö", "##t", "##chen"], {"do_lower_case": False}),
    "uncased": ("Left lung, Knötchen left", ["left", "lung", ",", "kn", "##o", "##t", "##chen"], {"do_lower_case": True}),
    "silent": ("Left lung", ["left", "Left", "lung"], None),
    "chinese": (
        "左肺结节 ok",
        ["左", "肺", ODD, "结", "节", "##肺", "ok"],
        {"do_lower_case": False, "tokenize_chinese_chars": True},
    ),
    "accents": ("Knötchen", ["kn", "##ö", "##o", "##t", "##chen"], {"do_lower_case": True, "strip_accents": False}),
}


@pytest.mark.parametrize("name", VOCABULARIES)
def test_a_vocabulary_is_read_as_transformers_reads_it(tmp_path: Path, name: str) -> None:
    """BioBERT, ClinicalBERT and others come as vocab.txt with a few settings beside it."""
    from transformers import BertTokenizer

    text, tokens, settings = VOCABULARIES[name]
    (tmp_path / "vocab.txt").write_text("".join(f"{token}\n" for token in [*SPECIAL, *tokens]), encoding="utf-8")
    if settings is not None:
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    ours = load_tokenizer(tmp_path)
    ids = ours.encode(text, 32)
    assert ids == BertTokenizer.from_pretrained(tmp_path)(text)["input_ids"]
    assert ours.unk_id not in ids and ours.size == 5 + len(tokens)
    ours.save(tmp_path / "saved")
    assert load_tokenizer(tmp_path / "saved").fingerprint == ours.fingerprint
    (tmp_path / "saved" / "tokenizer.json").unlink()
    assert load_tokenizer(tmp_path / "saved").fingerprint == ours.fingerprint


def test_truncation_stored_in_the_file_is_switched_off(tmp_path: Path) -> None:
    inner = tokenizers.Tokenizer.from_str(train_tokenizer(TEXTS, 200).__getstate__())
    inner.enable_truncation(4)
    inner.enable_padding(length=12)
    assert len(Tokenizer(inner, "test").encode("left lower lobe opacity", 32)) == 6


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    with pytest.raises(M2I2Error, match=r"neither tokenizer\.json nor vocab\.txt"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(M2I2Error, match="Cannot read the tokenizer"):
        load_tokenizer(tmp_path)
    (tmp_path / "vocab").mkdir()
    (tmp_path / "vocab" / "vocab.txt").write_text("[PAD]\n[UNK]\nlobe\n")
    with pytest.raises(M2I2Error, match=r"lacks \[CLS\], \[SEP\], \[MASK\]"):
        load_tokenizer(tmp_path / "vocab")
    one, other = train_tokenizer(TEXTS, 200), train_tokenizer(TEXTS[:1], 200)
    with pytest.raises(M2I2Error, match="do not belong together"):
        require_size(one, one.size + 1, "the checkpoint")
    with pytest.raises(M2I2Error, match="not the one that the run was trained with"):
        require_same(one, other, "the run")


def test_a_vocabulary_of_shards_knows_their_training_words(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folders = [str(tmp_path / kind) for kind in ("captions", "vqa")]
    for folder in folders:
        assert (
            make_shards([Path(folder).name, "phantoms", "--count", "12", "--side", "16", "--workers", "1", "--output", folder]) == 0
        )
    for name, shards in (("one", folders[:1]), ("both", folders), ("again", folders[::-1])):
        assert make_tokenizer([*shards, "--output", str(tmp_path / name)]) == 0
    one, both, again = (load_tokenizer(tmp_path / name) for name in ("one", "both", "again"))
    assert both.fingerprint == again.fingerprint != one.fingerprint
    asked = both.encode("which body region is shown", 32)
    assert both.unk_id not in asked and len(asked) == 7
    capsys.readouterr()
    assert make_tokenizer([*folders, "--output", str(tmp_path / "both")]) == 2
    assert "is not empty" in capsys.readouterr().err
    (tmp_path / "file").touch()
    assert make_tokenizer([*folders, "--output", str(tmp_path / "file")]) == 2
    assert "is not a folder" in capsys.readouterr().err
