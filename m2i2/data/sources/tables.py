"""Tables of your own, JSON, JSON Lines, CSV and TSV, whatever their columns are called, and the layouts that others publish."""

from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from m2i2.data.sources.reading import SEPARATORS, objects, separator_of, table_lines
from m2i2.data.sources.vocabulary import COLUMNS, find_columns, missing_column, renamed_columns
from m2i2.errors import M2I2Error

_NAMES = {**COLUMNS, "question_id": ("id", *COLUMNS["question_id"]), "split": ("split",), "conversations": ("conversations",)}
_TABLES = (".csv", ".tsv", ".txt", ".tab", ".gz", ".zip", ".xlsx")
"""Endings of what is not JSON; the last three are refused by their content."""


class OwnTable:
    """The records of a file by our names of columns; ``notes`` takes what had to be found out."""

    def __init__(self, path: Path, needed: tuple[str, ...], columns: str, notes: Counter[str]) -> None:
        if not path.is_file():
            raise M2I2Error(f"{path} is not a JSON, JSONL, CSV or TSV file.")
        self._path, self._needed, self._notes = path, needed, notes
        self._renamed = {("question_id" if ours == "id" else ours): theirs for ours, theirs in self._pairs(columns).items()}

    @staticmethod
    def _pairs(columns: str) -> Mapping[str, str]:
        return renamed_columns(columns, [*(name for name in _NAMES if name != "conversations"), "id"])

    def __iter__(self) -> Iterator[tuple[int, dict[str, Any]]]:
        """(number, record); a field that is empty in a table, or null, is None."""
        return self._of_table() if self._path.suffix.lower() in _TABLES else self._of_json()

    def _of_table(self) -> Iterator[tuple[int, dict[str, Any]]]:
        separator = separator_of(self._path)
        usual = "\t" if self._path.suffix.lower() == ".tsv" else ","
        if separator != usual:
            self._notes[f"table whose fields are separated by {SEPARATORS.get(separator, repr(separator))}"] += 1
        lines = table_lines(self._path)
        _, header = next(lines)
        found = find_columns(header, self._renamed, _NAMES)
        for ours in (*self._needed, *self._renamed):
            if ours not in found:
                raise M2I2Error(f"{self._path} has {missing_column(ours, self._renamed, header)}")
        places = {ours: header.index(theirs) for ours, theirs in found.items()}
        for line, row in lines:
            if not any(cell.strip() for cell in row):
                self._notes["empty row left out"] += 1
                continue
            yield line, {ours: _cell(row[place]) for ours, place in places.items()}

    def _of_json(self) -> Iterator[tuple[int, dict[str, Any]]]:
        unseen = set(self._renamed)
        number = -1
        for number, record in objects(self._path):
            found = find_columns(record, self._renamed, _NAMES)
            unseen -= found.keys()
            named = {ours: record[theirs] for ours, theirs in found.items()}
            if "conversations" in named:
                named = {**self._of_conversation(named.pop("conversations"), number), **named}
            for ours in self._needed:
                if ours not in named:
                    raise M2I2Error(
                        f"{self._path}, record {number}: the field {ours!r} is missing: there is "
                        f"{missing_column(ours, self._renamed, record)}"
                    )
            yield number, named
        if unseen and number >= 0:
            ours = min(unseen)
            raise M2I2Error(f"--columns {ours}={self._renamed[ours]}: no record of {self._path} has a field of that name.")

    def _of_conversation(self, turns: Any, number: int) -> dict[str, Any]:
        """Question and answer (or caption) of LLaVA's conversations, [{from: human, value: ...}, {from: gpt, value: ...}]."""
        said = (
            [(str(turn.get("from")), turn.get("value")) for turn in turns if isinstance(turn, dict)]
            if isinstance(turns, list)
            else []
        )
        if [who for who, _ in said] != ["human", "gpt"] or not all(isinstance(value, str) for _, value in said):
            raise M2I2Error(
                f"{self._path}, record {number}: its conversation is not one question of 'human' and one answer of 'gpt' but "
                f"{len(said)} turns; write a record for each question."
            )
        question, answer = (str(value) for _, value in said)
        return {"question": question.replace("<image>", "").strip(), "answer": answer, "caption": answer}


def _cell(value: str) -> str | None:
    """A field of a table; None for an empty one and for pandas' word for that."""
    return None if not value.strip() or value.strip().lower() == "nan" else value


def one_text(value: Any) -> Any:
    """The only element of a list of one, as some files write a text; anything else as it is."""
    return value[0] if isinstance(value, list) and len(value) == 1 else value
