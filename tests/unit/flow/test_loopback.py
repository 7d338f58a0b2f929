"""Where traffic to a loopback address leads."""

from __future__ import annotations

import pytest

from gpasst.counters import Drop
from gpasst.flow.loopback import LoopbackTargets
from tests.support.addresses import GUEST4, GUEST6, GUEST_LINK_LOCAL, ip
from tests.support.families import FAMILIES, LOOPBACK
from tests.support.networks import rules
from tests.support.replies import refused

SCOPE = 9  # interface index of the tap
GUEST = {4: GUEST4, 6: GUEST6}
ELSEWHERE = {4: "192.0.2.5", 6: "2001:db8::5"}


def targets(keep: bool = False, link_local: str | None = GUEST_LINK_LOCAL, **changes: str | None) -> LoopbackTargets:
    return LoopbackTargets({family: rules(family, link_local, **changes) for family in (4, 6)}, keep, SCOPE)


@FAMILIES
def test_from_the_host_it_leads_to_the_guests_address(family: int) -> None:
    assert targets().of(False, family, b"", ip(LOOPBACK[family])) == (ip(GUEST[family]), 0)


@FAMILIES
@pytest.mark.parametrize("keep", [False, True])
def test_from_the_namespace_the_address_is_kept(family: int, keep: bool) -> None:
    assert targets(keep).of(True, family, b"", ip(LOOPBACK[family])) == (ip(LOOPBACK[family]), 0)
    assert targets(keep).of(True, 4, b"", ip("127.0.0.53")) == (ip("127.0.0.53"), 0)


@FAMILIES
def test_from_the_host_it_is_kept_where_that_is_asked_for(family: int) -> None:
    assert targets(keep=True).of(False, family, b"", ip(LOOPBACK[family])) == (ip(LOOPBACK[family]), 0)
    assert targets(keep=True).of(False, 4, b"", ip("127.0.0.5")) == (ip("127.0.0.5"), 0)


@FAMILIES
@pytest.mark.parametrize("inside", [False, True])
@pytest.mark.parametrize("keep", [False, True])
def test_a_rules_target_address_has_the_last_word(family: int, inside: bool, keep: bool) -> None:
    address = ip(ELSEWHERE[family])
    assert targets(keep).of(inside, family, address, ip(LOOPBACK[family])) == (address, 0)


def test_a_link_local_address_of_the_guest_is_on_the_tap() -> None:
    assert targets(address=None).of(False, 6, b"", ip("::1")) == (ip(GUEST_LINK_LOCAL), SCOPE)


@FAMILIES
def test_without_an_address_of_the_guest_there_is_no_target(family: int) -> None:
    unknown = targets(link_local=None, address=None)
    with refused(Drop.NO_GUEST_ADDRESS):
        unknown.of(False, family, b"", ip(LOOPBACK[family]))
    unknown.of(True, family, b"", ip(LOOPBACK[family]))
