"""The runs that a text ends in, compared with a search by brute force."""

from hypothesis import given
from hypothesis import strategies as st

from glm4_deploy.detect.tail import MIN_OVERLAP, tail_runs


def by_brute_force(text: str) -> set[tuple[int, int]]:
    """(period, length) of every tail run of three copies whose period no shorter one with the same run explains."""
    found: list[tuple[int, int]] = []
    for period in range(1, len(text) // 3 + 1):
        length = period
        while length < len(text) and text[-1 - length] == text[-1 - length + period]:
            length += 1
        known = any(period % other == 0 and run >= length for other, run in found)
        if length >= 3 * period and length - period >= MIN_OVERLAP and not known:
            found.append((period, length))
    return set(found)


@given(
    st.text("ab", max_size=12),
    st.lists(st.tuples(st.integers(1, 9), st.integers(0, 6)), max_size=3),
)
def test_every_run_is_found_and_every_run_found_is_real(head: str, doublings: list[tuple[int, int]]) -> None:
    text = head
    for size, copies in doublings:
        text += (text[-size:] or "ab") * copies
    found = {(run.period, run.length) for run in tail_runs(text[::-1], reach=len(text) + 1)}
    assert by_brute_force(text) <= found
    for period, length in found:
        assert text[-length:-period] == text[len(text) - length + period :]


def test_reach_bounds_the_period() -> None:
    unit = "the quick brown fox jumps over the lazy dog; "
    assert [run.period for run in tail_runs((unit * 5)[::-1], reach=len(unit))] == [len(unit)]
    assert not list(tail_runs((unit * 5)[::-1], reach=len(unit) - 1))
