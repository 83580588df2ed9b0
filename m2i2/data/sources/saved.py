"""Data sets of the library datasets: folders of ``save_to_disk``, and names on the Hugging Face hub.

Neither needs the library itself. A saved folder holds Arrow streams beside ``state.json`` and ``dataset_info.json``, one such
folder for each split where there is a ``dataset_dict.json``. Of a name on the hub the parquet files are downloaded: the data
set's own, else those that the hub has converted it to. Rows and columns are those of `m2i2.data.sources.parquet`.
"""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from m2i2.data.records import Kind
from m2i2.data.sources import arrow
from m2i2.data.sources.parquet import ParquetCaptions, ParquetQuestions, TableSource, columns_of
from m2i2.data.sources.vocabulary import ORDER, split_name
from m2i2.errors import M2I2Error, shown
from m2i2.files import read_object

_NAME = re.compile(r"(?P<name>[\w.-]+/[\w.-]+)(?::(?P<configuration>[\w.-]+))?")
CONVERTED = "refs/convert/parquet"
"""The hub's branch with its own conversion of a data set."""


class _Saved(TableSource):
    """What both kinds share."""

    name = "datasets"
    kind: Kind

    def __init__(self, path: Path, columns: str = "", image_root: Path | None = None, split: str = "") -> None:
        """``path``: a folder, or NAME or NAME:CONFIGURATION on the hub; ``split``: that of a folder saved without splits."""
        self._split = split
        self._labels: dict[Path, dict[str, list[str]]] = {}
        super().__init__(path if path.exists() else _downloaded(str(path)), columns, image_root)

    def _files_by_split(self, path: Path) -> dict[str, list[Path]]:
        if not (path / "dataset_dict.json").is_file() and not (path / "state.json").is_file():
            if list(path.rglob("*.parquet")):
                return super()._files_by_split(path)
            raise M2I2Error(
                f"{path} is not a folder of datasets' save_to_disk: it has neither dataset_dict.json nor state.json. Save the "
                f"data set with dataset.save_to_disk(FOLDER)."
            )
        if not (path / "dataset_dict.json").is_file():
            stored = self._split or read_object(path / "state.json", "state of a saved data set").get("_split") or "train"
            return {split_name(str(stored), str(path / "state.json")): self._streams(path)}
        names = read_object(path / "dataset_dict.json", "list of splits").get("splits")
        if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
            raise M2I2Error(f"{path / 'dataset_dict.json'} has splits={shown(names)}; a list of names was expected.")
        found: dict[str, list[Path]] = {}
        for name in names:
            split = split_name(name, str(path / "dataset_dict.json"))
            if split in found:
                raise M2I2Error(f"{path} has two splits that mean {split}; save it without one of them.")
            found[split] = self._streams(path / name)
        return {split: found[split] for split in sorted(found, key=ORDER.index)}

    def _streams(self, folder: Path) -> list[Path]:
        """The files of a saved split, in order; what they call their labels is remembered."""
        state = read_object(folder / "state.json", "state of a saved data set")
        if state.get("_indices_data_files"):
            raise M2I2Error(f"{folder} is a selection of rows; save it again after dataset.flatten_indices().")
        entries = state.get("_data_files")
        names = [entry.get("filename") if isinstance(entry, dict) else None for entry in entries or ()]
        if not isinstance(entries, list) or not names or not all(isinstance(n, str) and Path(n).name == n for n in names):
            raise M2I2Error(f"{folder / 'state.json'} has _data_files={shown(entries)}; names of files beside it were expected.")
        features = read_object(folder / "dataset_info.json", "description of a saved data set").get("features")
        labels = {}
        for column, feature in features.items() if isinstance(features, dict) else ():
            named = feature.get("names") if isinstance(feature, dict) and feature.get("_type") == "ClassLabel" else None
            if isinstance(named, list) and all(isinstance(label, str) for label in named):
                labels[column] = named
        files = [folder / str(name) for name in names]
        self._labels |= dict.fromkeys(files, labels)
        if missing := [file for file in files if not file.is_file()]:
            raise M2I2Error(f"{missing[0]} is missing, which {folder / 'state.json'} names; copy the folder again.")
        return files

    def _read(self, file: Path) -> Iterator[dict[str, Any]]:
        if file not in self._labels:
            yield from super()._read(file)
            return
        ours: dict[str, str] = {}

        def choose(header: Sequence[str]) -> list[str]:
            ours.update(columns_of(header, self.kind, self._renamed, file))
            return list(ours)

        for row in arrow.rows(file, choose):
            yield {ours[name]: _label(value, self._labels[file].get(name), file, name) for name, value in row.items()}


class SavedCaptions(_Saved, ParquetCaptions):
    """Rows of ``image`` and ``caption`` (a text or a list of texts)."""


class SavedQuestions(_Saved, ParquetQuestions):
    """Rows of ``image``, ``question`` and ``answer``; questions about the same image become one record."""


def _label(value: Any, names: list[str] | None, file: Path, column: str) -> Any:
    """The name of a label that is stored as a number; None for the number of none, which is -1."""
    if names is None or not isinstance(value, int):
        return value
    if not -1 <= value < len(names):
        raise M2I2Error(f"{file}: the column {shown(column)} has the label {value}; there are {len(names)}, from 0.")
    return names[value] if value >= 0 else None


def _downloaded(name: str) -> Path:
    """The parquet files of a name on the hub, in the hub's cache; M2I2Error where there are none, or no connection."""
    matched = _NAME.fullmatch(name)
    if not matched:
        raise M2I2Error(
            f"{name} is not there, and is not a name on the hub such as flaviagiammarino/vqa-rad. Name a folder of datasets' "
            f"save_to_disk, or a name."
        )
    from huggingface_hub import snapshot_download

    within = f"*{matched['configuration']}/" if matched["configuration"] else ""
    why = "it has no parquet files"
    for revision in (None, CONVERTED):
        try:
            wanted = f"{within}*.parquet"
            folder = Path(snapshot_download(matched["name"], repo_type="dataset", revision=revision, allow_patterns=wanted))
        except Exception as e:
            why = f"{type(e).__name__}: {(str(e).splitlines() or [''])[0]:.200}"
            continue
        if next(folder.rglob("*.parquet"), None):
            return folder
    raise M2I2Error(
        f"The data set {name} is not a local folder and could not be downloaded from the Hugging Face hub ({why}). Where there is "
        f"a connection, save it by Python: datasets.load_dataset({matched['name']!r}).save_to_disk(FOLDER). Then name FOLDER."
    )
