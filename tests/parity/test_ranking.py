"""The official ranking of candidates to 1e-9, and the exact one against plain likelihoods."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from m2i2.evaluation.generation import beam_search
from m2i2.evaluation.ranking import CandidateTree, log_likelihoods, rank_official
from m2i2.models.vqa import VQAModel
from tests.parity.fixture import TEXT, VISION, fitting, largest_difference, tensors


@pytest.fixture(scope="module")
def asked(parity_folder: Path) -> tuple[VQAModel, Tensor, dict[str, Tensor]]:
    model = VQAModel(replace(VISION, image_size=96), TEXT).double().eval()
    model.load_state_dict(dict(fitting(model, tensors(parity_folder, "vqa_state_dict"))))
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


@pytest.mark.parametrize("chunk", [1, 1500, 1 << 24])
def test_the_tree_of_prefixes_gives_the_likelihoods_of_the_candidates_one_by_one(
    asked: tuple[VQAModel, Tensor, dict[str, Tensor]], chunk: int
) -> None:
    model, states, inputs = asked
    rows = candidates(inputs)
    rows += [[*rows[0][:2], 17, 102], [*rows[0][:2], 17, 18, 102], rows[1][:2]]
    mask = inputs["question_mask"]
    tree = CandidateTree.build(rows)
    assert len(tree.ids) < sum(len(row) - 1 for row in rows)
    with torch.inference_mode():
        found = log_likelihoods(model.text_decoder, states, mask, tree, chunk)
        for number, row in enumerate(rows):
            ids = torch.tensor([row] * len(states))
            decoded = model.text_decoder.logits(model.text_decoder(ids[:, :-1], states, mask)).log_softmax(-1)
            plain = decoded.gather(2, ids[:, 1:, None]).sum((1, 2))
            assert largest_difference(found[:, number], plain) < 1e-9


def test_beams_as_wide_as_the_tree_find_the_likeliest_answer(asked: tuple[VQAModel, Tensor, dict[str, Tensor]]) -> None:
    model, states, inputs = asked
    mask, sep = inputs["question_mask"], 102
    # every answer of one token, and of two: with 500 beams a search to depth 1 is exhaustive
    with torch.inference_mode():
        answers, scores = beam_search(model.text_decoder, states, mask, cls_id=101, sep_id=sep, beams=500, max_tokens=1)
        single = CandidateTree.build([[101, t, sep] for t in range(500) if t != sep])
        exact = log_likelihoods(model.text_decoder, states, mask, single)
    tokens = [t for t in range(500) if t != sep]
    assert [a[0] for a in answers] == [tokens[i] for i in exact.argmax(1).tolist()]
    assert largest_difference(scores, exact.amax(1)) < 1e-9


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
                tree = CandidateTree.build([[101, *answer, sep]])
                exact = log_likelihoods(model.text_decoder, states, mask, tree)[number]
                assert largest_difference(scores[number], exact) < 1e-9
