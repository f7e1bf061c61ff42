"""Many simulated runs of one scenario: every combination of policies, token budgets, arrival rates and lanes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product

from benchmark.experiment import Experiment, Replicas
from benchmark.overheads import Overheads
from benchmark.report import Figures
from benchmark.simulation import simulate


@dataclass(frozen=True, slots=True)
class Sweep:
    """What is tried. An empty list leaves the experiment's own value."""

    policies: Sequence[str]
    prefill_orders: Sequence[str]
    budgets: Sequence[int]  # max_num_batched_tokens
    step_seqs: Sequence[int]  # max_num_step_seqs
    rates: Sequence[float]  # arrivals a second; 0 is a closed loop
    lanes: Sequence[int]
    replicas: Sequence[int] = ()
    routers: Sequence[str] = ()

    def experiments(self, asked: Experiment) -> Iterator[Experiment]:
        """One experiment for each combination, the last list varying fastest. Raises OptionError."""
        columns = [
            [[f"--{name}={value}"] for value in values] or [[]]
            for name, values in (
                ("scheduling-policy", self.policies),
                ("prefill-order", self.prefill_orders),
                ("max-num-batched-tokens", self.budgets),
                ("max-num-step-seqs", self.step_seqs),
                ("mock-lanes", self.lanes),
            )
        ]
        for flags in product(*columns):
            for rate in self.rates or [asked.scenario.rate]:
                scenario = replace(asked.scenario, rate=rate)
                one = asked.with_launch([flag for part in flags for flag in part], scenario=scenario)
                yield from (replace(one, replicas=replicas) for replicas in self._replicas(asked.replicas))

    def _replicas(self, asked: Replicas) -> Iterator[Replicas]:
        """Every number of replicas behind every router; a single one needs none."""
        for count in self.replicas or [asked.count]:
            for router in (self.routers or ["prefix"]) if count > 1 else [""]:
                yield replace(asked, count=count, router=router)


def sweep(asked: Experiment, tried: Sweep, overheads: Overheads) -> Iterator[Figures]:
    """The figures of every combination, as they come."""
    for one in tried.experiments(asked):
        yield simulate(one, overheads)[2]
