"""What every simulated grid shares: node ids are client ids, messages go out in chunks, replies come back one by one.

A grid only moves messages. The chunk is the unit of summing: it is cut from the cohort by the configuration alone, so
where and in which order chunks are trained changes no bit of the result. Chunks that answer with a sum are added in their
order as they come, and the server is shown one reply for all of them; for all of each round, where clients were sent the
models of several.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing
from itertools import groupby, pairwise

from flwr.app import ConfigRecord, Message, MessageType, RecordDict
from flwr.serverapp import Grid

from fedsim import flower
from fedsim.checks import require_int
from fedsim.flower import Run
from fedsim.grids.states import MemoryStates
from fedsim.replies import Total

Chunk = list[Message]
"""Messages with the same content, to different clients."""


class SimulationGrid(Grid):
    """A Flower Grid over simulated clients 0, 1, 2 ...

    chunk_size: how many clients train on one node at a time and, where the algorithm allows, reply with one sum.
    on_progress: told (clients done, clients asked) as a round goes on. name: what a user types for the grid.
    """

    name = "inprocess"

    def __init__(self, chunk_size: int) -> None:
        require_int("grid.chunk_size", chunk_size, low=1)
        self.chunk_size = chunk_size
        self.states = MemoryStates()
        self.on_progress: Callable[[int, int], None] = lambda done, asked: None
        self._sent = 0
        self._run = flower.empty_run()

    @property
    def shards(self) -> int:
        """In how many pieces work that any node can do is best sent; it changes no bit of the result."""
        return 1

    @abstractmethod
    def run_chunks(self, chunks: list[Message]) -> Generator[Message, None, None]:
        """Run each chunk's message on a node and give the replies in the order of the chunks; it may be broken off."""

    @property
    def workers(self) -> int:
        """Chunks that may train at the same time."""
        return 1

    @property
    def peak_mb(self) -> float:
        """Memory of its workers at their largest, beside this process's; known once it is closed."""
        return 0.0

    def close(self) -> None:
        """Let go of workers; a grid without any has nothing to do."""

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """Run the messages' clients; replies come in the order of rounds and client ids, failures as Flower's error replies."""
        ordered = sorted(messages, key=lambda message: (_round(message), message.metadata.dst_node_id))
        for message in ordered:
            self._sent += 1
            flower.stamp(message, self._sent)
        kind = ordered[0].metadata.message_type if ordered else ""
        trains = not kind.startswith(MessageType.EVALUATE)
        chunks = list(cut(ordered, self.chunk_size if trains else evaluation_chunk(len(ordered))))
        replies: list[Message] = []
        totals: dict[int, Total] = {}
        done = 0
        with closing(self.run_chunks([self._to_node(chunk) for chunk in chunks])) as answers:
            for chunk in chunks:  # not by zip, which would keep each answer until the next one is there
                reply = next(answers)
                if reply.has_content() and flower.ARRAYS in reply.content:  # a sum: it is added, and let go
                    totals.setdefault(_round(chunk[0]), Total(_fold(chunk), chunk[0])).add(reply.content)
                replies += split_reply(chunk, reply)
                del reply
                done += len(chunk)
                if kind != flower.EVALUATE_SHARD:  # which is for no client
                    self.on_progress(done, len(ordered))
            next(answers, None)  # it ends by itself; one that is closed has been broken off
        return [*(total.reply() for total in totals.values()), *replies]

    def _to_node(self, chunk: Chunk) -> Message:
        """One message for all clients of a chunk; its content is the clients' own, plus the list of their ids."""
        first = chunk[0]
        if first.metadata.message_type == flower.EVALUATE_SHARD:
            return first
        cohort = ConfigRecord({"clients": [m.metadata.dst_node_id for m in chunk], "fold": _fold(chunk)})
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


def evaluation_chunk(asked: int) -> int:
    """Clients that a node evaluates together: such that there are 16 chunks, which keep 2 to 8 workers busy."""
    return -(-asked // 16)


def cut(messages: list[Message], size: int) -> Iterator[Chunk]:
    """Runs of messages that carry the very same content, each in as few chunks of at most `size` as there can be.

    Chunks of a run differ by one client at most, so that none is left over that keeps one worker busy while others wait.
    """
    for _, group in groupby(messages, key=lambda message: id(message.content)):
        run = list(group)
        number = -(-len(run) // size)
        ends = [-(-len(run) * place // number) for place in range(number + 1)]  # the larger ones first
        yield from (run[start:end] for start, end in pairwise(ends))


def split_reply(chunk: Chunk, reply: Message) -> list[Message]:
    """A node's reply as what the chunk's clients say, but for a sum: a reply each, or an error for each that raised."""
    if reply.has_error():
        return [flower.failure_reply(message, reply.error.reason or "") for message in chunk]
    content = reply.content
    to = {message.metadata.dst_node_id: message for message in chunk}
    record = flower.record_of(content, flower.CLIENTS)
    failed: dict[int, str] = dict(zip(flower.column(record, "failed"), flower.column(record, "reasons"), strict=True))
    replies = [flower.failure_reply(to[client], reason) for client, reason in failed.items()]
    if flower.ARRAYS in content:
        return replies
    if flower.METRICS in content:
        return [Message(content, reply_to=chunk[0]), *replies]
    for client in flower.column(record, "id"):
        names = [name for name in content if name.endswith(f"/{client}")]
        own = RecordDict({name.partition("/")[0]: content[name] for name in names})
        own[flower.CLIENTS] = _row(record, client)
        replies.append(Message(own, reply_to=to[client]))
    return sorted(replies, key=lambda message: message.metadata.src_node_id)


def _fold(chunk: Chunk) -> str:
    """The metric by which a chunk's updates are weighted and summed; empty for none."""
    return str(flower.record_of(chunk[0].content, flower.CONFIG).get("fold", ""))


def _round(message: Message) -> int:
    """The round whose model a message carries; 0 where it says none."""
    return int(flower.record_of(message.content, flower.CONFIG).get("server-round", 0))  # type: ignore[arg-type]


def _row(record: ConfigRecord, client: int) -> ConfigRecord:
    position = flower.column(record, "id").index(client)
    names = [name for name in record if name not in ("failed", "reasons")]
    return ConfigRecord({name: [flower.column(record, name)[position]] for name in names})
