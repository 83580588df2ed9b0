"""``pipeline("medical-visual-question-answering")``: transformers removed its own pipeline of visual questions in version 5."""

from collections.abc import Sequence
from typing import Any

from transformers import Pipeline

from m2i2.hub.modeling import M2I2ForVisualQuestionAnswering
from m2i2.hub.processing import M2I2Processor
from m2i2.inference.answering import Answerer, require_words

TASK = "medical-visual-question-answering"
"""Transformers refuses the former name, visual-question-answering."""
Found = list[dict[str, Any]]
"""``answer`` and ``score`` of a question's answers, likeliest first."""


class VisualQuestionAnsweringPipeline(Pipeline):
    """Questions about images, one or many, under the conventions of transformers' pipelines."""

    _load_processor: Any = True
    _load_image_processor: Any = False
    _load_feature_extractor: Any = False
    _load_tokenizer: Any = False
    model: M2I2ForVisualQuestionAnswering
    processor: M2I2Processor
    _kept: tuple[tuple[str, ...], Answerer] | None = None

    def __call__(self, image: Any, question: str | Sequence[str] | None = None, **kwargs: Any) -> Any:  # type: ignore[override]
        """The answers to ``question`` about ``image``: a list of {"answer", "score"}, likeliest first.

        ``image``: what `M2I2ForVisualQuestionAnswering.answer` takes, or a list, generator or data set of {"image", "question"}
        in place of both arguments. A list of images or of questions gives a list of such lists; one image or question beside
        a list belongs to each of its elements. ``top_k`` (5), ``candidates`` (answers to choose from) and ``batch_size`` (1).
        """
        if question is None:
            return super().__call__(image, **kwargs)
        one = isinstance(question, str)
        images = list(image) if isinstance(image, list | tuple) else None
        if images is None and one:
            return super().__call__({"image": image, "question": question}, **kwargs)
        questions = [question] * len(images or ()) if one else list(question)
        images = [image] * len(questions) if images is None else images
        if len(images) != len(questions):
            raise ValueError(f"There are {len(images)} images and {len(questions)} questions; name one image per question.")
        asked = [{"image": i, "question": q} for i, q in zip(images, questions, strict=True)]
        return super().__call__(asked, **kwargs)

    def _sanitize_parameters(self, **kwargs: Any) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        if unknown := [name for name in kwargs if name not in ("top_k", "candidates")]:
            raise TypeError(f"The pipeline has no argument {unknown[0]!r}; it takes top_k, candidates and batch_size.")
        return {}, kwargs, {}

    def preprocess(self, input_: Any, **kwargs: Any) -> dict[str, Any]:
        """Pixels and tokens of a question; M2I2Error for one without words."""
        require_words(input_["question"], self.processor.normalisation)
        found = dict(self.processor(images=input_["image"], text=input_["question"]))
        found["image"] = found.pop("pixel_values")  # a name that transformers does not ask an image processor about
        return found

    def _forward(self, input_tensors: Any, **forward_parameters: Any) -> Any:
        """The answers of a batch: one list for each question, likeliest first."""
        names = tuple(forward_parameters.get("candidates") or ())
        if self._kept is None or self._kept[0] != names:
            self.model.eval()
            self._kept = (names, self.model.answerer(names))
        pixels = input_tensors["image"].to(self.model.dtype)
        ids, mask = input_tensors["input_ids"], input_tensors["attention_mask"]
        return {"answers": self._kept[1].answer_tensors(pixels, ids, mask, forward_parameters.get("top_k", 5))}

    def postprocess(self, model_outputs: Any, **kwargs: Any) -> Found:
        """The answers in transformers' words."""
        answers = model_outputs["answers"]
        if answers and isinstance(answers[0], list):  # without batches transformers does not take the only row out
            (answers,) = answers
        return [{"score": score, "answer": answer} for answer, score in answers]

    def save_pretrained(self, save_directory: Any, **kwargs: Any) -> None:
        """The model and its processor. No code is copied beside them, as transformers does for a pipeline that it lacks."""
        self.model.processor = self.processor
        self.model.save_pretrained(save_directory, **kwargs)
