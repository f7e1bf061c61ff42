"""One simulated run of a scenario, with the same figures as a live one."""

from __future__ import annotations

from benchmark import simulated_load
from benchmark.experiment import Experiment
from benchmark.fleet import Fleet
from benchmark.load import Run
from benchmark.overheads import Overheads
from benchmark.report import Figures, figures
from benchmark.ring_model import Ring
from benchmark.server_figures import server_figures
from benchmark.step_log import Step
from ipc.options import OptionError


def simulate(asked: Experiment, overheads: Overheads) -> tuple[Run, list[Step], Figures]:
    """Run one experiment under virtual time. Raises OptionError when its model is not the mock."""
    if asked.options["model"] != "mock":
        raise OptionError(f"--model: only the mock can be simulated, got {asked.options['model']!r}")
    asks = (asked.options, overheads, asked.stream, asked.scenario.num_turns > 1, asked.seed)
    ring: Ring | Fleet
    if asked.replicas.count == 1:
        ring = Ring(*asks)
        simulated_load.warm_up(ring, asked.scenario)
    else:
        ring = Fleet(asked.replicas, *asks)
        for replica in ring.rings.values():
            simulated_load.warm_up(replica, asked.scenario)
    before, busy_s, num_steps = ring.stats(), ring.busy_s(), len(ring.steps)
    run = simulated_load.send(ring, asked.scenario, asked.seed)
    steps = ring.steps[num_steps:]
    cores = {name: (busy - busy_s[name]) / run.wall_s for name, busy in ring.busy_s().items() if name != "client"}
    return run, steps, figures("simulated", asked, run, server_figures(before, ring.stats(), steps, cores))
