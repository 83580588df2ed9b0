"""Who the preflight names, from planted measures; and that its products find a wrong one."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from m2i2.errors import M2I2Error
from m2i2.excluded import EXCLUDED, exclude_host, excluded_hosts, same_host
from m2i2.preflight import measures
from m2i2.preflight.collectives import Exchange, at_fault
from m2i2.preflight.judgement import OF_PEAK, PEAKS, SLOW, TOO_SLOW, Verdict, judge, known_peak
from m2i2.preflight.measures import GIB, Report, Sizes, measure_products

CARD = "NVIDIA H100 80GB HBM3, CUDA 12.8"
SMALL = Sizes(64, 128, 64, 4, 1 << 16, 0)


def ranks(count: int = 4) -> list[Report]:
    """Sound ranks, two on each node."""
    return [
        Report(r, f"node{r // 2}", CARD, bits={"bfloat16": [1, 2]}, products=6e14 + r, memory=2.5e12, link=5e10)
        if r % 2
        else Report(r, f"node{r // 2}", CARD, [], {"bfloat16": [1, 2]}, 6e14, 2.5e12, 5e10, 2e8, 1e9, free=1e12, shared=3e10)
        for r in range(count)
    ]


def only(found: list[Verdict]) -> Verdict:
    (one,) = found
    return one


def test_sound_ranks_are_left_alone() -> None:
    assert judge(ranks(), {0: 0.0, 3: 0.5}, half=True) == []


@pytest.mark.parametrize("name", ["products", "memory", "link"])
@pytest.mark.parametrize(("share", "kind"), [(SLOW - 0.01, "warning"), (TOO_SLOW - 0.01, "too slow")])
def test_a_slow_rank_is_named_with_its_rate_and_the_others(name: str, share: float, kind: str) -> None:
    found = ranks()
    found[2] = replace(found[2], **{name: share * getattr(found[0], name)})  # type: ignore[arg-type]
    verdict = only(judge(found))
    assert (verdict.kind, verdict.rank, verdict.host) == (kind, 2, "node1")
    assert "the other ranks' median is" in verdict.found and "--sbatch exclude=node1" in verdict.remedy


def test_a_slow_cpu_is_a_warning_only() -> None:
    found = [replace(one, link=0.0) for one in ranks()]
    found[2] = replace(found[2], products=1e12)
    assert only(judge(found)).kind == "warning"


def test_a_slow_disk_is_a_warning_only() -> None:
    found = ranks()
    found[2] = replace(found[2], write=1e6)
    assert only(judge(found)).kind == "warning"


def test_a_slow_fleet_is_told_by_the_cards_known_peak() -> None:
    assert known_peak("NVIDIA H100 PCIe", True) == 756e12 and known_peak("Tesla of a day to come", True) == 0
    slow = [replace(one, products=(OF_PEAK - 0.01) * PEAKS["H100"] * 1e12) for one in ranks()]
    assert [one.rank for one in judge(slow, half=True)] == [0, 1, 2, 3]
    assert judge(slow, half=False) == [], "the peaks are those of half precision"


def test_other_bits_name_the_rank_that_stands_alone_and_nobody_of_two() -> None:
    found = ranks()
    found[3] = replace(found[3], bits={"bfloat16": [1, 3]})
    verdict = only(judge(found))
    assert (verdict.kind, verdict.rank, verdict.sure) == ("wrong", 3, True)
    assert [(one.kind, one.sure) for one in judge(found[2:])] == [("warning", False)] * 2
    other = [*found[:3], replace(found[3], device="another card")]
    assert judge(other) == [], "another card may have other bits"


def test_a_disk_that_fails_on_one_node_is_that_nodes_fault_and_on_all_the_settings() -> None:
    found = ranks()
    found[2] = replace(found[2], unwritable="Input/output error in runs/x", write=0, read=0)
    assert (only(judge(found)).host, only(judge(found)).sure) == ("node1", True)
    found[0] = replace(found[0], unwritable="Read-only file system in runs/x", write=0, read=0)
    assert [one.sure for one in judge(found)] == [False, False]


def test_clocks_and_room_are_warned_of() -> None:
    found = ranks()
    found[0] = replace(found[0], free=GIB, shared=64 << 20)
    texts = {one.found for one in judge(found, {0: 0.0, 1: -60.0}) if one.kind == "warning"}
    assert texts == {
        "its clock is 60.0 s behind rank 0's",
        "1.00 GiB are free where the run writes",
        "/dev/shm has 0.06 GiB free; loader processes may die with a bus error",
    }


def test_a_wrong_exchange_names_the_sender_or_the_receiver_that_stands_alone() -> None:
    right = {rank: Exchange() for rank in range(4)}
    assert at_fault(right) == ([], "")
    assert at_fault({rank: Exchange(wrong_pieces=[2]) for rank in range(4)})[0] == [2]
    assert at_fault(right | {1: Exchange(wrong_sum=True, wrong_pieces=[0, 3])})[0] == [1]
    assert at_fault({rank: Exchange(wrong_sum=True) for rank in range(4)})[0] == [-1]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_product_that_is_wrong_once_is_found(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    right, calls, due = measures.product, [0], [0]

    def wrong(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        found = right(x, y)
        calls[0] += 1
        if calls[0] == due[0]:
            found[5, 7] += 1 if calls[0] == 1 else 0.25
        return found

    sound = Report(0, "here", "CPU")
    measure_products(sound, torch.device("cpu"), dtype, SMALL)
    assert sound.wrong == [] and sound.products > 0 and list(sound.bits)[-1] == str(dtype).removeprefix("torch.")
    monkeypatch.setattr(measures, "product", wrong)
    for at, text in ((1, "1 of 64 rows are wrong (the first is row 5)"), (3, "1 of 3 repetitions gave other bits than the first")):
        calls[0], due[0], report = 0, at, Report(0, "here", "CPU")
        measure_products(report, torch.device("cpu"), dtype, SMALL)
        assert len(report.wrong) == 1 and text in report.wrong[0], report.wrong


def test_excluded_hosts_are_kept_in_the_runs_folder(tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert excluded_hosts(run) == []
    for host in ("node1", "node2.lab.edu", "node1"):
        path = exclude_host(run, host, "products\nare # wrong")
    assert path.read_text() == "node1  # products are wrong\nnode2.lab.edu  # products are wrong\n"
    (run / EXCLUDED).write_text("# by hand\n\nnode3\nnode3\n")
    assert excluded_hosts(run) == ["node3"]
    (run / EXCLUDED).write_text("node3; rm -r /\n")
    with pytest.raises(M2I2Error, match="is not the name of a host"):
        excluded_hosts(run)
    assert same_host("node1", "node1.lab.edu") and same_host("node1.lab.edu", "node1") and not same_host("node1", "node11")
