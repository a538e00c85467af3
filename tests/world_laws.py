"""What holds in every simulated world, checked as it happens, by code that shares nothing with what it checks.

1. Exactly once: of each event one answer is visible, and what is visible is committed, at any moment.
2. At least once: no answer has a higher control epoch than the fold's, and a committed event has one of just that.
3. Exactly once: the epoch of what is visible is the fold's.
4. Nothing is committed without its output; committed offsets never go back, and none is skipped.
5. Every row is routed by the epoch that the logs give as far as its worker had read them when it was handed over.
6. Nothing is handed over from a worker's own cutover on before that was read back.
7. Whoever reads the progress log finds the cutovers that count: under the latest claim, while it is open, growing.
8. Version, variant and reason are those that the two logs give for the event's key; or stable's, and say FALLBACK.
9. Once `released` has landed, nothing more of that claim becomes visible.
10. A kill holds from the first event of which nothing was sent.
11. Nobody fences a rightful member of the group.
12. No worker fails but by a fault that it was dealt.
13. When the faults end, everything is answered and committed, and every partition reaches the newest epoch; nobody has
    to wait for the broker to end a transaction.

The control log is worked out by `chaos.law`, which shares no code with the folds or the router either.
"""

from __future__ import annotations

import json
import sys
import traceback
from itertools import pairwise
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))  # chaos is a part of the checkout, not of the package

from chaos.law import CANDIDATE, STABLE, Desk, Epoch, answer

VARIANTS = (STABLE, CANDIDATE)
Cuts = dict[int, list[tuple[int, int]]]  # by partition: (control epoch, first offset)


class Broken(AssertionError):  # noqa: N818  (a finding, as `assert` would raise it)
    def __init__(self, law: int, what: str) -> None:
        self.law, self.what, self.seed = law, what, 0
        super().__init__(f"law {law}: {what}")


class Laws:
    """One world's."""

    def __init__(self, delivery: str, partitions: int, topology: str, keys) -> None:
        self.once, self.keys = delivery == "exactly_once", keys
        self.desk = Desk(topology)
        self.answers: dict[tuple[int, int, int], tuple[str, str, str, str]] = {}
        self.claims: dict[int, list[tuple[int, bool]]] = {p: [] for p in range(partitions)}
        self.cuts: Cuts = {p: [] for p in range(partitions)}
        self.prefixes: list[Cuts] = [{}]
        self.said: dict[tuple[int, int], list[int | None]] = {}
        self.upto = [0] * partitions
        self.released: set[tuple[str, int]] = set()
        self.unpunctual: set[str] = set()
        self.coverage: set[str] = set()
        self.workers: list = []

    def seen(self, what: str) -> None:
        """For the count of what schedules reach."""
        self.coverage.add(what)

    # ---- the logs

    def commanded(self, offset: int, value: bytes) -> bool:
        before = self.desk.accepted
        self.desk.read([(offset, value)])
        accepted = self.desk.accepted > before
        self.seen("a command is accepted" if accepted else "a command is rejected")
        return accepted

    @property
    def epochs(self) -> list[Epoch]:
        return self.desk.epochs

    def in_force(self, cuts: Cuts, partition: int, offset: int) -> int:
        found = self.epochs[0].number
        for epoch, start in cuts.get(partition, ()):
            if start <= offset:
                found = epoch
        return found

    def landed(self, value: bytes) -> None:
        said, offset = json.loads(value), len(self.prefixes) - 1
        inc = said["incarnation"]
        if said["kind"] == "owned":
            for p in said["partitions"]:
                if any(is_open for _, is_open in self.claims[p]):
                    self.seen("a claim lands on open ones")
                self.claims[p].append((offset, True))
                self.released.discard((inc, p))
        elif said["kind"] == "released":
            for p, epoch in said["owner_epochs"].items():
                self._release(int(p), epoch, inc)
        else:
            for p, start in said["offsets"].items():
                self._cut(int(p), said["owner_epochs"][p], said["epoch"], start)
        self.prefixes.append({p: list(cuts) for p, cuts in self.cuts.items() if cuts})

    def _release(self, p: int, epoch: int, inc: str) -> None:
        if (epoch, True) in self.claims[p]:
            self.claims[p] = [(one, is_open and one > epoch) for one, is_open in self.claims[p]]
            self.released.add((inc, p))
            if self.claims[p][-1][1]:
                self.seen("a release lands under its successor")

    def _cut(self, p: int, owner: int, epoch: int, start: int) -> None:
        last = self.cuts[p][-1] if self.cuts[p] else (-1, -1)
        if self.claims[p][-1] == (owner, True) and epoch > last[0] and start >= last[1]:
            self.cuts[p].append((epoch, start))
            if start == last[1]:
                self.seen("an epoch is in force for no event")
        elif self.claims[p][-1][0] > owner:
            self.seen("a cutover lands under its successor")

    def folded(self, position: int, cutovers) -> None:
        found = {p: [(cut.epoch, cut.offset) for cut in cuts] for (_, p), cuts in cutovers.items()}
        if found != self.prefixes[position]:
            raise Broken(7, f"read to {position}: {found}, and {self.prefixes[position]} count")

    def appended(self, wires, sent) -> None:
        if b'"kind":"cutover"' not in sent.value:
            return
        said = json.loads(sent.value)
        wires.unread = sent, {int(p): start for p, start in said["offsets"].items()}
        worker = wires.process
        read, unsent = self.prefixes[worker.progress.position], worker.custody._ledger.unsent()
        for p, start in wires.unread[1].items():
            last = read.get(p, [(self.epochs[0].number, 0)])[-1]
            if self._killed_since(last[0], said["epoch"]):
                self.seen("a kill takes hold")
                if start > max(unsent.get(("e", p), 0), last[1]):
                    raise Broken(10, f"{p}:{start} is where a kill holds, sent is all before {unsent}")

    def _killed_since(self, before: int, epoch: int) -> bool:
        span = [one.killed for one in self.epochs if before <= one.number <= epoch]
        return any(not now <= was for was, now in pairwise(span))

    def late(self, incarnation: str) -> None:
        self.unpunctual.add(incarnation)
        self.seen("an append is given up")

    # ---- events on their way

    def delivered(self, worker, raw) -> None:
        sent, starts = worker.wires.unread or (None, {})
        if sent is None or sent.incarnation != worker.wires.incarnation:
            return
        if sent.landed is not None and sent.landed < worker.progress.position:
            worker.wires.unread = None
            return
        for p, offset in zip(raw.partitions.tolist(), raw.offsets.tolist(), strict=True):
            if offset >= starts.get(p, offset + 1):
                raise Broken(6, f"{p}:{offset} is handed over, the cutover at {starts[p]} was not read back")

    def routed(self, position: int, said) -> None:
        read = self.prefixes[position]
        for one in said:
            wanted = self.in_force(read, one.partition, one.offset)
            if one.epoch != wanted:
                raise Broken(5, f"{one} was routed where the logs gave epoch {wanted}")
            self._right(one)

    def _right(self, one) -> None:
        at = one.epoch, one.partition, one.offset
        if at not in self.answers:
            epoch = next(epoch for epoch in self.epochs if epoch.number == one.epoch)
            self.answers[at] = answer(epoch, self.keys(one.partition, one.offset))
        version, variant, reason, stable = self.answers[at]
        found = (one.version, VARIANTS[one.variant], one.reason)
        if found != (version, variant, reason) and not (found == (stable, STABLE, "FALLBACK") and variant == CANDIDATE):
            raise Broken(8, f"{one}, the logs give {self.answers[at]}")
        self.seen(f"answered {VARIANTS[one.variant]} {one.reason}")

    def visible(self, one) -> None:
        """An answer, or a dead letter, can be read from now on."""
        place = one.partition, one.offset
        before = self.said.setdefault(place, [])
        wanted = self.in_force(self.cuts, *place)
        if (one.incarnation, one.partition) in self.released:
            raise Broken(9, f"{one} is visible after its claim was released")
        if self.once:
            if before:
                raise Broken(1, f"{one} is visible twice")
            if one.epoch not in (wanted, None):
                raise Broken(3, f"{one} is visible, the fold says {wanted}")
        elif one.epoch is not None and one.epoch > wanted:
            raise Broken(2, f"{one} is visible, the fold says {wanted}")
        elif before:
            self.seen("an event is answered again")
        before.append(one.epoch)

    def committed(self, partition: int, before: int, after: int, by: str) -> None:
        if after < before:
            raise Broken(4, f"{by} commits {partition}:{after} after {before}")
        for offset in range(before, after):
            self._answered(partition, offset, by)
        self.upto[partition] = after

    def _answered(self, partition: int, offset: int, by: str) -> None:
        said = self.said.get((partition, offset))
        if not said:
            raise Broken(4, f"{by} commits {partition}:{offset}, of which nothing is visible")
        wanted = self.in_force(self.cuts, partition, offset)
        epochs = [one for one in said if one is not None]
        if epochs and max(epochs) != wanted:
            law = 3 if self.once else 2
            raise Broken(law, f"{partition}:{offset} is committed by {by} with epochs {epochs}, the fold says {wanted}")

    def transaction_ended(self) -> None:
        outside = [place for place in self.said if place[1] >= self.upto[place[0]]]
        if outside:
            raise Broken(1, f"{outside} are visible and not committed")

    # ---- workers

    def fenced(self, tid: str, by: str) -> None:
        for worker in self.workers:
            member = worker.member
            if worker.dead or worker.name == by or tid != worker.wires.tid or member is None:
                continue
            if worker.intake._life is None or worker.intake._life.is_over():
                continue  # it is on its way out, and the group may not know yet
            owns = any(owner is member for owner in worker.broker.owners)
            if owns and not member.kicked and worker.wires.incarnation not in self.unpunctual:
                raise Broken(11, f"{by} fences {tid}, a rightful member")
        self.seen("an unreleased predecessor is fenced")

    def fault(self, error: BaseException) -> None:
        if isinstance(error, Broken):
            raise error
        raise Broken(12, "".join(traceback.format_exception(error))) from error

    def settled(self, ends: list[int]) -> str:
        """What is left to do, once there are no more faults; empty: nothing."""
        newest = self.epochs[-1].number
        for p, end in enumerate(ends):
            if self.upto[p] != end:
                return f"partition {p} is committed to {self.upto[p]} of {end}"
            if (self.cuts[p][-1][0] if self.cuts[p] else self.epochs[0].number) != newest:
                return f"partition {p} has not reached epoch {newest}"
        return ""

    def conclude(self, ends: list[int]) -> None:
        """Everything once more, by the logs as they are in the end."""
        for p, end in enumerate(ends):
            for offset in range(end):
                self._answered(p, offset, "the end")
