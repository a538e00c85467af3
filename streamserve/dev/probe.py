"""Does the service at a port answer, and is it the one that was started? Spoken by hand over a socket.

An open port is no answer: Kafka listens seconds before it serves, and another program may hold the port.
No client library is imported here; those stay in the adapters.
"""

from __future__ import annotations

import socket
import struct

HOST = "127.0.0.1"
_TIMEOUT = 2.0  # seconds; a loaded machine takes 0.3 s to answer a first metadata request


def port_open(port: int) -> bool:
    try:
        socket.create_connection((HOST, port), timeout=0.5).close()
    except OSError:
        return False
    return True


def port_free(port: int) -> bool:
    """Can be bound, as the servers bind it: a port whose last connections linger is free."""
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            sock.bind((HOST, port))
        except OSError:
            return False
        return True


def free_ports(count: int) -> list[int]:
    """Ports free at this moment, all different; a caller must be ready to lose the race for one."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for sock in sockets:
            sock.bind((HOST, 0))
        return [int(sock.getsockname()[1]) for sock in sockets]
    finally:
        for sock in sockets:
            sock.close()


def kafka_answers(port: int, cluster_id: str) -> bool:
    """A metadata request (v4) is answered, by this cluster, and its broker takes part (is not fenced)."""
    client = b"streamserve-dev"
    body = struct.pack(">hhih", 3, 4, 1, len(client)) + client + struct.pack(">i?", 0, False)
    try:
        with socket.create_connection((HOST, port), timeout=_TIMEOUT) as sock:
            sock.sendall(struct.pack(">i", len(body)) + body)
            reply = sock.makefile("rb")
            (size,) = struct.unpack(">i", reply.read(4))
            brokers, found = _read_metadata(reply.read(size))
    except (OSError, struct.error, UnicodeDecodeError):
        return False
    return brokers > 0 and found == cluster_id


def _read_metadata(reply: bytes) -> tuple[int, str]:
    """The number of brokers and the cluster id; correlation id and throttle time come before."""
    brokers, at = struct.unpack_from(">i", reply, 8)[0], 12
    for _ in range(brokers):
        _, at = _read_string(reply, at + 4)  # node id, host
        _, at = _read_string(reply, at + 4)  # port, rack
    return brokers, _read_string(reply, at)[0]


def _read_string(reply: bytes, at: int) -> tuple[str, int]:
    (length,) = struct.unpack_from(">h", reply, at)
    end = at + 2 + max(length, 0)  # -1 is null
    return reply[at + 2 : end].decode(), end


def redis_answers(port: int, pid: int | None) -> bool:
    """PING is answered (not while it loads its data), and by this process; None: in a container it has its own pid."""
    try:
        with socket.create_connection((HOST, port), timeout=_TIMEOUT) as sock:
            sock.sendall(b"PING\r\nINFO server\r\nQUIT\r\n")
            reply = sock.makefile("rb").read()
    except OSError:
        return False
    return reply.startswith(b"+PONG\r\n") and (pid is None or f"\nprocess_id:{pid}\r".encode() in reply)
