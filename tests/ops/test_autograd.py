"""Ops are not differentiable, and autograd is never misled."""

import warnings

import pytest
import torch

from roli_fast import ops

from .cases import BY_NAME, TORCH_OPS, arguments, assert_same_bits, copied, each_torch_op, each_writing_op

REFUSED = "requires (a )?grad"  # the torch op says it in fewer words


@each_writing_op
def test_an_overwritten_saved_tensor_is_noticed(op, call_on_cpu):
    """Otherwise backward would compute with the overwritten values, in silence."""
    for name in op.writes:
        given = arguments(op) | ({"out": torch.zeros(3, 3, 5, 7)} if name == "out" else {})
        loss = (torch.ones_like(given[name], requires_grad=True) * given[name]).sum()
        call_on_cpu(op, **given)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            loss.backward()


@each_writing_op
def test_versions(op, call_on_cpu):
    """What is written counts up, and the tensor that it is a view of; nothing else does."""
    given = arguments(op)
    given |= {"out": torch.zeros(3, 3, 5, 7)} if "out" in op.writes else {}
    first, whole = op.tensors[0], torch.zeros(5, 3, 5, 7)
    given[first] = whole[1:4].copy_(given[first])
    before = {name: value._version for name, value in given.items() if isinstance(value, torch.Tensor)}
    call_on_cpu(op, **given)
    for name, version in before.items():
        assert (given[name]._version > version) == (name in op.writes), name
    assert whole._version == given[first]._version


@each_torch_op
@pytest.mark.parametrize("is_leaf", [True, False], ids=["leaf", "not_leaf"])
def test_a_tensor_that_requires_a_gradient_is_refused_in_grad_mode(op, call_on_cpu, is_leaf, capfd):
    for name in (op.tensors[0], *op.writes):
        given = arguments(op) | ({"out": torch.zeros(3, 3, 5, 7)} if "out" in op.writes else {})
        given[name].requires_grad_()
        if not is_leaf:
            given[name] = given[name] * 1
        before = {k: (given[k], given[k].detach().clone(), given[k]._version) for k in op.writes}
        with pytest.raises(RuntimeError, match=f"{name}.*{REFUSED}"):
            call_on_cpu(op, **given)
        for tensor, bits, version in before.values():
            assert_same_bits(tensor.detach(), bits)
            assert tensor._version == version
        # Older versions of torch write the errors that their C interface returns to stderr as well.
        assert capfd.readouterr() == ("", "") or torch.__version__ < "2.13"


@each_torch_op
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_without_grad_mode_it_is_fine(op, call_on_cpu, mode):
    expected = op(**arguments(op))
    given = arguments(op)
    given[op.tensors[0]].requires_grad_()
    with mode():
        results = call_on_cpu(op, **given)
    assert_same_bits(tuple(result.detach() for result in results), expected)


@each_writing_op
def test_inference_tensors(op, call_on_cpu):
    expected = op(**arguments(op))
    with torch.inference_mode():
        given = arguments(op)
        call_on_cpu(op, **given)
        assert_same_bits(op.results(None, given), expected)
        made_inside = arguments(op)
    with pytest.raises(RuntimeError, match="inference"):
        call_on_cpu(op, **made_inside)
    for result, before in zip(op.results(None, made_inside), op.results(None, arguments(op)), strict=True):
        assert_same_bits(result.clone(), before)


@each_torch_op
def test_nothing_that_an_op_makes_requires_a_gradient(op, call_on_cpu):
    """Whatever else does: a gradient of create_graph, a learnt mean, an image before it is attacked."""
    tensors = {name: v for name, v in arguments(op).items() if isinstance(v, torch.Tensor)}
    for name in [name for name, v in tensors.items() if v.is_floating_point()]:
        if name in (op.tensors[0], *op.writes):
            continue
        given = arguments(op)
        expected = op(**copied(given))
        given[name].requires_grad_()
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            results = call_on_cpu(op, **given)
        for result in results:
            assert not result.requires_grad, name
            assert result.grad_fn is None
        assert_same_bits(results, expected)


def test_sizes_that_require_a_gradient(backend_on_cpu):
    """A learnt step size or radius is a value like any other."""
    adv = torch.full((2, 2), 0.5)
    size = torch.tensor(0.25, requires_grad=True)
    ops.linf_step_(adv, torch.ones(2, 2), adv.clone(), size, size)
    assert adv.tolist() == [[0.75, 0.75]] * 2
    assert not adv.requires_grad
    assert not ops.linf_start(adv, size, torch.tensor([0, 0])).requires_grad


def test_the_twin_ends_the_graph(backend_on_cpu):
    """linf_step takes what requires a gradient: FGSM is linf_step(x, x.grad, x, eps, eps)."""
    x = torch.full((2, 2), 0.5, requires_grad=True)
    (x * torch.tensor([1.0, -1.0])).sum().backward()
    adv = ops.linf_step(x, x.grad, x, 0.25, 0.25)
    assert adv.tolist() == [[0.75, 0.25]] * 2
    assert not adv.requires_grad
    assert x.tolist() == [[0.5, 0.5]] * 2


def test_inside_a_training_step(backend_on_cpu):
    """A whole attack between forward and backward leaves the gradient of the model as it was."""
    torch.manual_seed(0)
    model, images = torch.nn.Linear(6, 2), torch.rand(4, 6)

    def gradients(attack):
        model.zero_grad()
        loss = model(images).square().sum()
        if attack:
            adv = ops.linf_start(images, 0.1, torch.tensor([0, 0]))
            for _ in range(3):
                adv.requires_grad_()
                (grad,) = torch.autograd.grad(model(adv).sum(), adv)
                adv = adv.detach()
                ops.linf_step_(adv, grad, images, 0.05, 0.1)
        loss.backward()
        return [p.grad.clone() for p in model.parameters()]

    for got, expected in zip(gradients(attack=True), gradients(attack=False), strict=True):
        assert_same_bits(got, expected)


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
@pytest.mark.parametrize("through", ["roli_fast.ops", "torch.ops"])
@each_writing_op
def test_an_overwritten_saved_tensor_is_noticed_where_it_is_traced(op, through, backend):
    """There, no kernel runs before autograd has noted what it saved."""
    call = getattr(ops if through == "roli_fast.ops" else torch.ops.roli_fast, op.name)
    for name in op.writes:
        given = arguments(op) | ({"out": torch.zeros(3, 3, 5, 7)} if name == "out" else {})
        weight = torch.ones_like(given[name], requires_grad=True)

        def step(weight, given, name=name):
            loss = (weight * given[name]).sum()
            call(**given)
            return loss

        torch.compiler.reset()
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            torch.compile(step, backend=backend)(weight, given).backward()
    torch.compiler.reset()


@pytest.mark.parametrize("name", [*(op.name for op in TORCH_OPS), "cross_entropy"])
@pytest.mark.parametrize("transform", ["grad", "jvp", "dual", "dual in no_grad"])
def test_transforms_are_refused(name, transform):
    """The kernels see none of their wrappers, and would leave derivatives as they were, or make them 0."""
    if name in BY_NAME:
        first, given = BY_NAME[name].tensors[0], arguments(BY_NAME[name])
    else:
        first, given = "logits", {"logits": torch.randn(3, 5), "labels": torch.tensor([0, 4, 2])}

    def total(value):
        written = value * 1
        result = getattr(ops, name)(**given | {first: written})
        if result is None:
            return written.sum()
        return (result[0] if isinstance(result, tuple) else result).sum()

    def dual(value):
        with torch.autograd.forward_ad.dual_level():
            total(torch.autograd.forward_ad.make_dual(value, torch.ones_like(value)))

    differentiate = {
        "grad": torch.func.grad(total),
        "jvp": lambda value: torch.func.jvp(total, (value,), (torch.ones_like(value),)),
        "dual": dual,
        "dual in no_grad": torch.no_grad()(dual),
    }[transform]
    refused = f"{name}: {first}: got a tensor (that requires|with a tangent)"
    with pytest.raises(RuntimeError, match=refused):
        differentiate(given[first])
