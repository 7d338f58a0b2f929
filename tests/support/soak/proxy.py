"""Proxies under load, in a process of their own, so that what they hold can be counted.

    python -m tests.support.soak.proxy OPTIONS

OPTIONS is JSON: the keywords of `gpasst.Pasta`, `gpasst.Passt` or both, by their modes. Each line of input is an order
as JSON, and is answered by one line: `open`, which is not asked for but comes first, says how to get at the guests;
`look` returns counters; `count` what the process holds; `weather` exchanges the rules of both links. It ends with its
input.
"""

from __future__ import annotations

import gc
import json
import os
import sys
from collections import Counter
from contextlib import ExitStack, suppress
from typing import Any

import gpasst
from gpasst.api.impairments import Impairment
from gpasst.proxy.timers import Deadline
from gpasst.records import asdict

MODES = {"pasta": gpasst.Pasta, "passt": gpasst.Passt}


def descriptors() -> list[str]:
    """Return what the descriptors lead to, without pipes: some of them are kept for the next splice pair."""
    found = []
    for name in os.listdir("/proc/self/fd"):
        with suppress(FileNotFoundError):  # that of the listing itself
            found.append(os.readlink(f"/proc/self/fd/{name}"))
    return [target for target in found if not target.startswith("pipe:")]


def count() -> dict[str, Any]:
    """Return what the process holds: descriptors, deadlines, and objects of each class of the package."""
    gc.collect()
    held = [item for item in gc.get_objects() if str(type(item).__module__).startswith("gpasst.")]
    return {
        "descriptors": len(descriptors()),
        "timers": sum(isinstance(item, Deadline) and item.callback is not None for item in held),
        "objects": Counter(type(item).__qualname__ for item in held),
    }


def main(options: dict[str, dict[str, Any]]) -> None:
    """Open the proxies, and carry out the orders."""
    weather: list[Impairment] = []
    with ExitStack() as stack:
        nets = {mode: stack.enter_context(MODES[mode](**keywords)) for mode, keywords in options.items()}
        pasta, passt = nets.get("pasta"), nets.get("passt")
        opened: dict[str, Any] = {}
        if isinstance(pasta, gpasst.Pasta):
            opened |= {"nsenter": pasta.nsenter, "interface": pasta.interface}
        if isinstance(passt, gpasst.Passt):
            opened["path"] = passt.path
        print(json.dumps(opened), flush=True)
        for line in sys.stdin:
            order = json.loads(line)
            answer: Any = None
            if order["do"] == "look":
                answer = {mode: asdict(net.statistics()) for mode, net in nets.items()}
            elif order["do"] == "count":
                answer = count()
            elif order["do"] == "weather":
                for impairment in weather:
                    impairment.remove()
                weather = [net.impair(rule) for net in nets.values() for rule in order["rules"]]
            print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
