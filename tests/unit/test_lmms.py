"""The model as lmms-eval asks it. Runs where lmms-eval is installed."""

import math
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("lmms_eval.api.model", reason="lmms-eval is not installed")

from lmms_eval.api.instance import Instance
from lmms_eval.models.registry_v2 import ModelRegistryV2

from m2i2.app.lmms import M2I2
from m2i2.demo import ANSWERS, FOLDER, demo_image, demo_model
from m2i2.errors import M2I2Error

QUESTION = "is there a lesion?"


def request(kind: str, prompt: str, *, images: int = 1, target: Any = "yes") -> Instance:
    def visuals(document: dict[str, int]) -> list[Any]:
        return [demo_image(document["image"])] * images

    between = target if kind == "loglikelihood" else {"max_new_tokens": 16}
    arguments = (prompt, between, visuals, 0, "drawn", "test")
    return Instance(kind, arguments, 0, {"task": "drawn", "doc_id": 0, "repeats": 1})  # type: ignore[arg-type]


def model(**options: Any) -> M2I2:
    found = M2I2.create_from_arg_string(f"pretrained={FOLDER}", options)
    found.task_dict["drawn"] = {"test": [{"image": 3}]}
    return found


def test_lmms_eval_finds_it_by_its_name() -> None:
    registry = ModelRegistryV2()
    registry.load_entrypoint_manifests()
    assert registry.get_manifest("m2i2").simple_class_path == "m2i2.app.lmms.M2I2"


def test_answers_are_those_of_the_model() -> None:
    ours = demo_model().answer(demo_image(3), QUESTION, top=1)[0][0]
    asked = [request("generate_until", f"{QUESTION}\nAnswer with one word."), request("generate_until", QUESTION)]
    assert model().generate_until(asked) == [ours, ours]
    chosen = model(candidates=str(ANSWERS)).generate_until(asked[1:])
    assert chosen == [demo_model().answer(demo_image(3), QUESTION, Path(ANSWERS).read_text().split("\n"), 1)[0][0]]


def test_the_likelihood_of_an_answer_is_what_beam_search_writes_it_with() -> None:
    (text, probability), *_ = demo_model().answer(demo_image(3), QUESTION, top=1)
    likely, unlikely = model().loglikelihood(
        [request("loglikelihood", QUESTION, target=text), request("loglikelihood", QUESTION, target=lambda document: "axial axial")]
    )
    assert likely[1] and math.exp(likely[0]) == pytest.approx(probability, rel=1e-3)
    assert not unlikely[1] and unlikely[0] < likely[0]


def test_what_it_cannot_do_is_said() -> None:
    with pytest.raises(M2I2Error, match="one image; this one has 2"):
        model().generate_until([request("generate_until", QUESTION, images=2)])
    with pytest.raises(M2I2Error, match="without rounds"):
        model().generate_until_multi_round([])
    with pytest.raises(M2I2Error, match="Cannot read the candidates"):
        model(candidates="nowhere.txt")
