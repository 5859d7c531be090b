"""The page of a run that is still learning, written anew after its tasks."""

from __future__ import annotations

import logging
import time
from pathlib import Path

from tripletmas.runs.directory import RunDirectory

logger = logging.getLogger(__name__)

_FIRST = 30.0  # seconds: a run that is shorter is not held up
_SHARE = 20  # times as long as the last page took passes before the next: at most a twentieth of the time


class LivePage:
    """Called after each epoch, writes the page of a run after a task, but seldom enough not to hold it up.

    A page that cannot be written ends no training: it is told once, and not tried again.
    """

    def __init__(self, out: Path, *, first: float = _FIRST):
        self._out = out
        self._due = time.monotonic() + first
        self._done = 0
        self._is_off = False

    def __call__(self) -> None:
        if self._is_off or time.monotonic() < self._due:
            return
        run = RunDirectory(self._out)
        done = run.num_done
        if done == self._done or done == len((run.scores() or {}).get("task_names", ())):
            return  # at the end comes the whole page
        self._done, began = done, time.monotonic()
        try:
            from tripletmas.report import page  # it draws, and that takes a while to import

            told = page.write_report(self._out, brief=True)
        except Exception as error:  # whatever goes wrong with a page, the run goes on
            self._is_off = True
            logger.warning("no page while the run learns: %s: %s", type(error).__name__, error)
            return
        self._due = time.monotonic() + _SHARE * (time.monotonic() - began)
        logger.info("page so far: %s", told)
