"""Who is admitted first under each policy, that nothing starves, and that a policy of one's own is found."""

from __future__ import annotations

import random
import sys
from pathlib import Path

import pytest

from ipc.messages import Sampling, Submit
from scheduler_proc.policies import KeyPolicy, Policy, PolicyError, find_policy
from scheduler_proc.policies.fair import QUANTUM
from scheduler_proc.policies.lpm import MAX_SORTED
from scheduler_proc.sequence import Sequence
from scheduler_proc.waiting import AGED_SHARE, WaitingLine
from tests.scheduler_proc.fake_runner import submit

SECOND = 1_000_000_000


def sequence(order: int, length: int = 4, priority: int = 0, tenant: str = "", now: int = 0) -> Sequence:
    message: Submit = submit(order, [1] * length, 8)
    message.priority, message.tenant = priority, tenant
    return Sequence(message, 0, order, now)


def policy(name: str, match: dict[int, int] | None = None) -> Policy:
    """`match` says how many blocks the sequence of an order finds in the cache."""
    return find_policy(name)(lambda sequence: [0] * (match or {}).get(sequence.order, 0))


def orders(policy: Policy) -> list[int]:
    return [sequence.order for sequence in policy.order(0)]


def push_all(policy: Policy, sequences: list[Sequence]) -> None:
    for item in random.Random(1).sample(sequences, len(sequences)):
        policy.push(item)


def test_fcfs_goes_by_arrival() -> None:
    fcfs = policy("fcfs")
    push_all(fcfs, [sequence(order) for order in range(9)])
    assert orders(fcfs) == list(range(9))


def test_priority_goes_by_number_and_then_by_arrival() -> None:
    by_priority = policy("priority")
    sequences = [sequence(order, priority=priority) for order, priority in enumerate([5, -3, 0, 5, -3])]
    push_all(by_priority, sequences)
    assert orders(by_priority) == [1, 4, 2, 0, 3]
    ranks = [by_priority.rank(item) for item in sequences]
    assert max(ranks) == ranks[3], "the last of the least important ones is preempted first"


def test_sjf_goes_by_length_of_the_prompt() -> None:
    sjf = policy("sjf")
    push_all(sjf, [sequence(order, length) for order, length in enumerate([30, 7, 90, 7])])
    assert orders(sjf) == [1, 3, 0, 2]


def test_lpm_goes_by_what_is_cached_unless_the_queue_is_long() -> None:
    cached = {3: 9, 5: 2, 130: 50}
    lpm = policy("lpm", cached)
    sequences = [sequence(order) for order in range(MAX_SORTED)]
    push_all(lpm, sequences)
    assert orders(lpm)[:4] == [3, 5, 0, 1]
    lpm.push(sequence(130))
    assert orders(lpm) == [*range(MAX_SORTED), 130], "too many to look everybody up at every step"


@pytest.mark.parametrize("name", ["fcfs", "priority", "sjf", "lpm", "fair"])
def test_a_sequence_taken_out_is_gone_and_the_others_keep_their_places(name: str) -> None:
    some = policy(name)
    sequences = [sequence(order, length=order + 1, priority=order % 3, tenant=str(order % 2)) for order in range(12)]
    push_all(some, sequences)
    before = orders(some)
    assert sorted(before) == list(range(12))
    assert orders(some) == before, "looking changes nothing"
    for taken in (5, 0, 11):
        some.remove(sequences[taken])
        before.remove(taken)
        if name != "fair":  # whose turn it is may change with a tenant that leaves
            assert orders(some) == before
    assert sorted(orders(some)) == sorted(before)


def admit_next(fair: Policy) -> Sequence:
    chosen = next(fair.order(0))
    fair.admitted(chosen)
    fair.remove(chosen)
    return chosen


def test_fair_gives_every_tenant_the_same_number_of_tokens_whatever_it_sends() -> None:
    fair = policy("fair")
    # The greedy one sends 10 times as many requests, of any length; the modest ones are of two kinds.
    rng = random.Random(2)
    order = 0
    for tenant, count, length in (("greedy", 300, 100), ("long", 30, 1000), ("short", 300, 100)):
        for _ in range(count):
            fair.push(sequence(order, length + rng.randint(0, 9), tenant=tenant))
            order += 1
    served = {"greedy": 0, "long": 0, "short": 0}
    while sum(served.values()) < 60_000:
        chosen = admit_next(fair)
        served[chosen.tenant] += len(chosen.token_ids)
    assert max(served.values()) - min(served.values()) <= QUANTUM + 1010


def test_fair_charges_output_when_it_is_over() -> None:
    fair = policy("fair")
    for order in range(80):
        fair.push(sequence(order, QUANTUM, tenant="ab"[order % 2]))
    talker = admit_next(fair)
    talker.token_ids.extend([1] * 10 * QUANTUM)
    fair.left(talker)
    tenants = [admit_next(fair).tenant for _ in range(10)]
    other = "b" if talker.tenant == "a" else "a"
    assert tenants.count(other) >= 9, "ten quanta of debt"


def test_fair_forgets_debts_when_nobody_waits() -> None:
    fair = policy("fair")
    fair.push(sequence(0, QUANTUM, tenant="a"))
    fair.push(sequence(1, QUANTUM, tenant="b"))
    talker = admit_next(fair)
    talker.token_ids.extend([1] * 100 * QUANTUM)
    fair.left(talker)
    admit_next(fair)
    for order in range(2, 42):
        fair.push(sequence(order, QUANTUM, tenant="ab"[order % 2]))
    tenants = [admit_next(fair).tenant for _ in range(20)]
    assert tenants.count("a") == tenants.count("b")


def test_the_longest_waiting_gets_every_fourth_place_once_it_is_old() -> None:
    line = WaitingLine(policy("priority"), 10 * SECOND)
    line.push(sequence(0, priority=9), 0)
    line.push(sequence(1, priority=9), 0)
    for order in range(2, 40):
        line.push(sequence(order, priority=0, now=SECOND), 0)

    def admit(now: int) -> int:
        chosen = next(line.order(now))
        line.admit(chosen, now)
        return chosen.order

    assert 0 not in [admit(5 * SECOND) for _ in range(8)], "nobody is old yet"
    places = [admit(10 * SECOND) for _ in range(2 * AGED_SHARE)]
    assert places.index(0) < AGED_SHARE
    assert places.index(1) == places.index(0) + AGED_SHARE


def test_whoever_came_in_by_age_is_not_the_first_to_be_preempted() -> None:
    line = WaitingLine(policy("priority"), SECOND)
    old = sequence(0, priority=9)
    line.push(old, 0)
    important = sequence(1, priority=-5)
    line.push(important, 0)
    ranks = [line.admit(important, 2 * SECOND), line.admit(old, 2 * SECOND)]
    assert min(ranks) == ranks[1]


def test_arrivals_are_coalesced_until_the_first_has_waited_or_there_are_enough() -> None:
    line = WaitingLine(policy("fcfs"), 0)
    assert not line.ripe(100, delay_steps=3, enough_tokens=100, enough_seqs=8)
    line.push(sequence(0, 30), next_step=10)
    assert not line.ripe(12, delay_steps=3, enough_tokens=100, enough_seqs=8)
    assert line.ripe(13, delay_steps=3, enough_tokens=100, enough_seqs=8), "it has waited"
    line.push(sequence(1, 70), next_step=11)
    assert line.ripe(12, delay_steps=3, enough_tokens=100, enough_seqs=8), "the budget is full"
    assert line.ripe(12, delay_steps=3, enough_tokens=101, enough_seqs=2), "the slots are"


def test_a_policy_of_ones_own_is_found_in_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path != ""])
    (tmp_path / "my_policies.py").write_text(
        "from scheduler_proc.policies import KeyPolicy\n\n"
        "class Lifo(KeyPolicy):\n"
        "    def key(self, sequence):\n"
        "        return -sequence.order\n\n"
        "class Nothing:\n"
        "    pass\n"
    )
    lifo = policy("my_policies:Lifo")
    assert isinstance(lifo, KeyPolicy)
    push_all(lifo, [sequence(order) for order in range(5)])
    assert orders(lifo) == [4, 3, 2, 1, 0]
    for name, complaint in (
        ("my_policies:Lofi", "has no Lofi"),
        ("my_policies:Nothing", "no subclass"),
        ("no_such_module:Lifo", "current folder"),
    ):
        with pytest.raises(PolicyError, match=complaint):
            find_policy(name)


def test_sampling_plays_no_part_in_the_order() -> None:
    """A request's length is unknown until it ends: max_tokens, which most clients leave at its default, is no sign."""
    sjf = policy("sjf")
    short = submit(0, [1] * 5, 1)
    short.sampling = Sampling(max_tokens=4000)
    sjf.push(Sequence(short, 0, 0, 0))
    sjf.push(sequence(1, 6))
    assert orders(sjf) == [0, 1]


def test_the_example_of_the_documentation_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path != ""])
    text = (Path(__file__).parents[2] / "docs" / "scheduling.md").read_text()
    (tmp_path / "documented.py").write_text(text.split("```python\n")[1].split("```")[0])
    edf = policy("documented:Edf")
    for order, deadline_ns in enumerate([0, 30, 10, 0, 20]):
        item = sequence(order)
        item.deadline_ns = deadline_ns
        edf.push(item)
    assert orders(edf) == [2, 4, 1, 0, 3]
