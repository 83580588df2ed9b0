"""The image encoder (ViT) and the pixel decoder (MAE), under the official checkpoint's parameter names.

Shapes: B images, P patches, N = 1 + visible patches tokens, D wide.
"""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from m2i2.config import VisionConfig
from m2i2.models.ops import Linear, attention


class MaskedImage(NamedTuple):
    """What the encoder saw of an image."""

    states: Tensor
    """[B, N, D] after the last norm, [CLS] first, visible patches in ascending order of their noise."""
    order: Tensor | None
    """[B, P] patch numbers, the visible ones first; None where nothing was masked."""

    @property
    def hidden(self) -> Tensor:
        """[B, masked] numbers of the masked patches, in the order in which they are reconstructed."""
        assert self.order is not None
        return self.order[:, self.states.shape[1] - 1 :]

    def rows(self, chosen: slice) -> "MaskedImage":
        """Of some of the images."""
        return MaskedImage(self.states[chosen], None if self.order is None else self.order[chosen])


class Attention(nn.Module):
    """Self-attention with one projection for queries, keys and values."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = Linear(width, 3 * width)
        self.proj = Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """[B, N, D] -> [B, N, D]."""
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return self.proj(attention(q, k, v).transpose(1, 2).flatten(2))


class Mlp(nn.Module):
    """Two layers, four times as wide between."""

    def __init__(self, width: int, activation: str = "gelu") -> None:
        super().__init__()
        self.quick = activation == "quick_gelu"
        self.fc1 = Linear(width, 4 * width)
        self.fc2 = Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """[..., D] -> [..., D]."""
        x = self.fc1(x)
        if self.quick:  # OpenAI's CLIP
            return self.fc2(x * torch.sigmoid(1.702 * x))
        return self.fc2(x, gelu=True)


class Block(nn.Module):
    """A pre-norm transformer layer."""

    def __init__(self, width: int, heads: int, eps: float = 1e-6, activation: str = "gelu") -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=eps)
        self.attn = Attention(width, heads)
        self.norm2 = nn.LayerNorm(width, eps=eps)
        self.mlp = Mlp(width, activation)

    def forward(self, x: Tensor) -> Tensor:
        """[B, N, D] -> [B, N, D]."""
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class PatchEmbed(nn.Module):
    """Pixels of each patch, projected. The convolution's weight is applied as a matrix product over patches."""

    def __init__(self, patch_size: int, width: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, width, patch_size, patch_size)

    def forward(self, patches: Tensor) -> Tensor:
        """[B, n, 3 * patch * patch] channel-first pixels -> [B, n, D]."""
        return F.linear(patches, self.proj.weight.flatten(1), self.proj.bias)


class VisionTransformer(nn.Module):
    """Encodes images, whole or masked, and reconstructs the masked patches' pixels."""

    def __init__(self, config: VisionConfig, *, with_decoder: bool) -> None:
        super().__init__()
        self.config = config
        self.checkpoint_activations = False
        self.cls_token = nn.Parameter(torch.zeros(1, 1, config.width))
        # positions are not trained, in finetuning neither (official code)
        self.pos_embed = nn.Parameter(sin_cos_positions(config.width, config.patches), requires_grad=False)
        self.patch_embed = PatchEmbed(config.patch_size, config.width)
        if config.pre_norm:  # timm's name
            self.norm_pre = nn.LayerNorm(config.width, eps=config.layer_norm_eps)
        one = config.width, config.heads, config.layer_norm_eps, config.activation
        self.blocks = nn.ModuleList(Block(*one) for _ in range(config.depth))
        self.norm = nn.LayerNorm(config.width, eps=config.layer_norm_eps)
        if with_decoder:
            self.mask_token = nn.Parameter(torch.zeros(1, 1, config.decoder_width))
            self.decoder_embed = Linear(config.width, config.decoder_width)
            self.decoder_pos_embed = nn.Parameter(sin_cos_positions(config.decoder_width, config.patches), requires_grad=False)
            self.decoder_blocks = nn.ModuleList(
                Block(config.decoder_width, config.decoder_heads) for _ in range(config.decoder_depth)
            )
            self.decoder_norm = nn.LayerNorm(config.decoder_width, eps=1e-6)
            self.decoder_pred = Linear(config.decoder_width, config.patch_size**2 * 3)
        self.apply(_initialise)
        nn.init.normal_(self.cls_token, std=0.02)
        if with_decoder:
            nn.init.normal_(self.mask_token, std=0.02)
        nn.init.xavier_uniform_(self.patch_embed.proj.weight.view(config.width, -1))

    def forward(self, image: Tensor, noise: Tensor | None = None, mask_ratio: float = 0.0) -> MaskedImage:
        """Encode ``image`` [B, 3, H, W]; of its P patches the floor(P * (1 - mask_ratio)) with the lowest ``noise`` [B, P]."""
        patches = patchify(image, self.config.patch_size, channels_first=True)
        positions = self.pos_embed[:, 1:]
        if noise is None:
            order = None
            x = self.patch_embed(patches) + positions
        else:
            order = noise.argsort(dim=1)
            keep = order[:, : int(patches.shape[1] * (1 - mask_ratio))]
            x = self.patch_embed(take(patches, keep)) + take(positions.expand(len(keep), -1, -1), keep)
        cls = (self.cls_token + self.pos_embed[:, :1]).expand(len(x), -1, -1)
        x = torch.cat([cls.to(x.dtype), x], dim=1)
        if self.config.pre_norm:
            x = self.norm_pre(x)
        x = self._run(self.blocks, x)
        return MaskedImage(self.norm(x), order)

    def reconstruct(self, seen: MaskedImage) -> Tensor:
        """Pixels [B, masked, patch * patch * 3] of the masked patches, in the order of ``seen.order``."""
        assert seen.order is not None
        x = self.decoder_embed(seen.states)
        masked = seen.order.shape[1] + 1 - x.shape[1]
        positions = take(self.decoder_pos_embed[:, 1:].expand(len(x), -1, -1), seen.order)
        positions = torch.cat([self.decoder_pos_embed[:, :1].expand(len(x), -1, -1), positions], dim=1)
        x = torch.cat([x, self.mask_token.to(x.dtype).expand(len(x), masked, -1)], dim=1) + positions
        x = self._run(self.decoder_blocks, x)
        return self.decoder_pred(self.decoder_norm(x[:, -masked:]))

    def _run(self, blocks: nn.ModuleList, x: Tensor) -> Tensor:
        for block in blocks:
            if self.checkpoint_activations and self.training:
                x = checkpoint(block, x, use_reentrant=False)
            else:
                x = block(x)
        return x


def take(x: Tensor, index: Tensor) -> Tensor:
    """Rows ``index`` [B, n] of each of ``x`` [B, P, D]."""
    return x.gather(1, index.unsqueeze(-1).expand(-1, -1, x.shape[-1]))


def patchify(image: Tensor, patch_size: int, *, channels_first: bool = False) -> Tensor:
    """[B, 3, H, W] -> [B, P, patch * patch * 3]; MAE's pixel order has the channel last, a convolution's weight has it first."""
    b, c, h, w = image.shape
    grid = image.reshape(b, c, h // patch_size, patch_size, w // patch_size, patch_size)
    inner = (1, 3, 5) if channels_first else (3, 5, 1)
    return grid.permute(0, 2, 4, *inner).reshape(b, (h // patch_size) * (w // patch_size), -1)


def unpatchify(patches: Tensor, patch_size: int) -> Tensor:
    """[B, P, patch * patch * 3], channel last, -> [B, 3, H, W] of a square image: the way back from `patchify`."""
    side = int(patches.shape[1] ** 0.5)
    grid = patches.unflatten(2, (patch_size, patch_size, 3)).unflatten(1, (side, side))
    return grid.permute(0, 5, 1, 3, 2, 4).reshape(len(patches), 3, side * patch_size, side * patch_size)


def sin_cos_positions(width: int, patches: int) -> Tensor:
    """[1, 1 + P, D] two-dimensional sine-cosine positions of MAE; the row of [CLS] is zero."""
    side = int(patches**0.5)
    omega = 1.0 / 10000 ** (np.arange(width // 4, dtype=np.float64) / (width / 4))

    def one(coordinates: np.ndarray) -> np.ndarray:
        angles = np.outer(coordinates.reshape(-1), omega)
        return np.concatenate([np.sin(angles), np.cos(angles)], axis=1)

    column, row = np.meshgrid(np.arange(side, dtype=np.float64), np.arange(side, dtype=np.float64))
    table = np.concatenate([one(column), one(row)], axis=1)
    return torch.from_numpy(np.concatenate([np.zeros((1, width)), table])).float().unsqueeze(0)


def _initialise(module: nn.Module) -> None:
    """MAE's: Xavier-uniform projections, zero biases."""
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        nn.init.zeros_(module.bias)
