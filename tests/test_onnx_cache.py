"""Promise: an optimised copy changes how fast a model loads, and nothing else; a bad copy is as good as none."""

from __future__ import annotations

import errno
import logging
import os
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from onnx_support import MAKERS, ROWS
from support import direct

from streamserve.adapters import onnx as adapter
from streamserve.adapters import onnx_cache
from streamserve.adapters.onnx import OnnxSession
from streamserve.adapters.onnx_cache import checksum, load_key
from streamserve.models.session import SessionSettings


@pytest.fixture(scope="module", params=MAKERS)
def model(request, tmp_path_factory):
    return MAKERS[request.param](tmp_path_factory.mktemp("onnx") / "model.onnx")


@pytest.fixture
def kept(tmp_path):
    return tmp_path / "home" / "onnx" / "optimised"


@pytest.fixture
def loads(monkeypatch):
    """What the runtime was asked to load, and at which level."""
    found, create = [], adapter._create

    def noted(path, settings, level, draft=None):
        found.append((path, level.name))
        return create(path, settings, level, draft)

    monkeypatch.setattr(adapter, "_create", noted)
    return found


def scores(model, kept):
    session = OnnxSession(model, SessionSettings(optimised=kept))
    return [session.run({"features": ROWS[:n]}, ["probabilities"])[0].tobytes() for n in (1, 7, 500, 2000)]


def plain(model):
    return [direct(model, {"features": ROWS[:n]}, ["probabilities"])[0].tobytes() for n in (1, 7, 500, 2000)]


def copies(kept):
    return sorted(kept.iterdir())


def test_the_bits_are_the_same_without_a_copy_when_one_is_made_and_from_it(model, kept, loads):
    expected = plain(model)
    assert scores(model, None) == expected
    assert scores(model, kept) == expected
    (copy,) = copies(kept)
    assert scores(model, kept) == expected
    levels = "ORT_ENABLE_ALL", "ORT_DISABLE_ALL"
    assert loads == [(model, levels[0]), (model, levels[0]), (copy, levels[1])]


def test_the_signature_is_the_same_from_a_copy(model, kept):
    sessions = [OnnxSession(model, SessionSettings(optimised=kept)) for _ in range(2)]
    assert sessions[0].inputs == sessions[1].inputs == OnnxSession(model).inputs
    assert sessions[0].outputs == sessions[1].outputs == OnnxSession(model).outputs


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def cut(path):
    path.write_bytes(path.read_bytes()[:100])


def empty(path):
    path.write_bytes(b"")


def nonsense_with_its_checksum(path):
    """What a checksum can't find: bytes that are whole, and no model."""
    path.write_bytes(b"no model")
    path.rename(path.with_name(f"{path.stem.partition('-')[0]}-{checksum(path)}.onnx"))


@pytest.mark.parametrize("damage", [flip, cut, empty, nonsense_with_its_checksum])
def test_a_damaged_copy_is_told_and_made_anew(model, kept, loads, caplog, damage):
    scores(model, kept)
    (copy,) = copies(kept)
    whole = copy.read_bytes()
    damage(copy)
    loads.clear()
    with caplog.at_level(logging.WARNING, "streamserve.onnx"):
        assert scores(model, kept) == plain(model)
    assert "is damaged" in caplog.text
    assert loads[-1][0] == model
    assert [path.read_bytes() for path in copies(kept)] == [whole]
    loads.clear()
    assert scores(model, kept) == plain(model)
    assert loads == [(copy, "ORT_DISABLE_ALL")]


def test_an_unreadable_copy_is_as_good_as_none(model, kept, caplog, monkeypatch):
    scores(model, kept)

    def refuse(_):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(onnx_cache, "checksum", refuse)
    assert scores(model, kept) == plain(model)
    assert "Permission denied" in caplog.text


def test_a_folder_that_can_not_be_made_is_no_reason_not_to_serve(model, tmp_path, caplog):
    (tmp_path / "file").write_bytes(b"")
    assert scores(model, tmp_path / "file" / "optimised") == plain(model)
    assert "no optimised models are kept" in caplog.text


def test_a_copy_that_was_written_in_part_is_not_kept(model, kept, monkeypatch):
    create = adapter._create

    def full_disk(path, settings, level, draft=None):
        if draft is not None:
            draft.write_bytes(b"half")
            raise OSError(errno.ENOSPC, "No space left on device")
        return create(path, settings, level)

    monkeypatch.setattr(adapter, "_create", full_disk)
    assert scores(model, kept) == plain(model)
    assert copies(kept) == []


def test_a_copy_appears_whole_or_not_at_all(model, kept, monkeypatch):
    seen, replace = [], os.replace

    def looked(source, target):
        seen.append(sorted(path.name for path in kept.glob("*.onnx")))
        replace(source, target)

    monkeypatch.setattr(onnx_cache.os, "replace", looked)
    scores(model, kept)
    assert seen == [[]]
    assert len(copies(kept)) == 1


def test_several_that_start_at_once_share_a_folder(model, kept):
    together = threading.Barrier(4)

    def start(_):
        together.wait(10)
        return scores(model, kept)

    with ThreadPoolExecutor(4) as pool:
        assert all(found == plain(model) for found in pool.map(start, range(4)))
    assert {path.stem.partition("-")[0] for path in copies(kept)} == {
        load_key(model, "cpu", adapter.RUNTIME, adapter.LEVEL.name)
    }


def test_the_key_changes_with_all_that_decides_how_a_model_is_optimised(tmp_path, monkeypatch):
    path = tmp_path / "m"
    path.write_bytes(b"1")
    monkeypatch.setattr(onnx_cache, "instruction_set", lambda: "x86_64 avx2")
    keys = [
        load_key(path, *rest) for rest in (("cpu", "1", "a"), ("cuda", "1", "a"), ("cpu", "2", "a"), ("cpu", "1", "b"))
    ]
    monkeypatch.setattr(onnx_cache, "instruction_set", lambda: "x86_64 avx2 avx512f")
    keys.append(load_key(path, "cpu", "1", "a"))
    path.write_bytes(b"2")
    keys.append(load_key(path, "cpu", "1", "a"))
    assert len(set(keys)) == 6


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("processor\t: 0\nflags\t\t: sse avx2 avx\n\nflags\t: other\n", " avx avx2 sse"),
        ("Features\t: fp asimd\n", " asimd fp"),
        ("nothing\n", ""),
        (None, ""),
    ],
)
def test_the_instruction_set_is_read_from_the_first_processor(tmp_path, monkeypatch, text, expected):
    path = tmp_path / "cpuinfo"
    if text is not None:
        path.write_text(text)
    monkeypatch.setattr(onnx_cache, "CPU_INFO", path)
    monkeypatch.setattr(onnx_cache.platform, "machine", lambda: "m")
    assert onnx_cache.instruction_set.__wrapped__() == f"m{expected}"


def test_no_copies_are_kept_for_other_providers(model, kept, monkeypatch):
    monkeypatch.setattr(adapter, "_create", lambda path, settings, level, draft=None: (path, draft))
    assert adapter._open(model, SessionSettings("tensorrt", optimised=kept)) == (model, None)
    assert not kept.exists()
