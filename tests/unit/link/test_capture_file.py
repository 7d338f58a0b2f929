"""The capture file, read back; and what happens where it cannot be written. Takes five seconds."""

from __future__ import annotations

import json
import os
import resource
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from gpasst.capture.record import Record
from gpasst.counters import Counters, Drop
from gpasst.errors import PlatformError
from gpasst.formats import PCAP_FILE_CODEC, PCAP_RECORD_CODEC, UDP4, UDP6, VIRTIO_NET_BLANK
from gpasst.link.capture_file import CaptureFile, Interface, Interfaces
from tests.support.captures import packets, records
from tests.support.families import FAMILIES
from tests.support.headers import header

NOW = 1_700_000_000_123_456_789  # nanoseconds
FRAME = bytes(range(60))


def recorded(*parts: bytes, time: int = NOW) -> Record:
    """A frame or superframe to the guest."""
    return Record(time, True, b"".join(parts), "")


def opened(path: Path, counters: Counters | None = None) -> Interface:
    """What records one link in a new file."""
    return CaptureFile(str(path), counters or Counters()).interface("eth0")


def test_frames_are_records_with_their_time(tmp_path: Path) -> None:
    path, counters = tmp_path / "guest.pcap", Counters()
    capture = opened(path, counters)
    assert records(path) == []
    capture.take([recorded(VIRTIO_NET_BLANK, FRAME)])
    assert records(path) == [(1_700_000_000, 123_456, FRAME)], "each frame is in the file at once"
    capture.take([recorded(VIRTIO_NET_BLANK, FRAME, time=NOW + 876_543_211)])
    capture.close()
    assert records(path) == [(1_700_000_000, 123_456, FRAME), (1_700_000_001, 0, FRAME)]
    assert not counters.drops


def test_a_file_that_exists_is_truncated(tmp_path: Path) -> None:
    path = tmp_path / "guest.pcap"
    path.write_bytes(bytes(1000))
    opened(path).close()
    assert records(path) == []


def test_the_file_is_its_owners_alone(tmp_path: Path) -> None:
    path = tmp_path / "guest.pcap"
    mask = os.umask(0)
    try:
        opened(path).close()
    finally:
        os.umask(mask)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


@FAMILIES
def test_a_superframe_is_captured_as_its_segments(tmp_path: Path, family: int) -> None:
    path = tmp_path / "guest.pcap"
    payload = os.urandom(2 * 1000 + 7)
    capture = opened(path)
    capture.take([recorded(bytes(header(family).fill(len(payload), 1000)), payload)])
    capture.close()
    frames = [frame for _, _, frame in records(path)]
    headers = (UDP4 if family == 4 else UDP6).size - len(VIRTIO_NET_BLANK)
    assert [frame[headers:] for frame in frames] == [payload[:1000], payload[1000:2000], payload[2000:]]


def test_a_name_chooses_pcapng_which_has_all_links_of_a_file(tmp_path: Path) -> None:
    path = tmp_path / "guest.pcapng"
    capture = CaptureFile(str(path), Counters())
    assert packets(path) == []
    links = [capture.interface("left"), capture.interface("right")]
    links[1].take([Record(NOW, False, VIRTIO_NET_BLANK + FRAME, "lost")])
    links[1].close()
    late = capture.interface("late")
    for link in (links[0], late):
        link.take([recorded(VIRTIO_NET_BLANK, FRAME)])
        link.close()
    found = [(packet.interface, packet.direction, packet.comment) for packet in packets(path)]
    assert found == [("right", 2, "lost"), ("left", 1, ""), ("late", 1, "")]
    assert str(path) not in {os.readlink(entry) for entry in os.scandir("/proc/self/fd") if os.path.islink(entry)}


@pytest.mark.parametrize("name", ["lan.pcapng", "lan.pcap"])
def test_links_have_interfaces_in_the_format_that_has_such(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    sink = Interfaces(CaptureFile(str(path), Counters()), ["a", "b"])
    data = VIRTIO_NET_BLANK + FRAME
    sink.take([Record(NOW, False, data, "", "b"), Record(NOW, True, data, "lost", "a")])
    sink.take([Record(NOW, True, data, "", "late")])
    sink.close()
    if name == "lan.pcap":
        assert [frame for _, _, frame in records(path)] == [FRAME], "once, where it arrived"
        return
    found = [(packet.interface, packet.direction, packet.comment) for packet in packets(path)]
    assert found == [("b", 2, ""), ("a", 1, "lost"), ("late", 1, "")]
    assert str(path) not in {os.readlink(entry) for entry in os.scandir("/proc/self/fd") if os.path.islink(entry)}


def test_a_link_that_finds_no_room_leaves_the_file_to_the_others(tmp_path: Path) -> None:
    path = tmp_path / "guest.pcapng"
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    link = (capture := CaptureFile(str(path), Counters(), "capture")).interface("eth0")
    resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size, before[1]))
    try:
        with pytest.raises(PlatformError, match=f"^capture {path}: File too large; name a file that can be written$"):
            capture.interface("eth1")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    link.take([recorded(VIRTIO_NET_BLANK, FRAME)])
    link.close()
    assert [packet.interface for packet in packets(path)] == ["eth0"]


@pytest.mark.parametrize("path", ["/dev/full", "/nowhere/guest.pcap", "/"])
def test_a_file_that_cannot_be_written_is_refused_at_once(path: str) -> None:
    before = os.listdir("/proc/self/fd")
    with pytest.raises(PlatformError, match=f"^--pcap {path}: ") as caught:
        CaptureFile(path, Counters())
    assert caught.value.remedy == "name a file that can be written"
    assert os.listdir("/proc/self/fd") == before


# Captures superframes of ten segments to a file that may not grow beyond some bytes, and reports what was counted. The
# limit, too, lets the kernel take the start of a write only (write(2)).
LIMITED = """
import json, logging, resource, sys
from gpasst.counters import Counters
from gpasst.formats import VIRTIO_NET_BLANK
from gpasst.link.capture_file import CaptureFile
from gpasst.capture.record import Record
from tests.support.headers import header

path, limit, writes = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
logging.basicConfig(format="%(levelname)s %(name)s %(message)s")
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
counters = Counters()
capture = CaptureFile(path, counters).interface("eth0")
payload = bytes(1000)
for _ in range(writes):
    capture.take([Record(0, True, bytes(header(4).fill(len(payload), 100)) + payload, "")])
capture.close()
print(json.dumps({reason.name: count for reason, count in counters.drops.items()}))
"""
RECORD_BYTES = PCAP_RECORD_CODEC.size + UDP4.size - len(VIRTIO_NET_BLANK) + 100


@pytest.mark.parametrize("whole", [0, 3, 10, 25, 30])
@pytest.mark.parametrize("part", [0, 1, RECORD_BYTES - 1])
def test_frames_beyond_a_full_disk_are_counted(tmp_path: Path, whole: int, part: int) -> None:
    path = tmp_path / "guest.pcap"
    limit = PCAP_FILE_CODEC.size + whole * RECORD_BYTES + part
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, str(path), str(limit), "3"],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    missing = 30 - whole
    assert json.loads(done.stdout) == ({Drop.CAPTURE.name: missing} if missing else {})
    expected = f"ERROR gpasst.link.capture_file --pcap {path}: File too large; frames are missing from the file\n"
    assert done.stderr == (expected if missing else "")
    assert path.stat().st_size == limit - part
    assert len(records(path)) == whole


def test_capturing_goes_on_when_there_is_room_again(tmp_path: Path) -> None:
    path, counters = tmp_path / "guest.pcap", Counters()
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    capture = opened(path, counters)
    resource.setrlimit(resource.RLIMIT_FSIZE, (PCAP_FILE_CODEC.size + 20, before[1]))
    try:
        capture.take([recorded(VIRTIO_NET_BLANK, FRAME)])
        assert records(path) == []
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    capture.take([recorded(VIRTIO_NET_BLANK, FRAME)])
    capture.close()
    assert [frame for _, _, frame in records(path)] == [FRAME]
    assert counters.drops == {Drop.CAPTURE: 1}


def test_a_full_pipe_never_gets_half_a_record(tmp_path: Path) -> None:
    path, counters = tmp_path / "pipe", Counters()
    os.mkfifo(path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    capture = opened(path, counters)
    data = b""
    payload = os.urandom(10 * 1000)
    frame = bytes(header(4).fill(len(payload), 1000)) + payload
    for _ in range(20):
        capture.take([recorded(frame)])
    data += os.read(reader, 1 << 20)
    assert counters.drops[Drop.CAPTURE] > 0
    capture.take([recorded(VIRTIO_NET_BLANK, FRAME)])
    data += os.read(reader, 1 << 20)
    capture.close()
    os.close(reader)
    (tmp_path / "copy").write_bytes(data)
    found = records(tmp_path / "copy")
    assert found[-1][2] == FRAME
    assert len(found) + counters.drops[Drop.CAPTURE] == 201


def test_links_are_followed_only_where_no_other_can_make_them(tmp_path: Path) -> None:
    path = tmp_path / "link"
    path.symlink_to(tmp_path / "target")
    opened(path).close()
    assert records(tmp_path / "target") == []
    tmp_path.chmod(0o777)
    with pytest.raises(PlatformError, match="it is a symbolic link in a folder that others can write"):
        opened(path)
    path.unlink()
    opened(path).close()


def test_users_see_the_missing_frames() -> None:
    counters = Counters()
    counters.drop(Drop.CAPTURE, 2)
    assert counters.snapshot(0, 0, 0, 0).drops == {"frame missing from the capture file": 2}
