"""Finetuning methods: what trains, what is inserted, and that nothing else moves."""

import copy
from fractions import Fraction

import numpy
import pytest
import torch
import torch.nn.functional as F
from timm.models.swin_transformer import WindowAttention
from torch import nn
from torch.nn.utils import parametrize

from roli_fast.attacks import PGD
from roli_fast.engine import AttackView
from roli_fast.models import (
    METHODS,
    create_model,
    find_classifier,
    finetune,
    load_model,
    save_model,
    separate,
    split,
)

from .cases import IMAGES, backbone, stir, tiny

INSERTING = ("vpt", "adapter", "lora")
TRANSFORMERS = ("vit", "swin")


def trained(model, steps=3):
    """What each parameter and buffer was before some steps of AdamW, without weight decay, which would move
    what has no gradient."""
    before = {name: t.clone() for name, t in model.state_dict().items()}
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=1e-2, weight_decay=0)
    images, labels = torch.rand(8, 3, 32, 32), torch.randint(0, 5, (8,))
    model.train()
    for _ in range(steps):
        optimizer.zero_grad()
        F.cross_entropy(model(images), labels).backward()
        optimizer.step()
    return before


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", TRANSFORMERS)
def test_what_is_to_train_moves_and_nothing_else(kind, method):
    model = tiny(kind)
    finetune(model, method)
    trainable = {name for name, p in model.named_parameters() if p.requires_grad}
    before = trained(model)
    moved = {name for name, t in model.state_dict().items() if not torch.equal(t, before[name])}
    assert moved == trainable
    assert {"model.head.weight", "model.head.bias"} <= trainable
    if method == "full":
        assert trainable == {name for name, _ in model.named_parameters()}


@pytest.mark.parametrize("kind", TRANSFORMERS)
def test_every_element_of_what_was_inserted_moves(kind):
    """Also the layers behind those that begin as zero."""
    for method in INSERTING:
        model = tiny(kind)
        finetune(model, method)
        before = trained(model)
        for name, parameter in backbone(model).named_parameters():
            if parameter.requires_grad:
                assert (parameter != before[f"model.backbone.{name}"]).float().mean() > 0.99, name


@pytest.mark.parametrize("method", ["linear", "bias", "adapter", "lora", "full"])
@pytest.mark.parametrize("kind", TRANSFORMERS)
def test_it_begins_as_the_model_was(kind, method):
    model, images = tiny(kind).eval(), torch.rand(IMAGES)
    expected = model(images)
    finetune(model, method)
    assert not any(m.training for m in model.modules())
    torch.testing.assert_close(model(images), expected)


@pytest.fixture(scope="module")
def swin_base():
    """The paper's backbone, without memory."""
    with torch.device("meta"):
        return create_model("swin_base_patch4_window7_224", 10)


@pytest.mark.parametrize(
    ("method", "options", "count"),
    [
        ("linear", {}, 0),
        ("bias", {}, 200_760),
        ("vpt", {}, 120_320),
        ("vpt", {"tokens": 20}, 240_640),
        ("adapter", {}, 1_758_432),
        ("lora", {}, 770_048),
        ("full", {}, 86_743_224),
    ],
)
def test_the_papers_numbers_of_parameters(swin_base, method, options, count):
    model = copy.deepcopy(swin_base)
    finetune(model, method, **options)
    assert sum(p.numel() for p in backbone(model).parameters() if p.requires_grad) == count


# --- modes -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["linear", "bias"])
def test_batch_norm_keeps_its_statistics(method):
    model = tiny("resnet")
    finetune(model, method)
    before = trained(model, steps=1)
    buffers = dict(model.named_buffers())
    assert any(name.endswith("running_mean") for name in buffers)
    assert all(torch.equal(t, before[name]) for name, t in buffers.items())


def test_full_finetuning_trains_batch_norm():
    model = tiny("resnet")
    finetune(model, "linear")
    finetune(model, "full")
    before = trained(model, steps=1)
    assert not any(torch.equal(t, before[n]) for n, t in model.named_buffers() if n.endswith("running_mean"))


@pytest.mark.parametrize("method", METHODS)
def test_only_what_was_inserted_is_random_in_training(method):
    options = {"drop_rate": 0.5, "drop_path_rate": 0.9}
    model, images = tiny("vit", **options), torch.rand(IMAGES)
    finetune(model, method)
    stir(model).train()
    same = torch.equal(model(images), model(images))
    assert same == (method in ("linear", "bias", "adapter"))
    model.eval()
    assert torch.equal(model(images), model(images))
    assert not any(m.training for m in model.modules())


def test_the_head_can_be_probed_before():
    """Stage two starts from the head of stage one."""
    model = tiny("vit")
    finetune(model, "linear")
    trained(model)
    head = find_classifier(model).head.weight.clone()
    finetune(model, "lora", rank=2)
    assert torch.equal(find_classifier(model).head.weight, head)


# --- LoRA --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", TRANSFORMERS)
def test_lora_changes_queries_and_values(kind):
    """W x + alpha / rank B A x on their rows, and W x alone on those of the keys."""
    model = tiny(kind).double()
    finetune(model, "lora", rank=3, alpha=6.0, dropout=0.0)
    stir(model)
    layer = next(m for name, m in backbone(model).named_modules() if name.endswith("qkv"))
    weight, low_rank = layer.parametrizations.weight.original, layer.parametrizations.weight[0]
    x = torch.randn(2, 7, weight.shape[1], dtype=torch.float64)
    query, key, value = F.linear(x, weight, layer.bias).chunk(3, dim=-1)
    query = query + 2 * x @ low_rank.a[0].T @ low_rank.b[0].T
    value = value + 2 * x @ low_rank.a[1].T @ low_rank.b[1].T
    for training in (True, False):
        torch.testing.assert_close(layer.train(training)(x), torch.cat((query, key, value), dim=-1))


def test_loras_dropout_is_on_its_input_alone():
    model = tiny("vit").double()
    finetune(model, "lora", rank=2, dropout=0.5)
    stir(model).train()
    layer = backbone(model).blocks[0].attn.qkv
    x = torch.ones(20_000, 1, 32, dtype=torch.float64)
    found, merged = layer(x), layer.eval()(x)
    keys = slice(32, 64)
    torch.testing.assert_close(found[..., keys], merged[..., keys])
    # On average it is as without; 20,000 draws give that within a few hundredths of their deviation.
    torch.testing.assert_close(found.mean(0), merged.mean(0), rtol=0, atol=0.04 * found.std(0).max().item())
    assert (found.std(0)[0, :32] > 0).all()
    # Queries and values see dropouts of their own.
    query, value = found[:, 0, 0], found[:, 0, 64]
    assert abs(torch.corrcoef(torch.stack((query, value)))[0, 1]) < 0.05


# --- prompts -----------------------------------------------------------------------------------------------


def test_prompts_of_a_vit():
    """Block for block as VPT has it: prompts after the class token, replaced before the next block."""
    model = tiny("vit").double().eval()
    plain = copy.deepcopy(backbone(model))
    finetune(model, "vpt", tokens=4)
    images = torch.rand(IMAGES, dtype=torch.float64)
    x = plain._pos_embed(plain.patch_embed(images))
    for block, prompted in zip(plain.blocks, backbone(model).blocks, strict=True):
        prompts = prompted.attn.prompts.expand(len(x), -1, -1)
        x = block(torch.cat((x[:, :1], prompts, x[:, 1:]), dim=1))
        x = torch.cat((x[:, :1], x[:, 5:]), dim=1)
    expected = plain.forward_head(plain.norm(x))
    torch.testing.assert_close(backbone(model)(images), expected)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("block", [0, 1])
def test_prompts_in_the_windows_of_a_swin(block, training):
    """Attention written out, over prompts and window together: no relative position and no mask for prompts,
    and what comes out in their places is dropped."""
    model = tiny("swin").double()
    finetune(model, "vpt", tokens=3, dropout=0.0)
    stir(model)
    part = backbone(model).layers[0].blocks[block]
    prompted, attn, mask = part.attn, part.attn.attn, part.attn_mask
    assert isinstance(attn, WindowAttention)
    assert (mask is not None) == (block == 1)  # the second block's windows are shifted
    windows, heads, tokens = 2 * 16, attn.num_heads, 3 + 16  # two images of 16 windows of 16 tokens
    x = torch.randn(windows, 16, 16, dtype=torch.float64)
    prompts = part.norm1(prompted.prompts).expand(windows, -1, -1)
    q, k, v = attn.qkv(torch.cat((prompts, x), 1)).reshape(windows, tokens, 3, heads, -1).unbind(2)
    scores = torch.einsum("nqhd,nkhd->nhqk", q, k) / q.shape[-1] ** 0.5
    scores[..., 3:, 3:] += attn._get_rel_pos_bias()
    if mask is not None:
        for window in range(windows):
            scores[window, :, 3:, 3:] += mask[window % 16]
    attended = torch.einsum("nhqk,nkhd->nqhd", scores.softmax(-1), v).flatten(2)
    expected = attn.proj(attended)[:, 3:]
    torch.testing.assert_close(prompted.train(training)(x, mask=mask), expected)


def test_prompts_begin_within_xaviers_bound():
    model = tiny("vit")
    finetune(model, "vpt", tokens=50)
    prompts = backbone(model).blocks[1].attn.prompts
    bound = (6 / (3 * 8 * 8 + 32)) ** 0.5
    assert prompts.abs().max() <= bound
    assert prompts.std().item() == pytest.approx(bound / 3**0.5, rel=0.1)


# --- the attack's view -------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", INSERTING)
@pytest.mark.parametrize("kind", TRANSFORMERS)
def test_the_attack_sees_the_model(kind, method):
    """As it is in eval mode, LoRA merged, and after each step of training."""
    model, images = tiny(kind), torch.rand(IMAGES)
    finetune(model, method)
    stir(model)
    view = AttackView(model)
    for _ in range(2):
        torch.testing.assert_close(view(view.prepare(images)), model.eval()(images), rtol=1e-4, atol=1e-5)
        trained(model, steps=1)
        view.refresh()
    assert view.is_copy
    assert not any(parametrize.is_parametrized(m) for m in view._copy.module.modules())


@pytest.mark.parametrize("method", INSERTING)
def test_an_attack_leaves_the_modes_alone(method):
    model = tiny("swin")
    finetune(model, method)
    modes = [m.training for m in model.modules()]
    assert any(modes)
    assert not all(modes)
    images, labels = torch.rand(IMAGES), torch.randint(0, 5, (3,))
    adversarial = PGD(steps=2, precision="bf16")(model, images, labels)
    assert (adversarial - images).abs().max() <= 8 / 255 + 1e-6
    assert [m.training for m in model.modules()] == modes
    features, _ = split(model)
    assert torch.equal(model.eval()(images), find_classifier(model).head(features(images)))


# --- what is refused ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", INSERTING)
@pytest.mark.parametrize("kind", ["resnet", "convnext"])
def test_networks_without_transformer_blocks(kind, method):
    model = tiny(kind)
    names = [name for name, _ in model.named_modules()]
    with pytest.raises(
        ValueError, match=f"method: got '{method}' for a .*, accepted: full, bias, linear; vpt"
    ):
        finetune(model, method)
    assert [name for name, _ in model.named_modules()] == names
    assert all(p.requires_grad for p in model.parameters())


def test_an_attention_of_another_kind():
    model = create_model("vit_tiny_patch16_224", 5, img_size=32, depth=1, attn_layer="diff")
    with pytest.raises(ValueError, match="method: got 'lora' for a VisionTransformer"):
        finetune(model, "lora")


@pytest.mark.parametrize(
    ("method", "options", "message"),
    [
        ("prompt", {}, "method: got 'prompt', accepted: linear, bias, vpt, adapter, lora, full"),
        ("lora", {"tokens": 3}, "options: got tokens for 'lora', accepted: rank, alpha, dropout"),
        ("full", {"rank": 3}, "options: got rank for 'full', accepted: none"),
        ("lora", {"alpha": 0}, "alpha: got 0, accepted: a number above 0"),
        ("lora", {"rank": 0}, "rank: got 0, accepted: an integer >= 1"),
        ("vpt", {"dropout": 1.0}, r"dropout: got 1\.0, accepted: a number >= 0 and below 1"),
        ("vpt", {"tokens": 0}, "tokens: got 0, accepted: an integer >= 1"),
        ("adapter", {"reduction": 0}, "reduction: got 0, accepted: an integer >= 1"),
    ],
)
def test_methods_and_options(method, options, message):
    model = tiny("vit")
    with pytest.raises(ValueError, match=message):
        finetune(model, method, **options)
    assert find_classifier(model).method == "full"


@pytest.mark.parametrize("value", [numpy.float32(0.5), Fraction(1, 2)], ids=type)
def test_options_are_numbers_that_a_file_holds(value, tmp_path):
    model = tiny("vit")
    finetune(model, "lora", rank=numpy.int64(2), alpha=value, dropout=value)
    save_model(model, tmp_path / "model.safetensors")
    read = find_classifier(load_model(tmp_path / "model.safetensors"))
    assert read.options == {"rank": 2, "alpha": 0.5, "dropout": 0.5}


def test_two_methods_at_once():
    model = tiny("vit")
    finetune(model, "adapter")
    with pytest.raises(ValueError, match="method: got 'lora' for a model that has adapter's parts"):
        finetune(model, "lora")


def test_a_network_without_biases():
    model = separate(nn.Sequential(nn.Flatten(), nn.Linear(12, 6, bias=False), nn.Linear(6, 2)), "2")
    with pytest.raises(ValueError, match="method: got 'bias' for a Sequential without biases"):
        finetune(model, "bias")
