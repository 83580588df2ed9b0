"""Whether a vocabulary fits a data set: the share of [UNK] among the tokens of its texts."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from m2i2.data.text.tokenizer import Tokenizer


@dataclass(frozen=True)
class Fit:
    """How many of the tokens of some texts the vocabulary does not know."""

    tokens: int
    unknown: int

    @property
    def share(self) -> float:
        """[UNK] among the tokens, 0 to 1."""
        return self.unknown / self.tokens if self.tokens else 0.0


def fit_of(tokenizer: Tokenizer, texts: Iterable[str]) -> Fit:
    """The fit of a vocabulary to texts, as they are cleaned for the model; each different text counts as often as it comes."""
    seen: dict[str, tuple[int, int]] = {}
    tokens = unknown = 0
    for text in texts:
        if text not in seen:
            ids = tokenizer.text_ids(text)
            seen[text] = len(ids), ids.count(tokenizer.unk_id)
        tokens, unknown = tokens + seen[text][0], unknown + seen[text][1]
    return Fit(tokens, unknown)


def misfit(fits: Mapping[str, Fit], most: float) -> str:
    """What is wrong, with figures and remedy, where more than the share ``most`` of some texts is [UNK]; else empty.

    ``fits``: by the name of the texts, such as "questions".
    """
    if all(fit.share <= most for fit in fits.values()):
        return ""
    figures = ", ".join(f"{100 * fit.share:.1f} % of the tokens of the {name}" for name, fit in fits.items())
    return (
        f"The vocabulary does not fit this data: {figures} are [UNK] (the bound is answering.max_unknown={most:g}), so that "
        f"different texts become the same tokens. Name a tokenizer of the data's language, such as "
        f"start.tokenizer=bert-base-chinese or bert-base-multilingual-cased, and start from weights that were trained with it."
    )
