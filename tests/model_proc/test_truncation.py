"""Truncated sampling on a GPU: the thresholds are those of a sorted row, and the host waits for nothing."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ipc.codec import Ids
from ipc.messages import Admit, Sampling
from model_proc.sampler import Sampler
from tests.model_proc.kernel_device import DEVICE, needs_triton

pytestmark = needs_triton

VOCAB = 9001  # more than a program looks at together, and odd
KINDS = [  # top_k, top_p, min_p
    (0, 0.9, 0.0), (0, 0.05, 0.0), (0, 0.999, 0.0), (1, 1.0, 0.0), (50, 1.0, 0.0), (4000, 0.5, 0.0), (40, 0.8, 0.0),
    (0, 1.0, 0.1), (30, 0.95, 0.02), (0, 1.0, 0.0), (9001, 0.3, 0.0),
]  # fmt: skip


def expected_threshold(probs: np.ndarray, top_k: int, top_p: float, min_p: float) -> float:
    """By a sorted row, in float64."""
    ordered = np.sort(probs.astype(np.float64))[::-1]
    threshold = min_p * ordered[0]
    kept = ordered[: top_k or len(ordered)]
    if top_k:
        threshold = max(threshold, kept[-1])
    if top_p < 1:
        mass = kept.sum() if 0 < top_k < len(ordered) else 1.0
        before = np.cumsum(kept) - kept
        threshold = max(threshold, kept[before < top_p * mass][-1])
    return float(threshold)


@pytest.mark.parametrize("spread", [0.0, 0.1, 3.0, 20.0])
def test_thresholds_are_those_of_a_sorted_row(spread: float) -> None:
    from model_proc.kernels.truncation_kernel import thresholds

    torch.manual_seed(int(spread * 10))
    probs = torch.softmax(spread * torch.randn(len(KINDS), VOCAB), dim=-1)
    probs[:, 5] = probs[:, 7]  # a tie
    columns = [torch.tensor([kind[index] or (VOCAB if index == 0 else 0.0) for kind in KINDS]) for index in range(3)]
    top_k, top_p, min_p = (column[:, None].to(DEVICE) for column in columns)
    found = thresholds(probs.to(DEVICE), top_k, top_p.float(), min_p.float())[:, 0].cpu().numpy()
    for row, (kind, threshold) in enumerate(zip(KINDS, found, strict=True)):
        values = probs[row].numpy()
        expected = expected_threshold(values, *kind)
        # Sums in float32 in another order may put the edge a few tokens further.
        wrongly = values[(values >= threshold) != (values >= expected)]
        assert wrongly.sum() <= 1e-5 + 4 * (len(wrongly) <= 2) * expected, kind


@pytest.mark.skipif(DEVICE.type != "cuda", reason="runs on a GPU: nothing else is waited for")
def test_the_host_waits_for_nothing() -> None:
    kinds = [
        Sampling(temperature=0.0, presence_penalty=1.0), Sampling(temperature=0.7, seed=1, top_p=0.999),
        Sampling(temperature=1.0, seed=2, top_k=400, top_p=0.9), Sampling(temperature=1.0, seed=4, min_p=0.1),
        Sampling(temperature=1.0, seed=5, repetition_penalty=1.4, bias_ids=Ids("i", [4]), bias_values=[2.0]),
        Sampling(temperature=1.0, seed=6, min_tokens=3, logprobs=4),
    ]  # fmt: skip
    slots = np.arange(len(kinds))
    sampler = Sampler(len(kinds), VOCAB, [3], DEVICE, has_kernels=True)
    logits = torch.randn(len(kinds), VOCAB, device=DEVICE)
    for mode in (0, 2):  # the first time compiles; in mode 2 every wait raises
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode(mode)
        try:
            for slot, params in enumerate(kinds):
                sampler.admit(Admit(slot, slot, Ids("i", [1, 2, 3]), 2, 0, [], params))
            sampled = sampler.sample(logits.clone(), kinds, slots, slots + 9, slots * 0).to_host()
        finally:
            torch.cuda.set_sync_debug_mode(0)
    torch.cuda.synchronize()
    on_cpu = Sampler(len(kinds), VOCAB, [3], torch.device("cpu"))
    for slot, params in enumerate(kinds):
        on_cpu.admit(Admit(slot, slot, Ids("i", [1, 2, 3]), 2, 0, [], params))
    expected = on_cpu.sample(logits.cpu(), kinds, slots, slots + 9, slots * 0)
    assert sampled.token_ids.tolist() == expected.token_ids.tolist()
