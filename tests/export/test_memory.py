"""The memory meter counts child processes, and keeps the peak after they end."""

from __future__ import annotations

import subprocess
import sys
import time

from export.memory import MemoryMeter

HOLD = "import time; held = bytearray(b'1') * (300 << 20); print('held', flush=True); time.sleep({})"


def test_memory_of_a_child_counts_and_the_peak_stays() -> None:
    with MemoryMeter() as meter:
        with subprocess.Popen([sys.executable, "-c", HOLD.format(3)], stdout=subprocess.PIPE) as child:
            assert child.stdout is not None
            child.stdout.readline()
            before = time.monotonic()
            while meter.peak < 300 << 20 and time.monotonic() - before < 20:
                time.sleep(0.1)
            child.kill()
        highest = meter.peak
    assert meter.peak >= highest >= 300 << 20
