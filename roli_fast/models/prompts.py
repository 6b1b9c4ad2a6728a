"""Deep visual prompts (Jia et al. 2022): trained tokens before the image's in every attention.

A deep prompt is replaced by the next block's, so that nothing remains of it but what the image's tokens have
attended to. So it stands inside the attention: what comes out in its place is dropped there, and neither
patch merging nor pooling sees it. (The public code pools what comes out of Swin's last block in the prompts'
places with the image's features; VPT's text has prompts ignored there.)
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .classifier import Inserted


class PromptedAttention(Inserted):
    """An attention of a ViT whose tokens also attend to prompts.

    attn: maps tokens (N, L, D) to (N, L, D), without positions of its own.
    norm: what the block does to its tokens before the attention, and so to its prompts.
    prompts: (tokens, D), their initial values.
    dropout: on the prompts in train mode, its own for every row of the batch.
    """

    def __init__(self, attn: nn.Module, norm: nn.Module, prompts: Tensor, dropout: float):
        super().__init__()
        self.attn = attn
        self._norm = (norm,)  # the block's, which registers it
        self.prompts = nn.Parameter(prompts)
        self.dropout = dropout

    def forward(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        if attn_mask is not None or is_causal:
            raise ValueError("attn_mask, is_causal: got a mask, accepted: none, since prompts are not in it")
        prompts = self._normed_prompts(len(x)).expand(len(x), -1, -1)
        return self.attn(torch.cat((prompts, x), dim=1))[:, len(self.prompts) :]

    def _normed_prompts(self, rows: int) -> Tensor:
        """(rows, tokens, D), or (1, tokens, D) where they are the same in every row."""
        prompts = self.prompts[None]
        if self.training and self.dropout:
            prompts = F.dropout(prompts.expand(rows, -1, -1), self.dropout)
        return self._norm[0](prompts)


class PromptedWindowAttention(PromptedAttention):
    """An attention of a Swin, in whose every window the tokens also attend to prompts: at no relative
    position, and never masked. A row is a window here.

    attn: timm's ``WindowAttention``.
    """

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:  # type: ignore[override]
        attn: Any = self.attn
        q, k, v = self._in_heads(x)
        _, *prompts = self._in_heads(self._normed_prompts(len(x)))
        k, v = (
            torch.cat((p.expand(len(x), -1, -1, -1), t), dim=2) for p, t in zip(prompts, (k, v), strict=True)
        )
        bias = attn._get_rel_pos_bias()  # (1, heads, L, L)
        if mask is not None:  # (windows of an image, L, L)
            bias = (bias + mask[:, None]).repeat(len(x) // len(mask), 1, 1, 1)
        attended = F.scaled_dot_product_attention(
            q,
            k,
            v,
            attn_mask=F.pad(bias, (len(self.prompts), 0)).to(q.dtype),
            dropout_p=attn.attn_drop.p if attn.training else 0.0,
            scale=attn.scale,
        )
        return attn.proj_drop(attn.proj(attended.transpose(1, 2).flatten(2)))

    def _in_heads(self, x: Tensor) -> Tensor:
        """Queries, keys and values (3, N, heads, L, D / heads) of tokens (N, L, D)."""
        attn: Any = self.attn
        return attn.qkv(x).unflatten(-1, (3, attn.num_heads, -1)).permute(2, 0, 3, 1, 4)
