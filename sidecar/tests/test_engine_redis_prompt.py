"""Answers that are waited for where the question was sent: who is waited for, and that crowds and slow servers are not."""

import asyncio
import socket

import pytest
from jfs.meta.engines.redis import prompt
from jfs.meta.engines.redis.connection import Connection, pack
from jfs.meta.engines.redis.prompt import Prompt


class OneSocket(asyncio.Transport):
    def __init__(self, sock: socket.socket, *, tls: bool = False) -> None:
        super().__init__({"socket": sock, **({"ssl_object": object()} if tls else {})})


@pytest.fixture
def ends() -> "tuple[socket.socket, socket.socket]":
    return socket.socketpair()


def close(ends: "tuple[socket.socket, socket.socket]") -> None:
    for end in ends:
        end.close()


def test_a_crowd_is_not_waited_for_and_a_single_caller_is_again(ends: "tuple[socket.socket, socket.socket]") -> None:
    one = Prompt(OneSocket(ends[0]))
    asked = [one.waits() for _ in range(prompt._SOUNDING - 1)]
    assert all(asked)
    assert not one.waits()  # sounding
    one.joined = True
    assert not any(one.waits() for _ in range(prompt._CROWD))  # the last of them sounds again, and nobody joins
    assert one.waits()
    close(ends)


def test_a_server_that_is_late_again_and_again_is_left_alone_for_longer_each_time(
    ends: "tuple[socket.socket, socket.socket]",
) -> None:
    one = Prompt(OneSocket(ends[0]))
    assert [one.answered() for _ in range(prompt._PATIENCE)] == [-1] * prompt._PATIENCE
    passed = 0
    while not one.waits():
        passed += 1
    assert passed == prompt._LATE_FIRST
    assert one.answered() == -1
    passed = 0
    while not one.waits():
        passed += 1
    assert passed == 2 * prompt._LATE_FIRST
    ends[1].send(b"x")
    assert one.answered() == ends[0].fileno()
    close(ends)


def test_encrypted_connections_are_never_read_past_tls(ends: "tuple[socket.socket, socket.socket]") -> None:
    assert not Prompt(OneSocket(ends[0], tls=True)).waits()
    close(ends)


async def test_the_answer_is_there_before_the_caller_looks(ends: "tuple[socket.socket, socket.socket]") -> None:
    ours, theirs = ends
    ours.setblocking(False)
    loop = asyncio.get_running_loop()
    transport, connection = await loop.create_connection(lambda: Connection("test", 5.0, 5.0), sock=ours)
    theirs.sendall(b"+PONG\r\n:2\r\n")  # as a server that answers at once
    answer = connection.request(pack((b"PING",)) * 2, 2)
    assert answer.done()
    assert answer.result() == [b"PONG", 2]
    assert theirs.recv(1024) == pack((b"PING",)) * 2
    theirs.sendall(b"$3\r\nab")  # half of it
    late = connection.request(pack((b"PING",)), 1)
    assert not late.done()
    theirs.sendall(b"c\r\n")
    assert await late == [b"abc"]
    transport.close()
    await connection.close()
    theirs.close()
