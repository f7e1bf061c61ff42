"""What a process measures of itself."""

from __future__ import annotations

import gc
import os
import time

from ipc.gauges import Gauges
from ipc.histogram import Histogram
from ipc.spans import Spans


def test_a_process_knows_its_time_memory_and_collections() -> None:
    gauges = Gauges(Spans())
    try:
        first = gauges.read(1)
        assert first["pid"] == os.getpid()
        assert first["rss_bytes"] > 1 << 20
        gc.collect()
        until = time.process_time() + 0.03
        while time.process_time() < until:
            pass
        second = gauges.read(1)
        assert second["cpu_s"] >= first["cpu_s"] + 0.03
        assert 0 < second["loop_busy"] <= 1
        assert second["gc_pauses"] == first["gc_pauses"] + 1
        assert 0 < second["gc_pause_max_s"] <= second["gc_pause_s"]
        assert second["idle_s"] >= 0.03
        assert gauges.read(2)["idle_s"] == 0
    finally:
        gauges.close()


def test_a_value_falls_into_the_bucket_of_the_first_bound_that_is_not_below_it() -> None:
    histogram = Histogram((1, 2, 5))
    for value in (0.5, 1, 1.5, 5, 6):
        histogram.observe(value)
    histogram.observe(2, times=3)
    assert histogram.export() == {"bounds": [1, 2, 5], "counts": [2, 4, 1, 1], "sum": 20.0}
