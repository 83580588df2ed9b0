"""Indiana University chest X-rays: a report's findings and impression as the caption of each of its images."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from m2i2.data.records import ImageRecord, Kind
from m2i2.data.sources.reading import find_image, key_of, rows
from m2i2.errors import M2I2Error


class IUXray:
    """``indiana_reports.csv``, ``indiana_projections.csv`` and ``images*/`` (or ``images/images*/``), whole or in part."""

    name = "iu-xray"
    kind: Kind = "captions"

    def __init__(self, path: Path, projections: str = "all") -> None:
        """``projections``: frontal, lateral or all."""
        if projections not in ("frontal", "lateral", "all"):
            raise M2I2Error(f"--projections {projections!r} must be frontal, lateral or all.")
        self.left_out: Counter[str] = Counter()
        self.notes: Counter[str] = Counter()
        self._path, self._projections = path, projections
        folders = sorted(f for f in path.glob("images*") if f.is_dir())
        if len(folders) != 1:
            found = ", ".join(f.name for f in folders) or "none"
            raise M2I2Error(f"{path} must hold one folder images*, it holds {found}.")
        inner = sorted(f for f in folders[0].glob("images*") if f.is_dir())
        self._folder = inner[0] if len(inner) == 1 else folders[0]

    def __iter__(self) -> Iterator[ImageRecord]:
        self.left_out.clear()
        columns = {c: c for c in ("uid", "problems", "findings", "impression")}
        reports: dict[str, dict[str, str]] = {}
        for line, row in rows(written := self._path / "indiana_reports.csv", columns):
            if row["uid"] in reports:
                raise M2I2Error(f"{written}, line {line}: the uid {row['uid']!r} comes twice; remove one of the reports.")
            reports[row["uid"]] = row
        table = self._path / "indiana_projections.csv"
        for line, row in rows(table, {c: c for c in ("uid", "filename", "projection")}):
            report = reports.get(row["uid"])
            if report is None:
                raise M2I2Error(f"{table}, line {line}: there is no report {row['uid']!r} in indiana_reports.csv.")
            image = find_image(self._folder, row["filename"])
            if not image.is_file():
                image = find_image(self._folder, row["filename"].removesuffix(".png") + ".jpg")
            caption = " ".join(part.strip() for part in (report["findings"], report["impression"]) if part.strip())
            if self._projections not in ("all", row["projection"].lower()):
                self.left_out["other projection"] += 1
            elif not image.is_file():
                self.left_out["image not in the folder"] += 1
            elif not caption:
                self.left_out["report without findings and impression"] += 1
            else:
                yield ImageRecord(
                    key=key_of(row["filename"]),
                    split="train",
                    image=image,
                    captions=(caption,),
                    metadata={"uid": row["uid"], "projection": row["projection"], "problems": report["problems"]},
                )
