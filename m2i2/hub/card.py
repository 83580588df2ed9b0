"""The model card: what the model is, what it scored, and what it must not be used for."""

from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from m2i2.evaluation.baselines import LABELS
from m2i2.hub.configuration import M2I2Config
from m2i2.markdown import head, row

TASK = "visual-question-answering"
"""The hub's name of the task; its list of models is filtered by it."""
_KINDS = ("closed", "open", "overall")

_CARD = """---
{metadata}
---

# {title}

{what}

Image: {size} x {size} pixels in patches of {patch}; image encoder {vision_depth} layers, {vision_width} wide; text
{text_depth} layers, {text_width} wide, the upper {fused} of which also read the image; {vocabulary:,} tokens.
Method: Li et al., *Self-supervised vision-language pretraining for medical visual question answering*, ISBI 2023
([arXiv:2211.13594](https://arxiv.org/abs/2211.13594)).

## Use

The package `m2i2` loads it; no code comes with the weights, and `trust_remote_code` is not needed.

{use}

## Intended use, and what it is not

Research on medical vision-language models. **It is not a medical device.** It has not been assessed for any clinical purpose;
its answers may be wrong, are not calibrated, and must not guide the care of anybody. Its errors on other scanners,
populations, languages and kinds of images than those it was trained on are unknown. Do not give it images that identify a
person.

## Results

{results}
"""

_USE_VQA = """```python
from m2i2 import M2I2ForVisualQuestionAnswering
model = M2I2ForVisualQuestionAnswering.from_pretrained("{folder}")
print(model.answer("image.png", "is there a lesion?", candidates=["yes", "no"]))
```"""

_USE_PRETRAINING = """```python
from m2i2 import M2I2ForPretraining
model = M2I2ForPretraining.from_pretrained("{folder}")
pairs = model.processor(images=["image.png"], text=["chest x-ray without a lesion"])
print(model(**pairs).matching_logits)
```"""


def model_card(config: M2I2Config, architecture: str, results: dict[str, Any] | None = None) -> str:
    """README.md of a model folder; ``results`` is a results.json of ours."""
    vision, text, _ = config.sections
    answers = architecture == "M2I2ForVisualQuestionAnswering"
    return _CARD.format(
        metadata=_metadata(answers, results),
        title="M2I2, finetuned to answer questions about medical images" if answers else "M2I2, pretrained",
        what="A vision-language model that writes an answer to a question about a medical image."
        if answers
        else "A vision-language model pretrained on pairs of medical images and captions; starting weights for finetuning.",
        size=vision.image_size,
        patch=vision.patch_size,
        vision_depth=vision.depth,
        vision_width=vision.width,
        text_depth=text.depth,
        text_width=text.width,
        fused=text.depth - text.fusion_layer,
        vocabulary=text.vocabulary_size,
        use=(_USE_VQA if answers else _USE_PRETRAINING).format(folder=config.name_or_path or "FOLDER"),
        results=_results(results) if results else "None were given when the model was saved.",
    )


def _metadata(answers: bool, results: dict[str, Any] | None) -> str:
    """What the hub reads of a card, as YAML: its names of library and task, and the scores.

    The library is our package: for transformers the hub would print code that does not load this model.
    """
    data = ModelCardData(
        language="en",
        library_name="m2i2",
        pipeline_tag=TASK if answers else None,
        tags=["medical", "radiology", "vision-language", "safetensors"],
        model_name="M2I2" if results else None,
        eval_results=[
            EvalResult(
                task_type=TASK,
                dataset_type=results["shards"]["source"],
                dataset_name=f"{results['shards']['source']}, {name}",
                dataset_args={"protocol": results["protocol"]["name"]},
                metric_type="accuracy",
                metric_name=f"accuracy of {kind} questions, %" if kind != "overall" else "accuracy, %",
                metric_value=view["model"][kind]["accuracy"],
            )
            for name, view in results["views"].items()
            for kind in _KINDS
            if view["model"][kind]["accuracy"] is not None
        ]
        if results
        else None,
    )
    return data.to_yaml()


def _results(results: dict[str, Any]) -> str:
    lines = []
    for name, view in results["views"].items():
        counts = [view["model"][kind]["total"] for kind in _KINDS]
        lines.append(f"{results['shards']['source']}, {name}, protocol `{results['protocol']['name']}`; accuracy in %:\n")
        lines += head(["", *(f"{kind} ({count})" for kind, count in zip(_KINDS, counts, strict=True))])
        for who, label in LABELS.items():
            if who in view:
                cells = [view[who][kind]["accuracy"] for kind in _KINDS]
                lines.append(row([label, *("-" if c is None else f"{c:.1f}" for c in cells)]))
        lines.append("")
    lines.append("Before comparing them with other numbers:\n")
    lines += [f"- {habit}" for habit in results["protocol"]["habits"]]
    return "\n".join(lines)
