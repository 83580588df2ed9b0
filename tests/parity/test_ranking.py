"""The official ranking of candidates to 1e-9, and the exact one against plain likelihoods."""

import copy
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from m2i2.inference.generation import beam_search
from m2i2.inference.ranking import CandidateTree, likeliest, rank_official
from m2i2.models.vqa import VQAModel
from tests.parity.fixture import largest_difference, sizes, tensors
from tests.parity.steps import answering_model


@pytest.fixture(scope="module")
def asked(parity_folder: Path) -> tuple[VQAModel, Tensor, dict[str, Tensor]]:
    model = answering_model(sizes(parity_folder), tensors(parity_folder, "vqa_state_dict")).eval()
    inputs = tensors(parity_folder, "vqa_inputs")
    with torch.inference_mode():
        keys_values = model.encode_image(inputs["image"])
        states = model.encode_question(inputs["question_ids"], inputs["question_mask"], keys_values)
    return model, states, inputs


def test_official_ranking(asked: tuple[VQAModel, Tensor, dict[str, Tensor]], parity_folder: Path) -> None:
    model, states, inputs = asked
    official = tensors(parity_folder, "vqa_outputs")
    with torch.inference_mode():
        ids, probabilities = rank_official(
            model.text_decoder, states, inputs["question_mask"], inputs["candidate_ids"], inputs["candidate_mask"], 5
        )
    assert torch.equal(ids, official["rank_topk_ids"])
    assert largest_difference(probabilities, official["rank_topk_probs"]) < 1e-9


def candidates(inputs: dict[str, Tensor]) -> list[list[int]]:
    rows = zip(inputs["candidate_ids"].tolist(), inputs["candidate_mask"].sum(1).tolist(), strict=True)
    return [ids[:length] for ids, length in rows]


def log_likelihoods(model: VQAModel, states: Tensor, mask: Tensor, rows: list[list[int]]) -> Tensor:
    """[Q, C], one candidate after the other, each read as a whole."""
    found = []
    for row in rows:
        ids = torch.tensor([row] * len(states))
        decoded = model.text_decoder.logits(model.text_decoder(ids[:, :-1], states, mask)).log_softmax(-1)
        found.append(decoded.gather(2, ids[:, 1:, None]).sum((1, 2)))
    return torch.stack(found, 1)


@pytest.mark.parametrize("first", [1, 4, 1000])
@pytest.mark.parametrize("k", [1, 3, 1000])
def test_the_likeliest_are_those_of_the_candidates_read_one_by_one(
    asked: tuple[VQAModel, Tensor, dict[str, Tensor]], first: int, k: int
) -> None:
    model, states, inputs = asked
    rows = candidates(inputs)
    rows += [[*rows[0][:2], 17, 102], [*rows[0][:2], 17, 18, 102], rows[1][:2]]
    mask = inputs["question_mask"]
    tree = CandidateTree.build(rows)
    assert len(tree.ids) < sum(len(row) - 1 for row in rows)
    with torch.inference_mode():
        plain = log_likelihoods(model, states, mask, rows)
        found = likeliest(model.text_decoder, states, mask, tree, k, first)
    assert found.numbers.shape == found.scores.shape == (len(states), min(k, len(rows)))
    assert largest_difference(found.scores, plain.topk(min(k, len(rows))).values) < 1e-9
    assert largest_difference(plain.gather(1, found.numbers), found.scores) < 1e-9
    assert bool((found.read <= len(tree.ids)).all()) and (k < len(rows) or bool((found.read == len(tree.ids)).all()))


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rows=st.lists(st.lists(st.integers(1, 6), min_size=1, max_size=5), min_size=1, max_size=25),
    k=st.integers(1, 6),
    first=st.integers(1, 9),
    sharpness=st.floats(0.5, 40),
)
def test_pruning_loses_no_candidate(
    asked: tuple[VQAModel, Tensor, dict[str, Tensor]], rows: list[list[int]], k: int, first: int, sharpness: float
) -> None:
    """Whatever the tree, and however sure the model: with scores far apart most of the tree stays unread."""
    model, states, inputs = asked
    rows, mask = [[101, *row] for row in rows], inputs["question_mask"]
    weight = model.text_decoder.cls.predictions.transform.LayerNorm.weight
    before = weight.detach().clone()
    try:
        weight.data.mul_(sharpness)
        with torch.inference_mode():
            plain = log_likelihoods(model, states, mask, rows)
            found = likeliest(model.text_decoder, states, mask, CandidateTree.build(rows), k, first)
    finally:
        weight.data.copy_(before)
    torch.testing.assert_close(found.scores, plain.topk(min(k, len(rows))).values, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(plain.gather(1, found.numbers), found.scores, rtol=1e-9, atol=1e-9)


def test_a_sure_model_reads_a_fraction_of_the_tree(asked: tuple[VQAModel, Tensor, dict[str, Tensor]]) -> None:
    model, states, inputs = asked
    rows = [[101, a, b, c, 102] for a in range(1, 13) for b in range(1, 10) for c in range(1, 10)]
    mask, tree = inputs["question_mask"], CandidateTree.build(rows)
    sure = copy.deepcopy(model.text_decoder)
    sure.cls.predictions.bias.data[:20] = torch.linspace(30, -30, 20)
    sure.cls.predictions.bias.data[102] = 30
    with torch.inference_mode():
        read = likeliest(sure, states, mask, tree, 1).read
    assert len(tree.ids) == 1 + 12 + 12 * 9 + 12 * 9 * 9
    assert int(read.max()) < len(tree.ids) // 5


def test_beams_as_wide_as_the_tree_find_the_likeliest_answer(asked: tuple[VQAModel, Tensor, dict[str, Tensor]]) -> None:
    model, states, inputs = asked
    mask, sep = inputs["question_mask"], 102
    # every answer of one token, and of two: with 500 beams a search to depth 1 is exhaustive
    with torch.inference_mode():
        answers, scores = beam_search(model.text_decoder, states, mask, cls_id=101, sep_id=sep, beams=500, max_tokens=1)
        single = CandidateTree.build([[101, t, sep] for t in range(500) if t != sep])
        exact = likeliest(model.text_decoder, states, mask, single, 1)
    tokens = [t for t in range(500) if t != sep]
    assert [a[0] for a in answers] == [tokens[i] for i in exact.numbers[:, 0].tolist()]
    assert largest_difference(scores, exact.scores[:, 0]) < 1e-9


def test_cached_beams_score_their_answers_as_a_whole_pass_does(
    asked: tuple[VQAModel, Tensor, dict[str, Tensor]],
) -> None:
    model, states, inputs = asked
    mask, sep = inputs["question_mask"], 102
    with torch.inference_mode():
        for beams in (1, 4):
            answers, scores = beam_search(model.text_decoder, states, mask, cls_id=101, sep_id=sep, beams=beams, max_tokens=6)
            assert all(1 <= len(a) <= 6 and sep not in a for a in answers)
            for number, answer in enumerate(answers):
                exact = log_likelihoods(model, states, mask, [[101, *answer, sep]])[number, 0]
                assert largest_difference(scores[number], exact) < 1e-9
