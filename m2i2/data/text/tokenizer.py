"""WordPiece tokenizers: read from the Hugging Face hub or a folder, trained on a few captions, stored with checkpoints."""

import hashlib
import json
import string
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import tokenizers
from tokenizers.models import WordPiece
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer
from tokenizers.processors import TemplateProcessing

from m2i2.data.text.tokenizer_file import read_tokenizer_file, read_vocabulary
from m2i2.errors import M2I2Error, shown
from m2i2.files import read_object, write_json, write_text

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
_USUAL: dict[str, bool | None] = {"do_lower_case": True, "strip_accents": None, "tokenize_chinese_chars": True}
"""How a BERT tokenizer normalises, where tokenizer_config.json does not say (strip_accents: as it lower-cases)."""


class Tokenizer:
    """A lower-casing BERT tokenizer that writes [CLS] text [SEP] and nothing of its own beyond that."""

    def __init__(self, inner: tokenizers.Tokenizer, source: str) -> None:
        """M2I2Error unless ``inner`` (read from ``source``) is WordPiece with BERT's special tokens."""
        if not isinstance(inner.model, WordPiece):
            raise M2I2Error(f"The tokenizer {source} is {type(inner.model).__name__}, not WordPiece as BERT's is.")
        ids = {token: number for token in SPECIAL if (number := inner.token_to_id(token)) is not None}
        if missing := [token for token in SPECIAL if token not in ids]:
            raise M2I2Error(f"The tokenizer {source} lacks {', '.join(missing)}; name a BERT tokenizer.")
        self.size: int = inner.get_vocab_size()
        if max(inner.get_vocab().values()) >= self.size:
            raise M2I2Error(f"The tokenizer {source} has ids beyond its {self.size} tokens; store it again.")
        inner.no_truncation()
        inner.no_padding()
        self._inner = inner
        self.pad_id, self.unk_id, self.cls_id, self.sep_id, self.mask_id = (ids[token] for token in SPECIAL)

    def encode(self, text: str, max_tokens: int) -> list[int]:
        """[CLS] text [SEP], the text cut so that all of it is at most ``max_tokens`` long."""
        return [self.cls_id, *self.text_ids(text)[: max_tokens - 2], self.sep_id]

    def encode_answer(self, answer: str, max_tokens: int) -> list[int]:
        """[CLS] answer [SEP] [SEP], at most ``max_tokens`` long: the official code writes one [SEP], its tokenizer another."""
        return [*self.encode(answer, max_tokens - 1), self.sep_id]

    def text_ids(self, text: str) -> list[int]:
        """The tokens of the text alone."""
        return self._inner.encode(text, add_special_tokens=False).ids

    def decode(self, ids: Iterable[int]) -> str:
        """Text without special tokens; pieces are joined to words."""
        return self._inner.decode(list(ids), skip_special_tokens=True)

    def tokens(self, ids: Iterable[int]) -> list[str]:
        """The pieces themselves."""
        return [self._inner.id_to_token(i) or "" for i in ids]

    @property
    def library_object(self) -> tokenizers.Tokenizer:
        """The tokenizer as the library of that name has it."""
        return self._inner

    @property
    def fingerprint(self) -> str:
        """Equal for tokenizers that write the same ids."""
        description = json.loads(self._inner.to_str())
        relevant = {k: description.get(k) for k in ("model", "normalizer", "pre_tokenizer", "added_tokens")}
        return hashlib.sha256(json.dumps(relevant, sort_keys=True).encode()).hexdigest()[:16]

    def save(self, folder: Path) -> None:
        """Store it in the hub's format (tokenizer.json, vocab.txt, tokenizer_config.json)."""
        folder.mkdir(parents=True, exist_ok=True)
        write_text(folder / "tokenizer.json", self._inner.to_str(pretty=True))
        vocabulary = sorted(self._inner.get_vocab().items(), key=lambda item: item[1])
        write_text(folder / "vocab.txt", "".join(f"{token}\n" for token, _ in vocabulary))
        settings: dict[str, object] = {"tokenizer_class": "BertTokenizer", "do_lower_case": True}
        normalizer = json.loads(self._inner.to_str()).get("normalizer") or {}
        if normalizer.get("type") == "BertNormalizer":
            names = {
                "do_lower_case": "lowercase",
                "strip_accents": "strip_accents",
                "tokenize_chinese_chars": "handle_chinese_chars",
            }
            stored = {theirs: normalizer.get(ours) for theirs, ours in names.items()}
            unusual = {name: value for name, value in stored.items() if value is not _USUAL[name]}
            settings |= unusual
        write_json(folder / "tokenizer_config.json", settings)

    def __getstate__(self) -> str:
        return self._inner.to_str()

    def __setstate__(self, state: str) -> None:
        self.__init__(tokenizers.Tokenizer.from_str(state), "of the parent process")  # type: ignore[misc]


def load_tokenizer(source: str | Path) -> Tokenizer:
    """A tokenizer from a folder (tokenizer.json or vocab.txt), or by its name on the Hugging Face hub."""
    folder = Path(source)
    if folder.is_dir():
        try:
            if (folder / "tokenizer.json").exists():
                return Tokenizer(read_tokenizer_file(folder / "tokenizer.json"), str(folder))
            if (folder / "vocab.txt").exists():
                return _wordpiece(read_vocabulary(folder / "vocab.txt"), str(folder), _normalisation_of(folder))
        except M2I2Error:
            raise
        except Exception as e:  # tokenizers raises bare Exceptions
            raise M2I2Error(f"Cannot read the tokenizer in {folder}: {e}. Store it again.") from e
        raise M2I2Error(f"{folder} holds neither tokenizer.json nor vocab.txt; name a tokenizer's folder.")
    from huggingface_hub import snapshot_download

    try:
        folder = Path(snapshot_download(str(source), allow_patterns=_HUB_FILES))
    except Exception as e:
        raise M2I2Error(
            f"The tokenizer {str(source)!r} is not a local folder and could not be downloaded from the Hugging Face hub "
            f"({type(e).__name__}). Without a connection, download it elsewhere (hf download {source} {' '.join(_HUB_FILES)} "
            f"--local-dir FOLDER) and name that folder: start.tokenizer=FOLDER."
        ) from e
    return load_tokenizer(folder)


_HUB_FILES = ["tokenizer.json", "vocab.txt", "tokenizer_config.json"]


def _normalisation_of(folder: Path) -> dict[str, bool | None]:
    """How a folder's tokenizer_config.json says that texts are normalised; M2I2Error where it cannot be read."""
    path = folder / "tokenizer_config.json"
    stored = read_object(path, "tokenizer's settings") if path.exists() else {}
    found = {name: stored.get(name, usual) for name, usual in _USUAL.items()}
    if wrong := [name for name, value in found.items() if value not in (True, False, None)]:
        raise M2I2Error(f"{path}: {wrong[0]} is {shown(found[wrong[0]])}; true or false was expected.")
    return found


def _wordpiece(vocabulary: dict[str, int], source: str, normalisation: Mapping[str, bool | None] = _USUAL) -> Tokenizer:
    inner = tokenizers.Tokenizer(WordPiece(vocabulary, unk_token="[UNK]", max_input_chars_per_word=100))
    inner.normalizer = BertNormalizer(
        lowercase=bool(normalisation["do_lower_case"]),
        strip_accents=normalisation["strip_accents"],
        handle_chinese_chars=bool(normalisation["tokenize_chinese_chars"]),
    )
    inner.pre_tokenizer = BertPreTokenizer()
    inner.decoder = tokenizers.decoders.WordPiece()
    inner.add_special_tokens([token for token in SPECIAL if token in vocabulary])
    if all(token in vocabulary for token in SPECIAL):
        inner.post_processor = TemplateProcessing(
            single="[CLS] $A [SEP]",
            special_tokens=[("[CLS]", vocabulary["[CLS]"]), ("[SEP]", vocabulary["[SEP]"])],
        )
    return Tokenizer(inner, source)


def train_tokenizer(texts: Iterable[str], size: int) -> Tokenizer:
    """A WordPiece vocabulary of at most ``size`` tokens: letters, digits, every character of ``texts``, their frequent words.

    Ties are broken by spelling, so that the same texts give the same vocabulary in any order (the trainer of the
    tokenizers library does not promise that). It serves small closed vocabularies such as the demo's.
    """
    normalizer, splitter = BertNormalizer(lowercase=True), BertPreTokenizer()
    words: Counter[str] = Counter()
    for text in texts:
        words.update(word for word, _ in splitter.pre_tokenize_str(normalizer.normalize_str(text)))
    characters = sorted({c for word in words for c in word} | set(string.ascii_lowercase + string.digits))
    pieces = list(dict.fromkeys([*characters, *(f"##{c}" for c in characters)]))
    frequent = [word for word, _ in sorted(words.items(), key=lambda item: (-item[1], item[0])) if len(word) > 1]
    vocabulary = [*SPECIAL, *pieces, *frequent][: max(size, len(SPECIAL) + len(pieces))]
    return _wordpiece({token: i for i, token in enumerate(vocabulary)}, "trained here")


def require_size(tokenizer: Tokenizer, vocabulary_size: int, what: str) -> None:
    """M2I2Error unless the tokenizer has as many tokens as the word embeddings of ``what``."""
    if tokenizer.size != vocabulary_size:
        raise M2I2Error(
            f"The tokenizer has {tokenizer.size} tokens, but {what} has embeddings for {vocabulary_size}: they do not belong "
            f"together. Use the tokenizer stored beside the checkpoint (leave start.tokenizer out)."
        )


def require_same(given: Tokenizer, stored: Tokenizer, what: Sequence[str] | str) -> None:
    """M2I2Error unless both tokenizers write the same ids."""
    if given.fingerprint != stored.fingerprint:
        raise M2I2Error(
            f"The tokenizer given is not the one that {what} was trained with ({given.fingerprint} against "
            f"{stored.fingerprint}): its words would mean other embeddings. Leave start.tokenizer out."
        )
