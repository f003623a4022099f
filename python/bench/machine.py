"""What the machine is, and how much of it is ours while we measure. Linux only."""

import os
import platform
import time
from pathlib import Path
from typing import Any

HIGHEST_LOAD = 0.5  # of the last minute
PATIENCE = 60.0  # seconds
TICKS = os.sysconf("SC_CLK_TCK")


def description() -> str:
    """Processor and cores."""
    fields = dict(line.split(":", 1) for line in Path("/proc/cpuinfo").read_text().splitlines() if ":" in line)
    name, family, model = (fields.get(key + "\t", "").strip() or fields.get(key + "\t\t", "").strip() or "unknown"
                           for key in ("model name", "cpu family", "model"))
    return f"{name} (family {family}, model {model}), {os.cpu_count()} cores, Linux {platform.release()}"


def load() -> float:
    """Load average of the last minute."""
    return os.getloadavg()[0]


def wait_until_quiet() -> bool:
    """Waits for the load to fall; False if it does not."""
    deadline = time.monotonic() + PATIENCE
    while load() > HIGHEST_LOAD:
        if time.monotonic() > deadline:
            return False
        time.sleep(1)
    return True


def used() -> tuple[float, float]:
    """Seconds of processor time since the start of the machine: taken by anybody, and stolen by its host."""
    user, nice, system, _idle, _wait, irq, soft, steal = map(int, Path("/proc/stat").read_text().split()[1:9])
    return (user + nice + system + irq + soft + steal) / TICKS, steal / TICKS


class Watch:
    """Processor time that went to others while it was open, stolen time included, as a share of all cores.

    Processes that ran and ended inside are ours; whoever asks one that lives on adds its time to `own`.
    """

    own = others = 0.0

    def ours(self) -> float:
        times = os.times()
        return times.user + times.system + times.children_user + times.children_system

    def __enter__(self) -> "Watch":
        self.start = (time.monotonic(), used()[0], self.ours())
        return self

    def __exit__(self, *_: Any) -> None:
        wall, busy, ours = (now - then for now, then in zip((time.monotonic(), used()[0], self.ours()), self.start))
        self.others = max(0.0, busy - ours - self.own) / (wall * (os.cpu_count() or 1))
