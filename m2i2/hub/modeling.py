"""The two models as `PreTrainedModel`. They wrap our networks and keep their parameters' names, which are the official ones."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Generic, TypeVar, overload

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.utils import ModelOutput

from m2i2.backends.choice import install
from m2i2.errors import M2I2Error
from m2i2.files import read_object, write_text
from m2i2.hub.card import model_card
from m2i2.hub.configuration import M2I2Config
from m2i2.hub.processing import M2I2Processor, several_images
from m2i2.inference.answering import Answer, Answerer, open_image
from m2i2.models.bounds import check_folder
from m2i2.models.pretraining import PretrainingModel
from m2i2.models.text import ImageRows
from m2i2.models.vqa import VQAModel
from m2i2.models.weights import listed
from m2i2.objectives.answers import answer_loss

N = TypeVar("N", PretrainingModel, VQAModel)


class M2I2PreTrainedModel(PreTrainedModel, Generic[N]):
    """What both models share. No two parameters are tied: the vocabulary heads read the word embeddings themselves."""

    config: M2I2Config
    base_model_prefix = ""
    main_input_name = "pixel_values"
    _supports_sdpa = True

    network: N
    """Our own model, over the same parameters."""

    def __init__(self, config: M2I2Config) -> None:
        super().__init__(config)
        network = self._build(config).to(torch.get_default_dtype())  # transformers loads into the types that it finds
        # one set of parameters under one set of names: the network reads this module's own registries
        for registry in ("_modules", "_parameters", "_buffers"):
            self.__dict__[registry].update(network.__dict__[registry])
            network.__dict__[registry] = self.__dict__[registry]
        self.__dict__["network"] = network
        self.post_init()

    def _build(self, config: M2I2Config) -> N:
        """The network of a configuration: what a model is, and nothing that this base could know."""
        raise NotImplementedError

    def _init_weights(self, module: nn.Module) -> None:
        """The networks have initialised themselves."""

    def train(self, mode: bool = True) -> Any:
        """Training or evaluation mode, of the network too."""
        self.network.training = mode
        return super().train(mode)

    def get_input_embeddings(self) -> nn.Module:
        """The word embeddings of the text encoder."""
        text: Any = self.network.text_encoder
        return getattr(text, "bert", text).embeddings.word_embeddings

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any) -> Any:
        """As in transformers, but a tensor that is missing or unknown is an M2I2Error, not a warning.

        Nothing in a folder is run or followed out of it, whatever ``trust_remote_code`` says: see `M2I2Config.from_dict`. Weights
        are safetensors.
        """
        wanted = kwargs.pop("output_loading_info", False)
        kwargs |= {"trust_remote_code": False, "use_safetensors": True}
        if Path(pretrained_model_name_or_path).is_dir():
            _check_kind(Path(pretrained_model_name_or_path), cls.__name__)
            check_folder(Path(pretrained_model_name_or_path))
        loaded: Any = super().from_pretrained(pretrained_model_name_or_path, *args, output_loading_info=True, **kwargs)
        model: Any = loaded[0]
        info: dict[str, Any] = loaded[1]
        wrong = sorted({*info["missing_keys"], *info["unexpected_keys"]})
        if wrong:
            raise M2I2Error(
                f"{pretrained_model_name_or_path} does not hold the weights of {cls.__name__}: missing or unknown are "
                f"{listed(wrong)}. Load it with the class that its config.json names under architectures."
            )
        for name, parameter in model.named_parameters():  # transformers lets every floating-point parameter be trained
            parameter.requires_grad_(not name.endswith("pos_embed"))
        return (model, info) if wanted else model

    def save_pretrained(self, save_directory: Any, *args: Any, results: dict[str, Any] | None = None, **kwargs: Any) -> None:
        """Weights, configuration, the processor where the model has one, and a model card (with ``results`` of results.json).

        A README.md that is there already is kept.
        """
        folder = Path(save_directory)
        folder.mkdir(parents=True, exist_ok=True)
        if (processor := self.__dict__.get("processor")) is not None:
            processor.save_pretrained(folder)
        if not (folder / "README.md").exists():
            write_text(folder / "README.md", model_card(self.config, type(self).__name__, results))
        super().save_pretrained(save_directory, *args, **kwargs)

    @cached_property
    def processor(self) -> M2I2Processor:
        """The processor stored with the model, read when it is first needed; may be assigned."""
        source = self.config.name_or_path
        try:
            if not source:
                raise OSError("the model was made, not loaded")
            return M2I2Processor.from_pretrained(source)
        except (OSError, ValueError) as e:
            raise M2I2Error(
                f"The model has no processor ({str(e).splitlines()[0]}); save one beside it with "
                f"M2I2Processor.save_pretrained, or assign it: model.processor = processor."
            ) from e


_KINDS = {"M2I2ForPretraining": "a pretrained model", "M2I2ForVisualQuestionAnswering": "a model that answers questions"}


def _check_kind(folder: Path, wanted: str) -> None:
    """M2I2Error for a folder of a run, and for a model of the other kind than ``wanted``, with what to do."""
    if (folder / "checkpoints").is_dir() or (folder / "manifest.json").exists():
        raise M2I2Error(
            f"{folder} is a run or a checkpoint of it, not a Hugging Face folder. Convert it first: "
            f"python tools/convert.py {folder} --to hugging-face --output hub/{folder.name}"
        )
    if not (folder / "config.json").exists():
        return
    names = read_object(folder / "config.json", "model's configuration").get("architectures") or [wanted]
    found = str(names[0]) if isinstance(names, list) else wanted
    if found == wanted or found not in _KINDS:
        return
    first = f"load it with {found}"
    if found == "M2I2ForPretraining":
        first = (
            f"to ask it questions, finetune first: python tools/convert.py {folder} --to checkpoint --output runs/NAME, then "
            f"python launchers/finetune.py --checkpoint runs/NAME --shards QUESTIONS. To use it as it is, {first}"
        )
    raise M2I2Error(f"{folder} is {_KINDS[found]}, not {_KINDS[wanted]}; {first}.")


@dataclass
class M2I2PretrainingOutput(ModelOutput):
    """What the pretrained model says of pairs of images and captions."""

    image_features: Tensor | None = None
    """[B, projection], L2-normalised."""
    text_features: Tensor | None = None
    similarity: Tensor | None = None
    """[B, B] image to text, over the learnt temperature."""
    matching_logits: Tensor | None = None
    """[B, 2] (no match, match) of image i with caption i."""
    last_hidden_state: Tensor | None = None
    """[B, L, D] multimodal states of caption i with image i."""


class M2I2ForPretraining(M2I2PreTrainedModel[PretrainingModel]):
    """The pretraining student with all its heads. It is trained by our own loop, which holds teacher and queue."""

    def _build(self, config: M2I2Config) -> PretrainingModel:
        return PretrainingModel(*config.sections)

    def forward(self, pixel_values: Tensor, input_ids: Tensor, attention_mask: Tensor) -> M2I2PretrainingOutput:
        """Images [B, 3, H, W] and captions [B, L], pair by pair, nothing masked."""
        network = self.network
        image = network.visual_encoder(pixel_values).states
        bert = network.text_encoder.bert
        text = bert.encode(input_ids, attention_mask)
        fused = bert.fuse(text, attention_mask, [ImageRows(bert.image_keys_values(image), 1)])
        image_features, text_features = network.image_features(image), network.text_features(text)
        return M2I2PretrainingOutput(
            image_features=image_features,
            text_features=text_features,
            similarity=image_features @ text_features.T / network.temp,
            matching_logits=network.itm_head(fused[:, 0]),
            last_hidden_state=fused,
        )


@dataclass
class M2I2AnsweringOutput(ModelOutput):
    """What the answering model makes of questions."""

    loss: Tensor | None = None
    """The mean over the questions of the summed token loss of the answer, where ``labels`` were given."""
    last_hidden_state: Tensor | None = None
    """[B, L, D] multimodal states, which the answer decoder reads."""


class M2I2ForVisualQuestionAnswering(M2I2PreTrainedModel[VQAModel]):
    """The answering model."""

    def _build(self, config: M2I2Config) -> VQAModel:
        vision, text, _ = config.sections
        return VQAModel(vision, text)

    def forward(
        self, pixel_values: Tensor, input_ids: Tensor, attention_mask: Tensor, labels: Tensor | None = None
    ) -> M2I2AnsweringOutput:
        """Questions [B, L] about images [B, 3, H, W]; ``labels`` [B, A]: [CLS] answer [SEP], then -100."""
        keys_values = self.network.encode_image(pixel_values)
        states = self.network.encode_question(input_ids, attention_mask, keys_values)
        loss = None
        if labels is not None:
            decoder, answers = self.network.text_decoder, labels.clamp_min(0)
            logits = decoder.logits(decoder(answers[:, :-1], states, attention_mask))
            loss = answer_loss(logits, answers, (labels >= 0).long())
        return M2I2AnsweringOutput(loss=loss, last_hidden_state=states)

    @overload
    def answer(self, image: Any, question: str, candidates: Sequence[str] | None = None, top: int = 5) -> list[Answer]: ...
    @overload
    def answer(
        self, image: Any, question: Sequence[str], candidates: Sequence[str] | None = None, top: int = 5, batch: int = 16
    ) -> list[list[Answer]]: ...
    def answer(
        self,
        image: Any,
        question: str | Sequence[str],
        candidates: Sequence[str] | None = None,
        top: int = 5,
        batch: int = 16,
    ) -> list[Answer] | list[list[Answer]]:
        """At most ``top`` answers with their probabilities, likeliest first; for a list of questions a list of them.

        ``image``: a file (PNG, JPEG, DICOM ...), its bytes, a PIL image, or pixels (an array or a tensor; see
        `m2i2.data.images.picture.open_picture`). Several questions are about one image, or each about its own of a list (or of
        an array or tensor of four dimensions); they are asked ``batch`` at a time. With ``candidates`` every one of them is
        scored and the probabilities are among them; without, answers are written by beam search. M2I2Error for an empty
        question and for lists that differ in length.
        """
        self.eval()
        answerer = self.answerer(candidates)
        several = several_images(image)
        if isinstance(question, str):
            if several is not None and len(several) != 1:
                raise M2I2Error(f"One question and {len(several)} images; name a question for each image, as a list.")
            one = image if several is None else several[0]
            return answerer.answer(open_image(one), question, top)
        opened = [open_image(image)] * len(question) if several is None else [open_image(one) for one in several]
        if len(opened) != len(question):
            raise M2I2Error(f"There are {len(opened)} images and {len(question)} questions; name one image, or one per question.")
        return answerer.answer_all(opened, question, top, batch)

    def answerer(self, candidates: Sequence[str] | None = None) -> Answerer:
        """The model with its tokenizer, on its device, with a tree of the candidates that it need not build again."""
        install(self.device)
        return Answerer(self.network, self.processor.own_tokenizer, self.processor.normalisation, candidates or ())
