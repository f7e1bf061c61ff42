"""Measures the simulator's constants on a live ring: `python -m benchmark.simulate --calibrate FILE`.

A few loads are run that differ in how many requests, steps and tokens they have; what each process spent on them is
then taken apart by least squares, with no coefficient below zero. The loads are none of the scenarios that the
simulator is compared on. The mock's pace leaves the machine time to breathe, so that every token gets an event of its
own, as it does in those scenarios; a ring that is driven to its limit merges tokens and hides what each costs.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from benchmark.control_plane import Level, measure_level
from benchmark.fit_cost import non_negative_least_squares
from benchmark.overheads import PROCESSES, Cost, Overheads
from benchmark.ring_costs import hop_us, spread_us

# Streams, tokens a second of all of them together (0 is as many as possible), tokens of an answer, tokens of the load.
LOADS = (
    (100, 4000.0, 200, 40_000),  # tokens above all
    (2, 250.0, 200, 2_000),  # steps above all
    (32, 0.0, 1, 4_000),  # requests above all
    (24, 1500.0, 40, 12_000),  # something of everything
)
REPEATS = 2
# What a process's work can depend on at all.
DEPENDS_ON = {
    "client": ("request_us", "token_us"),
    "gateway": ("request_us", "step_us", "token_us"),
    "tokenizer": ("request_us",),
    "scheduler": ("request_us", "step_us", "token_us"),
    "model": ("step_us", "token_us"),
    "detokenizer": ("request_us", "step_us", "token_us"),
}


def calibrate() -> tuple[Overheads, dict[str, Any]]:
    """Measure all constants. Returns them, and what they were measured on and with.

    Raises ServerError and NoFiguresError when the ring does not do its work.
    """
    levels = {
        stream: [
            measure_level(streams, pace, tokens, total_tokens, stream, [])
            for streams, pace, tokens, total_tokens in LOADS * REPEATS
        ]
        for stream in (True, False)
    }
    overheads = Overheads(
        cores=os.cpu_count() or 1,
        hop_us=hop_us()["median_us"],
        spread_us=spread_us(),
        streamed={name: fit(name, levels[True]) for name in PROCESSES},
        unary={name: fit(name, levels[False]) for name in PROCESSES},
    )
    about = {
        "date": time.strftime("%Y-%m-%d"),
        "load_average": os.getloadavg()[0],
        "levels": [
            {
                "streamed": stream, "requests": level.requests, "steps": level.steps, "tokens": level.tokens,
                "wall_s": level.wall_s, "cpu_us_a_token": level.cpu_us_a_token,
            }
            for stream, of_way in levels.items()
            for level in of_way
        ],
    }  # fmt: skip
    return overheads, about


def fit(process: str, levels: Sequence[Level]) -> Cost:
    """What a request, a step and a token cost a process, from what it spent on some loads.

    Least squares of the relative errors, so that the small loads count as much as the large ones.
    """
    names = DEPENDS_ON[process]
    amounts = {
        "request_us": [float(level.requests) for level in levels],
        "step_us": [float(level.steps) for level in levels],
        "token_us": [float(level.tokens) for level in levels],
    }
    spent_us = np.array([level.cpu_us_a_token[process] * level.tokens for level in levels])
    columns = np.array([amounts[name] for name in names]).T
    found = non_negative_least_squares(columns, spent_us, 1 / np.maximum(spent_us, 1.0))
    costs = dict.fromkeys(amounts, 0.0) | dict(zip(names, found.tolist(), strict=True))
    return Cost(**{name: round(us, 3) for name, us in costs.items()})
