"""The ops under torch.compile, and opcheck."""

import itertools

import pytest
import torch

import roli_fast
from roli_fast import ops

from ..selection import slow
from .cases import (
    BY_NAME,
    OPS,
    arguments,
    assert_same_bits,
    channels_last,
    copied,
    each_kernel,
    each_torch_op,
)

STEP = BY_NAME["linf_step_"]


@pytest.fixture(autouse=True)
def fresh_dynamo():
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def variants(op, shape=(4, 3, 5, 7)):
    """Arguments of every kind: plain, with all options, with sizes as tensors, in float64."""
    numbers = dict.fromkeys(op.sizes, 0.2)  # of any shape: to a graph they are constants
    plain = arguments(op, shape) | numbers
    options = {
        "active": torch.arange(shape[0]) % 2 == 0,
        "out": torch.zeros(shape, dtype=torch.bfloat16).to(memory_format=torch.channels_last),
        "mean": torch.full((shape[1],), 0.5),
        "std": torch.full((shape[1],), 0.25),
        "index": torch.arange(shape[0]).flip(0),
        "dtype": torch.float16,
        "memory_format": torch.channels_last,
    }
    full = plain | {name: options[name] for name in op.options}
    full |= {"lo": -0.5, "hi": 0.75} if op.box else {}
    kinds = {"plain": plain, "options": full, "double": arguments(op, shape, state=torch.float64) | numbers}
    if op.sizes:
        kinds["scalars"] = copied(full) | {name: torch.tensor(0.02) for name in op.sizes}
        kinds["vectors"] = copied(plain) | {name: torch.linspace(0, 0.1, shape[0]) for name in op.sizes}
    return kinds


def each_kind(*always, of=("plain", "options", "double", "scalars", "vectors")):
    """Parametrizes over the variants, of which `make test` runs these."""
    return pytest.mark.parametrize("kind", [*always, *slow(*(kind for kind in of if kind not in always))])


def variant(op, kind, shape=(4, 3, 5, 7)):
    kinds = variants(op, shape)
    if kind not in kinds:
        pytest.skip(f"{op} has no sizes")
    return kinds[kind]


def assert_compiled(op, compiled, function, given):
    eager = copied(given)
    expected = op.results(function(**eager), eager)
    for got, want in zip(op.results(compiled(**given), given), expected, strict=True):
        assert_same_bits(got, want)
        assert got.stride() == want.stride()


def assert_fullgraph(op, kind, compiler, dynamic):
    function = getattr(ops, op.name)
    compiled = torch.compile(function, fullgraph=True, backend=compiler, dynamic=dynamic)
    assert_compiled(op, compiled, function, variant(op, kind))
    if dynamic:
        with torch._dynamo.config.patch(error_on_recompile=True):
            assert_compiled(op, compiled, function, variant(op, kind, (5, 2, 9, 6)))


each_native_backend = pytest.mark.parametrize("backend_on_cpu", ["cpu", "triton"], indirect=True)


@each_kernel
@each_native_backend
@each_kind("options")
def test_fullgraph(op, backend_on_cpu, kind):
    assert_fullgraph(op, kind, "aot_eager", dynamic=False)


# A graph knows the ops' shapes by what they take and return: of the others, these show it.
OF_ANY_SHAPE = (
    "linf_step_",
    "l2_apgd_step_",
    "l1_project_",
    "linf_start",
    "momentum_",
    "keep_best_",
    "prepare",
)


@pytest.mark.parametrize(
    "op",
    [
        *(op for op in OPS if op.name in OF_ANY_SHAPE),
        *slow(*(op for op in OPS if op.name not in OF_ANY_SHAPE)),
    ],
    ids=str,
)
@each_native_backend
@each_kind("options", of=("plain", "options", "vectors"))
def test_fullgraph_of_any_shape(op, backend_on_cpu, kind):
    assert_fullgraph(op, kind, "aot_eager", dynamic=True)


# Draws that are no multiple of a uniform one take Dynamo half a minute. L1's step has its projection in it,
# and L2's with inertia is composed like that of Linf.
LONG_TO_TRACE = [
    op
    for op in OPS
    if op.twin or (op.draws and op.agrees is not None) or op.name in ("l1_step_", "l2_apgd_step_")
]


@pytest.mark.parametrize(
    "op", [*(op for op in OPS if op not in LONG_TO_TRACE), *slow(*LONG_TO_TRACE)], ids=str
)
@pytest.mark.parametrize("dynamic", [False, *slow(True)])
def test_fullgraph_of_the_reference(op, dynamic):
    """Hundreds of torch's ops: tracing them is ours, the rest is not."""
    with roli_fast.backend("reference"):
        assert_fullgraph(op, "vectors" if dynamic and op.sizes else "options", "eager", dynamic)


@each_torch_op
@each_kind("options", "vectors")
def test_fullgraph_of_the_torch_op(op, kind):
    given = variant(op, kind)
    if "out" in given and torch.__version__ < "2.11":
        given["out"] = given["out"].contiguous()  # else that compiler refuses a keyword of this name
    compiled = torch.compile(op.torch_op, fullgraph=True, backend="aot_eager")
    assert_compiled(op, compiled, op.torch_op, given)


def test_inductor(backend_on_cpu):
    """An attack in one graph: a random start, three steps, what the model eats, and arithmetic around."""

    def attack(images, grad, seed, step_size, eps):
        adv = ops.linf_start(images, eps, seed)
        out = torch.empty_like(adv, dtype=torch.bfloat16)
        for k in range(3):
            ops.linf_step_(adv, grad * (-1) ** k, images, step_size, eps, out=out)
        return adv, out, ops.prepare(adv, None, None, dtype=torch.float16), adv * 2

    compiler = "eager" if backend_on_cpu == "reference" else "inductor"
    compiled = torch.compile(attack, fullgraph=True, backend=compiler)
    images, grad = torch.rand(2, 3, 8, 8), torch.randn(2, 3, 8, 8)
    for size in (0.01, 0.02):
        given = (images, grad, torch.tensor([1, 2]), torch.tensor(size), torch.tensor(3 * size))
        for got, expected in zip(compiled(*given), attack(*given), strict=True):
            assert_same_bits(got, expected)


def test_tensor_sizes_never_recompile(backend_on_cpu):
    given = arguments(STEP)
    compiled = torch.compile(ops.linf_step_, fullgraph=True, backend="aot_eager")
    call = copied(given) | {"step_size": torch.tensor(0.01), "eps": torch.tensor(0.1)}
    compiled(**call)
    with torch._dynamo.config.patch(error_on_recompile=True):
        for value in (0.02, 0.0, float("inf"), float("nan"), -1.0):
            sizes = {"step_size": torch.tensor(value), "eps": torch.tensor(value)}
            assert_compiled(STEP, compiled, ops.linf_step_, copied(given) | sizes)
        with pytest.raises(torch._dynamo.exc.RecompileError):  # whereas a number is a constant
            compiled(**copied(given))


def test_intermediates(backend_on_cpu):
    """Functionalisation: a step on a tensor that the graph made, on a view of it, and on an input twice."""

    def function(image, grad):
        adv = image * 1.0
        ops.linf_step_(adv[1:], grad[1:], image[1:], 0.1, 0.2)
        before = adv.clone()
        ops.linf_step_(adv, grad, image, 0.1, 0.2)
        ops.linf_step_(image, grad, adv, 0.1, 0.2)
        return before, adv + 1

    image, grad = torch.rand(3, 4), torch.randn(3, 4)
    eager_image = image.clone()
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    for got, expected in zip(compiled(image, grad), function(eager_image, grad), strict=True):
        assert_same_bits(got, expected)
    assert_same_bits(image, eager_image)


def test_the_choice_is_taken_when_traced():
    if roli_fast.backends()["cpu"].missing:
        pytest.skip(roli_fast.backends()["cpu"].missing)
    graphs = []

    def record(graph, _):
        graphs.append({str(node.target) for node in graph.graph.nodes})
        return graph.forward

    def attack(adv, grad, image):
        ops.linf_step_(adv, grad, image, 0.1, 0.2)

    def mixed(adv, grad, image):
        with roli_fast.backend("reference"):
            ops.linf_step_(adv, grad, image, 0.1, 0.2)
        ops.linf_step_(adv, grad, image, 0.1, 0.2)

    native = "roli_fast_native.linf_step_.default"
    for choice, expected in [("reference", False), ("cpu", True)]:
        torch.compiler.reset()
        compiled = torch.compile(attack, fullgraph=True, backend=record)
        with roli_fast.backend(choice):
            compiled(*torch.rand(3, 2, 4))
            assert (native in graphs[-1]) == expected
    torch.compile(mixed, fullgraph=True, backend=record)(*torch.rand(3, 2, 4))
    assert native in graphs[-1]
    assert len(graphs[-1]) > 10  # beside it the reference, as torch's own ops


def test_bad_calls_are_refused_when_traced(backend_on_cpu):
    compiled = torch.compile(ops.linf_step_, fullgraph=True, backend="aot_eager")
    with pytest.raises(Exception, match=r"grad.*shape"):
        compiled(torch.zeros(2, 3), torch.zeros(4, 3), torch.zeros(2, 3), 0.1, 0.1)
    with pytest.raises(Exception, match=r"eps.*-0\.1"):
        compiled(torch.zeros(2, 3), torch.zeros(2, 3), torch.zeros(2, 3), 0.1, -0.1)
    with pytest.raises(Exception, match=r"adv.*requires a gradient|adv\.detach"):
        compiled(torch.zeros(2, 3, requires_grad=True), torch.zeros(2, 3), torch.zeros(2, 3), 0.1, 0.1)


@each_torch_op
def test_fakes_have_the_shape_dtype_and_layout(op):
    """Of what the op returns, without running it."""
    for layout in (torch.clone, channels_last):
        for given in variants(op).values():
            given |= {name: layout(given[name]) for name in op.tensors}
            expected = op.torch_op(**copied(given))
            if expected is None:
                continue
            with torch._subclasses.FakeTensorMode() as mode:
                fakes = {
                    name: mode.from_tensor(value) if isinstance(value, torch.Tensor) else value
                    for name, value in given.items()
                }
                fake = op.torch_op(**fakes)
            for attribute in ("shape", "dtype", "device"):
                assert getattr(fake, attribute) == getattr(expected, attribute)
            assert fake.stride() == expected.stride()


# The same kernels in both name spaces: one kind of arguments in each.
FEW_CHECKS = {"roli_fast": "vectors", "roli_fast_native": "options"}
CHECKS = itertools.product(FEW_CHECKS, ("plain", "options", "double", "scalars", "vectors"))


@each_torch_op
@pytest.mark.parametrize(
    ("namespace", "kind"),
    [
        pytest.param(name, kind, marks=() if FEW_CHECKS[name] == kind else pytest.mark.slow)
        for name, kind in CHECKS
    ],
)
def test_opcheck(op, namespace, kind):
    missing = roli_fast.backends()["cpu"].missing
    if missing and namespace == "roli_fast_native":
        pytest.skip(missing)
    packet = getattr(getattr(torch.ops, namespace), op.name)
    assert {*packet.overloads()} == ({"default", "tensor"} if op.sizes else {"default"})
    overload = packet.tensor if op.sizes and kind in ("scalars", "vectors") else packet.default
    torch.library.opcheck(overload, *split(overload, variant(op, kind, (2, 3, 2, 2))))


@each_torch_op
@pytest.mark.parametrize("dtypes", [(torch.uint8, torch.float16), *slow((torch.bfloat16, torch.float64))])
def test_opcheck_of_other_dtypes_and_layouts(op, dtypes):
    clean, grad = dtypes
    given = arguments(op, (2, 3, 2, 2), clean=clean, grad=grad)
    given |= {name: channels_last(given[name]) for name in op.tensors}
    given |= {"dtype": torch.bfloat16} if "dtype" in op.options else {}
    torch.library.opcheck(op.torch_op.default, *split(op.torch_op.default, given))


def split(overload, given):
    """Positional and keyword arguments, as opcheck wants them: by position up to the first one missing."""
    names = [argument.name for argument in overload._schema.arguments if not argument.kwarg_only]
    count = next((i for i, name in enumerate(names) if name not in given), len(names))
    positional = tuple(given[name] for name in names[:count])
    return positional, {name: value for name, value in given.items() if name not in names[:count]}
