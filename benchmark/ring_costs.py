"""What the ring's own machinery costs: the codec by batch size, a hop between two processes, a wake-up.

Run as a program this module is the other side of a hop or of a wake-up; `hop_us` and `spread_us` start it.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import psutil
import zmq

from benchmark.server_figures import cpu_seconds
from ipc.codec import Ids, decode, encode
from ipc.control_messages import Shutdown
from ipc.messages import Abort, Plan, Result, Text, Tokens
from ipc.sockets import Inbox, Outbox

EPOCH = 1
ROUND_TRIPS = 2000
ECHO_TIMEOUT_S = 20.0
WAKES = 300
WOKEN_WORKS_S = 1.5e-3  # the order of what a process of the ring does with a step


def step_messages(batch: int) -> list[Any]:
    """The four messages of a step in which `batch` sequences decode, as they are in the middle of long answers."""
    rids = [(1 << 20) + number for number in range(batch)]
    slots = list(range(batch))
    token_ids = Ids("i", [1 + number % 71 for number in range(batch)])
    grown = [int(number % 16 == 0) for number in range(batch)]  # one in sixteen gets a new block
    return [
        Plan(1000, [], [], slots, [1] * batch, grown, [5000 + number for number in range(sum(grown))]),
        Result(1000, slots, token_ids, None, [], [], 10**15, 10**15),
        Tokens([], rids, token_ids, None, [], 10**15),
        Text([], rids, ["a word "] * batch, [1] * batch, token_ids, None, [], 10**15),
    ]


def codec_us(batch: int, repeats: int = 300) -> dict[str, dict[str, float]]:
    """For each message of a step: its size in bytes, and the median microseconds to encode and to decode it."""
    costs = {}
    for message in step_messages(batch):
        frame = encode(message, EPOCH)
        costs[type(message).__name__] = {
            "bytes": len(frame),
            "encode_us": _median_us(partial(encode, message, EPOCH), repeats),
            "decode_us": _median_us(partial(decode, frame), repeats),
        }
    return costs


def _median_us(work: Callable[[], Any], repeats: int) -> float:
    samples = []
    for _ in range(repeats):
        started = time.perf_counter_ns()
        work()
        samples.append(time.perf_counter_ns() - started)
    return statistics.median(samples) / 1000


def hop_us(round_trips: int = ROUND_TRIPS) -> dict[str, float]:
    """Microseconds from `send` in one process to the message in another: half a round trip, median and 90th percentile.

    `cpu_us` is the CPU time that a message takes in both, their ZeroMQ threads included: the least that a step pays for
    each message that it sends round the ring, however small. Both sides block in between, as the processes of an idle
    ring do. Raises RuntimeError when the echo does not come.
    """
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    with tempfile.TemporaryDirectory() as folder:
        inbox = Inbox(context, folder, "caller", EPOCH)
        echo = subprocess.Popen([sys.executable, "-m", "benchmark.ring_costs", "--echo", folder])
        outbox = Outbox(context, folder, "echo", EPOCH)
        try:
            samples = []
            for number in range(round_trips + round_trips // 10):
                if number == round_trips // 10:  # warm from here on
                    cpu_s = time.process_time() + cpu_seconds(psutil.Process(echo.pid))
                started = time.perf_counter_ns()
                outbox.send(Abort([1]))
                if not inbox.receive(ECHO_TIMEOUT_S):
                    raise RuntimeError(f"no echo within {ECHO_TIMEOUT_S} s")
                samples.append((time.perf_counter_ns() - started) / 2000)
            cpu_s = time.process_time() + cpu_seconds(psutil.Process(echo.pid)) - cpu_s
            outbox.send(Shutdown())
            echo.wait(ECHO_TIMEOUT_S)
        finally:
            echo.kill()
            outbox.close()
            inbox.close()
            context.term()
    warm = sorted(samples[round_trips // 10 :])
    return {
        "median_us": statistics.median(warm),
        "p90_us": warm[len(warm) * 9 // 10],
        "cpu_us": 1e6 * cpu_s / (2 * round_trips),
    }


def spread_us(wakes: int = WAKES) -> list[float]:
    """Deciles (5 %, 15 %, ... 95 %) of the microseconds until a thread runs that another one woke and then went on.

    On a machine with a second core that is free this is a wake-up and no more - unless the kernel packs threads on as
    few cores as it can, which some do to save power or to leave a host's cores to other guests.
    """
    woken = subprocess.Popen(
        [sys.executable, "-m", "benchmark.ring_costs", "--woken"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert woken.stdin is not None
    assert woken.stdout is not None
    try:
        samples = []
        for _ in range(wakes):
            time.sleep(0.01)  # both sleep, as they do between two steps
            _work_for(0.5e-3)
            asked = time.monotonic_ns()
            woken.stdin.write(b"!")
            woken.stdin.flush()
            _work_for(10e-3)
            samples.append((int.from_bytes(woken.stdout.read(8), "little") - asked) / 1000)
        woken.stdin.close()
        woken.wait(ECHO_TIMEOUT_S)
    finally:
        woken.kill()
    samples.sort()
    return [round(samples[len(samples) * percent // 100], 1) for percent in range(5, 100, 10)]


def _work_for(seconds: float) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        pass


def _echo(folder: str) -> None:
    """Send back whatever comes, until a Shutdown."""
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    inbox, outbox = Inbox(context, folder, "echo", EPOCH), Outbox(context, folder, "caller", EPOCH)
    while True:
        for message in inbox.receive():
            if type(message) is Shutdown:
                return
            outbox.send(message)


def _woken() -> None:
    """Say when each byte of the standard input came, and work a little, until there are no more."""
    while os.read(sys.stdin.fileno(), 1):
        os.write(sys.stdout.fileno(), time.monotonic_ns().to_bytes(8, "little"))
        _work_for(WOKEN_WORKS_S)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="benchmark.ring_costs", description="The other side of a measurement.")
    side = parser.add_mutually_exclusive_group(required=True)
    side.add_argument("--echo", metavar="FOLDER", help="of hop_us: the folder of the sockets")
    side.add_argument("--woken", action="store_true", help="of spread_us")
    args = parser.parse_args()
    if args.woken:
        _woken()
    else:
        _echo(args.echo)
