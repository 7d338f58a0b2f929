"""Two ends of a trunk that meet: with one secret, with two, with somebody else."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpasst.switch.framing import Cutter
from gpasst.switch.handshake import (
    CHALLENGE_BYTES,
    VERSION,
    Handshake,
    Refusal,
    TrunkRefused,
    announced,
    members_message,
    names_message,
    refusal_message,
)

FIRST, SECOND = (bytes((number,)) * CHALLENGE_BYTES for number in (1, 2))
PREFIXES = ("10.78.0.0/16", "fd78::/64")
HELLO, PROOF, MEMBERS, NAMES, REFUSED = 1, 2, 3, 4, 5  # kinds of messages
HELLO_HEAD = b"\x01gpasst trunk"


def messages(data: bytes) -> list[bytes]:
    """Return the messages that one end sends at once."""
    found: list[bytes] = []
    cutter = Cutter(found.append, lambda: pytest.fail("an illegal message"))
    cutter.room()[: len(data)] = data
    cutter.add(len(data))
    while cutter.cut() is not None:
        pass
    return found


def meet(connector: Handshake, listener: Handshake) -> None:
    """Let each end take what the other sends, until neither sends any more."""
    waiting = [(listener, connector.begin()), (connector, listener.begin())]
    while waiting:
        end, data = waiting.pop(0)
        for message in messages(data):
            answer = end.take(message)
            if answer:
                waiting.append((listener if end is connector else connector, answer))


def ends(secret: bytes = b"", other: bytes | None = None) -> tuple[Handshake, Handshake]:
    other = secret if other is None else other
    return Handshake(True, secret, FIRST, PREFIXES), Handshake(False, other, SECOND, PREFIXES[:1])


def refused(end: Handshake, message: bytes) -> TrunkRefused:
    with pytest.raises(TrunkRefused) as caught:
        end.take(message)
    assert not end.done
    return caught.value


@given(st.binary(max_size=100))
def test_ends_with_one_secret_agree(secret: bytes) -> None:
    connector, listener = ends(secret)
    meet(connector, listener)
    assert connector.done
    assert listener.done


@pytest.mark.parametrize(("one", "other"), [(b"a", b"b"), (b"", b"b"), (b"a", b""), (b"a" * 64, b"a" * 65)])
def test_ends_with_two_secrets_do_not(one: bytes, other: bytes) -> None:
    connector, listener = ends(one, other)
    with pytest.raises(TrunkRefused) as caught:
        meet(connector, listener)
    assert (caught.value.reason, caught.value.ours) == (Refusal.SECRET, True)
    assert not connector.done
    assert not listener.done


def test_ends_without_a_common_prefix_do_not_agree() -> None:
    connector = Handshake(True, b"secret", FIRST, PREFIXES)
    listener = Handshake(False, b"secret", SECOND, ("10.77.0.0/24", "fd77::/64"))
    with pytest.raises(TrunkRefused) as caught:
        meet(connector, listener)
    assert caught.value.reason == Refusal.PREFIXES


def test_a_listener_proves_nothing_to_an_end_that_has_not() -> None:
    connector, listener = ends(b"secret")
    (hello,) = messages(connector.begin())
    assert listener.take(hello) == b""
    assert refused(listener, bytes((PROOF,)) + bytes(32)).reason == Refusal.SECRET


def test_a_proof_is_of_no_use_to_the_other_role() -> None:
    """An end that sends back what it gets, challenge and proof, shows nothing."""
    connector = Handshake(True, b"secret", FIRST, PREFIXES)
    (hello,) = messages(connector.begin())
    (proof,) = messages(connector.take(hello))
    assert refused(connector, proof).reason == Refusal.SECRET


def test_a_proof_is_of_no_use_for_another_challenge() -> None:
    connector, listener = ends(b"secret")
    (hello,) = messages(connector.begin())
    (proof,) = messages(connector.take(messages(listener.begin())[0]))
    later = Handshake(False, b"secret", b"3" * CHALLENGE_BYTES, PREFIXES)
    later.take(hello)
    assert refused(later, proof).reason == Refusal.SECRET
    listener.take(hello)
    listener.take(proof)
    assert listener.done


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        (b"GET / HTTP/1.1\r\n", Refusal.PROTOCOL),
        (b"\x01something else" + bytes(50), Refusal.PROTOCOL),
        (bytes((MEMBERS,)) + bytes(8), Refusal.PROTOCOL),
        (bytes((PROOF,)) + bytes(32), Refusal.PROTOCOL),
        (bytes((HELLO,)), Refusal.PROTOCOL),
        (HELLO_HEAD + bytes((VERSION + 1,)), Refusal.VERSION),
        (HELLO_HEAD + bytes((VERSION + 1,)) + bytes(999), Refusal.VERSION),
        (HELLO_HEAD, Refusal.VERSION),
        (HELLO_HEAD + bytes((VERSION,)) + bytes(CHALLENGE_BYTES - 1), Refusal.PROTOCOL),
    ],
)
def test_somebody_else_is_refused(message: bytes, reason: Refusal) -> None:
    for end in ends():
        caught = refused(end, message)
        assert (caught.reason, caught.ours) == (reason, True)


def test_a_second_greeting_is_refused() -> None:
    connector, listener = ends()
    (hello,) = messages(connector.begin())
    listener.take(hello)
    assert refused(listener, hello).reason == Refusal.PROTOCOL


@pytest.mark.parametrize("reason", Refusal)
def test_a_refusal_says_why(reason: Refusal) -> None:
    (message,) = messages(refusal_message(reason))
    for end in ends():
        caught = refused(end, message)
        assert (caught.reason, caught.ours) == (reason, False)
    with pytest.raises(TrunkRefused, match=reason.value):
        announced(message)


@pytest.mark.parametrize("body", [b"", b"\xff", bytes(50)])
def test_a_refusal_of_a_later_version_is_one(body: bytes) -> None:
    caught = refused(ends()[0], bytes((REFUSED,)) + body)
    assert not caught.ours


def test_members() -> None:
    cookies = frozenset((b"12345678", b"abcdefgh"))
    (message,) = messages(members_message(cookies))
    assert announced(message) == cookies
    for wrong in (message[:-1], bytes((HELLO,)) + message[1:], message[:1]):
        with pytest.raises(TrunkRefused):
            announced(wrong)


def test_names() -> None:
    roster = (("a", ("10.78.0.2", "fd78::2")), ("b.example", ("10.78.0.3",)))
    (message,) = messages(names_message(b"12345678", roster))
    assert announced(message) == (b"12345678", roster)
    assert announced(bytes((NAMES,)) + b"12345678") == (b"12345678", ())
    for wrong in (message[:5], bytes((NAMES,)) + b"12345678a b\n"):
        with pytest.raises(TrunkRefused):
            announced(wrong)


@given(st.integers(0, 6), st.binary())
def test_any_bytes_announce_something_or_are_refused(kind: int, body: bytes) -> None:
    message = bytes((kind,)) + body
    for take in (announced, ends()[0].take, ends()[1].take):
        try:
            take(message)
        except TrunkRefused:
            continue
