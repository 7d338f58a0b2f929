"""Names of hosts, as they are announced."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpasst.switch.roster import ROSTER_BYTES, packed_roster, unpacked_roster

ADDRESSES = st.ip_addresses().map(str)
HOSTS = st.tuples(
    st.from_regex(r"[a-z][a-z0-9]{0,20}(\.[a-z]{1,9})?", fullmatch=True),
    st.lists(ADDRESSES, min_size=1, max_size=4).map(tuple),
)


@given(st.lists(HOSTS).map(tuple))
def test_names_are_announced_as_they_are(roster: tuple[tuple[str, tuple[str, ...]], ...]) -> None:
    assert unpacked_roster(packed_roster(roster)) == roster


def test_names_may_have_letters_of_any_language() -> None:
    roster = (("münchen", ("10.1.2.3",)),)
    assert unpacked_roster(packed_roster(roster)) == roster


def test_as_many_names_as_fit_are_announced() -> None:
    roster = tuple((f"host{number}", ("10.1.2.3",)) for number in range(10_000))
    data = packed_roster(roster)
    assert ROSTER_BYTES - 30 < len(data) <= ROSTER_BYTES
    assert unpacked_roster(data) == roster[: data.count(b"\n")]


@pytest.mark.parametrize(
    "data",
    [
        b"a",
        b"a \n",
        b"a 10.1.2\n",
        b"a 10.1.2.3 \n",
        b"\n",
        b"a b 10.1.2.3\n",
        b"\xff 10.1.2.3\n",
        b"a" + b" 10.1.2.3" * 17,
        b"a" * 64 + b" 10.1.2.3",
        # What would lead a host's own names, or another host's, elsewhere.
        b"localhost 10.1.2.3\n",
        b"LocalHost 10.1.2.3\n",
        b"ip6-loopback fd77::2\n",
        b"a fe80::1%\tb\n",
        b"a fe80::1%eth0\n",
    ],
)
def test_other_bytes_are_no_names(data: bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        unpacked_roster(data)


@given(st.binary())
def test_any_bytes_are_names_or_refused(data: bytes) -> None:
    try:
        roster = unpacked_roster(data)
    except ValueError:
        return
    assert unpacked_roster(packed_roster(roster)) == roster
