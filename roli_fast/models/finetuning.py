"""Finetuning methods: full finetuning, and methods that keep most of a robust backbone."""

import inspect
import math
from collections.abc import Callable
from typing import Any

from timm.models.swin_transformer import SwinTransformerBlock, WindowAttention
from timm.models.vision_transformer import Attention, Block
from torch import nn

from ..checks import check_choice, check_count, check_number, plain, refuse
from .adapter import Adapted
from .classifier import find_classifier
from .lora import with_lora
from .prompts import PromptedAttention, PromptedWindowAttention


def finetune(model: nn.Module, method: str, **options: Any) -> None:
    """Prepares a model for a finetuning method: inserts the modules that it needs, and lets only the
    parameters that it trains require a gradient. The head is always trained. The defaults are RoLI's.

    | method | trains besides the head | options, with defaults |
    |---|---|---|
    | "linear" | nothing | |
    | "bias" | every bias, including relative position biases | |
    | "vpt" | prompts in every attention | tokens=10, dropout=0.1 |
    | "adapter" | a bottleneck after every MLP | reduction=8 |
    | "lora" | low-rank changes of all query and value projections | rank=16, alpha=16.0, dropout=0.1 |
    | "full" | everything | |

    Inserted modules do not change the model's output at first, except for prompts. With every method but
    "full" the backbone stays in eval mode during training, as in the paper's code: BatchNorm keeps its
    statistics, though "bias" does train its biases.

    model: a :class:`Classifier`, or :class:`Normalized` around one.

    Raises ValueError or TypeError for an unknown method or option, for a backbone that the method does not
    fit ("vpt", "adapter" and "lora" need timm's ViT or Swin), and for one into which a method has inserted
    modules before.
    """
    classifier = find_classifier(model)
    check_choice("method", method, METHODS)
    if classifier.inserted:
        refuse("method", f"{method!r} for a model that has {classifier.method}'s parts", "one without")
    if method in _INSERT:
        accepted = inspect.signature(_INSERT[method]).parameters
        defaults = {name: p.default for name, p in accepted.items() if p.kind is p.KEYWORD_ONLY}
    else:
        defaults = {}
    if unknown := ", ".join(sorted(options.keys() - defaults.keys())):
        refuse("options", f"{unknown} for {method!r}", ", ".join(defaults) or "none")
    options = {name: plain(value) for name, value in (defaults | options).items()}
    biases = _biases(classifier.backbone) if method == "bias" else []
    inserted = _INSERT[method](classifier.backbone, **options) if method in _INSERT else []
    classifier.requires_grad_(method == "full")
    for parameter in (*biases, *inserted, *classifier.head.parameters()):
        parameter.requires_grad_()
    classifier.method, classifier.options = method, options
    classifier.train(classifier.training)


def _biases(backbone: nn.Module) -> list[nn.Parameter]:
    found = [p for name, p in backbone.named_parameters() if "bias" in name.rpartition(".")[2]]
    if not found:
        refuse("method", f"'bias' for a {type(backbone).__name__} without biases", "full, linear")
    return found


def _blocks(backbone: nn.Module, method: str) -> list[Any]:
    """The transformer blocks. Raises ValueError if there are none, or if an attention is of unknown kind."""
    blocks = [m for m in backbone.modules() if type(m) in (Block, SwinTransformerBlock)]
    known = all(type(block.attn) in (Attention, WindowAttention) for block in blocks)
    if not (blocks and known):
        accepted = "full, bias, linear; vpt, adapter, lora for timm's ViT and Swin"
        refuse("method", f"{method!r} for a {type(backbone).__name__}", accepted)
    return blocks


def _insert_lora(
    backbone: nn.Module, *, rank: int = 16, alpha: float = 16.0, dropout: float = 0.1
) -> list[nn.Parameter]:
    check_count("rank", rank)
    check_number("alpha", alpha, above=0)
    check_number("dropout", dropout, 0, below=1)
    blocks = _blocks(backbone, "lora")
    for block in blocks:
        block.attn.qkv = with_lora(block.attn.qkv, rank, alpha, dropout)
    return [p for block in blocks for p in block.attn.qkv.parametrizations.weight[0].parameters()]


def _insert_adapters(backbone: nn.Module, *, reduction: int = 8) -> list[nn.Parameter]:
    check_count("reduction", reduction)
    blocks = _blocks(backbone, "adapter")
    for block in blocks:
        weight = block.attn.proj.weight
        block.mlp = Adapted(block.mlp, len(weight), max(1, len(weight) // reduction), weight)
    return [p for block in blocks for layer in (block.mlp.down, block.mlp.up) for p in layer.parameters()]


def _insert_prompts(backbone: nn.Module, *, tokens: int = 10, dropout: float = 0.1) -> list[nn.Parameter]:
    check_count("tokens", tokens)
    check_number("dropout", dropout, 0, below=1)
    blocks = _blocks(backbone, "vpt")
    patches = next(m for m in backbone.modules() if isinstance(m, nn.Conv2d)).weight
    bound = math.sqrt(6 / (patches[0].numel() + len(patches)))  # Xavier's for the patch embedding, as in VPT
    for block in blocks:
        weight = block.attn.qkv.weight
        prompts = nn.init.uniform_(weight.new_empty(tokens, weight.shape[1]), -bound, bound)
        kind = PromptedWindowAttention if isinstance(block.attn, WindowAttention) else PromptedAttention
        block.attn = kind(block.attn, block.norm1, prompts, dropout)
    return [block.attn.prompts for block in blocks]


_INSERT: dict[str, Callable[..., list[nn.Parameter]]] = {
    "vpt": _insert_prompts,
    "adapter": _insert_adapters,
    "lora": _insert_lora,
}
METHODS = ("linear", "bias", *_INSERT, "full")
