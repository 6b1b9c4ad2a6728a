"""The best iterate of each sample."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from roli_fast import ops

from .cases import INF, LAYOUTS, NAN, STATES, assert_same_bits, examples, numbers

each_state = pytest.mark.parametrize("state", STATES, ids=str)


@each_state
def test_what_wins(backend, state):
    """Only what is greater: no tie, no NaN; and nothing beats a NaN."""
    pairs = [
        (0.0, 1.0, True),
        (1.0, 1.0, False),
        (1.0, 0.0, False),
        (-INF, -1e30, True),
        (-INF, -INF, False),
        (INF, INF, False),
        (0.0, INF, True),
        (0.0, NAN, False),
        (-INF, NAN, False),
        (NAN, 1.0, False),
        (NAN, NAN, False),
        (-0.0, 0.0, False),
        (0.0, torch.finfo(state).smallest_normal, True),
    ]
    before, after, wins = zip(*pairs, strict=True)
    best_value, value = torch.tensor(before, dtype=state), torch.tensor(after, dtype=state)
    wins = torch.tensor(wins)
    best = torch.zeros(len(pairs), 2, 3, dtype=state)
    adv = torch.ones_like(best)
    expected = torch.where(wins, value, best_value)
    ops.keep_best_(best, best_value, adv, value)
    assert_same_bits(best_value, expected)
    assert torch.equal(best, wins.to(state)[:, None, None].expand_as(best))


def test_bits_move_whatever_they_are(backend):
    """Of winners: NaN with its payload, -0.0, subnormal numbers. The others keep theirs."""
    words = [0x7FC12345, -0x80000000, 1, 0x7F800000, -0x3EDCBB, 0x3F800000]
    adv = torch.tensor([words, words], dtype=torch.int32).view(torch.float32)
    best = adv.flip(1).clone()
    before = best.clone()
    ops.keep_best_(best, torch.zeros(2), adv, torch.tensor([1.0, 0.0]))
    assert torch.equal(best.view(torch.int32)[0], adv.view(torch.int32)[0])
    assert torch.equal(best.view(torch.int32)[1], before.view(torch.int32)[1])


def test_inactive_samples_never_win(backend):
    best, best_value = torch.zeros(3, 4), torch.zeros(3)
    active = torch.tensor([True, False, True])
    ops.keep_best_(best, best_value, torch.ones(3, 4), torch.tensor([1.0, 1.0, -1.0]), active=active)
    assert best[:, 0].tolist() == [1.0, 0.0, 0.0]
    assert best_value.tolist() == [1.0, 0.0, 0.0]


def test_a_sequence_keeps_the_first_of_the_largest(backend):
    """Whatever comes when: the maximum so far, and the iterate that had it."""

    @examples(backend)
    @given(rounds=st.lists(st.lists(numbers(torch.float32), min_size=3, max_size=3), min_size=1, max_size=6))
    def check(rounds):
        for layout in (LAYOUTS[0], LAYOUTS[-1]):
            best, best_value = layout(torch.full((3, 2), -1.0)), torch.full((3,), -INF)
            for k, values in enumerate(rounds):
                ops.keep_best_(best, best_value, torch.full((3, 2), float(k)), torch.tensor(values))
            for n, column in enumerate(zip(*rounds, strict=True)):
                assert best_value[n] == max(column)
                first = column.index(max(column)) if max(column) > -INF else -1
                assert best[n].tolist() == [first] * 2

    check()


def test_samples_without_elements_have_values(backend):
    best_value = torch.zeros(2)
    ops.keep_best_(torch.zeros(2, 0), best_value, torch.zeros(2, 0), torch.tensor([1.0, -1.0]))
    assert best_value.tolist() == [1.0, 0.0]
