"""The words that tables use: names of splits, of answer types and of columns. One list for every source."""

from collections.abc import Iterable, Mapping

from m2i2.errors import M2I2Error

SPLITS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validate", "validation", "dev", "development"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}
"""The names that splits have, in small letters, and ours."""
ORDER = ("train", "val", "test")
"""Of splits in a folder of shards."""

ANSWER_TYPES: dict[str, bool | None] = {
    **dict.fromkeys(("closed", "closed-ended", "close", "close-ended", "yes/no", "y/n", "yes-no", "yesno", "binary"), True),
    **dict.fromkeys(("multiple choice", "multiple-choice", "choice"), True),
    **dict.fromkeys(("open", "open-ended", "openended", "other", "number", "free-form", "freeform", "free text"), False),
    **dict.fromkeys(("", "null", "none", "nan", "n/a", "na", "unknown"), None),
}
"""The names that answer types have, and whether they mean a fixed choice of answers; None where nothing is said."""

COLUMNS: dict[str, tuple[str, ...]] = {
    "image": ("image", "img", "image_path", "filepath", "file_name", "filename", "image_name", "figure_path", "images"),
    "caption": ("caption", "captions", "text", "title", "report"),
    "question": ("question",),
    "answer": ("answer", "answers"),
    "image_id": ("image_id",),
    "question_id": ("qid", "question_id"),
    "answer_type": ("answer_type",),
    "question_type": ("question_type", "content_type"),
    "phrase_type": ("phrase_type",),
    "modality": ("modality",),
    "organ": ("organ", "image_organ", "location"),
    "language": ("q_lang", "language"),
    "cui": ("cui",),
}
"""What we call a column, and the names that it has in published files, the most usual first."""


def split_name(name: str, where: str) -> str:
    """train, val or test for the name that a split has in ``where``; M2I2Error for an unknown one lists those that are known."""
    found = SPLITS.get(name.strip().lower())
    if found is None:
        raise M2I2Error(f"{where}: the split {name!r:.80} is not known; the names of splits are {', '.join(SPLITS)}.")
    return found


def means_closed(name: str, where: str) -> bool | None:
    """Whether an answer type means a fixed choice of answers, None where it says nothing; M2I2Error for an unknown one."""
    word = " ".join(name.strip().lower().replace("_", "-").split())
    if word not in ANSWER_TYPES:
        known = ", ".join(word for word in ANSWER_TYPES if word)
        raise M2I2Error(f"{where}: the answer type {name!r:.80} is not known; there are {known}, or leave it empty.")
    return ANSWER_TYPES[word]


def renamed_columns(columns: str, known: Iterable[str] = COLUMNS) -> dict[str, str]:
    """ "caption=findings,image=scan" as {our name: theirs}; M2I2Error for a name that is not ours."""
    ours_known = list(known)
    pairs = [pair.partition("=") for pair in columns.split(",") if pair]
    for ours, separator, theirs in pairs:
        if ours.strip() not in ours_known or not separator or not theirs.strip():
            raise M2I2Error(f"--columns {columns!r}: write OURS=THEIRS,...; ours are {', '.join(ours_known)}.")
    return {ours.strip(): theirs.strip() for ours, _, theirs in pairs}


def find_columns(header: Iterable[str], renamed: Mapping[str, str], names: Mapping[str, tuple[str, ...]]) -> dict[str, str]:
    """{our name: theirs} for the columns of a header that are known, compared without case and spaces around them."""
    there = {name.strip().lower(): name for name in header}
    found = {}
    for ours, usual in names.items():
        wanted = (renamed[ours].lower(),) if ours in renamed else usual
        if (theirs := next((there[name] for name in wanted if name in there), None)) is not None:
            found[ours] = theirs
    return found


def missing_column(ours: str, renamed: Mapping[str, str], header: Iterable[str]) -> str:
    """What an error says of a column that is not there."""
    there = ", ".join(header)
    return (
        f"no column {renamed.get(ours, COLUMNS.get(ours, (ours,))[0])!r}; it has {there[:300]}. "
        f"Name the one that is meant: --columns {ours}=..."
    )
