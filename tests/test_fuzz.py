"""Promise: the fuzzer finds what is planted and says what it is, and finds nothing where nothing is; what it has once
found stays mended.
"""

from __future__ import annotations

import io
import json
import sys
from dataclasses import replace

import fastavro
import pytest
from click.testing import CliRunner
from conftest import ROOT

sys.path.insert(0, str(ROOT))  # the fuzzer is a part of the checkout, not of the package

from fuzz import avro_bytes, batches, lane, planted, report, streams, ways
from fuzz.run import Options, main, run

FUZZED = sorted((ROOT / "tests" / "fuzzed").glob("*.json"))
# Memory is that of a process: one in which other tests have been has room for a leak
HERE = [name for name in (*planted.FAULTS, *planted.SCORERS) if name not in ("hang", "crash", "memory")]


@pytest.fixture(scope="module")
def options(tmp_path_factory) -> Options:
    """In this process, with models that are made once."""
    folder = tmp_path_factory.mktemp("fuzz")
    streams.prepare(folder)
    return Options(inputs=1500, seed=3, lanes=0, models=folder, findings=folder / "findings", growth=100)


def said(options: Options) -> tuple[int, str]:
    lines: list[str] = []
    return run(options, lines.append), "\n".join(lines)


# ---- nothing planted


def test_a_clean_run_ends_well_and_tells_what_inputs_reached(options):
    code, text = said(options)
    assert code == 0, text
    assert "compiled way: yes" in text
    assert len([line for line in text.splitlines() if line.startswith(("flights", "orders", "digits"))]) == 6
    assert "reached a model" in text


def test_a_clean_run_in_processes_of_its_own_ends_well(options):
    code, text = said(replace(options, lanes=2))
    assert code == 0, text


def test_a_run_that_hardly_reaches_a_model_is_no_success(options, monkeypatch):
    monkeypatch.setattr("fuzz.run.LEAST_SCORED", 0.99)
    code, text = said(options)
    assert code == 1
    assert "too few inputs reached a model" in text


def test_a_batch_follows_from_seed_and_number(options):
    for name in ("flights-avro", "orders-json"):
        one, other = (streams.open_stream(name, options.models) for _ in range(2))
        assert batches.make(one, 7, 40) == batches.make(other, 7, 40)
        assert batches.make(one, 7, 40) != batches.make(one, 8, 40)


def test_what_is_not_spoiled_is_plain_avro(options):
    stream = streams.open_stream("orders-avro", options.models)
    schema = fastavro.parse_schema(json.loads(json.dumps(_bare(streams.kinds()["orders"].writers[12]))))
    for sample in [one for one in stream.pool if one.schema_id == 12][:50]:
        out = io.BytesIO()
        fastavro.schemaless_writer(out, schema, sample.event)
        assert avro_bytes.encode(sample.writer, sample.event) == out.getvalue()


def _bare(text: str) -> object:
    return json.loads(text, object_hook=lambda one: {k: v for k, v in one.items() if k != "logicalType"})


# ---- something planted


@pytest.mark.parametrize("fault", HERE)
def test_a_planted_fault_is_found_and_can_be_seen_again(options, fault):
    code, text = said(replace(options, planted=fault))
    assert code == 1
    assert text.count("FOUND") == 1
    assert f"FOUND: {fault}" in text
    assert f"seed {options.seed}, topology" in text
    (file,) = [line.rpartition(": ")[2] for line in text.splitlines() if line.startswith("  batch (")]
    small = batches.load(options.findings / file)
    assert 1 <= len(small.inputs) <= planted.ENOUGH
    stream = streams.open_stream(small.stream, options.models)
    assert lane.failure(stream, small, whole=True) is None, "without the fault it is clean"
    planted.plant(fault, stream)
    assert lane.failure(stream, small, whole=True)[0] == fault


def test_a_leak_is_a_finding(options):
    code, text = said(replace(options, planted="memory", lanes=1, growth=40))
    assert code == 1
    assert text.count("FOUND: memory") == 1
    assert f"seed {options.seed}, topology" in text


@pytest.mark.parametrize(("fault", "limit", "word"), [("hang", 4.0, "time.sleep"), ("crash", 60.0, "ended with -6")])
def test_a_process_that_hangs_or_dies_is_a_finding(options, fault, limit, word):
    code, text = said(replace(options, planted=fault, lanes=1, limit=limit, tries=0))
    assert code == 1
    assert f"FOUND: {fault}" in text
    assert word in text or "planted.py" in text
    assert len(list(options.findings.glob("*.json"))) >= 1


# ---- what was found once


@pytest.mark.parametrize("file", FUZZED, ids=lambda file: file.stem)
@pytest.mark.parametrize("turn", [0, 1], ids=ways.WAYS)
def test_what_was_found_stays_mended(options, file, turn):
    found = batches.load(file)
    stream = streams.open_stream(found.stream, options.models)
    assert lane.failure(stream, replace(found, number=turn), whole=True) is None


def test_the_command_says_what_it_can():
    done = CliRunner().invoke(main, ["--help"])
    assert done.exit_code == 0
    assert "--replay" in done.output
    assert report.LEAST_SCORED == 0.2
