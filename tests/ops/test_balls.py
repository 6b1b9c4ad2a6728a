"""What every family owes its ball and its box."""

import itertools
import math
from fractions import Fraction

import pytest
import torch
from hypothesis import assume

from . import oracle
from .cases import (
    BY_NAME,
    FLOATS,
    INF,
    NAN,
    STATES,
    TORCH_OPS,
    arguments,
    assert_agree,
    assert_ideal,
    assert_same_bits,
    channels_last,
    copied,
    each_ball_op,
    each_start,
    each_twin,
    for_any,
    ops_with,
    spaced,
)

each_projection = pytest.mark.parametrize(
    "op", [op for op in TORCH_OPS if op.name.endswith("project_")], ids=str
)
# Inertia moves a sample without a gradient as well.
STEPS = [op for op in TORCH_OPS if "grad" in op.tensors and op.box and "previous" not in op.tensors]
each_step = pytest.mark.parametrize("op", STEPS, ids=str)
PROJECTION = {op: BY_NAME[op.name.replace("step", "project")] for op in STEPS}


def without_step(op, attack):
    """The arguments of the projection among those of the step."""
    return {name: attack[name] for name in ("adv", "clean", "eps", "lo", "hi")}


def length(op, values):
    """Upper bound of the norm of these Fractions, in exact arithmetic but for the last root."""
    if op.power == INF:
        return max(values)
    total = sum(value**op.power for value in values)
    return total if op.power == 1 else Fraction(math.isqrt(int(total * 2**4000)) + 1, 2**2000)


def units(op, result, given):
    """Per element, what rounding may cost: one unit in the last place of the result or clean in Linf; in the
    others the bound of the row, two of the largest of adv, clean and the result. In float64, which no wider
    type rounds for, the step counts as well: it may lead far out, to be brought back."""
    tensors = [given[name] for name in op.tensors if name != "grad"] if op.agrees else [given["clean"]]
    if op.agrees and result.dtype == torch.float64 and given.get("step_size", INF) < INF:
        tensors.append(torch.full_like(result, given["step_size"]))
    unit = oracle.ulp(oracle.largest(result, *tensors), result.dtype)
    return [Fraction(u) for u in ((2 if op.agrees else 1) * unit).flatten().tolist()]


def fractions(tensor):
    return [Fraction(value) for value in tensor.flatten().tolist()]


@each_ball_op
def test_stays_in_the_ball(op, backend):
    """||a - c|| <= eps, within what rounding of each element may cost, in exact arithmetic."""

    def check(attack):
        given = attack | {"lo": -INF, "hi": INF}
        result, *_ = op(**copied(given))
        assume(result.isfinite().all() and given["eps"] < INF)
        pairs = zip(fractions(result), fractions(given["clean"]), strict=True)
        rounding = length(op, units(op, result, given))
        if op.agrees:  # of sums of float64 that are far larger than what is left of them
            rounding += Fraction(given["eps"]) / 2**40
        assert length(op, [abs(a - c) for a, c in pairs]) <= Fraction(given["eps"]) + rounding

    for_any(op, backend, check)


@each_ball_op
def test_stays_in_the_box_exactly_and_is_never_nan(op, backend):
    def check(attack):
        result, *_ = op(**attack)
        assert ((result >= attack["lo"]) & (result <= attack["hi"])).all()

    for_any(op, backend, check, anything=True)


@each_ball_op
def test_any_attack_is_the_formula(op, backend):
    def check(attack):
        sizes = [attack[name] for name in op.sizes]
        assume(all(size < 1e30 or size == INF for size in sizes))  # below what overflows on the way
        assert_ideal(op, op(**copied(attack)), attack)

    for_any(op, backend, check)


@each_projection
def test_projection_is_idempotent(op, backend):
    def check(attack):
        if op.agrees:  # a second projection towards what lies outside the box, and then back, goes on
            attack["clean"] = attack["clean"].clamp(attack["lo"], attack["hi"])
        once, *_ = op(**copied(attack))
        twice, *_ = op(**copied(attack) | {"adv": once.clone()})
        if op.agrees is None:
            assert_same_bits(twice, once)
        else:
            apart = [abs(a - b) for a, b in zip(fractions(once), fractions(twice), strict=True)]
            assert length(op, apart) <= 2 * length(op, units(op, once, attack))

    for_any(op, backend, check)


def nothing(like):
    """A gradient of zeros of every kind."""
    zeros = like.new_tensor([0.0, -0.0, NAN])
    return zeros[torch.arange(like.numel()) % 3].view(like.shape)


@each_step
def test_without_a_gradient_a_step_is_a_projection(op, backend):
    def check(attack):
        projected = PROJECTION[op](**copied(without_step(op, attack)))
        assert_agree(op, op(**copied(attack) | {"grad": nothing(attack["grad"])}), projected, attack)

    for_any(op, backend, check)


@each_step
def test_feasible_samples_without_a_gradient_keep_their_bits(op, backend):
    def check(attack):
        attack["adv"] = torch.cat([attack["adv"].clamp(attack["lo"], attack["hi"]), torch.zeros(1, 2)], dim=1)
        attack["adv"][0, -1] = -0.0
        attack["clean"] = torch.cat([attack["clean"], torch.zeros(1, 2)], dim=1)
        attack["grad"] = nothing(attack["adv"])
        attack |= {"lo": min(attack["lo"], 0.0), "hi": max(attack["hi"], 0.0)}
        distances = [abs(d) for d in fractions(attack["adv"] - attack["clean"])]
        attack["eps"] = float(2 * length(op, distances))
        before = attack["adv"].clone()
        projected = PROJECTION[op](**copied(without_step(op, attack)))
        for result in (*op(**attack), *projected):
            assert_same_bits(result, before)

    for_any(op, backend, check)


# Powers of two by which each dtype can hold 1 to 3 times, from the smallest to nearly the largest.
SCALES = {
    torch.float16: (-24, -14, 0, 14),
    torch.bfloat16: (-133, -100, 100, 126),
    torch.float32: (-149, -126, -100, 64, 126),
    torch.float64: (-1074, -1022, -600, 600, 1022),
}


@ops_with("grad")
@pytest.mark.parametrize("state", STATES, ids=str)
def test_the_scale_of_a_gradient_means_nothing(op, backend, state):
    """A full step, however small or large the numbers are: subnormal ones, too."""
    for dtype in FLOATS:
        given = arguments(op, (1, 13), state=state, grad=dtype)
        given |= dict.fromkeys({*op.sizes} - {*op.shares}, 0.5)
        given["grad"] = (torch.arange(13).reshape(1, 13) % 7 - 3).to(dtype)
        expected = op(**copied(given))
        assert not torch.equal(expected[0], given[op.tensors[0]])
        for exponent in SCALES[dtype]:
            scaled = (given["grad"].double() * 2.0**exponent).to(dtype)
            got = op(**copied(given) | {"grad": scaled})
            assert_agree(op, got, expected, given)


@each_ball_op
def test_nan_stays_where_it_was(op, backend):
    """NaN in adv or clean stays visible; it spreads to no other element, and no gradient makes one."""
    given = {
        "clean": torch.tensor([[0.5, NAN, 0.5, NAN, 0.5]]),
        "adv": torch.tensor([[0.5, 0.5, NAN, NAN, 0.5]]),
        "previous": torch.tensor([[0.5, 0.25, 0.5, 0.5, 0.25]]),
        "grad": torch.tensor([[1.0, 1.0, 1.0, 1.0, NAN]]),
        "seed": torch.tensor([3, 4]),
    }
    expected = given["clean"].isnan() | (given["adv"].isnan() & ("adv" in op.tensors))
    for size in (0.1, INF, 0.0):
        sizes = dict.fromkeys(op.sizes, size) | dict.fromkeys(op.shares, 0.5)
        call = {name: given[name] for name in (*op.tensors, *op.fixed)} | sizes
        result, *_ = op(**copied(call))
        assert torch.equal(result.isnan(), expected)


@each_projection
def test_nan_of_half_and_double_images(op, backend):
    for dtype in FLOATS:
        clean = torch.tensor([[NAN, 0.25]], dtype=dtype)
        (adv,) = op(adv=torch.tensor([[0.2, 0.2]]), clean=clean, eps=0.25)
        assert adv.isnan().tolist() == [[True, False]]


@each_ball_op
def test_the_box_wins_where_clean_lies_outside(op, backend):
    clean = torch.tensor([[1.5, -0.5, 1.05]])
    given = arguments(op, (1, 3)) | dict.fromkeys({*op.sizes} - {*op.shares}, 0.1) | {"clean": clean}
    given |= {name: clean.clone() for name in op.tensors if name not in ("clean", "grad")}
    given |= {"grad": torch.tensor([[1.0, -1.0, -1.0]])} if "grad" in op.tensors else {}
    result, *_ = op(**given)
    assert result.tolist()[0][:2] == [1.0, 0.0]


@each_twin
def test_the_functional_twin(op, backend):
    """Equal to the step on a copy; adv may require a gradient, which ends here."""
    given, active = arguments(op), torch.tensor([True, False, True])
    before = given["adv"].clone()
    (stepped,) = op(**given | {"adv": before.clone().requires_grad_()}, active=active)
    assert_same_bits(given["adv"], before)
    assert_same_bits((stepped,), BY_NAME[f"{op}_"](**given, active=active))
    assert not stepped.requires_grad


@each_start
@pytest.mark.parametrize("layout", [channels_last, lambda x: x])
def test_start_has_the_shape_and_layout_of_clean(op, backend, layout):
    def start(clean):
        (result,) = op(clean=clean, eps=0.1, seed=torch.tensor([3, 4]))
        return result

    for dtype, state in [(torch.uint8, torch.float32), (torch.float16, torch.float32), (torch.float64,) * 2]:
        clean = layout(torch.zeros(2, 3, 4, 5, dtype=dtype))
        got = start(clean)
        assert (got.shape, got.stride(), got.dtype) == (clean.shape, clean.stride(), state)
    assert start(spaced(torch.zeros(2, 3, 4, 5))).is_contiguous()


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("state", STATES, ids=str)
def test_an_apgd_step_is_its_formula(backend, norm, state):
    """Composed of the step and the projection; previous becomes the old adv, bit for bit."""
    apgd, step, project = (BY_NAME[f"{norm}_{name}_"] for name in ("apgd_step", "step", "project"))
    for momentum in (0.0, 0.75, 1.0, torch.tensor([0.0, 0.5, 1.0], dtype=state)):
        given = arguments(apgd, state=state) | {"momentum": momentum}
        before, m = copied(given), oracle.per_sample(torch.as_tensor(momentum, dtype=state), given["adv"])
        results = apgd(**given)
        z, *_ = step(**{name: copied(before)[name] for name in (*step.tensors, *step.sizes)})
        adv = before["adv"]
        y = adv + (z - adv) * m + (adv - before["previous"]) * (1 - m)
        projected = project(adv=y, clean=before["clean"], eps=before["eps"])
        assert_agree(apgd, results, (*projected, adv), before)


@pytest.mark.parametrize("zero", [0.0, -0.0, NAN, INF])
@each_step
def test_an_empty_ball_is_clean(op, backend, zero):
    given = arguments(op) | {"eps": 0.0}
    given["grad"] = torch.full_like(given["grad"], zero)
    result, *_ = op(**given)
    assert torch.equal(result, given["clean"])


@each_step
@pytest.mark.parametrize("state", STATES, ids=str)
def test_numbers_beyond_the_state_are_infinite(op, backend, state):
    """1e300 is a number, and a float32 ball of this size is everything."""
    infinite = torch.tensor(INF, dtype=state)
    clean = torch.full((1, 1), 0.5, dtype=state)
    for sizes in [(1e300, 1e300), (infinite, 1e300), (1e300, infinite)]:
        given = {"adv": clean.clone(), "grad": clean, "clean": clean, "lo": -INF, "hi": INF}
        result, *_ = op(**given, step_size=sizes[0], eps=sizes[1])
        assert result.item() == (INF if state == torch.float32 else 1e300)


@each_start
def test_a_start_in_an_infinite_ball_is_a_corner(op, backend):
    clean = torch.full((3, 40), 0.5)
    for eps in (INF, 1e300, torch.tensor([INF, 1e38, INF])):
        (result,) = op(clean=clean, eps=eps, seed=torch.tensor([3, 4]))
        assert {*result.flatten().tolist()} == {0.0, 1.0}


@each_step
def test_an_infinite_step_goes_to_the_boundary(op, backend):
    """Of the ball, or where it has none of the box; what has no gradient stays. So does a very long one."""
    clean = torch.full((1, 3), 0.5)
    given = {"adv": clean.clone(), "clean": clean, "grad": torch.tensor([[1.0, -1.0, 0.0]])}
    given |= dict.fromkeys(op.shares, 1.0)
    for step_size in (INF, 1e20):
        result, *_ = op(**copied(given), step_size=step_size, eps=INF)
        assert result.tolist() == [[1.0, 0.0, 0.5]]
        result, *_ = op(**copied(given), step_size=step_size, eps=0.25)
        each = 0.25 / op.length(2)
        torch.testing.assert_close(result, torch.tensor([[0.5 + each, 0.5 - each, 0.5]]), rtol=2e-7, atol=0)


@each_step
def test_pgd_on_a_linear_model_only_climbs(op, backend):
    """Steps from a start inside never lower what they ascend, beyond rounding."""
    random = torch.Generator().manual_seed(0)
    clean, weight = torch.rand(2, 60, generator=random), torch.randn(1, 60, generator=random)
    start = BY_NAME[op.name.replace("step_", "start")]
    eps = 0.1 * op.length(60)
    (adv,) = start(clean=clean, eps=eps, seed=torch.tensor([1, 2]))
    values = []
    for _ in range(10):
        values.append((adv.double() * weight).sum(1))
        op(adv=adv, grad=weight.expand_as(adv), clean=clean, step_size=eps / 4, eps=eps)
    for before, after in itertools.pairwise(values):
        assert (after >= before - 1e-5).all()
