"""What the ring costs beside the model: the constants of the simulator, measured on a live ring.

A process's work is modelled as `request_us` a request, `step_us` a step of the model and `token_us` a token, all of
them CPU time; every message takes `hop_us` from one process to the next; and a thread that is woken while another one
works may have to wait for a core although there is one (`spread_us`). One set of constants serves all scenarios.
`python -m benchmark.simulate --calibrate FILE` measures them; the default set is the file `DEFAULT`.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

DEFAULT = Path(__file__).resolve().parent / "results" / "cpu" / "overheads.json"
PROCESSES = ("client", "gateway", "tokenizer", "scheduler", "model", "detokenizer")


class OverheadsError(ValueError):
    """A file of overheads that cannot be used; the text says what is wrong with it."""


@dataclass(frozen=True, slots=True)
class Cost:
    """CPU microseconds of one process."""

    request_us: float  # from its arrival to its end
    step_us: float  # a step of the model: a message, however many sequences it is about
    token_us: float  # beyond that, each of its tokens


@dataclass(frozen=True, slots=True)
class Overheads:
    """All constants."""

    cores: int  # that the processes and the client share
    hop_us: float  # send in one process -> the message in the next, which was asleep
    spread_us: list[float]  # until a thread runs that was woken by one that goes on working: deciles
    streamed: dict[str, Cost]  # by process, when answers are streamed
    unary: dict[str, Cost]  # and when they come whole

    def costs(self, stream: bool) -> dict[str, Cost]:
        return self.streamed if stream else self.unary


FREE = Overheads(
    cores=len(PROCESSES),
    hop_us=0.0,
    spread_us=[0.0],
    streamed={name: Cost(0.0, 0.0, 0.0) for name in PROCESSES},
    unary={name: Cost(0.0, 0.0, 0.0) for name in PROCESSES},
)


def load_overheads(path: Path = DEFAULT) -> Overheads:
    """Read a file that `save_overheads` wrote. Raises OverheadsError."""
    try:
        content = json.loads(path.read_text())
        return Overheads(
            cores=int(content["cores"]),
            hop_us=float(content["hop_us"]),
            spread_us=[float(us) for us in content["spread_us"]],
            streamed=_costs(content["streamed"]),
            unary=_costs(content["unary"]),
        )
    except OSError as error:
        raise OverheadsError(f"{path}: {error.strerror}; make it with benchmark.simulate --calibrate") from None
    except (ValueError, KeyError, TypeError) as error:
        raise OverheadsError(f"{path} is no file of overheads: {error!r}") from None


def save_overheads(path: Path, overheads: Overheads, about: dict[str, Any]) -> None:
    """Write overheads, and beside them what they were measured on and with."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"about": about} | asdict(overheads), indent=1) + "\n")


def _costs(content: dict[str, dict[str, float]]) -> dict[str, Cost]:
    return {name: Cost(**{key: float(value) for key, value in content[name].items()}) for name in PROCESSES}
