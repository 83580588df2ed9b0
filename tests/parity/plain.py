"""The official computation written out: ALBEF's and MAE's formulas on the official state's own names.

Shares no code with m2i2, takes nothing once that the formulas take twice, and is slow. The official numbers check it
(`test_plain`), and it writes numbers of models of other sizes to check m2i2 with (`recording`).
Shapes: B pairs, N image tokens, L text tokens, D wide, V words of the vocabulary.
"""

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

State = dict[str, Tensor]
Told = Mapping[str, Any]
"""What model.json says."""
IMAGE_EPS, TEXT_EPS = 1e-6, 1e-12


class Weights:
    """The tensors of a state under a prefix."""

    def __init__(self, state: Mapping[str, Tensor], prefix: str = "") -> None:
        self._state, self._prefix = state, prefix

    def at(self, name: str) -> "Weights":
        return Weights(self._state, f"{self._prefix}{name}.")

    def __getitem__(self, name: str) -> Tensor:
        return self._state[self._prefix + name]

    def linear(self, name: str, x: Tensor) -> Tensor:
        return x @ self[f"{name}.weight"].T + self[f"{name}.bias"]

    def norm(self, name: str, x: Tensor, eps: float) -> Tensor:
        x = x - x.mean(-1, keepdim=True)
        x = x / (x.square().mean(-1, keepdim=True) + eps).sqrt()
        return x * self[f"{name}.weight"] + self[f"{name}.bias"]


def attend(query: Tensor, key: Tensor, value: Tensor, heads: int, seen: Tensor | None = None) -> Tensor:
    """[B, L, D] onto [B, N, D]; ``seen``: bool, broadcastable to [B, L, N]."""
    found = []
    for q, k, v in zip(query.chunk(heads, -1), key.chunk(heads, -1), value.chunk(heads, -1), strict=True):
        scores = q @ k.transpose(1, 2) / q.shape[-1] ** 0.5
        found.append((scores if seen is None else scores.masked_fill(~seen, -torch.inf)).softmax(-1) @ v)
    return torch.cat(found, -1)


# --- image


def block(w: Weights, x: Tensor, heads: int) -> Tensor:
    """A layer of a vision transformer."""
    query, key, value = w.linear("attn.qkv", w.norm("norm1", x, IMAGE_EPS)).chunk(3, -1)
    x = x + w.linear("attn.proj", attend(query, key, value, heads))
    return x + w.linear("mlp.fc2", F.gelu(w.linear("mlp.fc1", w.norm("norm2", x, IMAGE_EPS))))


def encode_image(w: Weights, told: Told, image: Tensor, noise: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
    """States [B, N, D], and of a masked image the order of its patches."""
    x = F.conv2d(image, w["patch_embed.proj.weight"], w["patch_embed.proj.bias"], stride=told["patch_size"])
    x, order = x.flatten(2).transpose(1, 2) + w["pos_embed"][:, 1:], None
    if noise is not None:
        order = noise.argsort(1)
        kept = order[:, : int(x.shape[1] * (1 - told["mask_ratio"]))]
        x = torch.stack([row[places] for row, places in zip(x, kept, strict=True)])
    cls = (w["cls_token"] + w["pos_embed"][:, :1]).expand(len(x), -1, -1)
    x = torch.cat([cls, x], 1)
    for number in range(told["image_depth"]):
        x = block(w.at(f"blocks.{number}"), x, told["image_heads"])
    return w.norm("norm", x, IMAGE_EPS), order


def pixel_loss(w: Weights, told: Told, image: Tensor, states: Tensor, order: Tensor) -> Tensor:
    """MAE's, without its norm of the pixels."""
    patch, count = told["patch_size"], order.shape[1]
    x = w.linear("decoder_embed", states)
    hidden = count + 1 - x.shape[1]
    x_patches = torch.cat([x[:, 1:], w["mask_token"].expand(len(x), hidden, -1)], 1)
    back = order.argsort(1)
    x_patches = torch.stack([row[places] for row, places in zip(x_patches, back, strict=True)])
    x = torch.cat([x[:, :1], x_patches], 1) + w["decoder_pos_embed"]
    for number in range(told["decoder_depth"]):
        x = block(w.at(f"decoder_blocks.{number}"), x, told["decoder_heads"])
    predicted = w.linear("decoder_pred", w.norm("decoder_norm", x, IMAGE_EPS))[:, 1:]
    side = image.shape[-1] // patch
    pixels = torch.einsum("bchpwq->bhwpqc", image.reshape(len(image), 3, side, patch, side, patch)).flatten(3).flatten(1, 2)
    masked = (back >= count - hidden).double()
    return ((predicted - pixels).square().mean(-1) * masked).sum() / masked.sum()


# --- text


def layer(w: Weights, told: Told, x: Tensor, seen: Tensor, other: Tensor | None = None, other_seen: Tensor | None = None) -> Tensor:
    """A layer of BERT; with cross-attention onto ``other`` where that is given."""
    for name, states, mask in (("attention", x, seen), ("crossattention", other, other_seen)):
        if states is None:
            continue
        one = w.at(name)
        key, value = (one.linear(f"self.{part}", x if name == "attention" else states) for part in ("key", "value"))
        attended = attend(one.linear("self.query", x), key, value, told["text_heads"], mask)
        x = one.norm("output.LayerNorm", one.linear("output.dense", attended) + x, TEXT_EPS)
    inner = F.gelu(w.linear("intermediate.dense", x))
    return w.norm("output.LayerNorm", w.linear("output.dense", inner) + x, TEXT_EPS)


def embed(w: Weights, ids: Tensor) -> Tensor:
    """BERT's embeddings."""
    x = w["word_embeddings.weight"][ids] + w["position_embeddings.weight"][: ids.shape[1]] + w["token_type_embeddings.weight"][0]
    return w.norm("LayerNorm", x, TEXT_EPS)


def encode_text(w: Weights, told: Told, ids: Tensor, mask: Tensor) -> Tensor:
    """The layers below the fusion."""
    x = embed(w.at("embeddings"), ids)
    for number in range(told["fusion_layer"]):
        x = layer(w.at(f"encoder.layer.{number}"), told, x, mask.bool()[:, None])
    return x


def fuse(w: Weights, told: Told, x: Tensor, mask: Tensor, image: Tensor) -> Tensor:
    """The layers from the fusion on."""
    for number in range(told["fusion_layer"], told["text_depth"]):
        x = layer(w.at(f"encoder.layer.{number}"), told, x, mask.bool()[:, None], image)
    return x


def words(w: Weights, x: Tensor) -> Tensor:
    """States [..., D] -> scores over the vocabulary, whose matrix is that of the embeddings."""
    head = w.at("cls.predictions")
    x = head.norm("transform.LayerNorm", F.gelu(head.linear("transform.dense", x)), TEXT_EPS)
    return x @ w["bert.embeddings.word_embeddings.weight"].T + head["bias"]


# --- pretraining


def pretraining(told: Told, state: Mapping[str, Tensor], inputs: Mapping[str, Tensor]) -> State:
    """One step: losses, features, logits, queues, the teacher after it, and the gradients of the summed losses."""
    with torch.no_grad():
        teacher = averaged(state, told["momentum"])
    student = {name: tensor.clone().requires_grad_(_is_trained(name, tensor)) for name, tensor in state.items()}
    w, m = Weights(student), Weights(teacher)
    bert, image, mask, alpha = w.at("text_encoder.bert"), inputs["image"], inputs["attention_mask"], told["alpha"]
    states, order = encode_image(w.at("visual_encoder"), told, image, inputs["mim_noise_student"])
    text = encode_text(bert, told, inputs["input_ids"], mask)
    image_feat, text_feat = (F.normalize(w.linear(f"{k}_proj", x[:, 0])) for k, x in (("vision", states), ("text", text)))
    with torch.no_grad():
        bert_m = m.at("text_encoder_m.bert")
        states_m, _ = encode_image(m.at("visual_encoder_m"), told, image, inputs["mim_noise_teacher"])
        text_m = encode_text(bert_m, told, inputs["input_ids"], mask)
        image_feat_m, text_feat_m = (
            F.normalize(m.linear(f"{k}_proj_m", x[:, 0])) for k, x in (("vision", states_m), ("text", text_m))
        )
        masked_m = encode_text(bert_m, told, inputs["mlm_input_ids"], mask)
        soft_words = words(m.at("text_encoder_m"), fuse(bert_m, told, masked_m, mask, states_m)).softmax(-1)

    images, texts = (torch.cat([f.T, state[f"{k}_queue"]], 1) for k, f in (("image", image_feat_m), ("text", text_feat_m)))
    losses = {"itc": torch.zeros(()).double()}
    for mine, mine_m, all_m in ((image_feat, image_feat_m, texts), (text_feat, text_feat_m, images)):
        hard = torch.zeros(len(mine), all_m.shape[1]).fill_diagonal_(1)  # float32, in a double run too
        target = alpha * (mine_m @ all_m / w["temp"].detach()).softmax(1) + (1 - alpha) * hard
        losses["itc"] = losses["itc"] - ((mine @ all_m / w["temp"]).log_softmax(1) * target).sum(1).mean() / 2

    of_text, of_image = inputs["negative_image_for_text"], inputs["negative_text_for_image"]
    rows = [(text, mask, states), (text, mask, states[of_text]), (text[of_image], mask[of_image], states)]
    logits = w.linear("itm_head", torch.cat([fuse(bert, told, *row)[:, 0] for row in rows]))
    losses["itm"] = F.cross_entropy(logits, (torch.arange(len(logits)) < len(text)).long())

    masked = encode_text(bert, told, inputs["mlm_input_ids"], mask)
    said, asked = words(w.at("text_encoder"), fuse(bert, told, masked, mask, states)).log_softmax(-1), inputs["mlm_labels"] != -100
    plain = -said[asked].gather(1, inputs["mlm_labels"][asked][:, None]).mean()
    losses["mlm"] = (1 - alpha) * plain - alpha * (said * soft_words).sum(-1)[asked].mean()
    assert order is not None
    losses["mim"] = pixel_loss(w.at("visual_encoder"), told, image, states, order)
    torch.stack(list(losses.values())).sum().backward()

    found = {f"loss_{name}": loss for name, loss in losses.items()}
    found |= {"image_feat": image_feat, "text_feat": text_feat, "image_feat_m": image_feat_m, "text_feat_m": text_feat_m}
    pointer, count = int(state["queue_ptr"]), len(image)
    for name, features in (("image", image_feat_m), ("text", text_feat_m)):
        queue = state[f"{name}_queue"].clone()
        queue[:, pointer : pointer + count] = features.T
        found[f"{name}_queue_after"] = queue
    found["queue_ptr_after"] = torch.tensor([(pointer + count) % queue.shape[1]])
    found |= {f"teacher_after.{name}": tensor for name, tensor in teacher.items() if name.partition(".")[0].endswith("_m")}
    return {**found, "itm_logits": logits, **gradients(student, "grad")}


def averaged(state: Mapping[str, Tensor], momentum: float) -> State:
    """The state with its teacher moved towards its student."""
    found = dict(state)
    for name, tensor in state.items():
        head, dot, tail = name.partition(".")
        if f"{head}_m{dot}{tail}" in state and tensor.is_floating_point():
            found[f"{head}_m{dot}{tail}"] = momentum * state[f"{head}_m{dot}{tail}"] + (1 - momentum) * tensor
    return found


def _is_trained(name: str, tensor: Tensor) -> bool:
    still = name.partition(".")[0].endswith(("_m", "_queue")) or name.endswith(("pos_embed", "predictions.decoder.weight"))
    return tensor.is_floating_point() and not still


def gradients(state: Mapping[str, Tensor], prefix: str) -> State:
    """Of all tensors that have one."""
    return {f"{prefix}.{name}": tensor.grad for name, tensor in state.items() if tensor.grad is not None}


# --- answering


def surgery(state: Mapping[str, Tensor], fusion_layer: int, patches: int, fits: Mapping[str, Tensor]) -> State:
    """A pretraining student's or teacher's tensors under the names of an answering model; those that fit ``fits``."""
    found: State = {}
    for name, tensor in state.items():
        if name == "visual_encoder.pos_embed":
            side, new = round((tensor.shape[1] - 1) ** 0.5), round(patches**0.5)
            grid = tensor[:, 1:].transpose(1, 2).unflatten(2, (side, side))
            grid = F.interpolate(grid, size=(new, new), mode="bicubic", align_corners=False)
            tensor = torch.cat([tensor[:, :1], grid.flatten(2).transpose(1, 2)], 1)
        found[name.replace("bert.", "")] = tensor
        if name.startswith("text_encoder."):
            number = re.search(r"layer\.(\d+)\.", name)
            if number and int(number[1]) < fusion_layer:
                continue
            own = name.replace(number[0], f"layer.{int(number[1]) - fusion_layer}.") if number else name
            found[own.replace("text_encoder", "text_decoder")] = tensor
    return {name: tensor for name, tensor in found.items() if name in fits and fits[name].shape == tensor.shape}


def decode(w: Weights, told: Told, ids: Tensor, states: Tensor, mask: Tensor) -> Tensor:
    """Scores [B, A, V] of what follows each token of answers [B, A]."""
    x = embed(w.at("bert.embeddings"), ids)
    before = torch.ones(ids.shape[1], ids.shape[1], dtype=torch.bool).tril()[None]
    for number in range(told["answer_depth"]):
        x = layer(w.at(f"bert.encoder.layer.{number}"), told, x, before, states, mask.bool()[:, None])
    return words(w, x)


def question_states(w: Weights, told: Told, inputs: Mapping[str, Tensor]) -> Tensor:
    """The multimodal encoder's states of the questions."""
    image, _ = encode_image(w.at("visual_encoder"), told, inputs["image"])
    text, mask = w.at("text_encoder"), inputs["question_mask"]
    return fuse(text, told, encode_text(text, told, inputs["question_ids"], mask), mask, image)


def token_losses(scores: Tensor, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """[B, A - 1] the loss of each token but the first, 0 at padding, and the log-probabilities it is of."""
    said = scores[:, :-1].log_softmax(-1)
    return -said.gather(2, ids[:, 1:, None])[..., 0] * mask[:, 1:], said


def answering(told: Told, before: Mapping[str, Tensor], state: Mapping[str, Tensor], inputs: Mapping[str, Tensor], k: int) -> State:
    """Losses and gradients, states of the questions, and the ranking of the candidates. ``before``: the pretraining state."""
    ids, ids_mask, mask = inputs["candidate_ids"], inputs["candidate_mask"], inputs["question_mask"]
    chosen, chosen_mask = ids[inputs["target_candidate"]], ids_mask[inputs["target_candidate"]]
    teacher = {name.replace("_m.", ".", 1): x for name, x in before.items() if name.partition(".")[0].endswith("_m")}
    patches = state["visual_encoder.pos_embed"].shape[1] - 1
    teacher = {**state, **surgery(teacher, told["fusion_layer"], patches, state)}
    teacher = {
        name: told["momentum"] * x + (1 - told["momentum"]) * state[name] if x.is_floating_point() else x
        for name, x in teacher.items()
    }
    found: State = {}
    with torch.no_grad():
        m = Weights(teacher)
        soft = decode(m.at("text_decoder"), told, chosen, question_states(m, told, inputs), mask)[:, :-1].softmax(-1)
    for kind, alpha in (("plain", 0.0), ("distill", told["alpha"])):
        student = {name: tensor.clone().requires_grad_(_is_trained(name, tensor)) for name, tensor in state.items()}
        w = Weights(student)
        states = question_states(w, told, inputs)
        losses, said = token_losses(decode(w.at("text_decoder"), told, chosen, states, mask), chosen, chosen_mask)
        distilled = -(said * soft).sum(-1) * chosen_mask[:, 1:]
        loss = told.get("answer_weight", 0.5) * ((1 - alpha) * losses + alpha * distilled).sum() / len(states)
        loss.backward()
        found |= {f"loss_{kind}": loss, **gradients(student, f"grad_{kind}")}
    with torch.no_grad():
        w, states = Weights(state).at("text_decoder"), states.detach()
        first = decode(w, told, ids[:1, :1].expand(len(states), 1), states, mask)[:, 0].softmax(-1)[:, ids[:, 1]]
        of_best, best = first.topk(k)
        scores = []
        for question, numbers in enumerate(best):
            same = (states[[question] * k], mask[[question] * k])
            losses, _ = token_losses(decode(w, told, ids[numbers], *same), ids[numbers], ids_mask[numbers])
            scores.append(of_best[question].log() - losses.sum(1))
        probabilities, order = torch.stack(scores).softmax(1).topk(k)
    return {**found, "fused_states": states, "rank_topk_ids": best.gather(1, order), "rank_topk_probs": probabilities}
