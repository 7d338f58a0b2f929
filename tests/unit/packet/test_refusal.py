"""What the guest gets for each error of a send."""

from __future__ import annotations

import errno

import pytest

from gpasst.counters import Drop
from gpasst.host.send import REPORTED
from gpasst.packet.refusal import REFUSALS, refusal

UNREACHABLE = {4: 3, 6: 1}
# Codes of "destination unreachable" (RFC 792, RFC 1812, RFC 4443).
NO_ROUTE, NO_HOST, PROHIBITED = {4: 0, 6: 0}, {4: 1, 6: 3}, {4: 13, 6: 1}
ANSWERS = {
    "ENETUNREACH": NO_ROUTE,
    "ENETDOWN": NO_ROUTE,
    "ENODEV": NO_ROUTE,
    "ENXIO": NO_ROUTE,
    "EAFNOSUPPORT": NO_ROUTE,
    "EADDRNOTAVAIL": NO_ROUTE,
    "EHOSTUNREACH": NO_HOST,
    "EACCES": PROHIBITED,
    "EPERM": PROHIBITED,
}
REASONS = {
    errno.EAGAIN: Drop.SEND_FULL,
    errno.ENOBUFS: Drop.SEND_FULL,
    errno.ENOMEM: Drop.SEND_FULL,
    errno.EMSGSIZE: Drop.MESSAGE_SIZE,
}


@pytest.mark.parametrize("name", sorted(errno.errorcode.values()))
def test_every_errno_has_its_answer(name: str) -> None:
    found = refusal(getattr(errno, name))
    answered = {family: problem for family in (4, 6) if (problem := found.problem(family))}
    codes = ANSWERS.get(name, {})
    assert {family: (problem.type, problem.code) for family, problem in answered.items()} == {
        family: (UNREACHABLE[family], code) for family, code in codes.items()
    }
    assert found.reason == REASONS.get(getattr(errno, name), Drop.SEND_FAILED)


def test_every_error_that_an_icmp_error_leaves_is_in_the_table() -> None:
    assert REFUSALS.keys() >= REPORTED
