"""Messages between the caller and the helper."""

from __future__ import annotations

import json
import os

from gpasst.helper.channel import CHUNK, Channel, pair
from gpasst.helper.client import OpenRequest, Route
from gpasst.helper.request import open_request, to_message


def test_request_survives_the_channel() -> None:
    request = OpenRequest(runas=(1, 2), addresses=(("10.0.0.1", 8),), routes=(Route(None, 0, "10.0.0.2"),))
    assert open_request(json.loads(json.dumps(to_message(request)))) == request


def test_long_messages_are_sent_in_pieces() -> None:
    one, other = (Channel(end) for end in pair())
    text = "x" * (CHUNK * 3)
    reading, writing = os.pipe()
    one.send({"text": text}, [writing])
    os.close(writing)
    answer = other.receive()
    assert answer is not None
    assert answer[0] == {"text": text}
    os.write(answer[1][0], b"!")
    assert os.read(reading, 1) == b"!"
    for descriptor in (reading, *answer[1]):
        os.close(descriptor)
    one.close()
    assert other.receive() is None
    other.close()
