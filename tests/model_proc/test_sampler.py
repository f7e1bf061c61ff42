"""The sampler against a plain reference, one row at a time, in float64."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ipc.codec import Ids
from ipc.messages import Admit, Sampling
from model_proc.random_numbers import seed_states, uniform
from model_proc.sampler import Sampled, Sampler

VOCAB = 700  # more than the sampler looks at before it sorts a row whole
EOS = 3
CPU = torch.device("cpu")


def run(
    logits: torch.Tensor,
    sampling: list[Sampling],
    history: dict[int, tuple[list[int], list[int]]] | None = None,
    positions: list[int] | None = None,
) -> Sampled:
    """Sample one token a row; row i is in slot i. `history` gives prompt and output of slots with penalties."""
    sampler = Sampler(len(sampling), logits.shape[1], [EOS], CPU)
    num_output = []
    for slot, params in enumerate(sampling):
        prompt, output = (history or {}).get(slot, ([1], []))
        sampler.admit(Admit(slot, slot, Ids("i", prompt + output), len(prompt), 0, [], params))
        num_output.append(len(output))
    where = np.array(positions or [5] * len(sampling))
    return sampler.sample(logits.clone(), sampling, np.arange(len(sampling)), where, np.array(num_output))


def reference_distribution(logits: np.ndarray, params: Sampling, prompt: list[int], output: list[int]) -> np.ndarray:
    """The distribution that a row is drawn from, by the definitions alone."""
    scores = logits.astype(np.float64).copy()
    for token in set(prompt) | set(output):
        penalty = params.repetition_penalty
        scores[token] = scores[token] / penalty if scores[token] > 0 else scores[token] * penalty
    for token in set(output):
        scores[token] -= params.presence_penalty + params.frequency_penalty * output.count(token)
    for token, bias in zip(params.bias_ids, params.bias_values, strict=True):
        scores[token] += bias
    if len(output) < params.min_tokens:
        scores[[EOS, *params.stop_token_ids]] = -np.inf
    probs = np.exp((scores - scores.max()) / params.temperature)
    probs /= probs.sum()
    order = np.argsort(-probs, kind="stable")
    kept = np.zeros(len(probs), dtype=bool)
    limit = params.top_k or len(probs)
    mass = probs[order[:limit]].sum()
    before = 0.0
    for token in order[:limit]:
        kept[token] = before < params.top_p * mass
        before += probs[token]
    kept &= probs >= params.min_p * probs.max()
    return np.where(kept, probs, 0) / probs[kept].sum()


@settings(max_examples=150, deadline=None)
@given(
    data=st.data(),
    temperature=st.floats(0.2, 2.0),
    top_k=st.sampled_from([0, 1, 5, 300, 699]),
    top_p=st.sampled_from([1.0, 0.9, 0.5, 0.05]),
    min_p=st.sampled_from([0.0, 0.02, 0.3]),
    flat=st.booleans(),
)
def test_draws_are_the_inverse_of_the_reference_distribution(
    data: st.DataObject, temperature: float, top_k: int, top_p: float, min_p: float, flat: bool
) -> None:
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    params = Sampling(
        temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p,
        seed=data.draw(st.integers(-(2**63), 2**63 - 1)),
        repetition_penalty=data.draw(st.sampled_from([1.0, 1.3, 0.8])),
        presence_penalty=data.draw(st.sampled_from([0.0, 1.5])),
        frequency_penalty=data.draw(st.sampled_from([0.0, -0.7])),
        bias_ids=Ids("i", [7, 9]), bias_values=[2.0, -3.0], min_tokens=data.draw(st.sampled_from([0, 9])),
    )  # fmt: skip
    prompt, output = rng.integers(0, VOCAB, 8).tolist(), rng.integers(0, VOCAB, 4).tolist()
    logits = rng.normal(size=VOCAB) * (0.1 if flat else 4.0)
    position = data.draw(st.integers(0, 10**6))
    sampled = run(torch.tensor(logits)[None].float(), [params], {0: (prompt, output)}, [position])
    expected = reference_distribution(logits, params, prompt, output)
    token = int(sampled.token_ids[0])
    number = float(numbers_of(np.array([params.seed]), np.array([position]))[0])
    cumulative = np.cumsum(expected)
    # float32 against float64: the number may fall just beside an edge of the token's interval, or a token may
    # stand just at a threshold.
    assert cumulative[token] - expected[token] - 2e-3 <= number <= cumulative[token] + 2e-3


def test_neighbours_change_nothing() -> None:
    torch.manual_seed(0)
    kinds = [
        Sampling(temperature=0.0),
        Sampling(temperature=0.7, seed=1),
        Sampling(temperature=1.0, seed=2, top_k=40, top_p=0.9),
        Sampling(temperature=1.3, seed=3, top_p=0.99),
        Sampling(temperature=1.0, seed=4, min_p=0.1),
        Sampling(temperature=1.0, seed=5, repetition_penalty=1.4, top_k=500),
    ]
    logits = torch.randn(len(kinds), VOCAB)
    together = run(logits, kinds).token_ids.tolist()
    alone = [int(run(logits[row : row + 1], [params]).token_ids[0]) for row, params in enumerate(kinds)]
    assert together == alone
    backwards = run(logits.flip(0), kinds[::-1]).token_ids.tolist()
    assert backwards[::-1] == together


def test_frequencies_follow_the_probabilities() -> None:
    probs = torch.tensor([0.5, 0.25, 0.125, 0.125])
    params = [Sampling(temperature=1.0, seed=seed) for seed in range(4000)]
    token_ids = run(probs.log().expand(4000, 4), params).token_ids
    frequencies = torch.bincount(token_ids, minlength=4) / 4000
    assert torch.allclose(frequencies, probs, atol=0.03)


def test_ties_at_the_edge_of_top_k_survive() -> None:
    logits = torch.full((2000, 6), -9.0)
    logits[:, :3] = 1.0
    params = [Sampling(temperature=1.0, top_k=2, seed=seed) for seed in range(2000)]
    assert set(run(logits, params).token_ids.tolist()) == {0, 1, 2}


def test_tiny_temperature_is_greedy_and_finite() -> None:
    logits = torch.randn(4, VOCAB) * 50
    sampled = run(logits, [Sampling(temperature=1e-6, seed=seed) for seed in range(4)])
    assert sampled.token_ids.tolist() == logits.argmax(dim=1).tolist()
    assert (sampled.token_ids >= 0).all()


def test_min_tokens_forbids_ends_until_it_is_reached() -> None:
    logits = torch.zeros(3, 10)
    logits[:, EOS] = 9.0
    logits[:, 4] = 8.0
    logits[:, 5] = 7.0
    params = Sampling(temperature=0.0, min_tokens=2, stop_token_ids=Ids("i", [4]))
    history = {0: ([1], []), 1: ([1], [6]), 2: ([1], [6, 6])}
    assert run(logits, [params] * 3, history).token_ids.tolist() == [5, 5, EOS]


def test_counts_follow_what_is_sampled() -> None:
    params = Sampling(temperature=0.0, frequency_penalty=2.0)
    sampler = Sampler(1, 4, [EOS], CPU)
    sampler.admit(Admit(0, 0, Ids("i", [2]), 1, 0, [], params))
    logits = torch.tensor([[3.0, 2.0, 0.0, -9.0]])
    tokens = [
        int(sampler.sample(logits.clone(), [params], np.array([0]), np.array([i]), np.array([i])).token_ids[0])
        for i in range(4)
    ]
    assert tokens == [0, 1, 0, 1]  # 3, then 1 against 2, then 1 against 0, then -1 against 0


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_logprobs_are_those_of_the_raw_logits(temperature: float) -> None:
    torch.manual_seed(1)
    logits = torch.randn(3, VOCAB)
    params = Sampling(temperature=temperature, seed=3, logprobs=4, repetition_penalty=1.5, top_k=10)
    sampled = run(logits, [replace(params, logprobs=count) for count in (4, -1, 0)])
    expected = logits.double().log_softmax(dim=1)
    assert sampled.logprob_ids is not None
    assert sampled.logprob_values is not None
    assert sampled.logprob_ids[:, 0].tolist() == sampled.token_ids.tolist()
    assert sampled.logprob_ids[0, 1:].tolist() == expected[0].topk(4).indices.tolist()
    assert torch.allclose(sampled.logprob_values.double(), expected.gather(1, sampled.logprob_ids), atol=1e-5)


def test_a_failure_leaves_no_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    """So those who did not cause it can be sampled again."""
    sampling = [
        Sampling(temperature=1.0, top_k=5, seed=1, frequency_penalty=1.5, logprobs=3),
        Sampling(temperature=1.0, seed=2, bias_ids=Ids("i", [7]), bias_values=[4.0], min_tokens=9),
    ]
    logits = torch.randn(2, VOCAB, generator=torch.Generator().manual_seed(0))
    sampler = Sampler(2, VOCAB, [EOS], CPU)
    for slot, params in enumerate(sampling):
        sampler.admit(Admit(slot, slot, Ids("i", [1, 2, 2]), 1, 0, [], params))
    where = (np.arange(2), np.array([5, 5]), np.array([2, 2]))
    given, counts = logits.clone(), sampler._in_output.clone()
    with monkeypatch.context() as patched:
        patched.setattr(torch.Tensor, "topk", _out_of_luck)  # it comes last: the tokens are chosen
        with pytest.raises(ValueError, match="luck"):
            sampler.sample(logits, sampling, *where)
    assert torch.equal(logits, given)
    assert torch.equal(sampler._in_output, counts)


def _out_of_luck(*_: object, **__: object) -> None:
    raise ValueError("out of luck")


def test_logits_that_are_not_numbers_are_told_apart() -> None:
    logits = torch.zeros(2, 5)
    logits[1, 2] = float("nan")
    for temperature in (0.0, 1.0):
        params = Sampling(temperature=temperature, presence_penalty=1.0, logprobs=2, top_p=0.9)
        sampled = run(logits, [params] * 2)
        assert 0 <= int(sampled.token_ids[0]) < 5
        assert int(sampled.token_ids[1]) == -1


def numbers_of(seeds: np.ndarray, positions: np.ndarray) -> np.ndarray:
    return uniform(seed_states(seeds), positions)


def test_random_numbers_depend_on_seed_and_position_alone() -> None:
    seeds, positions = np.meshgrid(np.arange(-50, 50), np.arange(100))
    numbers = numbers_of(seeds.ravel(), positions.ravel())
    assert numbers.min() >= 0.0
    assert numbers.max() < 1.0
    assert len(np.unique(numbers)) > 9990
    assert abs(float(numbers.mean()) - 0.5) < 0.02
    assert numbers_of(np.array([7]), np.array([9]))[0] == numbers_of(np.array([1, 7]), np.array([2, 9]))[1]


@pytest.mark.parametrize("options", [{"temperature": 1e-50}, {"top_p": 1e-50}, {"top_p": 1e-50, "top_k": 3}])
def test_what_is_too_small_for_32_bits_leaves_the_likeliest_token(options: dict[str, float]) -> None:
    logits = torch.randn(1, VOCAB, generator=torch.Generator().manual_seed(5))
    sampled = run(logits, [Sampling(seed=3, **options)])  # type: ignore[arg-type]
    assert sampled.token_ids.tolist() == [int(logits.argmax())]


@pytest.mark.parametrize("penalty", [1e-50, 1e-38, 1e18])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_repetition_penalty_of_any_size_leaves_a_token(penalty: float, temperature: float) -> None:
    logits = torch.randn(1, VOCAB, generator=torch.Generator().manual_seed(5)) * 10
    likeliest = int(logits.argmax())
    params = Sampling(repetition_penalty=penalty, temperature=temperature, seed=3)
    token = run(logits, [params], {0: ([likeliest], [])}).token_ids[0]
    assert token != likeliest if penalty > 1 else token == likeliest
