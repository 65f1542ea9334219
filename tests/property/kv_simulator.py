"""Drives vLLM's real KVCacheManager as its scheduler does, and checks it against the model after every step.

Replay one seed, printing what happens: python tests/property/kv_simulator.py --seed 1234 --steps 300 --verbose
"""

from __future__ import annotations

import argparse
import random
from collections import Counter, deque
from typing import Any

from kv_allocation import WatchedAllocation
from kv_hits import HitOracle
from kv_model import InvariantError, Pages, Prefixes, Scheduled, Sequence, require
from kv_world import World, random_world
from vllm.sampling_params import SamplingParams
from vllm.v1.request import Request, RequestStatus

VOCABULARY = 50
DEFAULT_STEPS = 150
DRAIN_STEPS = 20_000
"""More than any set-up needs to finish its requests; beyond it they block each other."""


class Simulation:
    """One random interleaving. `events` counts what it covered."""

    def __init__(self, world: World, verbose: bool = False) -> None:
        self.world = world
        self.rng = random.Random(world.seed ^ 0x5EED)
        self.verbose = verbose
        self.kv = world.manager()
        self.pages = Pages(world)
        self.prefixes = Prefixes()
        self.hasher = world.block_hasher()
        self.documents = [
            [self.rng.randrange(VOCABULARY) for _ in range(world.max_model_len)] for _ in range(3)
        ]
        self.events: Counter[str] = Counter()
        self.waiting: deque[Sequence] = deque()
        self.running: list[Sequence] = []
        self.loading: list[Sequence] = []
        self.pending: deque[list[Scheduled]] = deque()
        self.deferred_frees: deque[tuple[int, list[Any]]] = deque()
        self.scheduled_steps = self.processed_steps = self.created = 0
        self.hits = HitOracle(world, self.pages, self.kv.block_pool, self.events)
        self.allocation = WatchedAllocation(world, self.kv, self.pages, self.hits, self.events)

    def run(self, steps: int) -> None:
        """Take random actions, checking after each; then let everything finish, and find the pool whole again."""
        actions = [self.add, self.schedule, self.process, self.finish_load, self.abort, self.forget]
        for _ in range(steps):
            self._take(self.rng.choices(actions, weights=(3, 8, 7, 2, 0.4, 0.2))[0])
        for _ in range(DRAIN_STEPS):
            if not (self.waiting or self.running or self.pending or self.loading or self.deferred_frees):
                break
            self._take(self.rng.choices(actions[1:4], weights=(8, 7, 2))[0])
        require(not self.pages.tables, "requests left: {}", list(self.pages.tables))
        require(
            self.kv.block_pool.get_num_free_blocks() == self.world.num_blocks - 1, "blocks leaked at the end"
        )

    def _take(self, action: Any) -> None:
        if self.verbose:
            print(action.__name__, f"free={self.kv.block_pool.get_num_free_blocks()}")
        action()
        self.check()

    def check(self) -> None:
        """All invariants that hold between any two actions."""
        self.pages.check_pool(self.kv.block_pool)
        sequences = (*self.waiting, *self.running, *self.loading)
        self.pages.check_owners({s.id: s.names for s in sequences})
        for sequence in sequences:
            expected = self.pages.tables.get(sequence.id, [[] for _ in self.world.groups])
            require(self.allocation.tables(sequence) == expected, "{}: table changed", sequence.id)
        for step in self.pending:
            for share in step:
                if share.fenced:
                    self._check_reads(share)

    def add(self) -> None:
        """A new request, often with the beginning of an earlier one."""
        if len(self.waiting) + len(self.running) + len(self.loading) >= self.world.max_requests:
            return
        rng, limit = self.rng, self.world.max_model_len
        document = rng.choice(self.documents)
        shared = rng.randrange(0, limit - 2)
        if rng.random() < 0.4:
            shared -= shared % self.world.alignment
        own = rng.choice([0, 1, rng.randrange(0, 100)])
        prompt = (document[:shared] + [rng.randrange(VOCABULARY) for _ in range(own)])[: limit - 2] or [1]
        outputs = rng.randrange(1, min(40, limit - len(prompt)) + 1)
        script = prompt + [rng.randrange(VOCABULARY) for _ in range(outputs)]
        if rng.random() < 0.5:
            # A later request may go on from this one's answer.
            self.documents[rng.randrange(3)] = script + document[len(script) :]
        self.created += 1
        request = Request(
            f"r{self.created}",
            prompt,
            SamplingParams(max_tokens=outputs, temperature=0.0),
            None,
            block_hasher=self.hasher,
        )
        self.waiting.append(Sequence(request, script, self.prefixes.of(script)))

    def schedule(self) -> None:
        """One scheduler step: running requests, then waiting ones, as `Scheduler.schedule` orders them."""
        if len(self.pending) >= self.world.concurrent_batches:
            return
        step: list[Scheduled] = []
        budget, preempted = self.world.max_batched_tokens, False
        for sequence in list(self.running):
            if budget <= 0 or sequence not in self.running:
                continue
            tokens = self._tokens_to_schedule(sequence, budget)
            if tokens <= 0:
                continue
            while not (allocated := self.allocation.allocate(sequence, tokens)):
                victim = self.running[-1]
                if not self._can_be_freed(victim):
                    self.events["preemption must wait"] += 1
                    break
                self._preempt(victim)
                preempted = True
                if victim is sequence:
                    break
            if not allocated:
                break
            step.append(self._share(sequence, tokens))
            budget -= tokens
        while self.waiting and not preempted and budget > 0:
            # Whose KV was loaded holds blocks: it goes first, as vLLM's queue of skipped requests does.
            sequence = next((s for s in self.waiting if s.request.num_computed_tokens), self.waiting[0])
            admitted = self._admit(sequence, budget)
            if admitted is None:
                break
            self.waiting.remove(sequence)
            if admitted:
                self.running.append(share := admitted[0].sequence)
                share.request.status = RequestStatus.RUNNING
                step.extend(admitted)
                budget -= admitted[0].end - admitted[0].start
        if step:
            self._send(step)
            return
        holders = [s for s in self.waiting if s.request.num_computed_tokens]
        if holders and not (preempted or self.running or self.pending or self.loading):
            # vLLM reserves blocks so that loads cannot fill the pool; here a client gives up.
            self._finish(holders[-1], RequestStatus.FINISHED_ABORTED)

    def process(self) -> None:
        """The output of the oldest step comes back."""
        if not self.pending:
            return
        step = self.pending.popleft()
        self.processed_steps += 1
        while self.deferred_frees and self.deferred_frees[0][0] <= self.processed_steps:
            _, blocks = self.deferred_frees.popleft()
            self.kv.block_pool.free_blocks(reversed(blocks))
            self.pages.deferred.subtract(block.block_id for block in blocks)
            self.events["deferred free"] += 1
        for share in step:
            request = share.sequence.request
            if request.is_finished():
                continue
            request.num_in_flight_tokens -= share.end - share.start
            stale = request.num_stale_output_tokens > 0
            if stale:
                request.num_stale_output_tokens -= share.end - share.start
                self.events["stale output"] += 1
            elif share.end >= request.num_prompt_tokens:
                self.hits.note_replayable(share)
            if share.samples and not (stale and request.drop_stale_output):
                self._append(share.sequence, stale)

    def finish_load(self) -> None:
        """An asynchronous KV load of a connector arrives, or fails."""
        if not self.loading:
            return
        sequence = self.loading.pop(self.rng.randrange(len(self.loading)))
        request = sequence.request
        if self.rng.random() < 0.2:
            self.events["load failed"] += 1
            request.num_computed_tokens = 0
            self.kv.free(request)
            self.pages.tables.pop(sequence.id)
        else:
            self._load(sequence, self.allocation.tables(sequence), request.num_computed_tokens)
            self.kv.cache_blocks(request, request.num_computed_tokens)
            if request.num_computed_tokens == request.num_tokens:
                self.events["whole prompt loaded"] += 1
                request.num_computed_tokens -= 1
        request.status = RequestStatus.PREEMPTED if request.num_preemptions else RequestStatus.WAITING
        self.waiting.appendleft(sequence)

    def abort(self) -> None:
        """A client disconnects."""
        candidates = [*self.running, *self.waiting]
        if candidates:
            self._finish(self.rng.choice(candidates), RequestStatus.FINISHED_ABORTED)
            self.events["abort"] += 1

    def forget(self) -> None:
        """A connector reports pages it could not load: their hashes go, in any order, sinks before windows."""
        hashed = [block.block_id for block in self.kv.block_pool.blocks if block.block_hash is not None]
        if hashed:
            blocks = set(self.rng.sample(hashed, min(len(hashed), self.rng.randrange(1, 3))))
            self.kv.evict_blocks(blocks)
            self.hits.forgotten |= blocks
            self.events["hash forgotten"] += 1

    def _tokens_to_schedule(self, sequence: Sequence, budget: int) -> int:
        request = sequence.request
        done = request.num_computed_tokens + 2 - request.num_output_placeholders
        if request.num_output_placeholders > 0 and done >= request.num_prompt_tokens + request.max_tokens:
            return 0
        tokens = request.num_tokens + request.num_output_placeholders - request.num_computed_tokens
        chunk = self.rng.choice([budget, budget, self.rng.randrange(1, budget + 1)])
        return min(tokens, chunk, self.world.max_model_len - request.num_computed_tokens - 1)

    def _admit(self, sequence: Sequence, budget: int) -> list[Scheduled] | None:
        """Admit a waiting request: its share of the step, [] if it waits for a load, None if there is no room."""
        request = sequence.request
        blocks, local, external, asynchronous = self.kv.empty_kv_cache_blocks, 0, 0, False
        if request.num_computed_tokens == 0:
            blocks, local, request.shared_prefix_boundary = self.kv.get_computed_blocks(request)
            self.hits.check_hit(sequence, blocks, local)
            external, asynchronous = self._external_tokens(request, local)
        computed = request.num_computed_tokens + local + external
        tokens = 0 if asynchronous else min(request.num_tokens - computed, self.rng.randrange(1, budget + 1))
        if not self.allocation.allocate(
            sequence, tokens, blocks, local, external, asynchronous, others_run=bool(self.running)
        ):
            return None
        self.events["resumed with a hit"] += bool(local and request.num_preemptions)
        request.num_computed_tokens = computed
        if asynchronous:
            self.events["asynchronous load"] += 1
            request.status = RequestStatus.WAITING_FOR_REMOTE_KVS
            self.loading.append(sequence)
            return []
        if external:
            self.events["synchronous load"] += 1
            self._load(sequence, self.pages.tables[sequence.id], computed)
        return [self._share(sequence, tokens)]

    def _external_tokens(self, request: Request, local: int) -> tuple[int, bool]:
        """What the KV connector offers beyond the local hit: an aligned part, or asynchronously even all."""
        rest = request.num_tokens - local
        if rest < 2 or self.rng.random() >= self.world.external_share:
            return 0, False
        if self.rng.random() < 0.5:
            return self.rng.choice([rest, self.rng.randrange(1, rest)]), True
        external = self.rng.randrange(1, rest)
        return external - external % self.world.alignment, False

    def _share(self, sequence: Sequence, tokens: int) -> Scheduled:
        """The step's queries of a request: they write their KV, then read what they may see."""
        request = sequence.request
        start, end = request.num_computed_tokens, request.num_computed_tokens + tokens
        share = Scheduled(
            sequence, start, end, [list(blocks) for blocks in self.pages.tables[sequence.id]], samples=False
        )
        for group, table in enumerate(share.tables):
            self.pages.write(table, group, sequence.names, start, end)
        self._check_reads(share)
        return share

    def _check_reads(self, share: Scheduled) -> None:
        for group, table in enumerate(share.tables):
            self.pages.check_read(
                table, group, share.sequence.names, share.start, share.end, share.sequence.id
            )

    def _load(self, sequence: Sequence, tables: list[list[int]], end: int) -> None:
        """The connector stores what it brings, up to `end`, in the pages that do not hold it yet."""
        for group, table in enumerate(tables):
            for index, block in enumerate(table):
                if block and not self.pages.holds(block, group, sequence.names, index):
                    size = self.world.groups[group].block_size
                    self.pages.write(table, group, sequence.names, index * size, min(end, (index + 1) * size))

    def _send(self, step: list[Scheduled]) -> None:
        self.scheduled_steps += 1
        # A request preempted later in the same pass was taken out of the running list.
        step = [share for share in step if share.sequence in self.running]
        for share in step:
            request = share.sequence.request
            request.num_computed_tokens = share.end
            request.num_in_flight_tokens += share.end - share.start
            request.last_sched_seq = self.scheduled_steps
            share.samples = share.end >= request.num_tokens + request.num_output_placeholders
            request.num_output_placeholders += share.samples
        self.events["mixed batch"] += len({share.samples for share in step}) == 2
        self.pending.append(step)

    def _append(self, sequence: Sequence, stale: bool) -> None:
        """A sampled token arrives."""
        request = sequence.request
        running = request.status == RequestStatus.RUNNING
        if request.num_tokens < len(sequence.script):
            request.append_output_token_ids(sequence.script[request.num_tokens])
        if not stale:
            request.num_output_placeholders -= 1
        if running:
            self.kv.cache_blocks(request, request.num_computed_tokens - request.num_output_placeholders)
        if request.num_tokens >= len(sequence.script) and request.status in (
            RequestStatus.RUNNING,
            RequestStatus.PREEMPTED,
        ):
            self.events["finished"] += 1
            self._finish(sequence, RequestStatus.FINISHED_LENGTH_CAPPED)

    def _preempt(self, victim: Sequence) -> None:
        request = victim.request
        self.running.remove(victim)
        self._release(victim)
        request.status = RequestStatus.PREEMPTED
        request.num_computed_tokens = 0
        request.drop_stale_output = self.world.drop_stale_output
        request.num_stale_output_tokens = request.num_in_flight_tokens
        request.num_output_placeholders = 0
        request.num_preemptions += 1
        self.waiting.appendleft(victim)
        self.events["preemption"] += 1
        self.events["preemption with a step in flight"] += request.num_in_flight_tokens > 0

    def _finish(self, sequence: Sequence, status: RequestStatus) -> None:
        (self.running if sequence in self.running else self.waiting).remove(sequence)
        sequence.request.status = status
        self._release(sequence)

    def _can_be_freed(self, sequence: Sequence) -> bool:
        return not self.world.defer_block_free or sequence.request.last_sched_seq <= self.processed_steps

    def _release(self, sequence: Sequence) -> None:
        """Free a request's blocks, at once or once the steps in flight are done."""
        table = self.pages.tables.pop(sequence.id, [])
        if self._can_be_freed(sequence):
            self.kv.free(sequence.request)
            for step in self.pending:
                for share in step:
                    # What is freed at once is ordered after the pending step by the device's stream.
                    share.fenced &= share.sequence is not sequence
            return
        if blocks := self.kv.pop_blocks_for_free(sequence.request):
            self.deferred_frees.append((self.scheduled_steps, blocks))
            self.pages.deferred.update(block for blocks in table for block in blocks)


def simulate(seed: int, steps: int = DEFAULT_STEPS, verbose: bool = False) -> Counter[str]:
    """Run one seed.

    Raises:
        InvariantError: With the seed and the command that replays it.
    """
    world = random_world(seed)
    simulation = Simulation(world, verbose)
    try:
        simulation.run(steps)
    except Exception as error:
        raise InvariantError(
            f"seed {seed}: {error!r}\n{world}\n"
            f"replay: python tests/property/kv_simulator.py --seed {seed} --steps {steps} --verbose"
        ) from error
    return simulation.events


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0, help="first seed")
    parser.add_argument("--seeds", type=int, default=1, help="how many seeds")
    parser.add_argument("--steps", type=int, default=DEFAULT_STEPS)
    parser.add_argument("--verbose", action="store_true")
    options = parser.parse_args()
    events: Counter[str] = Counter()
    for seed in range(options.seed, options.seed + options.seeds):
        events += simulate(seed, options.steps, options.verbose)
    for name, count in sorted(events.items()):
        print(f"{count:8d}  {name}")


if __name__ == "__main__":
    main()
