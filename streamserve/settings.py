"""Every knob of a process: unit, default and the reason for the default.

Read from the environment (`STREAMSERVE_...`) or from a `.env` file; nothing here opens a connection.
What belongs to a stream rather than to a process (features, decision, latency target) stands in the topology.
"""

from __future__ import annotations

import datetime as dt
import json
from functools import cached_property
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, ValidationError, ValidationInfo, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from streamserve.errors import SettingsError

LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR")
ClientConfig = Annotated[dict[str, str], NoDecode]
RedisConfig = Annotated[dict[str, bool | int | float | str], NoDecode]
Provider = Literal["cpu", "cuda", "tensorrt"]


class Settings(BaseSettings):
    """The settings of one process. `Settings.load()` reads them and explains what does not fit."""

    model_config = SettingsConfigDict(env_prefix="STREAMSERVE_", env_file=".env", extra="ignore", frozen=True)

    home: Path = Field(
        default=Path(".streamserve"),
        description="Folder of local state: services, caches, demo data. One folder, safe to delete.",
    )
    bootstrap: str | None = Field(
        default=None,
        description="Kafka bootstrap servers, host:port,... Unset: the local broker of `streamserve dev up`.",
    )
    redis_url: str | None = Field(
        default=None,
        repr=False,
        description="redis://, rediss:// or unix:// URL. Unset: the local Redis of `streamserve dev up`.",
    )
    kafka: ClientConfig = Field(
        default_factory=dict,
        repr=False,
        description="Any librdkafka settings, as JSON; given to every Kafka client that is opened.",
    )
    kafka_config: Path | None = Field(
        default=None,
        description="A client.properties file (key=value a line): keeps secrets out of the environment.",
    )
    redis: RedisConfig = Field(
        default_factory=dict,
        repr=False,
        description="Any redis-py connection settings, as JSON (ssl_ca_certs, username, ...).",
    )
    schema_registry_url: str | None = Field(
        default=None,
        repr=False,
        description="Confluent-compatible registry. Unset: ids come from the pinned schemas/index.json.",
    )
    schema_registry_ca: Path | None = Field(
        default=None, description="CA file for the schema registry's certificate. Unset: the system's."
    )
    registry: Path = Field(
        default=Path("registry"),
        description="Folder of model versions: <model>/<version>/manifest.json and what it names.",
    )
    schemas: Path = Field(default=Path("schemas"), description="Folder of event schemas and index.json.")
    web_host: str = Field(
        default="127.0.0.1",
        description="Bind address of /live, /ready, /health and /metrics. Loopback: nothing is exposed unasked.",
    )
    web_port: int = Field(default=6066, ge=0, le=65535, description="Port of the same; 0 takes a free one.")
    start: str = Field(
        default="earliest",
        description="Where a group without committed offsets starts: earliest, latest, or an ISO time. "
        "Explicit, because the wrong default silently skips or repeats a topic.",
    )
    batch_rows: int = Field(
        default=4000,
        ge=1,
        le=100_000,
        description="Rows of a micro-batch at most. A batch costs 3 ms before its first row: 0.8 us an event here.",
    )
    batch_bytes: int = Field(
        default=16 << 20,
        ge=1024,
        le=1 << 28,
        description="Bytes of keys and values of a micro-batch, at about which it is closed: bounds memory.",
    )
    batches_in_flight: int = Field(
        default=3,
        ge=1,
        le=64,
        description="Micro-batches between intake and commit: lets Redis, ONNX Runtime and Kafka overlap.",
    )
    commit_interval: float = Field(
        default=1.0,
        gt=0,
        le=60,
        description="Seconds between commits: what is repeated after a crash, against a flush each time.",
    )
    transaction_interval: float = Field(
        default=0.1,
        gt=0,
        le=10,
        description="The same where delivery is exactly once: how late a read_committed reader sees a prediction, "
        "against some 10 ms for each transaction's end.",
    )
    dead_letter_share: float = Field(
        default=0.5,
        ge=0,
        le=1,
        description="Share of the last 1,000 events that may become dead letters before reading pauses and /ready "
        "says so: a wrong deployment does not empty a topic into them. 1: never pause.",
    )
    store_timeout: float = Field(
        default=0.25,
        gt=0,
        le=30,
        description="Seconds that Redis may take for a micro-batch before defaults with status TIMEOUT.",
    )
    store_failures: int = Field(
        default=3,
        ge=1,
        le=1000,
        description="Micro-batches without an answer of Redis in a row, after which none waits for it any more. As "
        "many as are in flight: when it hangs, the stream stands still for one store_timeout.",
    )
    store_pause: float = Field(
        default=0.25,
        gt=0,
        le=60,
        description="Seconds from then until Redis is asked again, beside the stream; doubles with each failure. "
        "Short: what ends soon, such as a restart, should cost few features.",
    )
    store_pause_max: float = Field(
        default=5.0,
        gt=0,
        le=600,
        description="Seconds between two such asks at most: how late a Redis that came back is noticed, against "
        "an MGET of every worker each time.",
    )
    drain_timeout: float = Field(
        default=20.0,
        gt=0,
        description="Seconds to finish what is in flight on SIGTERM; below Kubernetes' 30 s grace.",
    )
    start_timeout: float = Field(
        default=8.0,
        gt=0,
        description="Seconds to reach Kafka and Redis at start before giving up with advice.",
    )
    pacing: bool = Field(
        default=True,
        description="Wait for fuller micro-batches within the topology's target_p99_ms; off: take whatever is there.",
    )
    native: bool = Field(
        default=True,
        description="Use the compiled path to the Kafka client where it was built; off: messages one by one.",
    )
    compiled_trees: bool = Field(
        default=True,
        description="Score trees by the compiled part where it was built and says the same to the last bit; off: all "
        "of a model by ONNX Runtime itself.",
    )
    provider: Provider = Field(
        default="cpu",
        description="What ONNX Runtime runs models on: cpu, cuda or tensorrt. Asked and absent is an error, never "
        "a silent fall to the processor.",
    )
    device_id: int = Field(default=0, ge=0, description="Which GPU, by CUDA's number; cpu has none.")
    model_cache: bool = Field(
        default=False,
        description="Keep models as ONNX Runtime optimised them under the home folder. Off: hashing the model costs "
        "what most models gain; on is for graphs of hundreds of nodes (23 ms to load against 10).",
    )
    candidate_deadline: float = Field(
        default=0.1,
        gt=0,
        le=60,
        description="Seconds that a rollout's candidate may take for its rows of a micro-batch; past them stable "
        "answers (reason FALLBACK). Stable's own rows of that batch wait as long.",
    )
    shadow_rows: int = Field(
        default=20_000,
        ge=1,
        le=10_000_000,
        description="Events that may wait for a shadowing candidate; past them they are shed, and counted.",
    )
    shadow_bytes: int = Field(
        default=128 << 20, ge=1024, le=1 << 34, description="The same in bytes: bounds a worker's memory."
    )
    shadow_deadline: float = Field(
        default=10.0,
        gt=0,
        le=600,
        description="Seconds that a shadowing candidate may take for some 4,000 events, after which its process is "
        "ended and begun again. Long: nobody waits for it.",
    )
    shadow_memory: int = Field(
        default=2 << 30,
        ge=1 << 20,
        description="Bytes of memory that the process of a shadowing candidate may take, after which it is ended.",
    )
    control_keys: Path | None = Field(
        default=None,
        description="A file of id=secret lines: the keys that control commands are signed by, and checked with.",
    )
    sign_with: str | None = Field(default=None, description="The id of the key that commands sent from here bear.")
    core_hour_price: float = Field(
        default=0.04,
        ge=0,
        allow_inf_nan=False,
        description="Price of one CPU core for one hour, in any currency: that of the cost metric. The default is "
        "about what clouds ask for one on demand.",
    )
    log_level: str = Field(default="INFO", description="DEBUG, INFO, WARNING or ERROR.")

    @field_validator("kafka", "redis", mode="before")
    @classmethod
    def _parse_client_config(cls, value: object, info: ValidationInfo) -> object:
        """JSON. librdkafka takes text alone, so numbers and booleans become that; redis-py takes them as they are."""
        found = json.loads(value) if isinstance(value, str) else value
        if not isinstance(found, dict) or info.field_name == "redis":
            return found
        plain = (bool, int, float)
        return {key: json.dumps(one) if isinstance(one, plain) else one for key, one in found.items()}

    @field_validator("start")
    @classmethod
    def _known_start(cls, value: str) -> str:
        if value.strip().lower() not in ("earliest", "latest"):
            try:
                instant_ms(value)
            except ValueError:
                raise ValueError("expected earliest, latest or an ISO time such as 2026-01-31T06:00:00Z") from None
        return value

    @field_validator("log_level", mode="before")
    @classmethod
    def _known_level(cls, value: object) -> object:
        level = str(value).upper()
        if level not in LEVELS:
            raise ValueError(f"expected one of {', '.join(LEVELS)}")
        return level

    @classmethod
    def load(cls) -> Self:
        """Read the environment.

        Raises:
            SettingsError: a variable's value does not fit; names the variable, never prints a secret.
        """
        try:
            return cls()
        except ValidationError as error:
            first = error.errors(include_input=False, include_url=False)[0]
            name = f"STREAMSERVE_{first['loc'][0]}".upper()
            inside = ".".join(str(part) for part in first["loc"][1:])
            raise SettingsError(
                f"{name} does not fit: {inside + ': ' if inside else ''}{first['msg']}",
                where="environment or .env",
                mend=f"set {name} to a fitting value, or unset it for the default",
            ) from None
        except UnicodeDecodeError:
            raise SettingsError("the settings file is not UTF-8 text", where=".env", mend="write it anew") from None

    @cached_property
    def kafka_properties(self) -> dict[str, str]:
        """The librdkafka settings of the file and of the environment, the latter winning.

        Raises:
            SettingsError: the file is missing or a line is not key=value.
        """
        merged: dict[str, str] = {}
        if self.kafka_config is not None:
            merged.update(_read_properties(self.kafka_config))
        merged.update(self.kafka)
        return merged

    @cached_property
    def control_secrets(self) -> dict[str, bytes]:
        """By key id, the secrets of the keys file.

        Raises:
            SettingsError: the file is missing or a line is not id=secret.
        """
        found = {} if self.control_keys is None else _read_properties(self.control_keys, "STREAMSERVE_CONTROL_KEYS")
        return {key: secret.encode() for key, secret in found.items()}


def instant_ms(text: str) -> int:
    """An ISO 8601 time as milliseconds since 1970; without a zone it is UTC.

    Raises:
        ValueError: it is none.
    """
    moment = dt.datetime.fromisoformat(text)
    return int((moment if moment.tzinfo else moment.replace(tzinfo=dt.UTC)).timestamp() * 1000)


def _read_properties(path: Path, name: str = "STREAMSERVE_KAFKA_CONFIG") -> dict[str, str]:
    try:
        text = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise SettingsError(
            f"the settings file cannot be read: {why}",
            where=str(path),
            mend=f"point {name} at a readable file of key=value lines",
        ) from None
    found: dict[str, str] = {}
    for number, line in enumerate(text.splitlines(), 1):
        stripped = line.strip()
        if not stripped or stripped[0] in "#!":
            continue
        key, sep, value = stripped.partition("=")
        if not sep:
            raise SettingsError(
                "a line is not key=value",
                where=f"{path}:{number}",
                mend=f"write {name} as key=value lines",
            )
        found[key.strip()] = value.strip()
    return found
