"""Security promises, proven against a broker with TLS, SCRAM and ACLs and a Redis with users.

The rights are those of the tables in docs/operations.md, read from there: what is documented is what is enough, and
without any one of them nothing starts, and nothing is lost.
"""

from __future__ import annotations

import json
import logging
import os
import re
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from confluent_kafka import Producer
from confluent_kafka.admin import AlterConfigOpType, ConfigEntry, ConfigResource, ResourceType
from conftest import ROOT, wait_until
from secured import ADMIN, CLERK, OPERATOR, WORKER, Right, Secured, documented, listening, owner, secured
from support import linear_model

from streamserve.adapters.control_log import LogReader, append
from streamserve.adapters.kafka import Clients
from streamserve.adapters.reading import Start, TopicReader
from streamserve.adapters.redis_store import RedisStore
from streamserve.adapters.schema_ids import HttpRegistry
from streamserve.adapters.topics import Topics
from streamserve.agents.worker import Worker
from streamserve.errors import BrokerError, RedisError, SchemaRegistryError, SettingsError, StreamserveError
from streamserve.settings import Settings
from streamserve.topology import Topology, load_topology

pytestmark = pytest.mark.services
SOON_S = 10.0
SCHEMA = {
    "type": "record",
    "name": "Payment",
    "fields": [{"name": "user", "type": "string"}, {"name": "amount", "type": "double"}],
}
TOPOLOGY = """
from streamserve.topology import Source, Topology, View, field, output, stored

users = View("users", key="user", fields=("visits",), default=0.0)
topology = Topology(
    name="paid",
    source=Source("payments", schema="payment.avsc", format="json", key="user", partitions=2),
    features=(field("amount"), stored(users)),
    model="paid",
    outputs={"risk": output("probabilities", column=1)},
)
"""
LEAST = documented("The least rights of a worker", "payments", "paid")
TRANSACTIONS = documented("Where delivery is exactly once", "payments", "once")
REPLAYING = documented("Those of whoever runs `dead-letters replay", "payments", "paid")
LOOPBACK = re.compile(r"^(127\.|::1$)")


@pytest.fixture(scope="module")
def company(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Secured]:
    """The services; topics made and a version put in force by the operator, with an operator's rights alone."""
    with secured(tmp_path_factory.mktemp("secured")) as made:
        folder = made.folder
        (folder / "schemas" / "payment.avsc").write_text(json.dumps(SCHEMA))
        (folder / "paid.py").write_text(TOPOLOGY)
        lacking = {f"worker{n}": [r for r in LEAST if r != missing] for n, missing in enumerate(LEAST)}
        operators = documented("Those of an operator", "payments", "paid")
        made.allow({OPERATOR: operators, WORKER: LEAST, CLERK: REPLAYING, **lacking})
        yield made


@pytest.fixture(scope="module")
def served(company: Secured) -> Path:
    """The topology file, when a worker can serve it."""
    file, environ = company.folder / "paid.py", company.environ(OPERATOR)
    linear_model(company.folder / "paid.onnx", (0.1, 0.2))
    for words in (
        ("topics", "apply", file),
        ("models", "add", file, "v1", company.folder / "paid.onnx", "--input", "features=amount,users.visits"),
        ("topology", "init", file, "--version", "v1"),
    ):
        done = company.run(*words, environ=environ)
        assert done.returncode == 0, done.stdout + done.stderr
    return file


@pytest.fixture(scope="module")
def topology(served: Path) -> Topology:
    return load_topology(served)


class Running:
    """A worker process of the least rights."""

    def __init__(self, company: Secured, file: Path, **environ: str) -> None:
        self.company, self.log = company, company.folder / f"worker-{time.monotonic_ns()}.log"
        command = [sys.executable, "-m", "streamserve", "worker", str(file), "--web-port", "0"]
        with self.log.open("wb") as stream:
            self.process = subprocess.Popen(
                command, cwd=company.folder, env=company.environ(**environ), stdout=stream, stderr=stream
            )

    @property
    def text(self) -> str:
        return self.log.read_text()

    def ready(self) -> str:
        """The address of its pages."""

        def told() -> re.Match[str] | None:
            assert self.process.poll() is None, self.text
            return re.search(r"pages at (http://\S+)", self.text)

        return wait_until(told, what="the worker's start")[1]

    def end(self, seconds: float = 30) -> int:
        code = self.process.wait(seconds)
        self.company.heard(self.text)
        return code


@pytest.fixture
def worker(company: Secured, served: Path) -> Iterator[Callable[..., Running]]:
    started: list[Running] = []

    def start(**environ: str) -> Running:
        started.append(Running(company, served, **environ))
        return started[-1]

    yield start
    for one in started:
        if one.process.poll() is None:
            one.process.kill()
            one.process.wait(10)
        company.heard(one.text)


def events(count: int) -> list[dict[str, object]]:
    return [{"user": f"u{n % 5}", "amount": float(n)} for n in range(count)]


def quickly(call: Callable[[], object]) -> StreamserveError:
    """The error that a call ends with, and soon."""
    begun = time.monotonic()
    with pytest.raises(StreamserveError) as caught:
        call()
    assert time.monotonic() - begun < SOON_S
    assert caught.value.mend
    return caught.value


class TestRights:
    def test_an_operator_creates_grows_and_mends_topics_and_commands(self, company, topology):
        """`topics apply` and `topology init` have run with an operator's rights to make the fixture."""
        clients = Clients(company.settings(OPERATOR))
        topics = Topics(clients)
        assert {step.action for step in topics.plan(topology)} == {"keep"}
        bad = ConfigEntry("retention.ms", "1000", incremental_operation=AlterConfigOpType.SET)
        resource = ConfigResource(ResourceType.TOPIC, "streamserve.progress", incremental_configs=[bad])
        for future in company.admin.incremental_alter_configs([resource]).values():
            future.result(10)
        wider = topology.model_copy(update={"source": topology.source.model_copy(update={"partitions": 3})})
        topics.apply(topics.plan(wider), replication=1)
        assert {step.action for step in topics.plan(wider)} == {"keep"}

    def test_a_worker_with_the_least_rights_serves_a_stream(self, company, served, worker):
        before = company.records("paid.predictions")
        running = worker(STREAMSERVE_KAFKA='{"debug": "broker,conf,security,cgrp,protocol"}')
        url = running.ready()
        company.produce("payments", [*events(300), {"user": "u1"}])  # the last is a dead letter
        wait_until(lambda: committed(company) >= 301, what="the commit")
        pages = [urllib.request.urlopen(url + page, timeout=5).read().decode() for page in ("/live", "/metrics")]
        company.heard("".join(pages))
        assert company.records("paid.predictions") == before + 300
        assert company.records("paid.dead-letters") == 1
        assert 'status="MISSING"' in pages[1]  # Redis has answered: it has no rows
        bound = listening(running.process.pid)
        assert int(url.rpartition(":")[2]) in {port for _, port in bound}
        assert all(LOOPBACK.match(address) for address, _ in bound), bound
        running.process.terminate()
        assert running.end() == 0
        assert "sasl.password = [redacted]" in running.text  # the client did speak of what it was given
        assert "SASL" in running.text

    @pytest.mark.parametrize("number", range(len(LEAST)), ids=[str(right) for right in LEAST])
    def test_without_any_one_of_them_a_worker_does_not_start_and_names_it(self, company, topology, number, caplog):
        caplog.set_level(logging.DEBUG)
        missing = LEAST[number]
        error = quickly(lambda: Worker(topology, company.settings(f"worker{number}")))
        assert isinstance(error, BrokerError)
        assert error.exit_code == 3
        assert re.search(rf"does not grant this user {missing.operation} on {missing.kind} ", error.what)
        assert missing.name.removesuffix("*") in error.what
        company.heard(f"{error}\n{error!r}\n{caplog.text}")

    def test_a_command_line_says_so_without_a_traceback(self, company, served):
        lacks = next(n for n, right in enumerate(LEAST) if right.operation == "WRITE")
        done = company.run("worker", served, environ=company.environ(f"worker{lacks}"))
        assert done.returncode == 3
        assert f"does not grant this user {LEAST[lacks]}" in done.stderr
        assert "where:" in done.stderr
        assert "mend:" in done.stderr
        assert "Traceback" not in done.stderr

    def test_exactly_once_needs_its_transactional_ids_and_no_more(self, company, served):
        """Under names of its own, by a user who has the documented rights of that topology."""
        file = served.with_name("once.py")
        file.write_text(served.read_text().replace('name="paid"', 'name="once", delivery="exactly_once"'))
        for words in (("topics", "apply", file), ("topology", "init", file, "--version", "v1")):
            done = company.run(*words, environ=company.environ(ADMIN))
            assert done.returncode == 0, done.stdout + done.stderr
        company.allow({WORKER: documented("The least rights of a worker", "payments", "once")})
        without = Running(company, file)
        assert without.end() == 3
        assert "does not grant this user WRITE on transactional-id streamserve.once." in without.text
        assert "mend:" in without.text
        company.allow({WORKER: TRANSACTIONS})
        running = Running(company, file)
        try:
            running.ready()
            company.produce("payments", events(20))
            settled = company.records("payments")
            wait_until(lambda: company.committed("streamserve.once", "payments") == settled, what="the commit")
            running.process.terminate()
            assert running.end() == 0, running.text
        finally:
            running.process.kill()

    def test_rights_taken_away_stop_a_worker_and_nothing_is_lost(self, company, worker):
        """Of the topic: nothing is sent, so nothing may be committed. Of the group: nothing can be committed."""
        running = worker(STREAMSERVE_COMMIT_INTERVAL="0.1")
        for taken in (Right("WRITE", "topic", "paid.predictions"), Right("READ", "group", "streamserve.paid")):
            running.ready()
            company.produce("payments", events(10))
            settled = company.records("payments")
            wait_until(lambda there=settled: committed(company) == there, what="the commit")
            outcomes = company.records("paid.predictions") + company.records("paid.dead-letters")
            assert outcomes >= settled  # what was refused before came, too
            company.forbid(taken, WORKER)
            try:
                company.produce("payments", events(20))
                assert running.end() == 3, running.text
                assert "uthorization failed" in running.text
                assert "mend:" in running.text
                assert committed(company) == settled
            finally:
                company.allow({WORKER: [taken]})
            running = worker(STREAMSERVE_COMMIT_INTERVAL="0.1") if taken.operation == "WRITE" else running

    def test_dead_letters_are_replayed_with_the_least_rights_and_not_with_less(self, company, served):
        grounds = {"stage": "decode", "source.topic": "payments", "source.partition": "0", "source.offset": "0"}
        headers = [(f"streamserve.{name}", text) for name, text in {**grounds, "source.timestamp": "-1"}.items()]
        producer = Producer({"bootstrap.servers": company.bootstrap, **company.kafka(ADMIN)})
        producer.produce("paid.dead-letters", json.dumps(events(1)[0]), headers=headers)
        assert producer.flush(20) == 0
        words, environ = ("dead-letters", "replay", served, "--yes", "--from", "-1"), company.environ(CLERK)
        before = company.records("payments")
        for missing in REPLAYING:
            company.forbid(missing, CLERK)
            try:
                done = wait_until(
                    lambda: (said := company.run(*words, environ=environ)).returncode and said, what="a refusal"
                )
            finally:
                company.allow({CLERK: [missing]})
            assert done.returncode == 3
            assert f"{missing.operation} on topic {missing.name}" in done.stderr or "docs/operations.md" in done.stderr
        told = wait_until(
            lambda: not (said := company.run(*words, environ=environ)).returncode and said, what="the rights"
        )
        assert "letters are confirmed by payments" in told.stdout
        assert company.records("payments") > before


def committed(company: Secured) -> int:
    return company.committed("streamserve.paid", "payments")


def refused(clients: Clients, name: str) -> StreamserveError:
    client = clients.consumer("any") if name == "consumer" else getattr(clients, name)()
    try:
        return quickly(lambda: clients.partitions(client, "payments"))
    finally:
        if name == "consumer":
            client.close()


class TestCredentials:
    WRONG = "notthepassword"

    def test_a_wrong_password_is_told(self, company, served):
        path = company.properties(WORKER, sasl_password=self.WRONG)
        done = company.run("worker", served, environ=company.environ(STREAMSERVE_KAFKA_CONFIG=str(path)))
        assert done.returncode == 3
        assert "Authentication failed" in done.stderr
        assert "check sasl.username and sasl.password" in done.stderr
        assert self.WRONG not in done.stdout + done.stderr
        assert "Traceback" not in done.stderr

    @pytest.mark.parametrize("name", ["consumer", "admin", "producer"])
    def test_a_wrong_password_is_told_soon_by_every_client(self, company, name):
        clients = Clients(company.settings(kafka=company.kafka(WORKER) | {"sasl.password": self.WRONG}))
        error = refused(clients, name)
        assert "Authentication failed" in error.what
        assert self.WRONG not in str(error)

    @pytest.mark.parametrize("name", ["consumer", "admin", "producer"])
    def test_a_certificate_of_an_unknown_ca_is_refused_by_every_client(self, company, name):
        wrong = company.kafka(WORKER) | {"ssl.ca.location": str(company.folder / "stranger.pem")}
        error = refused(Clients(company.settings(kafka=wrong)), name)
        assert "certificate verify failed" in error.what
        assert "ssl.ca.location" in error.mend

    def test_plain_text_is_refused_soon(self, company):
        clients = Clients(company.settings(kafka={"security.protocol": "PLAINTEXT"}, start_timeout=2))
        assert isinstance(refused(clients, "admin"), BrokerError)

    def test_a_ca_file_that_is_not_there(self, company):
        wrong = company.kafka(WORKER) | {"ssl.ca.location": "none.pem"}
        assert "ssl.ca.location" in quickly(Clients(company.settings(kafka=wrong)).admin).what

    def test_readers_outside_any_group_need_no_right_on_one(self, company, topology):
        clients = Clients(company.settings(OPERATOR))
        log = LogReader(clients)
        assert list(log.to_end())
        log.close()
        with TopicReader(clients, "streamserve.control") as reader:
            assert list(reader.backlog(Start.parse("beginning")))
        with pytest.raises(BrokerError, match="uthorization failed"):
            append(Clients(company.settings()), b"{}", key="paid")  # a worker does not command


class TestRedis:
    def test_a_wrong_password_is_told(self, company):
        url = company.redis_url(WORKER).replace(company.passwords[WORKER], "wrong")
        error = quickly(RedisStore(company.settings(redis_url=url)).check)
        assert isinstance(error, RedisError)
        assert "check the user and password" in error.mend
        assert "wrong@" not in str(error)
        anonymous = f"redis://127.0.0.1:{company.redis_port}"
        assert "password" in quickly(RedisStore(company.settings(redis_url=anonymous)).check).mend

    @pytest.mark.parametrize("user", ["worker0", "worker1"])
    def test_without_the_command_or_the_keys_a_worker_does_not_start(self, company, topology, user):
        """Defaults would stand in for every row otherwise, for ever."""
        settings = company.settings(redis_url=company.redis_url(user))
        error = quickly(lambda: Worker(topology, settings))
        assert isinstance(error, RedisError)
        assert "ermission" in error.what
        assert "+mget" in error.mend

    def test_a_reader_may_not_load_and_a_loader_may(self, company):
        rows = [(b"streamserve:users:x:u1", b"1" * 12)]
        error = quickly(lambda: RedisStore(company.settings()).load(rows))
        assert "+mset" in error.mend
        loader = RedisStore(company.settings(redis_url=company.redis_url(OPERATOR)))
        loader.check()
        assert loader.load(rows) == 1

    def test_tls_options_reach_the_client(self, monkeypatch):
        monkeypatch.setenv("STREAMSERVE_REDIS_URL", "rediss://worker:hidden@redis.example:6380/2")
        monkeypatch.setenv(
            "STREAMSERVE_REDIS",
            '{"ssl_ca_certs": "ca.pem", "ssl_certfile": "me.pem", "ssl_check_hostname": true, "socket_timeout": 0.5}',
        )
        made = RedisStore(Settings.load())._redis.connection_pool.make_connection()
        assert type(made).__name__ == "SSLConnection"
        assert (made.host, made.port, made.db, made.username, made.password) == (
            "redis.example", 6380, 2, "worker", "hidden",
        )  # fmt: skip
        assert (made.ca_certs, made.certfile, made.check_hostname) == ("ca.pem", "me.pem", True)
        assert made.cert_reqs.name == "CERT_REQUIRED"
        assert made.socket_timeout == 0.5


class TestSecrets:
    """`Secured.heard` has looked through everything that the tests above printed, at DEBUG."""

    def test_settings_and_clients_show_none(self, company):
        settings = company.settings(kafka_config=company.properties(WORKER))
        assert settings.kafka_properties["sasl.password"] == company.passwords[WORKER]
        clients = Clients(settings)
        shown = [repr(one) for one in (settings, clients, RedisStore(settings), clients.admin())]
        assert not company.leaked("".join([*shown, str(settings), repr(clients.__dict__)]))

    @pytest.mark.parametrize(
        ("name", "value"),
        [
            ("STREAMSERVE_KAFKA", '{"sasl.password": "hidden"'),
            ("STREAMSERVE_KAFKA", '{"sasl.password": ["hidden"]}'),
            ("STREAMSERVE_KAFKA", '["hidden"]'),
            ("STREAMSERVE_REDIS", '{"password": ["hidden"]}'),
            ("STREAMSERVE_REDIS_URL", "redis://worker:hidden/x@127.0.0.1:1"),
            ("STREAMSERVE_REDIS_URL", "worker:hidden@127.0.0.1"),
            ("STREAMSERVE_REDIS_URL", "redis://127.0.0.1:1/?password=hidden"),
            ("STREAMSERVE_REDIS_URL", "redis://worker:hidden@127.0.0.1:1/0"),
            ("STREAMSERVE_SCHEMA_REGISTRY_URL", "http://worker:hidden/x@127.0.0.1:1"),
            ("STREAMSERVE_SCHEMA_REGISTRY_URL", "worker:hidden@127.0.0.1"),
            ("STREAMSERVE_SCHEMA_REGISTRY_URL", "http://worker:hidden@127.0.0.1:1?token=hidden"),
            ("STREAMSERVE_KAFKA_CONFIG", "lines.properties"),
            ("STREAMSERVE_KAFKA", '{"sasl.password": "hidden", "security.protocol": "sasl"}'),
            ("STREAMSERVE_KAFKA", '{"sasl.password ": "hidden"}'),
        ],
    )
    def test_what_does_not_fit_is_named_and_not_quoted(self, monkeypatch, tmp_path, name, value):
        monkeypatch.chdir(tmp_path)
        (tmp_path / "lines.properties").write_text("sasl.password hidden\n")
        monkeypatch.setenv("STREAMSERVE_REDIS_URL", "redis://127.0.0.1:1")
        monkeypatch.setenv("STREAMSERVE_BOOTSTRAP", "127.0.0.1:1")
        monkeypatch.setenv(name, value)

        def use() -> None:
            found = Settings.load()
            if name == "STREAMSERVE_SCHEMA_REGISTRY_URL":
                HttpRegistry(found.schema_registry_url or "").writer_schema(1)
            RedisStore(found).check() if "REDIS" in name else Clients(found).admin()

        error = quickly(use)
        assert isinstance(error, SettingsError | RedisError | SchemaRegistryError | BrokerError)
        assert "hidden" not in f"{error} {error!r}"


class TestSockets:
    """A worker's own sockets are looked at while it serves, above."""

    def test_local_services_bind_loopback_alone(self, endpoints):
        for address in (endpoints.bootstrap, endpoints.redis_url):
            pid = owner(int(re.findall(r":(\d+)", address)[-1]))
            if pid is None:
                assert os.environ.get("STREAMSERVE_BOOTSTRAP")  # the tester's own servers are the tester's
                continue
            assert all(LOOPBACK.match(found) for found, _ in listening(pid)), (address, listening(pid))

    def test_containers_publish_on_loopback_alone(self):
        text = (ROOT / "streamserve" / "dev" / "compose.yml").read_text()
        published = re.findall(r"ports:\n(?: +#.*\n)* +- \"?(\S+)", text)
        assert len(published) == 2
        assert all(one.startswith("127.0.0.1:") for one in published), published
