"""Recall by hand-made similarities, and pictures out of patches."""

import torch

from m2i2.models.vision import patchify, unpatchify
from m2i2.training.retrieval import recalls


def test_recall_counts_the_place_of_the_best_right_answer() -> None:
    texts = 12
    similarity = torch.zeros(texts, texts)
    for image in range(texts):
        similarity[image, :image] = 1.0  # as many wrong texts before the right one as the image's number
        similarity[image, image] = 0.5
    found = recalls(similarity, torch.eye(texts, dtype=torch.bool))
    assert [round(found[f"image_to_text_r{k}"], 3) for k in (1, 5, 10)] == [8.333, 41.667, 83.333]
    reverse = recalls(similarity.T, torch.eye(texts, dtype=torch.bool))
    assert [round(reverse[f"text_to_image_r{k}"], 3) for k in (1, 5, 10)] == [8.333, 41.667, 83.333]


def test_any_right_answer_counts_and_equal_features_find_nothing() -> None:
    right = torch.eye(20, dtype=torch.bool)
    assert set(recalls(torch.ones(20, 20), right).values()) == {0.0}
    similarity = torch.rand(20, 20, generator=torch.Generator().manual_seed(0))
    best = similarity.argmax(dim=1)
    right[torch.arange(20), best] = True
    assert recalls(similarity, right)["image_to_text_r1"] == 100.0


def test_patches_go_back_to_their_places() -> None:
    image = torch.rand(2, 3, 24, 24)
    assert torch.equal(unpatchify(patchify(image, 8), 8), image)
