"""Spares compared with the binomial sum."""

import math

import pytest

from glm4_deploy.scale.answer import at_most, down_share, spares


def test_at_most_is_the_binomial_sum() -> None:
    exact = sum(math.comb(20, k) * 0.1**k * 0.9 ** (20 - k) for k in range(4))
    assert at_most(3, 20, 0.1) == pytest.approx(exact)
    assert at_most(20, 20, 0.1) == pytest.approx(1.0)
    assert at_most(0, 5, 0.0) == 1.0


def test_one_more_is_enough_and_one_less_is_not() -> None:
    down = down_share(0.1, 24)
    assert down == pytest.approx(0.1 * 24 / 8766, rel=0.001)
    for needed in (1, 10, 1000):
        more = spares(needed, down, 0.999)
        assert more is not None
        assert at_most(more, needed + more, down) >= 0.999
        assert more == 0 or at_most(more - 1, needed + more - 1, down) < 0.999
    assert spares(10, down_share(0.1, 24, gpus_each=8), 0.999) >= spares(10, down, 0.999)


def test_engines_that_are_always_down_have_no_number() -> None:
    assert spares(100, 0.99, 0.999) is None
