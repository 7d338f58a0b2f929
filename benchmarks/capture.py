"""Recording frames: how many a second go through the recorder into each kind of sink, and whether tshark reads them.

A million frames of one flow, of 64 to 1400 bytes of payload, with complete checksums as they cross a tap without
offloads; and superframes of 16 segments, which a capture file cuts.

    python benchmarks/capture.py [--frames 1000000] [--folder /tmp] [--json]
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from gpasst.capture.record import Record
from gpasst.counters import Counters
from gpasst.link.capture_file import CaptureFile
from gpasst.link.recorder import Recorder, Sink
from gpasst.udp.header import Header

SIZES = (64, 512, 1400)  # bytes of payload
SEGMENTS = 16  # of a superframe
MACS = bytes.fromhex("525400123456"), bytes.fromhex("9a559a559a55")
ENDS = bytes((192, 0, 2, 1)), bytes((192, 0, 2, 2))


class Link:
    recorder: Recorder | None = None


class Nothing:
    """A sink that keeps nothing: what is left is the recorder's own cost."""

    def take(self, records: Sequence[Record]) -> None:
        pass

    def close(self) -> None:
        pass


def record(sink: Sink, frame: Sequence[bytes], count: int) -> float:
    """Record a frame, of `count` in all with its segments, over and over; return the seconds it took."""
    recorder = Recorder(Link(), "eth0", time.time_ns, lambda: None)
    recorder.add(sink)
    started = time.perf_counter()
    for _ in range(count):
        recorder.write(True, *frame)
    recorder.close()
    return time.perf_counter() - started


def read(path: Path) -> tuple[int, int]:
    """Return how many frames tshark finds in a file, and how many of them it calls malformed."""
    command = ["tshark", "-r", str(path), "-T", "fields", "-e", "frame.number", "-e", "_ws.malformed"]
    frames = malformed = 0
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as program:
        assert program.stdout is not None
        for line in program.stdout:
            frames += 1
            malformed += len(line.split("\t")) > 1 and bool(line.split("\t")[1].strip())
    assert program.returncode == 0
    return frames, malformed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, default=1_000_000)
    parser.add_argument("--folder", default=None)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    header = Header(4, *MACS, *ENDS, 40000, 5000)
    rows = []
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        for size in SIZES:
            payload = bytes(range(256)) * 6
            single = bytes(header.fill_complete(payload[:size])), payload[:size]
            whole = bytes(header.fill(SEGMENTS * size, size)), payload[:size] * SEGMENTS
            for kind in ("nothing", "pcap", "pcapng"):
                path = Path(folder) / f"guest.{kind}"
                sink: Sink = Nothing() if kind == "nothing" else CaptureFile(str(path), Counters()).interface("eth0")
                seconds = record(sink, single, options.frames)
                row = {"sink": kind, "payload": size, "frames_per_second": round(options.frames / seconds)}
                if kind != "nothing" and shutil.which("tshark"):
                    row["read"], row["malformed"] = read(path)
                if kind != "nothing":
                    sink = CaptureFile(str(path), Counters()).interface("eth0")
                    seconds = record(sink, whole, options.frames // SEGMENTS)
                    row["segments_per_second"] = round(options.frames / seconds)
                rows.append(row)
                if not options.json:
                    print(*(f"{name} {value}" for name, value in row.items()), sep=", ", flush=True)
    if options.json:
        print(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
