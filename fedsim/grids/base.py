"""What every simulated grid shares: node ids are client ids, messages go out in chunks, replies come back one by one.

A grid only moves messages. The chunk is the unit of summing: it is cut from the cohort by the configuration alone, so
where and in which order chunks are trained changes no bit of the result.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from flwr.app import ConfigRecord, Message, RecordDict
from flwr.serverapp import Grid

from fedsim import flower
from fedsim.checks import require_int
from fedsim.flower import Run
from fedsim.types import Params

Chunk = list[Message]
"""Messages with the same content, to different clients."""


class MemoryStates:
    """Clients' state in this process. What a round changes is kept only once the round is committed: one that is broken
    off leaves nothing behind in a checkpoint.
    """

    def __init__(self) -> None:
        self.committed: dict[int, Params] = {}
        self._pending: dict[int, Params] = {}
        self._memories: dict[int, dict[str, Any]] = {}

    def get(self, client: int) -> Params:
        """The newest: of the round under way where the client took part in it."""
        return self._pending.get(client) or self.committed.get(client, {})

    def put(self, client: int, state: Params) -> None:
        """Keep, once the round that is under way is over."""
        if state:
            self._pending[client] = {name: array.cpu() for name, array in state.items()}

    def memory(self, client: int) -> dict[str, Any]:
        """What a client keeps for a conversation within a round (keys, shares); never in a checkpoint."""
        return self._memories.setdefault(client, {})

    def remember(self, client: int, memory: dict[str, Any]) -> None:
        """It is kept already."""

    def commit(self) -> None:
        """The round is over: its states count."""
        self._memories.clear()
        self.committed.update(self._pending)
        self._pending.clear()


class SimulationGrid(Grid):
    """A Flower Grid over simulated clients 0, 1, 2 ...

    chunk_size: how many clients train on one node at a time and, where the algorithm allows, reply with one mean.
    on_progress: told (clients done, clients asked) as a round goes on.
    """

    def __init__(self, chunk_size: int) -> None:
        require_int("grid.chunk_size", chunk_size, low=1)
        self.chunk_size = chunk_size
        self.states = MemoryStates()
        self.on_progress: Callable[[int, int], None] = lambda done, asked: None
        self._sent = 0
        self._run = flower.empty_run()

    @abstractmethod
    def run_chunks(self, chunks: list[Message]) -> Iterator[Message]:
        """Run each chunk's message on a node and give the replies in the order of the chunks."""

    def close(self) -> None:
        """Let go of workers; a grid without any has nothing to do."""

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """Run the messages' clients; replies come in the order of client ids, failures as Flower's error replies."""
        ordered = sorted(messages, key=lambda message: message.metadata.dst_node_id)
        for message in ordered:
            self._sent += 1
            flower.stamp(message, self._sent)
        chunks = list(cut(ordered, self.chunk_size))
        replies: list[Message] = []
        done = 0
        for chunk, reply in zip(chunks, self.run_chunks([self._to_node(chunk) for chunk in chunks]), strict=True):
            replies += split_reply(chunk, reply)
            done += len(chunk)
            self.on_progress(done, len(ordered))
        return replies

    def _to_node(self, chunk: Chunk) -> Message:
        """One message for all clients of a chunk; its content is the clients' own, plus the list of their ids."""
        first = chunk[0]
        config = flower.record_of(first.content, flower.CONFIG)
        cohort = ConfigRecord({"clients": [m.metadata.dst_node_id for m in chunk], "fold": str(config.get("fold", ""))})
        content = RecordDict({**first.content, flower.COHORT: cohort})
        message = Message(content, first.metadata.dst_node_id, first.metadata.message_type)
        flower.stamp(message, self._sent)
        return message

    # The rest of Flower's interface. Node ids are the caller's business: a strategy is shown the cohort (server.py).
    def set_run(self, run: Run) -> None:
        """See Grid."""
        self._run = run

    @property
    def run(self) -> Run:
        """See Grid."""
        return self._run

    def get_node_ids(self) -> Iterable[int]:
        """None of its own: clients are made when sampled."""
        return []

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        """See Grid."""
        return Message(content, dst_node_id, message_type, group_id=group_id, ttl=ttl)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Rounds here are synchronous: use `send_and_receive`."""
        raise NotImplementedError("a simulated grid answers in send_and_receive")

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Rounds here are synchronous: use `send_and_receive`."""
        raise NotImplementedError("a simulated grid answers in send_and_receive")


def cut(messages: list[Message], size: int) -> Iterator[Chunk]:
    """Runs of messages that carry the very same content, at most `size` each."""
    chunk: Chunk = []
    for message in messages:
        if chunk and (len(chunk) == size or message.content is not chunk[0].content):
            yield chunk
            chunk = []
        chunk.append(message)
    if chunk:
        yield chunk


def split_reply(chunk: Chunk, reply: Message) -> list[Message]:
    """A node's reply as what the chunk's clients say: one mean for all, or a reply each; an error for each that raised."""
    if reply.has_error():
        return [flower.failure_reply(message, reply.error.reason or "") for message in chunk]
    content = reply.content
    to = {message.metadata.dst_node_id: message for message in chunk}
    record = flower.record_of(content, flower.CLIENTS)
    failed: dict[int, str] = dict(zip(flower.column(record, "failed"), flower.column(record, "reasons"), strict=True))
    replies = [flower.failure_reply(to[client], reason) for client, reason in failed.items()]
    if flower.METRICS in content:
        return [Message(content, reply_to=chunk[0]), *replies]
    for client in flower.column(record, "id"):
        names = [name for name in content if name.endswith(f"/{client}")]
        own = RecordDict({name.partition("/")[0]: content[name] for name in names})
        own[flower.CLIENTS] = _row(record, client)
        replies.append(Message(own, reply_to=to[client]))
    return sorted(replies, key=lambda message: message.metadata.src_node_id)


def _row(record: ConfigRecord, client: int) -> ConfigRecord:
    position = flower.column(record, "id").index(client)
    names = [name for name in record if name not in ("failed", "reasons")]
    return ConfigRecord({name: [flower.column(record, name)[position]] for name in names})
