"""Deep visual prompts (Jia et al. 2022): trained tokens before the image's tokens in every attention.

Each block replaces the prompts of the block before it, so that all that remains of a prompt is what the
image's tokens have taken from it by attention. Prompts are therefore inserted inside the attention: its
outputs in their places are dropped there, and neither patch merging nor pooling sees them. (In Swin, the
public code pools the last block's outputs in the prompts' places together with the image's features;
according to VPT's text, prompts are ignored there.)
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .classifier import Inserted


class PromptedAttention(Inserted):
    """A ViT's attention in which the image's tokens also attend to prompts.

    attn: the original attention, which maps tokens (N, L, D) to (N, L, D) without regard to positions.
    norm: the block's normalisation before the attention, which is applied to the prompts as well.
    prompts: (tokens, D), their initial values.
    dropout: probability of dropout on the prompts in train mode, drawn separately for each row of the batch.
    """

    def __init__(self, attn: nn.Module, norm: nn.Module, prompts: Tensor, dropout: float):
        super().__init__()
        self.attn = attn
        self._norm = (norm,)  # hidden in a tuple: the block registers it
        self.prompts = nn.Parameter(prompts)
        self.dropout = dropout

    def forward(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        if attn_mask is not None or is_causal:
            raise ValueError("attn_mask, is_causal: got a mask, accepted: none, since prompts are not in it")
        prompts = self._normed_prompts(len(x)).expand(len(x), -1, -1)
        return self.attn(torch.cat((prompts, x), dim=1))[:, len(self.prompts) :]

    def _normed_prompts(self, rows: int) -> Tensor:
        """The normalised prompts (rows, tokens, D), or (1, tokens, D) if all rows have the same."""
        prompts = self.prompts[None]
        if self.training and self.dropout:
            prompts = F.dropout(prompts.expand(rows, -1, -1), self.dropout)
        return self._norm[0](prompts)


class PromptedWindowAttention(PromptedAttention):
    """A Swin's attention in which the tokens of every window also attend to prompts, which have no relative
    position and are never masked. A row of the batch is a window here.

    attn: the original attention, timm's ``WindowAttention``.
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
