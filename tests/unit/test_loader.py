"""The loader: every item once an epoch at any number of ranks, the same rows, from any starting point."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from m2i2.cli.make_shards import main as make_shards
from m2i2.data.images.transforms import Augmentation
from m2i2.data.loading.batch import CaptionBatch
from m2i2.data.loading.corpus import Corpus
from m2i2.data.loading.loader import Loader
from m2i2.data.loading.rows import CaptionRows, QuestionRows
from m2i2.data.loading.sampling import Position, Share
from m2i2.data.loading.slots import SLOTS
from m2i2.data.text.tokenizer import Tokenizer, train_tokenizer
from m2i2.errors import M2I2Error
from m2i2.presets import preset
from tests.conftest import ROOT

AUGMENTATION = Augmentation(size=32, crop_scale=(0.2, 1.0), flip=False, randaugment=(2, 7))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shards")
    for kind in ("captions", "vqa"):
        words = ["--count", "37", "--samples-per-shard", "5", "--side", "32", "--workers", "1"]
        assert make_shards([kind, "phantoms", "--output", str(folder / kind), *words]) == 0
    return folder


def tokenizer_of(corpus: Corpus) -> Tokenizer:
    return train_tokenizer((text for part in corpus.parts for text in part.texts()), 300)


def captions(folder: Path, share: Share, workers: int = 0, start: Position | None = None) -> Loader[CaptionBatch]:
    corpus = Corpus.open([folder / "captions"], "train", "captions")
    rows = CaptionRows(AUGMENTATION, tokenizer_of(corpus), 30, 32, 0.3, 16)
    loader: Loader[CaptionBatch] = Loader(corpus, rows, share, epochs=2, seed=5, window=3, workers=workers)
    loader.starting_at(start or Position())
    return loader


def test_ranks_workers_and_micro_batches_see_the_same_rows(folder: Path) -> None:
    whole = list(captions(folder, Share(8, 1, 0, 1)))
    assert len(whole) == 2 * (37 // 8)
    for epoch in range(2):
        items = torch.cat([b.item for b in whole[epoch * 4 : epoch * 4 + 4]]).tolist()
        assert len(set(items)) == len(items) == 32
    parts = [list(captions(folder, Share(8, 2, rank, 2), workers=2)) for rank in range(2)]
    for step, batch in enumerate(whole):
        for micro in range(2):
            for rank in range(2):
                part = parts[rank][2 * step + micro]
                rows = slice(4 * micro + 2 * rank, 4 * micro + 2 * rank + 2)
                assert part.item.tolist() == batch.item[rows].tolist()
                assert torch.equal(part.image, batch.image[rows])
                assert torch.equal(part.student_noise, batch.student_noise[rows])
                length = part.labels.shape[1]
                assert torch.equal(part.labels, batch.labels[rows][:, :length])
                assert torch.equal(part.masked_input_ids, batch.masked_input_ids[rows][:, :length])


def test_a_worker_uses_the_memory_of_a_batch_again_only_when_nobody_sees_it(folder: Path) -> None:
    expected = [batch.image for batch in captions(folder, Share(8, 1, 0, 1))] * 2
    share = Share(8, 1, 0, 1)
    kept = [batch.image for _ in range(2) for batch in captions(folder, share, workers=1)]
    views = [batch.image[1:3, 0] for _ in range(2) for batch in captions(folder, share, workers=1)]
    assert len(kept) > SLOTS
    assert all(torch.equal(image, other) for image, other in zip(kept, expected, strict=True))
    assert all(torch.equal(view, other[1:3, 0]) for view, other in zip(views, expected, strict=True))


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="looks memory up")
def test_a_worker_shares_the_memory_of_few_batches(folder: Path) -> None:
    def file_at(address: int) -> str:
        for line in Path("/proc/self/maps").read_text().splitlines():
            first, last = (int(place, 16) for place in line.split()[0].split("-"))
            if first <= address < last:
                return line.split(maxsplit=5)[4]  # the inode
        raise AssertionError("nothing is mapped there")

    files = [file_at(batch.image.data_ptr()) for batch in captions(folder, Share(2, 1, 0, 1), workers=1)]
    assert len(files) == 36 and "0" not in files and len(set(files)) <= SLOTS


def test_starting_in_the_middle_continues(folder: Path) -> None:
    whole = list(captions(folder, Share(8, 1, 0, 1)))
    rest = list(captions(folder, Share(8, 1, 0, 1), start=Position(1, 2)))
    assert [b.item.tolist() for b in rest] == [b.item.tolist() for b in whole[6:]]
    assert torch.equal(rest[0].image, whole[6].image)


def test_epochs_draw_anew(folder: Path) -> None:
    first, *_, last = captions(folder, Share(37, 1, 0, 1))
    order = [int((last.item == item).nonzero()) for item in first.item]
    assert sorted(order) == list(range(37))
    assert order != list(range(37))
    assert not torch.equal(first.image, last.image[order])
    assert not torch.equal(first.teacher_noise, last.teacher_noise[order])
    assert not torch.equal(first.teacher_noise, first.student_noise)


def test_captions_are_padded_and_identified(folder: Path) -> None:
    batch = next(iter(captions(folder, Share(8, 1, 0, 1))))
    lengths = batch.attention_mask.sum(1)
    length = batch.input_ids.shape[1]
    assert length % 8 == 0 and length - 8 < int(lengths.max()) <= length, "a few lengths"
    assert (batch.labels[batch.attention_mask == 0] == -100).all()
    assert len(set(batch.image_id.tolist())) == 8
    assert batch.masked_input_ids.shape == batch.labels.shape == (8, length)
    asked = batch.labels.flatten()[batch.places]
    assert int((asked != -100).sum()) == int((batch.labels != -100).sum()) > 0


def test_on_several_ranks_every_caption_has_the_same_length(folder: Path) -> None:
    config = preset("tiny")[0]
    corpus = Corpus.open([folder / "captions"], "train", "captions")
    for ranks, lengths in ((1, ()), (2, (config.data.max_tokens,))):
        rows = CaptionRows.of(config, AUGMENTATION, tokenizer_of(corpus), ranks)
        assert rows.lengths == lengths
        batch = next(iter(Loader[CaptionBatch](corpus, rows, Share(8, 1, 0, ranks), epochs=1, seed=0, window=2, workers=0)))
        assert ranks == 1 or batch.input_ids.shape[1] == config.data.max_tokens


def test_answers_end_twice(folder: Path) -> None:
    corpus = Corpus.open([folder / "vqa"], "train", "vqa")
    tokenizer = tokenizer_of(corpus)
    rows = QuestionRows(AUGMENTATION, tokenizer, 30, 64, "official")
    batch = next(iter(Loader(corpus, rows, Share(6, 1, 0, 1), epochs=1, seed=0, window=2, workers=0)))
    for ids, mask in zip(batch.answer_ids.tolist(), batch.answer_mask.sum(1).tolist(), strict=True):
        assert ids[0] == tokenizer.cls_id
        assert ids[mask - 2 : mask] == [tokenizer.sep_id] * 2
        assert tokenizer.decode(ids)


def test_a_batch_that_does_not_divide_is_refused() -> None:
    with pytest.raises(M2I2Error, match=r"training.batch=10 does not divide by 4 ranks x training.accumulation=2"):
        Share(10, 2, 0, 4)


def damage(folder: Path, items: list[int]) -> None:
    """Overwrite the images of items in their shards."""
    split = Corpus.open([folder], "train", "captions").parts[0]
    for row in split.items[items]:
        path = folder / split.shards[int(row["shard"])].file
        data = bytearray(path.read_bytes())
        start = int(row["image_offset"])
        data[start : start + int(row["image_size"])] = bytes(int(row["image_size"]))
        path.write_bytes(data)


def test_another_sample_takes_the_place_of_an_unreadable_one(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder / "captions", tmp_path / "captions")
    damage(tmp_path / "captions", [11, 30])
    whole = list(captions(folder, Share(37, 1, 0, 1)))
    for ranks, workers in ((1, 0), (1, 2)):
        batches = list(captions(tmp_path, Share(37, 1, 0, ranks), workers))
        for batch, expected in zip(batches, whole, strict=True):
            wrong = [i for i, item in enumerate(expected.item.tolist()) if item in (11, 30)]
            assert sorted(item for item, _ in batch.unreadable) == [11, 30]
            assert all("holds damaged bytes at offset" in reason for _, reason in batch.unreadable)
            changed = (batch.item != expected.item).nonzero().flatten().tolist()
            assert changed == wrong
            same = [i for i in range(37) if i not in wrong]
            assert torch.equal(batch.image[same], expected.image[same])
    again = list(captions(tmp_path, Share(37, 1, 0, 1)))
    assert all(torch.equal(a.item, b.item) and torch.equal(a.image, b.image) for a, b in zip(batches, again, strict=True))


def test_nothing_but_unreadable_samples_is_an_error(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder / "captions", tmp_path / "captions")
    damage(tmp_path / "captions", list(range(37)))
    with pytest.raises(M2I2Error, match=r"17 samples in a row could not be read; the first: .*damaged bytes"):
        list(captions(tmp_path, Share(37, 1, 0, 1)))


def test_a_process_that_ends_in_the_middle_ends_its_workers(folder: Path) -> None:
    script = (
        "from pathlib import Path\nfrom m2i2.data.loading.sampling import Share\nfrom tests.unit.test_loader import captions\n"
        f"batches = iter(captions(Path({str(folder)!r}), Share(8, 1, 0, 1), workers=2))\nprint(len(next(batches)))"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert (done.returncode, done.stdout) == (0, "8\n"), done.stderr


def test_a_worker_stays_small(tmp_path: Path) -> None:
    """Private memory of workers that read for a while, forked from a process that lets its heap keep everything."""
    words = ["--count", "40", "--samples-per-shard", "20", "--side", "288", "--workers", "1"]
    assert make_shards(["captions", "phantoms", "--output", str(tmp_path / "shards"), *words]) == 0
    script = f"""
import dataclasses, os
from pathlib import Path
import deepspeed, transformers
from m2i2.backends.heap import keep_freed_memory
from m2i2.data.loading.corpus import Corpus
from m2i2.data.loading.loader import Loader
from m2i2.data.loading.rows import CaptionRows
from m2i2.data.loading.sampling import Share
from tests.unit.test_loader import AUGMENTATION, tokenizer_of
keep_freed_memory()
corpus = Corpus.open([{str(tmp_path / "shards")!r}], "train", "captions")
rows = CaptionRows(dataclasses.replace(AUGMENTATION, size=256), tokenizer_of(corpus), 30, 32, 0.3, 16)
worst = 0
for number, batch in enumerate(Loader(corpus, rows, Share(32, 1, 0, 1), epochs=60, seed=5, window=3, workers=2)):
    if number % 10 == 9:
        for child in Path(f"/proc/self/task/{{os.getpid()}}/children").read_text().split():
            lines = Path(f"/proc/{{child}}/smaps_rollup").read_text().splitlines()
            worst = max(worst, sum(int(line.split()[1]) for line in lines if line.startswith("Private")))
print(number + 1, worst // 1000)
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-2000:]
    steps, megabytes = map(int, done.stdout.split()[-2:])
    assert steps == 60 and 0 < megabytes < 100
