"""What a run of a scenario is asked for on the command line; the same for live and for simulated runs."""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from benchmark.bounds import Caps
from benchmark.presets import SCENARIOS, Scenario
from ipc.options import OptionError, from_command_line

# The server that a scenario is run against unless told otherwise, and the profile of the mock.
MODEL = "--model=mock"
PROFILE = "--mock-profile=seed"


@dataclass(frozen=True, slots=True)
class Replicas:
    """How many rings there are, and how a prompt finds its way to one of them."""

    count: int = 1
    router: str = ""  # none for a single ring
    one_machine: bool = False  # they share its cores; else each has a machine of its own


@dataclass(frozen=True, slots=True)
class Experiment:
    """One scenario with everything that may differ from its preset."""

    scenario: Scenario
    stream: bool
    seed: int  # of the arrivals in an open loop, and of pauses to think
    launch: tuple[str, ...]  # what launch.py is started with
    options: Mapping[str, Any]  # and what that makes of every option
    replicas: Replicas = Replicas()

    @property
    def caps(self) -> Caps:
        return Caps(
            lanes=self.options["mock_lanes"] if self.options["model"] == "mock" else 1,
            max_num_seqs=self.options["max_num_seqs"],
            max_num_step_seqs=self.options["max_num_step_seqs"],
            max_num_batched_tokens=self.options["max_num_batched_tokens"],
        )

    @property
    def profile(self) -> str:
        """The cost model of the mock; the model's name for any other."""
        return str(self.options["mock_profile"] if self.options["model"] == "mock" else self.options["model"])

    def with_launch(self, extra: Sequence[str], **changes: Any) -> Experiment:
        """The same with more options of launch.py, which have the last word, and with other fields."""
        launch = (*self.launch, *extra)
        return replace(self, launch=launch, options=from_command_line(launch, os.environ), **changes)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments that live and simulated runs share."""
    parser.add_argument("--scenario", choices=SCENARIOS, default="smoke", help="what is asked (default: smoke)")
    parser.add_argument("--requests", type=_count, default=0, help="number of requests; 0 keeps the preset")
    parser.add_argument("--concurrency", type=_count, default=0, help="requests in flight; 0 keeps the preset")
    parser.add_argument("--timeout-ms", type=_count, default=0, help="deadline of a request; 0 keeps the preset")
    parser.add_argument("--rate", type=_rate, default=0.0, help="arrivals a second, whatever is in flight (open loop)")
    parser.add_argument(
        "--think-s", type=_rate, default=0.0, help="mean seconds between an answer and the next turn of a conversation"
    )
    parser.add_argument("--seed", type=int, default=0, help="of arrival times and of pauses to think (default: 0)")
    parser.add_argument("--unary", action="store_true", help="ask for whole answers instead of streams")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures to this file")
    parser.add_argument("--csv", type=Path, metavar="FILE", help="write the main figures as a row (or rows)")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the main figures as a table")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw queue, batches and latency over time")
    parser.add_argument("launch", nargs="*", metavar="OPTION", help="options of launch.py, behind --")


def experiment(args: argparse.Namespace) -> Experiment:
    """What the arguments ask for. Raises OptionError when an option of launch.py is wrong."""
    preset = SCENARIOS[args.scenario]
    scenario = replace(
        preset,
        num_requests=args.requests or preset.num_requests,
        concurrency=args.concurrency or preset.concurrency,
        timeout_ms=args.timeout_ms or preset.timeout_ms,
        rate=args.rate or preset.rate,
        think_s=args.think_s or preset.think_s,
    )
    if scenario.think_s and scenario.num_turns == 1:
        raise OptionError(f"--think-s: {scenario.name} has no conversations; take multi_turn")
    launch = (MODEL, *preset.launch, *args.launch)
    try:
        options = from_command_line(launch, os.environ)
        if options["model"] == "mock":
            launch = (MODEL, PROFILE, *preset.launch, *args.launch)
            options = from_command_line(launch, os.environ)
    except OptionError as error:
        raise OptionError(f"behind --: {error}") from None
    return Experiment(scenario, not args.unary, args.seed, launch, options)


def _count(text: str) -> int:
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"must not be negative, got {value}")
    return value


def _rate(text: str) -> float:
    value = float(text)
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"must be a number that is not negative, got {text}")
    return value
