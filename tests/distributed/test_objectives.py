"""The objectives on several ranks are those of the concatenated batch: losses and every gradient."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from m2i2.config import ObjectivesConfig, PretrainingConfig, TextConfig, VisionConfig
from m2i2.data.loading.batch import CaptionBatch
from m2i2.data.loading.masking import places_of
from m2i2.distributed import RowExchange, all_gather
from m2i2.models.pretraining import PretrainingModel
from m2i2.tasks.pretraining import PretrainingTask
from m2i2.tasks.task import Key
from tests.distributed.processes import on_ranks

VISION = VisionConfig(image_size=32, patch_size=8, width=24, depth=2, heads=2, decoder_width=8, decoder_depth=1, decoder_heads=2)
TEXT = TextConfig(
    vocabulary_size=50,
    width=16,
    depth=4,
    fusion_layer=2,
    heads=2,
    intermediate=32,
    positions=16,
    dropout=0.0,
    attention_dropout=0.0,
)
OBJECTIVES = ObjectivesConfig(projection=8, queue=10, image_mask_ratio=0.25)
BATCH = 8


def whole_batch() -> CaptionBatch:
    """Eight pairs; two share an image, two a caption; different numbers of masked words."""
    generator = torch.Generator().manual_seed(3)

    def integers(high: int, *shape: int) -> Tensor:
        return torch.randint(5, high, shape, generator=generator)

    ids = integers(50, BATCH, 9)
    mask = (torch.arange(9) < torch.tensor([9, 4, 6, 9, 7, 5, 8, 9])[:, None]).long()
    labels = torch.where((torch.rand(BATCH, 9, generator=generator) < 0.3) & (mask == 1), ids, -100)
    return CaptionBatch(
        image=torch.randn(BATCH, 3, 32, 32, generator=generator, dtype=torch.float64),
        item=torch.arange(BATCH),
        input_ids=ids,
        attention_mask=mask,
        masked_input_ids=torch.where(labels != -100, 4, ids),
        labels=labels,
        places=torch.zeros(0, dtype=torch.long),
        student_noise=torch.rand(BATCH, 16, generator=generator),
        teacher_noise=torch.rand(BATCH, 16, generator=generator),
        image_id=torch.tensor([0, 1, 2, 3, 4, 5, 1, 7]),
        caption_id=torch.tensor([0, 1, 2, 3, 4, 5, 6, 3]),
    )


def well_conditioned(model: PretrainingModel) -> PretrainingModel:
    """The model with larger embeddings and a milder temperature.

    A LayerNorm over embeddings of 0.02 and a contrast divided by 0.07 make gradients of 20, which float32 misses by more than
    the tolerance on one process already.
    """
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "embed" in name or name.endswith("cls_token"):
                parameter.mul_(20)
        model.temp.fill_(0.3)
    return model


NAMES = ("mim", "mlm", "itm", "itc")
Outcome = tuple[dict[str, float], dict[str, np.ndarray], np.ndarray]


def step(rank: int, ranks: int, objectives: ObjectivesConfig, accumulation: int = 1, dtype: torch.dtype = torch.float64) -> Outcome:
    """One optimizer step on this rank's rows: losses, every objective's gradients and the queue, means over micro-batches
    and ranks. The negatives are drawn, by counter."""
    torch.manual_seed(0)
    student = well_conditioned(PretrainingModel(VISION, TEXT, objectives)).to(dtype)
    config = PretrainingConfig(vision=VISION, text=TEXT, objectives=objectives)
    task = AsItIs(student, config, dtype)
    task.queue.to(dtype)
    task._ramp.value = 0.4
    together = BATCH // accumulation
    rows = together // ranks
    whole = whole_batch()
    losses: dict[str, Tensor] = {}
    gradients: dict[str, Tensor] = {}
    for micro in range(accumulation):
        first = micro * together + rank * rows
        cut = {name: value[first : first + rows] for name, value in vars(whole).items() if name not in ("unreadable", "places")}
        batch = CaptionBatch(**cut, places=torch.from_numpy(places_of(cut["labels"].numpy(), 0.15)))
        batch.image = batch.image.to(dtype)
        found = task.forward(batch, Key(5, 0, micro))
        for objective, loss in found.losses.items():
            losses[objective] = losses.get(objective, 0) + loss.detach() / accumulation
            student.zero_grad()
            loss.backward(retain_graph=True)
            for name, parameter in student.named_parameters():
                if parameter.grad is not None:
                    key = f"{objective} {name}"
                    gradients[key] = gradients.get(key, 0) + parameter.grad / accumulation
        student.zero_grad()
        found.loss.backward()
        for name, parameter in student.named_parameters():
            if parameter.grad is not None:
                gradients[name] = gradients.get(name, 0) + parameter.grad / accumulation
    task.end_step()
    averages = {name: float(all_gather(loss.reshape(1)).mean()) for name, loss in losses.items()}
    means = {name: all_gather(gradient.unsqueeze(0)).mean(0).numpy() for name, gradient in gradients.items()}
    return averages, means, task.queue.image.numpy()


class AsItIs(PretrainingTask):
    """A task whose batches are normalised already."""

    def prepared(self, batch: CaptionBatch) -> CaptionBatch:
        """The batch itself."""
        return batch


@pytest.fixture(scope="module")
def alone() -> Outcome:
    return step(0, 1, OBJECTIVES)


TOLERANCES = {torch.float64: 1e-10, torch.float32: 1e-6}
WAYS = [(accumulation, dtype) for accumulation in (1, 2) for dtype in TOLERANCES]


def steps(rank: int, ranks: int) -> list[Outcome]:
    """A step with each accumulation in each precision."""
    return [step(rank, ranks, OBJECTIVES, accumulation, dtype) for accumulation, dtype in WAYS]


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_ranks_compute_what_one_process_computes(ranks: int) -> None:
    """Each objective's loss and gradients, and the sum's, against one process that sees the whole (micro-)batch.

    To 1e-6 in float32 and 1e-10 in float64, of a tensor's largest gradient where that exceeds 1.
    """
    expected = steps(0, 1)
    for outcomes in on_ranks(ranks, steps):
        for (_, dtype), (losses, gradients, queue), (found, theirs, pushed) in zip(WAYS, expected, outcomes, strict=True):
            tolerance = TOLERANCES[dtype]
            assert sorted(losses) == sorted(NAMES)
            assert found == pytest.approx(losses, abs=tolerance, rel=tolerance)
            assert sorted(theirs) == sorted(gradients)
            for name, gradient in gradients.items():
                largest = max(1.0, float(np.abs(gradient).max()))
                np.testing.assert_allclose(theirs[name], gradient, atol=tolerance * largest, rtol=0, err_msg=name)
            np.testing.assert_allclose(pushed, queue, atol=tolerance)


def test_accumulation_changes_the_contrast_alone(alone: Outcome) -> None:
    losses = step(0, 1, OBJECTIVES, 2)[0]
    assert losses["mim"] == pytest.approx(alone[0]["mim"], abs=1e-10)
    assert abs(losses["itc"] - alone[0]["itc"]) > 1e-4
    assert abs(losses["itm"] - alone[0]["itm"]) > 1e-6


@pytest.mark.parametrize("left_out", ["mim", "mlm", "itm", "itc"])
def test_an_objective_left_out_leaves_no_parameter_without_gradient(left_out: str, alone: Outcome) -> None:
    losses, gradients, _ = step(0, 1, replace(OBJECTIVES, **{left_out: 0.0}))
    assert sorted(losses) == sorted({"mim", "mlm", "itm", "itc"} - {left_out})
    assert sorted(name for name in gradients if " " not in name) == sorted(name for name in alone[1] if " " not in name)
    for name, value in losses.items():
        assert value == pytest.approx(alone[0][name], abs=1e-10)


def test_local_negatives_differ_and_false_negatives_matter(alone: Outcome) -> None:
    local = on_ranks(2, step, replace(OBJECTIVES, negatives="local"))[0][0]
    assert abs(local["itc"] - alone[0]["itc"]) > 1e-4
    assert local["mim"] == pytest.approx(alone[0]["mim"], abs=1e-10)
    official = step(0, 1, replace(OBJECTIVES, false_negatives="official"))[0]
    assert abs(official["itc"] - alone[0]["itc"]) > 1e-4


def exchange(rank: int, ranks: int) -> tuple[list[list[float]], list[list[float]]]:
    """Every rank asks for other rows, some twice; nobody asks for some."""
    x = (torch.arange(3.0) + 10 * rank).unsqueeze(1).repeat(1, 2).requires_grad_()
    wanted = torch.tensor([[5, 0, 5, 1], [2, 2, 3, 4]][rank])
    others = torch.tensor([[0], [5]][rank])
    plan = RowExchange((wanted, others), 3)
    assert plan.fetch(1, x)[:, 0].tolist() == [[0.0], [12.0]][rank], "a second request of the same plan"
    got = plan.fetch(0, x)
    (got * torch.tensor([[1.0], [2.0], [3.0], [4.0]])).sum().backward()
    return got.tolist(), x.grad.tolist()


def test_exchanged_rows_and_their_gradients_reach_their_owners() -> None:
    (first, first_gradient), (second, second_gradient) = on_ranks(2, exchange)
    assert [row[0] for row in first] == [12, 0, 12, 1]
    assert [row[0] for row in second] == [2, 2, 10, 11]
    assert [row[0] for row in first_gradient] == [2, 4, 1 + 2]
    assert [row[0] for row in second_gradient] == [3, 4, 1 + 3]
