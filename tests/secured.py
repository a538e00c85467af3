"""A Kafka with TLS, SCRAM and ACLs, and a Redis with users: what a careful company runs, for one test module.

Certificates come from the Java that runs the broker: no further tool or package is needed. Everything listens on
loopback, has random passwords, and ends with the block, whatever happens in it.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import ipaddress
import json
import os
import re
import secrets
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path

import redis
from confluent_kafka import Consumer, KafkaException, Producer, TopicPartition
from confluent_kafka.admin import (
    AclBinding,
    AclBindingFilter,
    AclOperation,
    AclPermissionType,
    AdminClient,
    ResourcePatternType,
    ResourceType,
)
from conftest import ROOT, wait_until

import streamserve.dev
from streamserve.dev.jars import find_jars
from streamserve.dev.java import find_java
from streamserve.dev.probe import free_ports
from streamserve.dev.process import die_with_parent
from streamserve.dev.servers import _find_redis
from streamserve.settings import Settings

ADMIN, OPERATOR, WORKER, CLERK = "admin", "operator", "worker", "clerk"
USERS = (ADMIN, OPERATOR, WORKER, CLERK, *(f"worker{number}" for number in range(16)))
PROPERTIES = """\
process.roles=broker,controller
node.id=1
listeners=CLIENTS://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller}
advertised.listeners=CLIENTS://127.0.0.1:{port}
listener.security.protocol.map=CLIENTS:SASL_SSL,CONTROLLER:SASL_SSL
inter.broker.listener.name=CLIENTS
controller.listener.names=CONTROLLER
controller.quorum.voters=1@127.0.0.1:{controller}
sasl.enabled.mechanisms=SCRAM-SHA-512
sasl.mechanism.inter.broker.protocol=SCRAM-SHA-512
listener.name.clients.scram-sha-512.sasl.jaas.config={modules}.scram.ScramLoginModule required \
username="admin" password="{password}";
sasl.mechanism.controller.protocol=PLAIN
listener.name.controller.sasl.enabled.mechanisms=PLAIN
listener.name.controller.plain.sasl.jaas.config={modules}.plain.PlainLoginModule required \
username="admin" password="{password}" user_admin="{password}";
ssl.keystore.type=PKCS12
ssl.keystore.location=broker.p12
ssl.keystore.password={password}
ssl.truststore.type=PEM
ssl.truststore.location=broker.pem
authorizer.class.name=org.apache.kafka.metadata.authorizer.StandardAuthorizer
super.users=User:admin
log.dirs=data
offsets.topic.replication.factor=1
offsets.topic.num.partitions=2
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
transaction.state.log.num.partitions=2
default.replication.factor=1
min.insync.replicas=1
auto.create.topics.enable=false
group.initial.rebalance.delay.ms=0
num.network.threads=2
num.io.threads=2
"""
JVM = ("-Xms128m", "-Xmx384m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-XX:-UsePerfData")


@dataclass(frozen=True, order=True)
class Right:
    """One line of an access list: `operation` on a topic or group; a name that ends with `*` is a prefix."""

    operation: str
    kind: str
    name: str

    def __str__(self) -> str:
        return f"{self.operation} on {self.kind} {self.name}"

    def binding(self, user: str) -> AclBinding:
        prefix = self.name.endswith("*")
        return AclBinding(
            ResourceType[self.kind.upper()],
            self.name.removesuffix("*"),
            ResourcePatternType.PREFIXED if prefix else ResourcePatternType.LITERAL,
            f"User:{user}",
            "*",
            AclOperation[self.operation],
            AclPermissionType.ALLOW,
        )


def documented(heading: str, source: str, topology: str) -> list[Right]:
    """The rights that the table below `heading` in docs/operations.md lists, S and T replaced."""
    text = (ROOT / "docs" / "operations.md").read_text("utf-8")
    table = re.search(re.escape(heading) + r".*\n\n((?:\|.*\n)+)", text)
    assert table is not None, heading
    found = []
    for line in table[1].splitlines()[2:]:
        operations, on, *_ = (cell.strip() for cell in line.strip("|").split("|"))
        kind = on.split(" ", 1)[0].removesuffix("s")
        names = [re.sub(r"\bT\b", topology, re.sub(r"^S$", source, name)) for name in re.findall(r"`([^`]+)`", on)]
        found += [Right(operation.strip(), kind, name) for operation in operations.split(",") for name in names]
    return found


@dataclass
class Secured:
    """The two services, and their administrator. said: everything that streamserve printed."""

    folder: Path
    bootstrap: str
    redis_port: int
    passwords: dict[str, str] = field(default_factory=lambda: {user: secrets.token_hex(12) for user in USERS})
    said: list[str] = field(default_factory=list)

    # ---- as clients are told

    def kafka(self, user: str, **more: str) -> dict[str, str]:
        return {
            "security.protocol": "SASL_SSL",
            "sasl.mechanism": "SCRAM-SHA-512",
            "sasl.username": user,
            "sasl.password": self.passwords[user],
            "ssl.ca.location": str(self.folder / "broker.pem"),
            **{name.replace("_", "."): value for name, value in more.items()},
        }

    def properties(self, user: str, **more: str) -> Path:
        """A client.properties file."""
        path = self.folder / f"{user}-{uuid.uuid4().hex[:6]}.properties"
        path.write_text("".join(f"{name}={value}\n" for name, value in self.kafka(user, **more).items()))
        return path

    def redis_url(self, user: str) -> str:
        return f"redis://{user}:{self.passwords[user]}@127.0.0.1:{self.redis_port}/0"

    def environ(self, user: str = WORKER, **more: str) -> dict[str, str]:
        """A project's environment with nothing of the tester's own settings in it."""
        bare = {name: value for name, value in os.environ.items() if not name.startswith("STREAMSERVE_")}
        return {
            **bare,
            "STREAMSERVE_BOOTSTRAP": self.bootstrap,
            "STREAMSERVE_KAFKA_CONFIG": str(self.properties(user)),
            "STREAMSERVE_REDIS_URL": self.redis_url(WORKER),
            "STREAMSERVE_HOME": str(self.folder / "home"),
            "STREAMSERVE_REGISTRY": str(self.folder / "registry"),
            "STREAMSERVE_SCHEMAS": str(self.folder / "schemas"),
            "STREAMSERVE_LOG_LEVEL": "DEBUG",
            "NO_COLOR": "1",
            **more,
        }

    def settings(self, user: str = WORKER, **more: object) -> Settings:
        fixed = {
            "bootstrap": self.bootstrap,
            "kafka": self.kafka(user),
            "redis_url": self.redis_url(WORKER),
            "home": self.folder / "home",
            "registry": self.folder / "registry",
            "schemas": self.folder / "schemas",
        }
        return Settings(_env_file=None, **{**fixed, **more})

    # ---- streamserve

    def run(self, *words: object, environ: dict[str, str], seconds: float = 60) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "streamserve", *map(str, words)]
        done = subprocess.run(
            command, cwd=self.folder, env=environ, capture_output=True, text=True, timeout=seconds, check=False
        )
        self.heard(done.stdout + done.stderr)
        return done

    def heard(self, text: str) -> str:
        """Keep what was printed; no secret may be in it."""
        self.said.append(text)
        assert not self.leaked(text)
        return text

    def leaked(self, text: str) -> list[str]:
        """Whose password stands there, plainly or as a header or an URL would bear it."""
        found = []
        for user, password in self.passwords.items():
            shapes = (password, base64.b64encode(f"{user}:{password}".encode()).decode(), password.encode().hex())
            found += [user for shape in shapes if shape in text]
        return found

    # ---- the administrator

    @cached_property
    def admin(self) -> AdminClient:
        return AdminClient({"bootstrap.servers": self.bootstrap, "log_level": 0, **self.kafka(ADMIN)})

    def allow(self, rights: Mapping[str, Iterable[Right]]) -> None:
        """By user."""
        bindings = [right.binding(user) for user, some in rights.items() for right in some]
        for future in self.admin.create_acls(bindings).values():
            future.result(10)

    def forbid(self, right: Right, user: str) -> None:
        said = right.binding(user)
        one = AclBindingFilter(
            said.restype, said.name, said.resource_pattern_type, said.principal, said.host, said.operation,
            said.permission_type,
        )  # fmt: skip
        assert [len(future.result(10)) for future in self.admin.delete_acls([one]).values()] == [1]

    def produce(self, topic: str, events: Iterable[dict[str, object]]) -> None:
        producer, refused = Producer({"bootstrap.servers": self.bootstrap, **self.kafka(ADMIN)}), []
        for event in events:
            producer.produce(topic, json.dumps(event), on_delivery=lambda error, _: error and refused.append(error))
        assert producer.flush(20) == 0
        assert not refused

    def consumer(self, group: str = "tests") -> Consumer:
        return Consumer({"bootstrap.servers": self.bootstrap, "group.id": group, **self.kafka(ADMIN)})

    def committed(self, group: str, topic: str) -> int:
        """The sum of a group's committed offsets."""
        consumer = self.consumer(group)
        asked = [TopicPartition(topic, p) for p in consumer.list_topics(topic, 10).topics[topic].partitions]
        found = sum(max(0, tp.offset) for tp in consumer.committed(asked, 10))
        consumer.close()
        return found

    def records(self, topic: str) -> int:
        consumer = self.consumer()
        asked = [TopicPartition(topic, p) for p in consumer.list_topics(topic, 10).topics[topic].partitions]
        found = sum(consumer.get_watermark_offsets(tp, 10)[1] for tp in asked)
        consumer.close()
        return found

    def redis(self) -> redis.Redis:
        return redis.Redis(port=self.redis_port, password=self.passwords[ADMIN])


@contextlib.contextmanager
def secured(folder: Path) -> Iterator[Secured]:
    port, controller, redis_port = free_ports(3)
    made = Secured(folder, f"127.0.0.1:{port}", redis_port)
    (folder / "schemas").mkdir()
    with contextlib.ExitStack() as stack:
        broker = _start(stack, _kafka(made, port, controller), folder, "kafka")
        server = _start(stack, _redis(made), folder, "redis")

        def answers(asked: Callable[[], object], *, process: subprocess.Popen[bytes], log: Path) -> bool:
            assert process.poll() is None, log.read_text()[-4000:]
            try:
                asked()
            except (KafkaException, redis.RedisError):
                return False
            return True

        with contextlib.closing(made.redis()) as client:
            wait_until(partial(answers, client.ping, process=server, log=folder / "redis.log"), 15, "Redis")
        ask = partial(made.admin.list_topics, timeout=2)
        wait_until(partial(answers, ask, process=broker, log=folder / "kafka.log"), 60, "Kafka")
        yield made


def _start(stack: contextlib.ExitStack, argv: list[str], folder: Path, name: str) -> subprocess.Popen[bytes]:
    log = stack.enter_context((folder / f"{name}.log").open("wb"))
    process = subprocess.Popen(
        argv, cwd=folder, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
        preexec_fn=partial(die_with_parent, os.getpid()),  # noqa: PLW1509  (ends with the tests, even by SIGKILL)
    )  # fmt: skip
    stack.callback(process.wait, 10)
    stack.callback(process.kill)
    return process


def _kafka(made: Secured, port: int, controller: int) -> list[str]:
    java, password = find_java(), made.passwords[ADMIN]
    jars = find_jars(made.folder / "libs", java, lambda _: None)
    modules = "org.apache.kafka.common.security"
    text = PROPERTIES.format(port=port, controller=controller, password=password, modules=modules)
    (made.folder / "server.properties").write_text(text)
    log_settings = Path(streamserve.dev.__file__).with_name("log4j2.properties")
    base = [str(java), *JVM, f"-Dlog4j2.configurationFile={log_settings.as_uri()}", "-cp", f"{jars}/*"]
    users = [f"--add-scram=SCRAM-SHA-512=[name={u},{_salted(p)}]" for u, p in made.passwords.items()]
    new_id = "s" + base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")[1:]
    command = [*base, "kafka.tools.StorageTool", "format", "-t", new_id, "-c", "server.properties", *users]
    certify = partial(_certificate, java, made.folder, password)
    with ThreadPoolExecutor(3) as pool:
        for done in [
            pool.submit(_run, command, made.folder),
            *(pool.submit(certify, n) for n in ("broker", "stranger")),
        ]:
            done.result()
    return [*base, "kafka.Kafka", "server.properties"]


def _salted(password: str) -> str:
    """SCRAM's salted password, made here: the formatting tool takes half a second for the same."""
    salt, rounds = secrets.token_bytes(16), 4096
    salted = hashlib.pbkdf2_hmac("sha512", password.encode(), salt, rounds)
    told = {"salt": salt, "saltedpassword": salted}
    return ",".join(f'{k}="{base64.b64encode(v).decode()}"' for k, v in told.items()) + f",iterations={rounds}"


def _certificate(java: Path, folder: Path, password: str, name: str) -> None:
    """`name`.p12, a key and its own certificate for 127.0.0.1; `name`.pem, the certificate alone."""
    tool = [str(java), *JVM, "-m", "java.base/sun.security.tools.keytool.Main"]
    store = ["-alias", name, "-storetype", "PKCS12", "-keystore", f"{name}.p12", "-storepass", password]
    key = ["-keyalg", "EC", "-groupname", "secp256r1", "-dname", f"CN={name}", "-validity", "7"]
    extensions = ["-ext", "san=ip:127.0.0.1", "-ext", "bc=ca:true"]
    for words in (["-genkeypair", *store, *key, *extensions], ["-exportcert", "-rfc", "-file", f"{name}.pem", *store]):
        _run([*tool, *words], folder)


def _run(command: list[str], folder: Path) -> None:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def _redis(made: Secured) -> list[str]:
    """A server whose default user needs a password, and whose worker may do what docs/operations.md says."""
    lines = [
        "bind 127.0.0.1",
        f"port {made.redis_port}",
        'save ""',
        f"requirepass {made.passwords[ADMIN]}",
        f"user {WORKER} on >{made.passwords[WORKER]} ~streamserve:* +mget",
        f"user {OPERATOR} on >{made.passwords[OPERATOR]} ~streamserve:* +mget +mset",
        f"user worker0 on >{made.passwords['worker0']} ~streamserve:* +ping",
        f"user worker1 on >{made.passwords['worker1']} ~others:* +mget",
    ]
    (made.folder / "redis.conf").write_text("\n".join(lines) + "\n")
    return [str(_find_redis()), "redis.conf"]


def listening(pid: int) -> set[tuple[str, int]]:
    """Addresses and ports on which a process listens, as the kernel tells them."""
    inodes = set()
    for link in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(OSError):
            inodes.add(str(link.readlink()))
    return {(address, port) for inode, address, port in _listeners() if f"socket:[{inode}]" in inodes}


def owner(port: int) -> int | None:
    """The process that listens on a port of this machine, if it is one that may be looked at."""
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if any(found == port for _, found in listening(int(folder.name))):
                return int(folder.name)
    return None


def _listeners() -> Iterator[tuple[str, str, int]]:
    listen = "0A"
    for table in ("tcp", "tcp6"):
        path = Path(f"/proc/net/{table}")
        for line in path.read_text().splitlines()[1:] if path.exists() else ():
            _, local, _, state, *rest = line.split()
            if state == listen:
                address, _, port = local.partition(":")
                yield rest[5], _readable(address), int(port, 16)


def _readable(address: str) -> str:
    """The kernel writes each 32-bit word in the machine's byte order."""
    words = bytes.fromhex(address)
    raw = b"".join(words[at : at + 4][:: -1 if sys.byteorder == "little" else 1] for at in range(0, len(words), 4))
    found = ipaddress.ip_address(raw)
    return str(getattr(found, "ipv4_mapped", None) or found)
