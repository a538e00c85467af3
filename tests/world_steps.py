"""What can happen in a simulated world, one step at a time, and how a schedule of steps is drawn from a seed."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator

from world_broker import Broker, Member
from world_clients import key_of
from world_laws import Broken, Laws
from world_worker import FOLD, TOPOLOGY, Worker

Step = tuple[object, ...]
DELIVERIES = ("at_least_once", "exactly_once")
FAR = 5  # of 12: how often an intake goes on for one wait only
TURNS = 2  # of an intake while nobody else does anything
ROUNDS = 400  # in which a world without faults comes to rest
VERSIONS = ("v1", "v2", "v3")
ROLLOUT = ("shift", "shift", "shift", "promote", "rollback", "pause", "resume")
KINDS = ("prepare", *ROLLOUT, "kill", "revive")
WEIGHTS = {
    "run": 40, "send": 20, "land": 20, "read": 20, "hear": 12, "events": 3, "command": 1.5, "assign": 16, "revoke": 0.6,
    "kick": 0.4, "tell": 1, "sleep": 0.5, "wake": 1, "crash": 0.12, "start": 0.5, "stop": 0.06, "moving": 0.2,
    "spoil": 0.2, "stubborn": 0.2, "time_out": 0.7, "lose": 0.5, "emit": 4,
}  # fmt: skip
AGAIN = frozenset(("run", "send", "read"))  # mostly of the one whose turn it was
FAULTS = ("revoke", "kick", "sleep", "crash", "stop", "moving", "spoil", "stubborn", "time_out")


class World:
    def __init__(self, delivery: str, partitions: int) -> None:
        self.delivery = delivery
        self.laws = Laws(delivery, partitions, TOPOLOGY, key_of)
        self.broker = Broker(partitions, self.laws)
        self.workers: list[Worker] = []
        self.laws.workers = self.workers
        self.steps: list[Step] = []
        self.whom = ""  # of the last step
        self.moves = 0  # steps of others than intakes, which turn in a circle where nothing happens
        FOLD.forget()
        self.command("init", 0)

    # ---- drawing a schedule

    @classmethod
    def of(cls, seed: int) -> tuple[World, Iterator[Step]]:
        """A world, and steps without end to try on it."""
        rng = random.Random(seed)
        world = cls(DELIVERIES[seed % 2], rng.choice((1, 2, 2)))
        return world, world._drawn(rng)

    def _drawn(self, rng: random.Random) -> Iterator[Step]:
        for number in range(rng.choice((1, 2, 2, 3))):
            yield from (("start",), ("run", number, 0))
        yield from (("assign", 0, int(rng.random() * 12)), ("events", 0, 2), ("assign", 0, int(rng.random() * 12)))
        calm = rng.random() < 0.2
        weights = [
            weight
            * rng.choice((0, 1, 1, 3) if kind in FAULTS else (0.3, 1, 1, 2))
            * (0.2 if calm and kind in FAULTS else 1)
            for kind, weight in WEIGHTS.items()
        ]
        kinds, left, busy = list(WEIGHTS), 60 + int(rng.random() * 120), 0
        for kind in rng.choices(kinds, weights, k=4 * left):  # of what is drawn, some can't be done
            one = rng.random()
            if one < 0.05:
                busy = int(rng.random() * 16)
            number = busy if kind in AGAIN and one < 0.7 else int(rng.random() * 16)
            yield (kind, number, int(rng.random() * 12))
            if len(self.steps) >= left:
                return

    # ---- carrying it out

    def take(self, step: Step) -> bool:
        """Do one step; False: there is nothing that it could be done to."""
        kind, *numbers = step
        self.steps.append(step)  # before: it may be the last
        if getattr(self, str(kind))(*numbers) is False:
            self.steps.pop()
            return False
        self.moves += kind != "run"
        return True

    def _alive(self, *, awake: bool = False) -> list[Worker]:
        return [w for w in self.workers if not w.dead and not (awake and w.asleep)]

    def _pick(self, number: int, can: Callable[[Worker], object] = bool, *, awake: bool = False) -> Worker | None:
        found = [w for w in self.workers if not w.dead and not (awake and w.asleep) and can(w)]
        worker = found[number % len(found)] if found else None
        self.whom = worker.name if worker else ""
        return worker

    def _member(self, number: int) -> Member | None:
        found = list(self.broker.members.values())
        return found[number % len(found)] if found else None

    def start(self, *_: int) -> bool:
        if len(self._alive()) >= 3 or len(self.workers) >= 6:
            return False
        self.workers.append(Worker(f"w{len(self.workers)}", self.broker, self.delivery))
        return True

    def run(self, number: int, rows: int) -> bool:
        """A worker's intake goes on to its next wait, or as far as it gets before it polls again."""
        worker = self._pick(number, lambda w: w.turned != (self.moves, TURNS) and w.can_run(), awake=True)
        if worker is None or not worker.task.hurry():
            return False
        worker.turned = self.moves, worker.turned[1] + 1 if worker.turned[0] == self.moves else 1
        worker.wires.rows = rows % 4
        if worker.member is not None and worker.member.kicked and worker.custody.partitions:
            self.laws.seen("one that was kicked goes on")
        self._go_on(worker)
        while rows >= FAR and not worker.dead and not worker.task.resting and worker.task.ready():
            self._go_on(worker)
        return True

    def send(self, number: int, fallback: int) -> bool:
        worker = self._pick(number, Worker.can_send, awake=True)
        if worker is None:
            return False
        worker.send(fallback=fallback == 0)
        return True

    def read(self, number: int, many: int) -> bool:
        """A worker reads on in the progress log."""
        worker = self._pick(number, lambda w: w.progress.position < len(self.broker.progress), awake=True)
        if worker is None:
            return False
        for _ in range(1 + many % 4):
            if worker.progress.position < len(self.broker.progress):
                worker.read_progress()
        return True

    def hear(self, number: int, _: int) -> bool:
        """A worker reads on in the control log."""
        worker = self._pick(number, lambda w: w.heard < len(self.broker.control), awake=True)
        if worker is None:
            return False
        worker.read_control()
        return True

    def land(self, number: int, _: int = 0) -> bool:
        heads = self.broker.heads()
        if not heads:
            return False
        self._note_late(heads[number % len(heads)])
        self.broker.land(heads[number % len(heads)])
        return True

    def _note_late(self, sent) -> None:
        if self._gone(sent.incarnation):
            self.laws.seen("a record lands after its sender is gone")

    def _gone(self, incarnation: str) -> bool:
        return not any(incarnation == w.wires.incarnation for w in self._alive())

    def lose(self, number: int, _: int) -> bool:
        """A record of one that is gone never lands, nor do those behind it."""
        heads = [one for one in self.broker.heads() if self._gone(one.incarnation)]
        if not heads:
            return False
        gone = heads[number % len(heads)].incarnation
        self.broker.sent = [one for one in self.broker.sent if one.incarnation != gone]
        self.laws.seen("a record never lands")
        return True

    def emit(self, number: int, drop: int) -> bool:
        """At least once: a batch lands before it is asked for; or those of one that is gone never do."""
        waiting = [one for one, batches in self.broker.produced.items() if batches]
        if not waiting:
            return False
        one = waiting[number % len(waiting)]
        if drop < 4 and self._gone(one):
            self.broker.produced[one].clear()
        else:
            self.broker.emit(one)
        return True

    def events(self, number: int, many: int) -> bool:
        partition = number % len(self.broker.ends)
        if self.broker.ends[partition] >= 10:
            return False
        self.broker.ends[partition] += 1 + many % 3
        return True

    # ---- the group, and what goes wrong

    def assign(self, number: int, apart: int) -> bool:
        free = [p for p, owner in enumerate(self.broker.owners) if owner is None]
        member = self._member(apart)
        if not free or member is None:
            return False
        self.broker.assign(free[number % len(free)], member, apart=apart % 3 == 0)
        return True

    def revoke(self, number: int, _: int) -> bool:
        partition = number % len(self.broker.owners)
        if self.broker.owners[partition] is None or partition in self.broker.revoking:
            return False
        self.broker.revoke(partition)
        return True

    def kick(self, number: int, _: int) -> bool:
        """The group takes a member for dead, best in the midst of a commit."""
        busy = self._busy()
        member = busy[0].member if busy and number < 12 else self._member(number)
        if member is None or member not in self.broker.owners:
            return False
        self.broker.kick(member)
        return True

    def _busy(self) -> list[Worker]:
        return [w for w in self._alive(awake=True) if w.custody._whole.owner is not None]

    def tell(self, number: int, _: int) -> bool:
        """One that was kicked hears of it."""
        worker = self._pick(number)
        member = worker.member if worker else None
        if member is None or not member.kicked or member.told:
            return False
        member.told = True
        member.calls.append(("lost", []))
        return True

    def sleep(self, number: int, kicked: int) -> bool:
        """A worker does nothing for a while, best in the midst of something; mostly the group notices."""
        busy = self._busy()
        worker = busy[0] if busy else self._pick(number, awake=True)
        if worker is None or len(self._alive(awake=True)) < 2:
            return False
        worker.asleep, self.whom = True, worker.name
        if kicked < 8 and worker.member is not None and not worker.member.kicked:
            self.broker.kick(worker.member)
        return True

    def wake(self, number: int, _: int) -> bool:
        worker = self._pick(number, lambda w: w.asleep)
        if worker is None:
            return False
        worker.asleep = False
        if worker.member is not None and worker.member.kicked:
            self.laws.seen("a sleeper wakes up kicked")
        return True

    def crash(self, number: int, _: int) -> bool:
        worker = self._pick(number)
        if worker is None or worker.task is None:
            return False
        if worker.custody._whole.owner is not None:
            self.laws.seen("a crash in the midst of a commit")
        worker.task.end()
        return True

    def stop(self, number: int, _: int) -> bool:
        worker = self._pick(number, awake=True)
        if worker is None or worker.intake.stopping:
            return False
        worker.intake.stop()
        return True

    def moving(self, number: int, many: int) -> bool:
        """The next commits of a member are refused for the while."""
        member = self._member(number)
        if member is not None:
            member.moving = 1 + many
        return member is not None

    def spoil(self, number: int, _: int) -> bool:
        """What a worker writes next fails."""
        worker = self._pick(number)
        if worker is not None:
            worker.wires.spoil = True
        return worker is not None

    def stubborn(self, number: int, _: int) -> bool:
        worker = self._pick(number)
        if worker is not None:
            worker.wires.stubborn = True
        return worker is not None

    def time_out(self, number: int, _: int) -> bool:
        """Whoever waits for somebody waits no longer."""
        worker = self._pick(number, awake=True)
        task = worker.task if worker else None
        if task is None or not task or task.ready() or task.deadline == float("inf"):
            return False
        task.process.now = task.deadline
        task.run_on()
        return True

    # ---- commands

    def command(self, kind: int | str, number: int) -> bool:
        """Somebody writes to the control log, who has read all of it, or errs."""
        offset, desk = len(self.broker.control), self.laws.desk
        code = 0 if isinstance(kind, str) else kind * 12 + number
        kind = kind if isinstance(kind, str) else KINDS[code % len(KINDS)]
        if offset >= 12:
            return False
        body: dict[str, object] = {"kind": kind, "command_id": f"c{offset}", "topology": TOPOLOGY}
        body["expected_generation"] = desk.generation
        version = VERSIONS[code // 5 % 3]
        if kind == "init":
            body |= {"model": "m", "stable": "v1", "salt": "s"}
        elif (desk.rollout is None and kind in ROLLOUT) or kind == "prepare":
            if version == desk.stable and code % 7:
                version = VERSIONS[(code // 5 + 1) % 3]
            body |= {"kind": "prepare", "rollout_id": f"r{offset}", "candidate": version, "manifest": version[1] * 64}
        elif kind in ROLLOUT:
            body["rollout_id"] = desk.rollout["id"]
            body |= {"weight_bp": (0, 3000, 6000, 10_000)[code // 3 % 4]} if kind == "shift" else {}
        else:
            body["version"] = version
        if code % 31 == 1:
            body["expected_generation"] = desk.generation + 1
        if code % 31 == 2:
            body["command_id"] = "c0"
        value = b"no command" if code % 31 == 3 else json.dumps(body).encode()
        self.broker.control.append(value)
        before = len(desk.epochs)
        if self.laws.commanded(offset, value) and kind == "kill" and len(desk.epochs) > before:
            self.laws.seen("a kill makes an epoch")
        return True

    # ---- the end

    def settle(self) -> None:
        """No more faults: everything has to come to its end."""
        for worker in self._alive():
            worker.asleep = worker.wires.spoil = worker.wires.stubborn = False
        for member in self.broker.members.values():
            member.moving = 0
        for _ in range(ROUNDS):
            moved = self._round()
            if not self.laws.settled(self.broker.ends) and not self.broker.sent:
                self.laws.conclude(self.broker.ends)
                return
            if not moved and not self._time_passes():
                break
        raise Broken(13, self.laws.settled(self.broker.ends) or "records are still on their way")

    def _round(self) -> bool:
        """Everything that can go on does; False: there was nothing."""
        self._supervise()
        moved = False
        while self.broker.sent:
            moved = self.land(0)
        for number, worker in enumerate(self._alive()):
            self.tell(number, 0)
            moved = self._catch_up(worker) or moved
        for worker in self._alive():
            if worker.task.hurry():
                worker.wires.rows, moved = 3, True
                self._go_on(worker, 0.1)
        return moved

    def _supervise(self) -> None:
        """Somebody runs, the group knows who lives, each partition is somebody's, what was on its way has landed."""
        if all(w.intake.stopping for w in self._alive()):
            self.workers.append(Worker(f"w{len(self.workers)}", self.broker, self.delivery))
        living = {w.member.id for w in self._alive() if w.member is not None}
        for member in [one for one in self.broker.members.values() if one.id not in living]:
            self.broker.kick(member)
        ready = list(self.broker.members.values())
        for partition, owner in enumerate(self.broker.owners):
            if owner is None and ready:
                self.broker.assign(partition, ready[partition % len(ready)], apart=False)
        for one in [one for one, batches in self.broker.produced.items() if batches and self._gone(one)]:
            self.broker.emit(one)

    def _catch_up(self, worker: Worker) -> bool:
        while worker.heard < len(self.broker.control):
            worker.read_control()
        while worker.progress.position < len(self.broker.progress):
            worker.read_progress()
        sent = worker.can_send()
        while worker.can_send():
            worker.send(fallback=False)
        return sent

    def _go_on(self, worker: Worker, seconds: float = 0.01) -> None:
        worker.now += seconds
        worker.task.run_on()
        if worker.task.dead:
            worker.dead = True
            self.laws.seen("a worker ends with an error" if worker.failed else "a worker ends in good order")

    def _time_passes(self) -> bool:
        found = [w for w in self._alive() if w.task.deadline < float("inf")]
        for worker in found:
            worker.now = worker.task.deadline
        return bool(found)

    def close(self) -> None:
        for worker in self.workers:
            if worker.task:
                worker.task.end()
