"""One reader a data set, by name. A new one is one file with a class like its neighbours and a line here."""

from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from m2i2.data.records import Kind, Source
from m2i2.errors import M2I2Error


@dataclass(frozen=True)
class Entry:
    """A data set that can be read."""

    kind: Kind
    about: str
    """One line for ``--help``: what it is and what PATH must hold."""
    example: str
    reader: str
    """module:Class, imported when it is used; the class takes the path (phantoms: none) and ``options``."""
    options: tuple[str, ...] = ()
    """Keyword arguments of the reader."""
    hub: bool = False
    """Whether PATH may also be a name on the Hugging Face hub."""


SOURCES: dict[tuple[Kind, str], Entry] = {
    ("captions", "rocov2"): Entry(
        "captions",
        "ROCOv2 / ImageCLEFmedical Caption: folders {train,valid,test} of ID.jpg, CSV or TSV files of ID and caption",
        "make_shards.py captions rocov2 data/rocov2 --output shards/rocov2",
        "m2i2.data.sources.rocov2:RocoV2",
    ),
    ("captions", "iu-xray"): Entry(
        "captions",
        "Indiana University chest X-rays: indiana_reports.csv, indiana_projections.csv and a folder of images",
        "make_shards.py captions iu-xray data/iu_xray --output shards/iu_xray",
        "m2i2.data.sources.iu_xray:IUXray",
        ("projections",),
    ),
    ("captions", "json"): Entry(
        "captions",
        "your own, or M2I2/ALBEF's: JSON, JSONL, CSV or TSV of image (a path; DICOM too) and caption (a text or a list)",
        "make_shards.py captions json data/pairs.json --image-root data/images --output shards/pairs",
        "m2i2.data.sources.caption_json:CaptionJson",
        ("image_root", "split", "columns"),
    ),
    ("captions", "vqa-text"): Entry(
        "captions",
        "the training questions and answers of question shards, as captions of the training images (--protocol clean)",
        "make_shards.py captions vqa-text shards/vqa_rad --keep-bytes --output shards/vqa_rad_text",
        "m2i2.data.loading.questions_as_captions:VqaText",
        ("protocol", "selection"),
    ),
    ("captions", "parquet"): Entry(
        "captions",
        "the hub's parquet files with images inside (e.g. eltorio/ROCOv2-radiology): columns image and caption or text",
        "make_shards.py captions parquet data/ROCOv2-radiology --output shards/rocov2",
        "m2i2.data.sources.parquet:ParquetCaptions",
        ("columns", "image_root"),
    ),
    ("captions", "datasets"): Entry(
        "captions",
        "a folder of datasets' save_to_disk, or a name on the hub (NAME or NAME:CONFIGURATION): columns image and caption or text",
        "make_shards.py captions datasets data/rocov2_saved --output shards/rocov2",
        "m2i2.data.sources.saved:SavedCaptions",
        ("columns", "image_root", "split"),
        hub=True,
    ),
    ("captions", "phantoms"): Entry(
        "captions",
        "synthetic images that the package generates (no PATH)",
        "make_shards.py captions phantoms --output shards/phantoms",
        "m2i2.data.sources.phantoms:PhantomCaptions",
        ("count", "seed"),
    ),
    ("vqa", "vqa-rad"): Entry(
        "vqa",
        "VQA-RAD: the OSF folder (VQA_RAD Dataset Public.json), or the MEVF/M2I2 one (trainset.json, testset.json)",
        "make_shards.py vqa vqa-rad data/vqa_rad --output shards/vqa_rad",
        "m2i2.data.sources.vqa_rad:VqaRad",
        ("image_root",),
    ),
    ("vqa", "slake"): Entry(
        "vqa",
        "SLAKE: train.json, validate.json, test.json and imgs/; English unless --language says otherwise",
        "make_shards.py vqa slake data/slake --output shards/slake",
        "m2i2.data.sources.slake:Slake",
        ("language",),
    ),
    ("vqa", "pathvqa"): Entry(
        "vqa",
        "PathVQA: qas/{train,val,test}_vqa.pkl (or .json) and images/{train,val,test}",
        "make_shards.py vqa pathvqa data/pathvqa --output shards/pathvqa",
        "m2i2.data.sources.pathvqa:PathVqa",
    ),
    ("vqa", "vqa-med-2019"): Entry(
        "vqa",
        "VQA-Med 2019: the training, validation and test archives unpacked, or questions.csv and its images",
        "make_shards.py vqa vqa-med-2019 data/vqa_med_2019 --output shards/vqa_med_2019",
        "m2i2.data.sources.vqa_med_2019:VqaMed2019",
    ),
    ("vqa", "json"): Entry(
        "vqa",
        "your own: JSON, JSONL, CSV or TSV of image (a path; DICOM too), question, answer and, optionally, answer_type, id, split",
        "make_shards.py vqa json data/questions.csv --image-root data/images --output shards/questions",
        "m2i2.data.sources.question_json:QuestionJson",
        ("image_root", "split", "columns"),
    ),
    ("vqa", "parquet"): Entry(
        "vqa",
        "the hub's parquet files with images inside (e.g. flaviagiammarino/vqa-rad): columns image, question and answer",
        "make_shards.py vqa parquet data/path-vqa --output shards/pathvqa",
        "m2i2.data.sources.parquet:ParquetQuestions",
        ("columns", "image_root"),
    ),
    ("vqa", "datasets"): Entry(
        "vqa",
        "a folder of datasets' save_to_disk, or a name on the hub (NAME or NAME:CONFIGURATION): image, question and answer",
        "make_shards.py vqa datasets flaviagiammarino/vqa-rad --output shards/vqa_rad",
        "m2i2.data.sources.saved:SavedQuestions",
        ("columns", "image_root", "split"),
        hub=True,
    ),
    ("vqa", "phantoms"): Entry(
        "vqa",
        "synthetic images that the package generates (no PATH)",
        "make_shards.py vqa phantoms --output shards/phantoms_vqa",
        "m2i2.data.sources.phantoms:PhantomQuestions",
        ("count", "seed"),
    ),
}


def open_source(kind: Kind, name: str, path: Path | None, **options: Any) -> Source:
    """The reader of a data set; M2I2Error for an unknown name, an option it does not take, or a path that is not there."""
    names = [n for k, n in SOURCES if k == kind]
    if (kind, name) not in SOURCES:
        raise M2I2Error(f"There is no source {name!r} of {kind}; there are {', '.join(names)}.")
    entry = SOURCES[kind, name]
    if extra := [key for key in options if key not in entry.options]:
        takes = ", ".join(f"--{o.replace('_', '-')}" for o in entry.options) or "no options"
        raise M2I2Error(f"The source {name} does not take --{extra[0].replace('_', '-')}; it takes {takes}.")
    if name == "phantoms":
        path = None
    elif path is None:
        raise M2I2Error(
            f"The source {name} needs the path of its data, and none was given ({entry.about}). "
            f"Name it behind {name}: python tools/{entry.example}"
        )
    elif not path.exists() and not entry.hub:
        raise M2I2Error(f"The source {name} needs the path of its data; {path} is not there ({entry.about}).")
    if (root := options.get("image_root")) is not None and not Path(root).is_dir():
        raise M2I2Error(
            f"--image-root {root} is not a folder. Image paths of the data start there: name the folder that holds them."
        )
    module, name_of_class = entry.reader.split(":")
    reader = getattr(import_module(module), name_of_class)
    return reader(**options) if path is None else reader(path, **options)
