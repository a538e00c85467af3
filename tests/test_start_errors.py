"""A worker starts where it is told to. What is wrong or missing is one message: what, where, how to mend it.

What the program says of itself ("unexpected", a traceback) is a failure here even where the exit code is right.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import hashlib
import io
import json
import shutil
import socket
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import dataclass, replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from confluent_kafka import Producer, TopicPartition
from confluent_kafka.admin import (
    AdminClient,
    AlterConfigOpType,
    ConfigEntry,
    ConfigResource,
    NewPartitions,
    ResourceType,
)
from conftest import ROOT, Project, Worker, wait_until
from onnx import TensorProto, helper
from support import (
    TIMEOUT_S,
    Broker,
    Position,
    Record,
    linear_model,
    prediction,
    save,
    serve_until,
    source_of,
)

from streamserve.adapters.positions import starting_positions
from streamserve.cli import main
from streamserve.dev import Endpoints, services
from streamserve.dev.probe import free_ports
from streamserve.settings import Settings

pytestmark = pytest.mark.services
HERE = ROOT / "tests" / "topologies"
SECONDS = 10.0
CONFIG, PARTNER, MODEL, CONTROL, TOPIC = 2, 3, 4, 5, 6  # exit codes, as streamserve.errors draws the tree
QUICKLY = {"STREAMSERVE_START_TIMEOUT": "1"}


def refused(project: Project, *command: object, code: int, says: tuple[str, ...], **environ: str) -> str:
    """One message that holds all these words, the exit code, no traceback, in time.

    A worker is a process of its own; the other commands are called as the console script calls them.
    """
    began = time.monotonic()
    run = in_process if command[0] == "worker" else in_this_process
    found, told = run(project, [str(word) for word in command], environ)
    took = time.monotonic() - began
    assert found == code, told
    assert not [word for word in ("Traceback", "unexpected", "fault of streamserve") if word in told]
    assert told.count("error: ") == 1, told
    for word in says:
        assert word in told, f"{word!r} is not in:\n{told}"
    assert "  mend:" in told, told
    assert took < SECONDS + 5, f"{took:.1f} s"  # five for a loaded machine to start Python in
    return told


def in_process(project: Project, command: list[str], environ: dict[str, str]) -> tuple[int, str]:
    done = project.run(*command, environ=environ, seconds=30)
    return done.returncode, done.stdout + done.stderr


def in_this_process(project: Project, command: list[str], environ: dict[str, str]) -> tuple[int, str]:
    told = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stderr(told), contextlib.redirect_stdout(told):
        patch.chdir(project.folder)
        patch.setattr("sys.argv", ["streamserve", *command])
        for name, value in {**project.environ, **environ}.items():
            patch.setenv(name, value)
        with pytest.raises(SystemExit) as left:
            main()
    return left.value.code, told.getvalue()


def carried_out(project: Project, *command: object) -> None:
    code, told = in_this_process(project, [str(word) for word in command], {})
    assert code == 0, told


@pytest.fixture(scope="module")
def project(endpoints, tmp_path_factory) -> Project:
    return prepared(Project(tmp_path_factory.mktemp("errors"), endpoints))


def prepared(project: Project) -> Project:
    (project.folder / "schemas").mkdir()
    shutil.copy(HERE / "reading.avsc", project.folder / "schemas")
    linear_model(project.folder / "model.onnx", [1, 1, 1])
    return project


def topology(project: Project, name: str, *changes: tuple[str, str]) -> Path:
    """The topology of the tests under a name of its own, with changes to its text."""
    text = (HERE / "readings.py").read_text()
    for old, new in (('name="readings"', f'name="{name}"'), ('topic="readings"', f'topic="{name}.events"'), *changes):
        assert old in text, old
        text = text.replace(old, new)
    path = project.folder / f"{name}.py"
    path.write_text(text)
    return path


@pytest.fixture(scope="module")
def good(project) -> Path:
    """A topology that has all that it needs."""
    file = topology(project, "start-good")
    golden(project, project.folder / "golden.jsonl")
    carried_out(project, "topics", "apply", file)
    carried_out(
        project, "models", "add", file, "v1", project.folder / "model.onnx", "--golden", project.folder / "golden.jsonl"
    )
    carried_out(project, "topology", "init", file, "--version", "v1")
    return file


def golden(project: Project, path: Path) -> None:
    path.write_text("\n".join(json.dumps({"id": str(at), "sensor": "a", "value": at / 4}) for at in range(8)))


# ---- the topology file


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ((('"value", default=0', '"valeu", default=0'),), ("'valeu'", "Did you mean 'value'?", "reading.avsc")),
        ((('field("value", default=0)', 'field("sensor", name="value")'),), ("'value'", "found null | string",
         "expected a number or a boolean", "category()")),
        ((("square", "value"),), ("two features are named 'value'",)),
        ((('of="value"', 'of="speed"'),), ("'speed'",)),
        ((('threshold("alarm"', 'threshold("alarms"'),), ("'alarms'", "['alarm']")),
        ((('fields=("mean",), default=0.0', 'fields=("mean",), default=(1.0, 2.0)'),), ("2 defaults for 1 fields",)),
        ((('key="sensor", id', 'kye="sensor", id'),), ("kye", "Extra inputs are not permitted")),
        ((('schema="reading.avsc"', 'schema="readnig.avsc"'),), ("readnig.avsc", "STREAMSERVE_SCHEMAS")),
        ((("partitions=4", "partitions=0"),), ("partitions", "greater than or equal to 1")),
        ((("readings = Topology(", "readings = Topology(("),), ("SyntaxError", ".py:")),
        ((("site = View", "site = Veiw"),), ("NameError", "'Veiw'", ".py:5")),
        ((("site = View", "import no_such_module\nsite = View"),), ("no_such_module", ".py:5")),
        ((("readings = Topology(", "second = readings = Topology("),), ("2 topologies", "exactly one")),
        ((("readings = Topology(", "readings = print("),), ("TypeError",)),
        ((("readings = Topology(", "{}['readings'] = Topology("),), ("0 topologies", "exactly one")),
        ((("site = View", "raise SystemExit(0)\nsite = View"),), ("SystemExit", ".py:5")),
        ((('format="json"', 'format="avro"'),), ("no id is pinned", "Reading", "index.json")),
        ((('format="json"', 'format="xml"'),), ("format", "'avro' or 'json'")),
    ],
    ids=lambda value: value[0][1][:30].splitlines()[0] if isinstance(value[0], tuple) else "",
)  # fmt: skip
def test_a_mistake_in_a_topology_file_is_shown_by_check(project, changes, says):
    refused(project, "check", topology(project, "start-mistake", *changes), code=CONFIG, says=says)


def test_a_file_that_is_not_there_or_no_text_is_named(project):
    refused(project, "check", "nowhere.py", code=CONFIG, says=("no such topology file", "nowhere.py"))
    (project.folder / "binary.py").write_bytes(b"\xff\xfe\x00")
    refused(project, "check", "binary.py", code=CONFIG, says=("binary.py",))


def test_a_broken_index_of_schema_ids_is_named(project):
    file = topology(project, "start-index", ('format="json"', 'format="avro"'))
    for content in ("{", '{"schemas": {"one": {}}}', '{"schemas": {"1": {"subject": "s", "file": "gone.avsc"}}}'):
        (project.folder / "schemas" / "index.json").write_text(content)
        refused(project, "check", file, code=CONFIG, says=("index", "index.json"))
    (project.folder / "schemas" / "index.json").unlink()


# ---- a model that does not fit


def stringy(path: Path) -> Path:
    """A model that wants text."""
    given = helper.make_tensor_value_info("features", TensorProto.STRING, [None, 3])
    said = helper.make_tensor_value_info("probabilities", TensorProto.STRING, [None, 3])
    save(helper.make_graph([helper.make_node("Identity", ["features"], ["probabilities"])], "g", [given], [said]), path)
    return path


def add(project: Project, *words: object, code: int = MODEL, says: tuple[str, ...], file: Path | None = None) -> str:
    file = file or topology(project, "start-add")
    told = refused(project, "models", "add", file, *words, code=code, says=says)
    assert "start" not in [path.name for path in project.folder.glob("registry/*")]
    return told


def test_a_model_of_another_width_or_kind_is_refused(project):
    folder = project.folder
    narrow, textual = linear_model(folder / "narrow.onnx", [1, 1]), stringy(folder / "text.onnx")
    add(project, "bad", narrow, says=("found 3 features of 3 columns", "expected 2 columns", "float32[N, 2]"))
    add(project, "bad", textual, says=("output 'alarm'", "text"))
    file = topology(project, "start-text", ('output("probabilities", column=1)', 'output("other", column=1)'))
    add(project, "bad", folder / "model.onnx", says=("output 'alarm' reads 'other'", "probabilities"), file=file)
    file = topology(project, "start-column", ("column=1", "column=2"))
    add(project, "bad", folder / "model.onnx", says=("column 2", "which has 2", "at most 1"), file=file)


def test_a_number_for_a_text_input_is_refused(project):
    path = project.folder / "texts.onnx"
    names = ("value", "square", "site.mean")
    sides = [helper.make_tensor_value_info(name, TensorProto.STRING, [None, 1]) for name in names]
    said = helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, [None, 2])
    nodes = [helper.make_node("StringNormalizer", ["value"], ["v"])]
    nodes = [helper.make_node("Shape", [name], [f"shape{at}"]) for at, name in enumerate(names)]
    nodes.append(helper.make_node("ConstantOfShape", ["shape0"], ["one"]))
    nodes.append(helper.make_node("Concat", ["one", "one"], ["probabilities"], axis=1))
    save(helper.make_graph(nodes, "g", sides, [said]), path)
    says = ("'value': found field (a number), expected text for string input 'value'", "'square'", "'site.mean'")
    add(project, "bad", path, says=says)


def test_what_is_no_model_or_no_event_is_refused(project):
    folder = project.folder
    (folder / "no.onnx").write_bytes(b"not a model")
    (folder / "no.json").write_text("[]")
    (folder / "odd.jsonl").write_text('{"id": "1", "sensor": "a", "value": "high"}')
    (folder / "empty.jsonl").write_text("")
    model = folder / "model.onnx"
    add(project, "bad", folder / "no.onnx", says=("can't load the model", "no.onnx"))
    add(project, "bad", folder / "gone.onnx", code=CONFIG, says=("no such model file", "gone.onnx"))
    add(project, "bad", model, "--vocabularies", folder / "no.json", code=CONFIG, says=("no.json",))
    add(project, "bad", model, "--vocabularies", folder / "gone.json", code=CONFIG, says=("gone.json",))
    add(project, "bad", model, "--input", "features", code=CONFIG, says=("NAME=FEATURE",))
    add(project, "bad", model, "--input", "fetures=value", says=("fetures", "features"))
    add(project, "bad", model, "--golden", folder / "odd.jsonl", code=CONFIG, says=("odd.jsonl",))
    add(project, "bad", model, "--golden", folder / "empty.jsonl", code=CONFIG, says=("no event", "empty.jsonl"))
    add(project, "../bad", model, says=("'../bad'",))


def test_labels_that_do_not_fit_the_classes_are_refused_when_the_version_is_added(project):
    file = topology(
        project, "start-labels",
        ("column=1", "column=None"), ('threshold("alarm", 0.5)', 'argmax("alarm", labels=("a", "b", "c"))'),
        ("stored, threshold", "stored, argmax"),
    )  # fmt: skip
    add(project, "bad", project.folder / "model.onnx", says=("3 labels", "2 columns"), file=file)


def test_a_version_is_added_once(project, good):
    refused(
        project, "models", "add", good, "v1", project.folder / "model.onnx",
        code=MODEL, says=("'v1'", "already", "another name"),
    )  # fmt: skip


# ---- view rows


def test_rows_of_no_view_are_refused(project, good):
    folder = project.folder
    pq.write_table(pa.table({"sensor": ["a"], "mean": [1.0]}), folder / "timeless.parquet")
    (folder / "no.parquet").write_bytes(b"PAR1")
    for given, says in {
        f"stie={folder / 'timeless.parquet'}": ("names no view of start-good", "site"),
        "site": ("VIEW=FILE",),
        f"site={folder / 'timeless.parquet'}": ("feature_time", "found sensor, mean"),
        f"site={folder / 'gone.parquet'}": ("gone.parquet",),
        f"site={folder / 'no.parquet'}": ("no.parquet",),
    }.items():
        refused(project, "features", "load", good, given, code=CONFIG, says=says)


# ---- partners


def test_a_broker_that_is_not_there_is_named(project, good):
    nowhere = {"STREAMSERVE_BOOTSTRAP": f"127.0.0.1:{free_ports(1)[0]}"}
    says = ("Kafka", nowhere["STREAMSERVE_BOOTSTRAP"], "STREAMSERVE_BOOTSTRAP", "streamserve dev up")
    refused(project, "worker", good, "--web-port", 0, code=PARTNER, says=says, **nowhere)
    refused(project, "topics", "plan", good, code=PARTNER, says=says, **nowhere, **QUICKLY)
    refused(project, "topology", "init", good, "--version", "v1", code=PARTNER, says=says, **nowhere, **QUICKLY)
    says = ("no Kafka broker is named", "STREAMSERVE_BOOTSTRAP")
    refused(project, "worker", good, code=PARTNER, says=says, STREAMSERVE_BOOTSTRAP="")


def test_a_redis_that_is_not_there_is_named(project, good):
    nowhere = {"STREAMSERVE_REDIS_URL": f"redis://user:secret@127.0.0.1:{free_ports(1)[0]}/0"}
    says = ("Redis", nowhere["STREAMSERVE_REDIS_URL"].partition("@")[2], "STREAMSERVE_REDIS_URL")
    told = refused(project, "worker", good, "--web-port", 0, code=PARTNER, says=says, **nowhere)
    assert "secret" not in told
    rows = pa.table({"sensor": ["a"], "mean": [1.0], "feature_time": pa.array([0], pa.timestamp("ms"))})
    pq.write_table(rows, project.folder / "site.parquet")
    refused(project, "features", "load", good, "site=site.parquet", code=PARTNER, says=says, **nowhere)
    refused(project, "worker", good, code=PARTNER, says=("no Redis URL", "redis://"), STREAMSERVE_REDIS_URL="localhost")


@pytest.mark.parametrize(
    ("environ", "says"),
    [
        ({"STREAMSERVE_BATCH_ROWS": "0"}, ("STREAMSERVE_BATCH_ROWS", "greater than or equal to 1")),
        ({"STREAMSERVE_KAFKA": "{"}, ("STREAMSERVE_KAFKA",)),
        ({"STREAMSERVE_KAFKA_CONFIG": "gone.properties"}, ("STREAMSERVE_KAFKA_CONFIG", "gone.properties")),
        ({"STREAMSERVE_LOG_LEVEL": "LOUD"}, ("STREAMSERVE_LOG_LEVEL", "expected one of DEBUG")),
        ({"STREAMSERVE_WEB_PORT": "web"}, ("STREAMSERVE_WEB_PORT",)),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_setting_that_does_not_fit_is_named(project, good, environ, says):
    refused(project, "topics", "check", good, code=CONFIG, says=says, **environ)


def test_a_kafka_setting_that_nobody_knows_is_named(project, good):
    says = ("sasl.pasword", "STREAMSERVE_KAFKA")
    refused(project, "topics", "check", good, code=PARTNER, says=says, STREAMSERVE_KAFKA='{"sasl.pasword": "x"}')


# ---- a worker's own start


def worker_refused(project: Project, file: Path, code: int, *says: str, **environ: str) -> None:
    refused(project, "worker", file, "--web-port", 0, code=code, says=says, **environ)


def test_a_worker_wants_its_topics(project):
    file = topology(project, "start-topics")
    worker_refused(project, file, TOPIC, "start-topics.events: is missing", "start-topics.dead-letters", "topics apply")


def test_a_worker_wants_an_init(project):
    file = topology(project, "start-init")
    carried_out(project, "topics", "apply", file)
    worker_refused(project, file, CONTROL, "no init", "start-init", "topology init")


def test_init_wants_a_version_and_happens_once(project, good):
    other = topology(project, "start-version")
    says = ("'v9'", "there: ", "v1", "models add")
    refused(project, "topology", "init", other, "--version", "v9", code=MODEL, says=says)
    refused(project, "topology", "init", good, "--version", "v1", code=CONTROL, says=("start-good", "already", "v1"))


def test_a_worker_wants_its_version(project, good):
    empty = project.folder / "empty"
    says = ("'v1'", "'readings'", str(empty), "STREAMSERVE_REGISTRY")
    worker_refused(project, good, MODEL, *says, STREAMSERVE_REGISTRY=str(empty))


@pytest.fixture(scope="module")
def unpinned(project, good) -> Path:
    """Another topology of the same version, put in force by hand, without the manifest's hash."""
    file = topology(project, "start-unpinned")
    carried_out(project, "topics", "apply", file)
    command = {
        "kind": "init", "command_id": uuid.uuid4().hex, "topology": "start-unpinned", "expected_generation": 0,
        "model": "readings", "stable": "v1",
    }  # fmt: skip
    producer = Producer({"bootstrap.servers": project.endpoints.bootstrap})
    producer.produce("streamserve.control", json.dumps(command))
    assert producer.flush(10) == 0
    return file


@pytest.fixture
def copied(project, good, tmp_path) -> tuple[Path, dict[str, str]]:
    """A copy of the version in force, and the setting that points at it."""
    shutil.copytree(project.folder / "registry", tmp_path / "registry")
    return tmp_path / "registry" / "readings" / "v1", {"STREAMSERVE_REGISTRY": str(tmp_path / "registry")}


def test_a_manifest_that_is_not_the_one_put_in_force_stops_a_worker(project, good, copied):
    folder, environ = copied
    manifest = json.loads((folder / "manifest.json").read_text())
    edited(folder, manifest, scores={"alarm": {"tensor": "gone", "column": 1}})
    worker_refused(project, good, MODEL, "put in force", "sha256", **environ)


def test_one_changed_byte_of_a_model_stops_a_worker(project, good, copied):
    folder, environ = copied
    content = bytearray((folder / "model.onnx").read_bytes())
    content[len(content) // 2] ^= 1
    (folder / "model.onnx").write_bytes(content)
    worker_refused(project, good, MODEL, "was changed", "sha256", "model.onnx", **environ)
    (folder / "model.onnx").unlink()
    worker_refused(project, good, MODEL, "model.onnx", **environ)


def edited(folder: Path, manifest: dict[str, object], **changes: object) -> None:
    (folder / "manifest.json").write_text(json.dumps(manifest | changes))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"version": "v2"}, ("v2", "manifest.json")),
        (
            {"inputs": [{"name": "features", "dtype": "float32", "shape": [None, 4], "features": ["value"]}]},
            ("inputs",),
        ),
        ({"file": {"path": "../model.onnx", "sha256": "0" * 64, "bytes": 1}}, ("file.path", "manifest.json")),
        ({"surprise": 1}, ("surprise", "manifest.json")),
        ({"scores": {"alarm": {"tensor": "probabilities", "column": 0}}}, ("golden set", "alarm")),
        ({"decision": {"kind": "threshold", "output": "alarm", "at": 0.9, "labels": ["a", "b"]}}, ("golden set",)),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_an_edited_manifest_is_refused(project, good, unpinned, copied, changes, says):
    folder, environ = copied
    edited(folder, json.loads((folder / "manifest.json").read_text()), **changes)
    if "golden set" in says:
        worker_refused(project, unpinned, MODEL, *says, **environ)
    else:  # by whatever opens the version
        refused(project, "check", good, "--version", "v1", code=MODEL, says=says, **environ)


def test_a_manifest_that_is_no_json_is_refused(project, good, copied):
    folder, environ = copied
    (folder / "manifest.json").write_text("{")
    says = ("manifest", str(folder))
    refused(project, "check", good, "--version", "v1", code=MODEL, says=says, **environ)


def test_another_golden_set_stops_a_worker(project, unpinned, copied):
    folder, environ = copied
    manifest, found = (
        json.loads((folder / "manifest.json").read_text()),
        json.loads((folder / "golden.json").read_text()),
    )
    found["scores"][3][0] += 0.001
    content = json.dumps(found).encode()
    (folder / "golden.json").write_bytes(content)
    worker_refused(project, unpinned, MODEL, "golden.json", "was changed", **environ)
    sha = {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
    edited(folder, manifest, golden={**manifest["golden"], **sha})
    worker_refused(project, unpinned, MODEL, "answers other than its golden set", "event 3", "alarm", **environ)


def test_a_feature_that_means_something_else_now_stops_a_worker(project, good):
    """The name and version of a derived feature are pinned, its code can't be: the golden set finds it."""
    text = good.read_text()
    try:
        good.write_text(text.replace("value**2", "value**3"))
        worker_refused(project, good, MODEL, "answers other than its golden set")
        good.write_text(text.replace('of="value")', 'of="value", version=2)'))
        worker_refused(project, good, MODEL, "'square'", "expected")
    finally:
        good.write_text(text)


def test_a_port_that_is_taken_stops_a_worker(project, good):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        refused(project, "worker", good, "--web-port", port, code=CONFIG, says=(str(port), "--web-port"))


@pytest.mark.parametrize("start", ["yesterday", "2026-13-01"])
def test_a_starting_position_that_is_none_stops_a_worker(project, good, start):
    says = (repr(start), "earliest, latest or an ISO time")
    refused(project, "worker", good, "--web-port", 0, "--start", start, code=CONFIG, says=says)


# ---- the control log of a broker of its own


@pytest.fixture(scope="module")
def spoiled(tmp_path_factory, endpoints) -> Iterator[Project]:
    with services(tmp_path_factory.mktemp("spoiled"), redis=False) as found:
        where = Endpoints(found.bootstrap, endpoints.redis_url)
        yield prepared(Project(tmp_path_factory.mktemp("control"), where))


def settle(futures: dict[object, Future[object]]) -> None:
    for future in futures.values():
        future.result(TIMEOUT_S)


def set_control(admin: AdminClient, name: str, value: str) -> None:
    entry = ConfigEntry(name, value, incremental_operation=AlterConfigOpType.SET)
    resource = ConfigResource(ResourceType.TOPIC, "streamserve.control", incremental_configs=[entry])
    settle(admin.incremental_alter_configs([resource]))


def test_a_control_log_that_forgets_stops_a_worker(spoiled):
    file = topology(spoiled, "start-control")
    admin = AdminClient({"bootstrap.servers": spoiled.endpoints.bootstrap})
    carried_out(spoiled, "topics", "apply", file)
    carried_out(spoiled, "models", "add", file, "v1", spoiled.folder / "model.onnx")
    carried_out(spoiled, "topology", "init", file, "--version", "v1")
    for name, bad, good in (
        ("cleanup.policy", "compact", "delete"),
        ("cleanup.policy", "compact,delete", "delete"),
        ("retention.ms", "604800000", "-1"),
        ("retention.bytes", "1000000", "-1"),
        ("message.timestamp.type", "CreateTime", "LogAppendTime"),
    ):
        set_control(admin, name, bad)
        refused(spoiled, "topics", "check", file, code=TOPIC, says=("streamserve.control", name, bad))
        if bad == "compact":
            worker_refused(spoiled, file, TOPIC, "streamserve.control", name, bad)
        set_control(admin, name, good)
    settle(admin.delete_records([TopicPartition("streamserve.control", 0, 1)]))
    worker_refused(spoiled, file, TOPIC, "starts at offset 1", "streamserve.control", "retention.ms=-1")
    settle(admin.create_partitions([NewPartitions("streamserve.control", 2)]))
    says = ("streamserve.control", "has 2 partitions, must have 1")
    refused(spoiled, "topics", "check", file, code=TOPIC, says=says)


# ---- where a worker starts, and beside whom


def reading(at: int) -> Record:
    sensor = f"s{at % 61}"  # enough of them for every partition
    return Record(sensor.encode(), json.dumps({"id": str(at), "sensor": sensor, "value": at % 7}).encode())


def readings(count: int, timestamp: int = 0) -> list[Record]:
    return [replace(reading(at), timestamp=timestamp) for at in range(count)]


@dataclass(frozen=True)
class Stream:
    """A topology in force, and a plain client of its topics."""

    project: Project
    file: Path
    broker: Broker

    def send(self, records: list[Record]) -> list[Position]:
        return self.broker.produce(f"{self.file.stem}.events", records)

    def committed(self) -> dict[int, int]:
        return self.broker.committed(f"streamserve.{self.file.stem}", f"{self.file.stem}.events")

    def ends(self) -> dict[int, int]:
        return self.broker.ends(f"{self.file.stem}.events")

    def predicted(self) -> list[Position]:
        found = self.broker.read(f"{self.file.stem}.predictions")
        return [source_of(prediction(one)["prediction_id"]) for one in found]

    def serve(self, count: int, **environ: str) -> None:
        with self.worker(**environ) as worker:
            serve_until(worker, count)

    @contextlib.contextmanager
    def worker(self, **environ: str) -> Iterator[Worker]:
        found = self.project.worker(self.file, **environ)
        try:
            yield found
            assert found.stop() == 0, found.log.read_text()
        finally:
            found.process.kill()


@pytest.fixture
def stream(project, good, request) -> Stream:
    name = "start-" + request.node.name.removeprefix("test_").replace("_", "-")[:40]
    file = topology(project, name)
    carried_out(project, "topics", "apply", file)
    carried_out(project, "topology", "init", file, "--version", "v1")
    return Stream(project, file, Broker(project.endpoints.bootstrap))


def test_latest_leaves_out_what_was_there_and_only_at_the_first_start(stream):
    stream.send(readings(100))
    before = stream.ends()
    with stream.worker(STREAMSERVE_START="latest") as worker:
        # committed at once: a crash before the first event would not move the start
        wait_until(lambda: stream.committed() == before, what="the commit of the starting positions")
        sent = stream.send(readings(50))
        serve_until(worker, 50)
    sent += stream.send(readings(30))
    stream.serve(30, STREAMSERVE_START="latest")
    assert sorted(stream.predicted()) == sorted(sent)


def test_a_time_leaves_out_what_is_older(stream):
    now = time.time_ns() // 1_000_000
    stream.send(readings(100, now - 7_200_000))
    sent = stream.send(readings(60, now - 1_800_000))
    start = dt.datetime.fromtimestamp((now - 3_600_000) / 1000, dt.UTC)
    stream.serve(60, STREAMSERVE_START=start.isoformat())
    assert sorted(stream.predicted()) == sorted(sent)


def test_members_that_start_together_agree_on_latest(stream):
    """The second one finds positions of the first: its own partitions are not new for that."""
    stream.send(readings(100))
    ends, settings, count = stream.ends(), Settings(start="latest"), lambda _: 4
    topic, group = f"{stream.file.stem}.events", f"streamserve.{stream.file.stem}"
    for share in ([0, 1], [2, 3]):
        consumer = stream.broker.consumer(group)
        placed = starting_positions(consumer, [TopicPartition(topic, p) for p in share], settings, count)
        assert {tp.partition: tp.offset for tp in placed} == {p: ends[p] for p in share}
        consumer.close()


def test_two_workers_share_the_partitions_and_one_that_stops_loses_nothing(stream):
    sent = stream.send(readings(1000))
    with stream.worker() as stays:
        serve_until(stays, 1000)
        with stream.worker() as leaves:
            both = (stays, leaves)
            wait_until(lambda: [w.metric("streamserve_partitions_owned") for w in both] == [2, 2], what="two and two")
            sent += stream.send(readings(2000))
            wait_until(lambda: leaves.metric("streamserve_predictions_total"), what="predictions of the second worker")
            sent += stream.send(readings(3000))
        wait_until(lambda: stays.metric("streamserve_partitions_owned") == 4, what="all four")
        sent += stream.send(readings(500))
        wait_until(lambda: stream.committed() == stream.ends(), what="the commit of everything")
    assert set(stream.predicted()) == set(sent)
