"""What mini-llm-serve published for its three scenarios, and what its mock model makes possible at best.

The published figures are those of its second stage (1000 requests, 100 at a time). The bounds follow from the cost
model of `--mock-profile seed`: a batch takes as long as its slowest item, a prefill of n tokens
max(10, min(180, n // 4 + U{10..30})) ms, a decode U{5..20} ms, 71 decodes a request. Three bounds, in
requests a second:

    unlimited    any number of batches in flight, no overhead
    one lane     one batch in flight, no caps: ten waves of 100 requests in lock-step
    capped       one batch in flight, of at most 32 sequences and 2048 tokens (a simulation, decodes first)

Items cost nothing beside the slowest of their batch. So caps and lanes move these figures more than any policy can:
a figure means something only beside the lanes and caps that it was measured with.
"""

from __future__ import annotations

from dataclasses import dataclass

from benchmark.presets import SCENARIOS


@dataclass(frozen=True, slots=True)
class Known:
    """One scenario: what the seed reached, and what can be reached."""

    seed_req_s: float
    seed_ttft_s: float
    unlimited_req_s: float
    one_lane_req_s: float
    capped_req_s: float


KNOWN = {
    "cache_miss": Known(3.28, 1.7322, 103.2, 67.3, 20.05),
    "cache_hit": Known(4.10, 0.3250, 108.9, 70.4, 22.68),
    "mixed_prompt": Known(4.22, 1.2117, 104.9, 67.3, 21.22),
}


@dataclass(frozen=True, slots=True)
class Caps:
    """What decides how much can be reached, whatever the policy. 0 is no limit."""

    lanes: int
    max_num_seqs: int
    max_num_step_seqs: int
    max_num_batched_tokens: int

    def __str__(self) -> str:
        lanes = f"{self.lanes} lane{'s' if self.lanes > 1 else ''}"
        step = f"{self.max_num_step_seqs or 'any number of'} sequences / {self.max_num_batched_tokens} tokens"
        return f"{lanes}, steps of {step}, {self.max_num_seqs} residents"


@dataclass(frozen=True, slots=True)
class Ratios:
    """A throughput beside the seed's and the bounds. `percent_of_capped` only where that bound's caps were kept."""

    times_seed: float
    percent_of_one_lane: float
    percent_of_unlimited: float
    percent_of_capped: float | None


def ratios(scenario: str, num_requests: int, concurrency: int, profile: str, caps: Caps, req_s: float) -> Ratios | None:
    """How a throughput compares; None when it was measured on another workload than the bounds are for."""
    known, preset = KNOWN.get(scenario), SCENARIOS[scenario]
    if known is None or (num_requests, concurrency, profile) != (preset.num_requests, preset.concurrency, "seed"):
        return None
    capped = caps.lanes == 1 and caps.max_num_step_seqs == 32 and caps.max_num_batched_tokens == 2048
    return Ratios(
        times_seed=req_s / known.seed_req_s,
        percent_of_one_lane=100 * req_s / known.one_lane_req_s,
        percent_of_unlimited=100 * req_s / known.unlimited_req_s,
        percent_of_capped=100 * req_s / known.capped_req_s if capped else None,
    )
