"""The course of the weather that a network file describes.

Theory of operation: weather without `from` is in force before the first command starts; the time of all other counts
from the moment when the last one has started, and has bound the ports that are waited for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import gevent

from gpasst.commands.network_parts import Parts
from gpasst.commands.report import Report
from gpasst.errors import GpasstError
from gpasst.impair.rule import SECOND
from gpasst.topology.records import Topology, WeatherPlan

if TYPE_CHECKING:
    from gpasst.api.impairments import Impairment
    from gpasst.api.network_sections import Partition


class Course:
    """Begins weather, and ends it.

    :param parts: the open networks.
    :param report: where it is reported.
    """

    def __init__(self, parts: Parts, report: Report) -> None:
        self._parts = parts
        self._report = report
        self._begun: list[tuple[WeatherPlan, Impairment | Partition | None]] = []
        self._tasks: list[Any] = []

    def begin(self, topology: Topology) -> None:
        """Put in force what has no `from`."""
        self._begun = [(plan, None if plan.start else self._parts.begin(plan)) for plan in topology.weather]

    def start(self, stop: Any) -> None:
        """Let the time begin.

        :param stop: gets what is raised later.
        """
        self._tasks = [gevent.spawn(self._follow, plan, begun, stop) for plan, begun in self._begun]

    def end(self) -> None:
        """Change nothing any more."""
        gevent.killall(self._tasks)

    def _follow(self, plan: WeatherPlan, begun: Impairment | Partition | None, stop: Any) -> None:
        try:
            if begun is None:
                gevent.sleep(plan.start / SECOND)
                begun = self._parts.begin(plan)
                self._report.weather(plan, begins=True)
            if plan.until is not None:
                gevent.sleep((plan.until - plan.start) / SECOND)
                begun.remove()
                self._report.weather(plan, begins=False)
        except GpasstError as error:
            stop.set_exception(error)
