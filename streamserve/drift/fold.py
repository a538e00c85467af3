"""The fold of `T.panes`: chunks in, windows out. Pure: offsets and record timestamps are all that it knows of time.

What it holds is the fold of the log from `panes_from` on. What came before is closed and forgotten, so a new fold that
begins there goes on as this one would have. (One exception: the word of a sleeper, whose later owner spoke before
`panes_from`, may make it doubt a window that is complete.) When a window passes, closes, or leaves out what is late
depends on the log alone, never on how many records were read at once; only revisions wait for `due`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping

from streamserve.drift.chains import Chain, Entry, Sum, Totals, entry_of, events, nothing, shed_of
from streamserve.drift.chunks import Chunk, Series, refusal
from streamserve.drift.watermark import Quorum, Watermark, heard
from streamserve.drift.windows import Emitted, Told, Window, WindowRule, digest
from streamserve.records import TopicPartition


class Fold:
    """The fold. Its caller gives it every record of `T.panes` in order, from `panes_from` on, and asks what is due.

    sources: how many partitions each source topic has. earlier: what was said already; None: nothing was. Where the
    first record comes after its `panes_from`, what is between is gone: windows that it may belong to are incomplete.
    """

    def __init__(self, rule: WindowRule, sources: Mapping[str, int], earlier: Told | None = None) -> None:
        self._rule = rule
        self._block = rule.block_chunks * max(sum(sources.values()), 1)
        quorum = rule.quorum or Quorum(rule.lateness_ms)
        self._floor = earlier.watermark_ms if earlier else None  # every window that ends by then was dealt with
        self._marks = Watermark(rule.idle_ms, quorum, sources, self._floor)
        self._chains: dict[TopicPartition, Chain] = {}
        self._totals = Totals()
        self._said: dict[int, dict[Series, Emitted]] = {}
        for (start, series), emitted in earlier.windows.items() if earlier else ():
            self._said.setdefault(start, {})[series] = emitted
        self._mended: set[int] = set()
        self._dropped: set[int] = set()  # panes of which not all is held
        self._late: Counter[Series] = Counter()
        self._wild = self._wild_said = 0
        self._begun = 0  # past the log's beginning, the first chunks are not the first
        self._next: int | None = None
        self._sealed: set[int] = set()  # windows that were said of what is gone: they stay as they are
        self._known_from = earlier.panes_from if earlier else 0  # what lies between here and there is gone
        self._again = earlier.panes_to if earlier else 0  # up to here all was read before
        self._queue: list[Window] = []

    @property
    def watermark(self) -> int | None:
        """Milliseconds; None: it has not begun."""
        return self._marks.at

    @property
    def panes_from(self) -> int:
        """Where a new fold must begin to read that is told all that was said."""
        return self._from() * self._block

    @property
    def cells(self) -> int:
        """How many sums are held, for metrics and for tests of the bound."""
        return sum(len(entry.cells) + 1 for chain in self._chains.values() for entry in chain.entries)

    def expect(self, sources: Mapping[str, int]) -> None:
        """Topics have so many partitions now; new ones hold the watermark until they speak."""
        self._marks.expect(sources)

    def add(self, chunk: Chunk, offset: int, at_ms: int) -> str | None:
        """Take one record: its offset in `T.panes`, and its timestamp. Returns why it does not count, for the log."""
        if self._next is None:
            self._begun = offset
            self._sealed = set(self._said) if self._is_cut else set()
        self._next = offset + 1
        self._marks.tick(at_ms)
        why = refusal(chunk)
        if not why and not self._marks.is_known(chunk.topic):
            why = f"{chunk.topic} is no source"
        why = why or self._totals.misfit(chunk) or self._take(chunk, offset, at_ms)
        self._go_on()
        return why or None

    def due(self) -> tuple[Window, ...]:
        """All that passed since it was asked last, and the windows that passed earlier and are not what was said.

        While a partition is counted again from an earlier commit on, its counts are low for a while: that is not said.
        """
        if not self._is_again() and not any(chain.is_behind for chain in self._chains.values()):
            self._say_mended()
        found, self._queue = tuple(self._queue), []
        return found

    # ---- what comes in

    def _take(self, chunk: Chunk, offset: int, at_ms: int) -> str:
        source = chunk.topic, chunk.partition
        belief = self._marks.belief(source)
        chain = self._chains.get(source)
        if chain is None:
            chain = self._chains[source] = Chain()
            if self._is_cut:
                chain.entries.append(Entry(0, 0, -1, offset // self._block))
        entry = entry_of(chunk, offset // self._block, self._rule.pane_ms)
        is_new = chunk.start >= chain.frontier
        had_holes = bool(chain.holes)
        replaced = chain.place(entry)
        if replaced is None:
            return f"[{chunk.start}, {chunk.stop}) of owner epoch {chunk.owner_epoch} came after a later owner's"
        for one in replaced:
            self._totals.take(one)
            self._mend(one)
        if replaced:
            belief.forget([(one.start, one.stop) for one in replaced], chain.reach_before(entry))
        belief.hear(heard(chunk, entry.block, self._rule.pane_ms))
        self._marks.said(source, at_ms, idle=chunk.idle)
        entry.reach = belief.reach if chain.entries[-1] is entry else chain.reach_before(entry)
        if chunk.shed:
            entry.shed = shed_of(chunk, entry, belief.limit)
        self._screen(entry, is_new=is_new)
        self._totals.put(entry)
        self._mend(entry)
        chain.learn(belief, self._rule.lateness_ms)
        if had_holes or chain.holes:
            self._mended.update(start for start in self._said if self._is_open(start))
        chain.settle(entry)
        return ""

    def _screen(self, entry: Entry, *, is_new: bool) -> None:
        """Leave out what is late, and what is too far ahead to be held. What is counted again is not late."""
        for key in list(entry.cells):
            pane, series, _ = key
            if self._floor is not None and self._rule.closes(pane) <= self._floor:
                rows = entry.cells.pop(key).rows
                if is_new and (self._next or 0) > self._again:
                    self._late[series] += rows
        held = self._totals.panes.keys() | {key[0] for key in entry.cells}
        for pane in sorted(held)[self._rule.max_panes :]:
            gone = self._totals.drop(pane)
            for one in (entry, *self._entries()):
                mine = ((key[1], cell) for key, cell in one.cells.items() if key[0] == pane)
                gone += events(mine) if one is entry else 0
                one.cells = {key: cell for key, cell in one.cells.items() if key[0] != pane}
            if self._marks.foremost is not None and pane <= self._marks.foremost:  # else its partition counts it
                self._wild += gone
                self._dropped.add(pane)

    def _mend(self, entry: Entry) -> None:
        """Windows that were said and hold what this entry has are to be looked at again."""
        if self._floor is not None:
            for pane in {key[0] for key in entry.cells if key[0] < self._floor}:
                self._mended.update(filter(self._is_open, self._rule.starts(pane)))

    def _is_open(self, start: int) -> bool:
        """It has passed and may still be mended."""
        end = start + self._rule.size_ms
        return (
            start not in self._sealed and self._floor is not None and end <= self._floor < end + self._rule.lateness_ms
        )

    @property
    def _is_cut(self) -> bool:
        """What came before the first record is gone."""
        return self._begun > self._known_from

    def _is_again(self) -> bool:
        return self._next is None or self._next < self._again

    def _entries(self) -> Iterator[Entry]:
        return (entry for chain in self._chains.values() for entry in chain.entries)

    # ---- what passes

    def _go_on(self) -> None:
        """Say what passes now, and forget what closes. All bounds are at multiples of the pane."""
        if self._is_again():
            return
        if self._again:
            self._again = 0
            self._wild_said = self._all_wild()
            self._mended.update(start for start in {*self._said, *self._held()} if self._is_open(start))
        now, pane = self._marks.step(), self._rule.pane_ms
        if now is None or (self._floor is not None and now // pane == self._floor // pane):
            return
        self._say_mended(now)
        floor = self._floor
        for start in sorted({*self._held(), *(start + self._rule.slide_ms for start in self._said)}):
            end = start + self._rule.size_ms
            if end <= now and (floor is None or end > floor):
                self._say(start, passed=end)
        self._floor = now
        self._forget(now)

    def _held(self) -> set[int]:
        """Starts of the windows that hold, or follow, a pane with counts."""
        found = {start for pane in self._totals.panes for start in self._rule.starts(pane)}
        return found | {start + self._rule.slide_ms for start in found}

    def _forget(self, now: int) -> None:
        first, foremost = self._from(), self._marks.foremost
        closed = {pane for pane in self._totals.panes if self._rule.closes(pane) <= now}
        for chain in self._chains.values():
            for entry in chain.entries:
                is_old = foremost is not None and entry.block < first
                far = {key: cell for key, cell in entry.cells.items() if is_old and key[0] > (foremost or 0)}
                self._totals.take(Entry(0, 0, 0, 0, cells=far))
                entry.cells = {k: cell for k, cell in entry.cells.items() if k[0] not in closed and k not in far}
                entry.shed = {span: rows for span, rows in entry.shed.items() if self._rule.closes(span[1]) > now}
            chain.trim(first)
        for pane in closed:
            self._totals.drop(pane)
        self._dropped = {pane for pane in self._dropped if self._rule.closes(pane) > now}
        self._totals.shed = {span: n for span, n in self._totals.shed.items() if self._rule.closes(span[1]) > now}
        kept = now - self._rule.size_ms - self._rule.lateness_ms - self._rule.slide_ms
        self._said = {start: said for start, said in self._said.items() if start > kept}

    def _from(self) -> int:
        """The first block of `T.panes` that is still needed.

        Needed are: open panes, but for those that are further ahead than anything that is believed; each partition's
        last word; whatever its belief rests on; and where a hole begins that an open window may have a part in.
        """
        floor, foremost = self._floor, self._marks.foremost
        needed = [
            block
            for pane, block in self._totals.blocks.items()
            if (foremost is None or pane <= foremost) and (floor is None or self._rule.closes(pane) > floor)
        ]
        needed += [chain.entries[-1].block for chain in self._chains.values() if chain.entries]
        needed += [one.block for one in self._marks.beliefs.values() if one.block is not None]
        needed += [left.block for left, right in self._holes() if self._is_open_at(right.until)]
        return min(needed, default=(self._next or 0) // self._block)

    def _holes(self) -> Iterator[tuple[Entry, Entry]]:
        return (hole for chain in self._chains.values() for hole in chain.holes)

    def _is_open_at(self, time: int | None) -> bool:
        return time is None or self._floor is None or self._rule.closes(time) > self._floor

    # ---- what goes out

    def _say_mended(self, closing: int | None = None) -> None:
        """Say again what changed, and what follows it: it may be empty now. closing: of these, what closes then."""
        length, marked = self._rule.size_ms + self._rule.lateness_ms, self._mended
        marked |= {start + self._rule.slide_ms for start in marked}
        chosen = {start for start in marked if closing is None or start + length <= closing}
        for start in sorted(filter(self._is_open, chosen)):
            self._say(start)
        self._mended = marked - chosen

    def _say(self, start: int, *, passed: int | None = None) -> None:
        """Queue a window's series that are not what was said last. passed: it is dealt with for the first time."""
        end = start + self._rule.size_ms
        found = self._totals.between(start, end, self._rule.pane_ms)
        said = self._said.get(start, {})
        before = {one: was for one, was in self._said.get(start - self._rule.slide_ms, {}).items() if was.rows}
        complete, changed = self._is_complete(start), []
        for series in sorted({*found, *said, *before}, key=lambda one: one.order):
            bins = next((of[series].bins for of in (said, before) if series in of), 0)
            total, samples = found.get(series) or (nothing(bins), set())
            was = said.get(series)
            mark = digest(total, complete=complete)
            if was is None or was.digest != mark:
                now = Emitted(was.revision + 1 if was else 0, mark, total.rows, len(total.counts))
                changed.append((series, total, samples, now))
        wild = self._all_wild()
        for number, (series, total, samples, now) in enumerate(changed, 1):
            if passed is not None and number == len(changed):
                self._floor = passed  # whoever finds this record finds all of its window
            self._queue.append(self._window(start, series, total, samples, now))
            self._said.setdefault(start, {})[series] = now
        if changed:
            self._wild_said = wild

    def _window(self, start: int, series: Series, total: Sum, samples: set[int], now: Emitted) -> Window:
        end = start + self._rule.size_ms
        return Window(
            start_ms=start,
            end_ms=end,
            series=series,
            revision=now.revision,
            rows=total.rows,
            counted=total.counted,
            counts=total.counts,
            digest=now.digest,
            late=self._late.pop(series, 0),
            wild=self._all_wild() - self._wild_said,
            shed=sum(n for (first, last), n in self._totals.shed.items() if first < end and last >= start),
            sample_bp=tuple(sorted(samples)),
            complete=self._is_complete(start),
            watermark_ms=start if self._floor is None else self._floor,
            panes_from=self.panes_from,
            panes_to=self._next or 0,
        )

    def _is_complete(self, start: int) -> bool:
        """No hole may have rows of this window: the time before a hole, less the lateness, to that behind it."""
        end, lateness = start + self._rule.size_ms, self._rule.lateness_ms
        if any(start <= pane < end for pane in self._dropped):
            return False
        return not any(
            (left.reach is None or left.reach - lateness < end) and (right.until is None or right.until >= start)
            for left, right in self._holes()
        )

    def _all_wild(self) -> int:
        return self._wild + sum(belief.wild for belief in self._marks.beliefs.values())
