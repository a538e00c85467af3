"""Every error that streamserve raises on purpose: one tree, and each says how to mend it.

::

    StreamserveError
    ├── ConfigError              what a person wrote is wrong
    │   ├── SettingsError        an environment variable or a settings file
    │   ├── TopologyError        a topology file, or its fit to schema, views or model
    │   └── SchemaError          an event schema, or the index of schema ids
    ├── PartnerError             something outside does not answer
    │   ├── BrokerError          Kafka
    │   ├── RedisError           Redis
    │   └── SchemaRegistryError  the schema registry
    ├── ModelError               the registry of models
    │   ├── ModelMissingError    no such model or version
    │   ├── ModelTamperedError   a file's hash is not the manifest's
    │   ├── SignatureError       the model does not fit what it is asked for
    │   └── IsolatedError        the process that has the model did not answer, and is gone
    ├── ControlError             the control log does not allow it
    ├── TopicError               a topic is missing, or configured in a way that loses data
    ├── DriftError               a drift reference is unreadable, or not of this version
    └── DevError                 local services: no Java, a port in use, a start that failed

What goes wrong with one event is not an exception but a `records.Reject`: its neighbours go on.
"""

from __future__ import annotations


class StreamserveError(Exception):
    """What went wrong, where, and how to mend it.

    Args:
        what: one sentence, the fault itself with the value found and the value expected.
        where: file, topic, partition-offset or address, if there is one to name.
        mend: what the reader does next, a command where there is one.
    """

    exit_code = 1

    def __init__(self, what: str, *, where: str = "", mend: str = "") -> None:
        super().__init__(what)
        self.what, self.where, self.mend = what, where, mend

    def __str__(self) -> str:
        lines = [self.what]
        if self.where:
            lines.append(f"  where: {self.where}")
        if self.mend:
            lines.append(f"  mend:  {self.mend}")
        return "\n".join(lines)


class ConfigError(StreamserveError):
    exit_code = 2


class SettingsError(ConfigError):
    pass


class TopologyError(ConfigError):
    pass


class SchemaError(ConfigError):
    pass


class PartnerError(StreamserveError):
    exit_code = 3


class BrokerError(PartnerError):
    pass


class RedisError(PartnerError):
    pass


class SchemaRegistryError(PartnerError):
    pass


class ModelError(StreamserveError):
    exit_code = 4


class ModelMissingError(ModelError):
    pass


class ModelTamperedError(ModelError):
    pass


class SignatureError(ModelError):
    pass


class IsolatedError(ModelError):
    pass


class ControlError(StreamserveError):
    exit_code = 5


class TopicError(StreamserveError):
    exit_code = 6


class DevError(StreamserveError):
    exit_code = 7


class DriftError(StreamserveError):
    exit_code = 8
