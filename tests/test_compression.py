"""Codecs of updates: bounds of their errors, lengths by hand, means, and messages that nobody should have sent."""

from __future__ import annotations

import math
import sys
import tracemalloc
import zlib
from collections.abc import Callable
from importlib.util import find_spec

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import linalg

from fedsim.compression import NF4, QSGD, Compression, PowerSGD, Quantize, RandomK, Sign, Sketch, TopK, Uncompressed
from fedsim.compression import bits as packing
from fedsim.compression.entropy import CODERS, pack_symbols, read_symbols, symbols_bytes
from fedsim.compression.hadamard import hadamard, rotate, rotate_back
from fedsim.compression.layout import Layout
from fedsim.compression.nf4 import normal_float
from fedsim.compression.sketch import median
from fedsim.compression.wire import HEADER_BYTES, Reader, seal
from fedsim.privacy import discrete
from fedsim.types import FedsimError, MissingPackageError, Params

HAS_ANS = find_spec("constriction") is not None
ENTROPIES = ["deflate", pytest.param("ans", marks=pytest.mark.skipif(not HAS_ANS, reason="needs constriction"))]

CODECS: dict[str, Callable[[], Compression]] = {
    "none": Uncompressed,
    "quantize": Quantize,
    "quantize of one bit": lambda: Quantize(bits=1, bucket=None),
    "quantize of 8 bits, deflated": lambda: Quantize(bits=8, bucket=None, entropy="deflate"),
    "quantize, rotated": lambda: Quantize(bits=5, bucket=None, rotate=True),
    "quantize, fed back": lambda: Quantize(error_feedback=True),
    "qsgd": QSGD,
    "qsgd, ternary": lambda: QSGD(levels=1, bucket=None),
    "qsgd, rotated and deflated": lambda: QSGD(levels=3, rotate=True, entropy="deflate"),
    "nf4": NF4,
    "topk": lambda: TopK(keep=0.05),
    "topk in float16": lambda: TopK(keep=0.4, values="float16"),
    "all": lambda: TopK(keep=1.0),
    "randomk": RandomK,
    "randomk, fed back": lambda: RandomK(error_feedback=True, values="float16"),
    "sign": Sign,
    "sign in buckets": lambda: Sign(bucket=16),
    "powersgd": lambda: PowerSGD(rank=2),
    "sketch": Sketch,
    "sketch, recovered": lambda: Sketch(rows=4, recover=0.1),
}
if HAS_ANS:
    CODECS["qsgd, by ans"] = lambda: QSGD(entropy="ans")

SHAPES = {"w": torch.Size((10, 30)), "b": torch.Size((7,)), "s": torch.Size(())}


def draw(shapes: dict[str, torch.Size], seed: int = 0, scale: float = 1.0) -> Params:
    generator = torch.Generator().manual_seed(seed)
    return {name: scale * torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def shapes_of(update: Params) -> dict[str, torch.Size]:
    return {name: array.shape for name, array in update.items()}


def through(codec: Compression, update: Params, seed: int = 0, round: int = 1, client: int = 2) -> Params:
    message, _ = codec.encode(update, {}, seed, round, client)
    return codec.decode(message, shapes_of(update))


def flat(arrays: Params) -> np.ndarray:
    return np.concatenate([arrays[name].double().reshape(-1).numpy() for name in sorted(arrays)])


ODD: dict[str, Params] = {
    "random": draw(SHAPES),
    "zeros": {name: torch.zeros(shape) for name, shape in SHAPES.items()},
    "a scalar": {"s": torch.tensor(-2.5)},
    "one by one": {"m": torch.tensor([[3.0]])},
    "an empty array": {"a": torch.zeros(0, 4), "b": torch.tensor([1.0, -2.0])},
    "nothing": {},
    "nothing but an empty array": {"a": torch.zeros(0)},
    "huge": draw(SHAPES, scale=1e26),
    "small": draw(SHAPES, scale=1e-30),
    "denormal": draw(SHAPES, scale=1e-42),
    "one that stands out": {"w": torch.eye(20).reshape(400)[:300] * 1e20 + 1e-20},
    "constant": {"w": torch.full((5, 9), 0.1)},
    "negative": {"w": -torch.rand(33), "x": torch.full((3,), -1e-3)},
    "tensor of four": draw({"k": torch.Size((6, 3, 4, 4))}),
}


@pytest.mark.parametrize("name", CODECS)
def test_whatever_is_encoded_is_decoded_to_its_shapes(name: str) -> None:
    for update in ODD.values():
        assert_goes_through(CODECS[name](), update)


def assert_goes_through(codec: Compression, update: Params) -> None:
    before = {key: array.clone() for key, array in update.items()}
    message, state = codec.encode(update, {}, 0, 1, 2)
    assert isinstance(message, bytes)
    length = codec.expected_bytes(shapes_of(update))
    entropy_coded = getattr(codec, "entropy", "none") != "none"
    assert len(message) == length or (entropy_coded and len(message) < length)
    decoded = codec.decode(message, shapes_of(update))
    assert list(decoded) == list(update) and all(torch.equal(update[key], before[key]) for key in update)
    for key, array in decoded.items():
        assert array.shape == update[key].shape and array.dtype == torch.float32 and array.isfinite().all()
    again, _ = codec.encode(update, {key: array.clone() for key, array in state.items()}, 0, 2, 2)
    assert len(codec.decode(again, shapes_of(update))) == len(update)


def buckets_of(update: Params, size: int | None) -> list[np.ndarray]:
    """The buckets one by one, in the order of `flat`."""
    found = []
    for name in sorted(update):
        array = update[name].double().reshape(-1).numpy()
        step = size or max(len(array), 1)
        found += [array[i : i + step] for i in range(0, len(array), step)]
    return found


BOUNDS: dict[str, tuple[Callable[[], Compression], int | None, Callable[[np.ndarray], float]]] = {
    "one step": (lambda: Quantize(bits=3, bucket=64), 64, lambda v: (v.max() - v.min()) / 7),
    "half a step": (lambda: Quantize(bits=6, bucket=50, error_feedback=True), 50, lambda v: (v.max() - v.min()) / 126),
    "eight bits of an array": (lambda: Quantize(bits=8, bucket=None), None, lambda v: (v.max() - v.min()) / 255),
    "a level of the norm": (lambda: QSGD(levels=7, bucket=100), 100, lambda v: float(np.linalg.norm(v)) / 7),
    "half the largest gap of NF4": (NF4, 64, lambda v: 0.15191 * float(np.abs(v).max())),
    "none at all": (Uncompressed, None, lambda v: 0.0),
}


@pytest.mark.parametrize("bound", BOUNDS)
def test_no_coordinate_errs_by_more_than_its_bucket_allows(bound: str) -> None:
    make, size, allowed = BOUNDS[bound]
    for name, update in ODD.items():
        error = np.abs(flat(through(make(), update)) - flat(update)) if update else np.zeros(0)
        start = 0
        for bucket in buckets_of(update, size):
            rounding = 4e-7 * np.abs(bucket).max() + 3e-45 if allowed(bucket) else 0
            assert error[start : start + len(bucket)].max() <= allowed(bucket) + rounding, name
            start += len(bucket)


@pytest.mark.parametrize(
    ("codec", "length"),
    [  # of SHAPES: 300 + 7 + 1 = 308 coordinates, in three arrays; the header has 8 bytes
        (Uncompressed(), 8 + 308 * 4),
        (Quantize(bits=3, bucket=256), 8 + 4 * 8 + 116),  # 256 + 44, 7 and 1; 924 bits
        (
            Quantize(bits=4, bucket=None, rotate=True),
            8 + 8 + 8 + 154,
        ),  # one vector, one minimum and maximum, and a seed
        (QSGD(levels=7, bucket=512), 8 + 3 * 4 + 154),
        (QSGD(levels=1, bucket=None), 8 + 3 * 4 + 77),
        (QSGD(levels=8, bucket=None), 8 + 3 * 4 + 193),  # 17 symbols: 5 bits
        (NF4(), 8 + 7 * 4 + 154),  # five blocks, and one of each small array
        (Sign(), 8 + 3 * 4 + 39),
        (TopK(keep=0.05), 8 + 5 + 8 + 15 * 4),  # 19 + 15 unary bits, 4 low bits of 15 positions
        (TopK(keep=0.5), 8 + 39 + 154 * 4),  # a bitmap
        (TopK(keep=0.5, values="float16"), 8 + 39 + 4 + 154 * 2),
        (TopK(keep=1.0), 8 + 308 * 4),  # all: no positions
        (RandomK(keep=0.1), 8 + 8 + 31 * 4),
        (PowerSGD(rank=2), 8 + 4 * (2 * (10 + 30) + 8)),
        (Sketch(rows=3, size=0.25), 8 + 8 + 3 * 26 * 4),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Compression) else str(value),
)
def test_lengths_are_those_by_hand(codec: Compression, length: int) -> None:
    codec.check(SHAPES)
    assert codec.expected_bytes(SHAPES) == length == len(codec.encode(draw(SHAPES), {}, 0, 0, 0)[0])


def z_scores(codec: Compression, update: Params, times: int = 1000) -> np.ndarray:
    """(d,) how many standard errors the mean of so many decoded messages is off, coordinate by coordinate."""
    found = np.stack([flat(through(codec, update, round=i)) for i in range(times)])
    spread = found.std(axis=0, ddof=1) / math.sqrt(times)
    return (found.mean(axis=0) - flat(update)) / np.maximum(spread, 1e-6)


SMALL = draw({"m": torch.Size((4, 6)), "v": torch.Size((5,))}, seed=3)


UNBIASED: dict[str, Compression] = {
    "quantize of one bit": Quantize(bits=1, bucket=None),
    "quantize in buckets": Quantize(bits=2, bucket=8),
    "quantize, rotated": Quantize(bits=2, bucket=None, rotate=True),
    "qsgd, ternary": QSGD(levels=1, bucket=None),
    "qsgd in buckets": QSGD(levels=3, bucket=10),
    "randomk": RandomK(keep=0.3),
    "sketch": Sketch(rows=2, size=0.5),
}


@pytest.mark.parametrize("name", UNBIASED)
def test_the_mean_over_many_messages_is_the_update(name: str) -> None:
    assert np.abs(z_scores(UNBIASED[name], SMALL)).max() < 6  # by chance once in ten million times


@pytest.mark.parametrize("codec", [NF4(), Sign(), Quantize(bits=2, error_feedback=True), TopK(keep=0.5)])
def test_a_biased_codec_is_seen_to_be(codec: Compression) -> None:
    assert np.abs(z_scores(codec, SMALL, times=50)).max() > 100


def test_qsgd_keeps_to_the_variance_of_its_lemma() -> None:
    update = draw({"v": torch.Size((64,))}, seed=5)
    squares = [np.square(flat(through(QSGD(4, None), update, round=i)) - flat(update)).sum() for i in range(300)]
    assert np.mean(squares) <= min(64 / 16, 8 / 4) * np.square(flat(update)).sum()
    parts = np.abs(flat(update)) / np.linalg.norm(flat(update)) * 4
    exact = ((parts - np.floor(parts)) * (np.ceil(parts) - parts)).sum() / 16 * np.square(flat(update)).sum()
    assert np.mean(squares) == pytest.approx(exact, rel=0.1)


def test_randomk_errs_as_much_as_is_said() -> None:
    update = draw({"v": torch.Size((100,))}, seed=6)
    squares = [np.square(flat(through(RandomK(0.2), update, round=i)) - flat(update)).sum() for i in range(500)]
    assert np.mean(squares) == pytest.approx(4 * np.square(flat(update)).sum(), rel=0.1)


@pytest.mark.parametrize("width", range(1, 21))
def test_packed_bits_are_those_of_numpy(width: int) -> None:
    for count in (0, 1, 7, 8, 9, 100):
        values = np.random.default_rng(width).integers(0, 2**width, count).astype(np.uint32)
        packed = packing.pack(values, width)
        planes = [(values >> start, min(8, width - start)) for start in range(0, width, 8)]
        bits = [((v[:, None] >> np.arange(w)) & 1).astype(np.uint8).reshape(-1) for v, w in planes]
        assert packed == b"".join(np.packbits(plane, bitorder="little").tobytes() for plane in bits)
        assert len(packed) == packing.packed_bytes(count, width)
        assert np.array_equal(packing.unpack(Reader(packed), count, width), values)


def test_bits_by_hand() -> None:
    assert packing.pack(np.array([1, 2, 3, 4, 5]), 3) == bytes([0b11_010_001, 0b0_101_100_0])
    with pytest.raises(FedsimError, match="beyond its last symbol"):
        packing.unpack(Reader(b"\xff"), 2, 3)


@given(st.integers(1, 5000), st.floats(0, 1), st.integers(0, 2**32))
@settings(max_examples=150, deadline=None)
def test_positions_come_back_in_few_bits(size: int, share: float, seed: int) -> None:
    count = round(share * size)
    positions = np.sort(np.random.default_rng(seed).choice(size, count, replace=False))
    packed = packing.pack_positions(positions, size)
    reader = Reader(packed)
    assert np.array_equal(packing.read_positions(reader, size, count), positions)
    reader.end()
    assert len(packed) == packing.positions_bytes(size, count) <= (size + 7) // 8 + 1
    if count:
        assert len(packed) <= count * (2 + math.log2(size / count)) / 8 + 4  # each plane ends on a byte
    assert len(packed) <= 4 * count + 1


@pytest.mark.parametrize("entropy", ENTROPIES)
@pytest.mark.parametrize("count", [0, 1, 5, 20_000])
def test_entropy_coding_gives_the_symbols_back(entropy: str, count: int) -> None:
    generator = np.random.default_rng(0)
    for chances in ([1.0, 0, 0], [0.9, 0.09, 0.01], [1 / 3] * 3, [0.0, 0, 1]):
        symbols = generator.choice(3, count, p=chances).astype(np.uint8)
        coded = pack_symbols(symbols, 3, entropy)
        assert len(coded) <= symbols_bytes(count, 3, entropy)
        assert np.array_equal(read_symbols(Reader(coded), count, 3, entropy), symbols)


@pytest.mark.parametrize("entropy", ENTROPIES)
def test_rare_symbols_are_coded_in_little_whatever_their_number(entropy: str) -> None:
    for count in range(2000, 2600):
        symbols = np.zeros(count, dtype=np.uint8)
        symbols[7::97] = 3
        assert len(pack_symbols(symbols, 16, entropy)) < count / 6 + 100


@pytest.mark.skipif(not HAS_ANS, reason="needs constriction")
def test_ans_is_within_a_thousandth_of_the_entropy() -> None:
    chances = np.array([0.01, 0.95, 0.04])
    symbols = np.random.default_rng(1).choice(3, 100_000, p=chances).astype(np.uint8)
    seen = np.bincount(symbols) / len(symbols)
    entropy = -(seen * np.log2(seen)).sum() * len(symbols) / 8
    assert entropy <= len(pack_symbols(symbols, 3, "ans")) <= 1.001 * entropy + 1 + 6 + 8  # flag, table, state


def test_a_bomb_is_not_inflated() -> None:
    coder = zlib.compressobj(9, zlib.DEFLATED, -15)
    bomb = b"\1" + coder.compress(bytes(20_000_000)) + coder.flush()
    tracemalloc.start()
    with pytest.raises(FedsimError, match="another length"):
        read_symbols(Reader(bomb), 1000, 3, "deflate")
    assert tracemalloc.get_traced_memory()[1] < 1_000_000
    tracemalloc.stop()


def test_a_missing_entropy_coder_is_told_before_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "constriction", None)
    with pytest.raises(MissingPackageError, match="pip install"):
        QSGD(entropy="ans")


@pytest.mark.parametrize("size", [1, 2, 8, 64, 512])
def test_the_transform_is_hadamards_matrix(size: int) -> None:
    vector = np.random.default_rng(size).standard_normal(size)
    assert np.allclose(hadamard(vector), linalg.hadamard(size) @ vector / math.sqrt(size))
    padded = discrete.rotate(torch.from_numpy(vector), torch.ones(size, dtype=torch.float64)).numpy()
    assert np.array_equal(hadamard(vector), padded)  # bit by bit what privacy=distributed rotates with


@pytest.mark.parametrize("size", [0, 1, 2, 3, 7, 100, 1023, 1025])
def test_a_rotation_keeps_norms_and_can_be_undone(size: int) -> None:
    vector = np.random.default_rng(size).standard_normal(size).astype(np.float32)
    turned = rotate(vector, 11)
    assert np.linalg.norm(turned) == pytest.approx(np.linalg.norm(vector), rel=1e-5)
    assert np.allclose(rotate_back(turned, 11), vector, atol=1e-5)
    if size > 3:
        assert not np.allclose(rotate(vector, 12), turned)


def test_a_rotation_spreads_what_stands_out() -> None:
    spike = {"v": torch.zeros(1000)}
    spike["v"][777] = 1.0
    assert np.abs(rotate(spike["v"].numpy(), 5)).max() < 0.2
    dense = {"v": spike["v"] * 10 + torch.randn(1000, generator=torch.Generator().manual_seed(0))}
    plain, turned = (np.square(flat(through(Quantize(2, None, r), dense)) - flat(dense)).sum() for r in (False, True))
    assert turned < plain / 2


def test_levels_of_normal_float_are_the_published_ones() -> None:
    lower = [-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635]
    middle = [-0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725]
    upper = [0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0]
    assert np.allclose(normal_float(), lower + middle + upper, atol=1e-6)


def test_nf4_chooses_the_nearest_level() -> None:
    update = {"v": torch.linspace(-2, 2, 64)}
    nearest = np.abs(update["v"].numpy()[:, None] / 2 - normal_float()).argmin(axis=1)
    assert np.allclose(flat(through(NF4(), update)), 2 * normal_float()[nearest])


@pytest.mark.parametrize("values", ["float32", "float16"])
def test_topk_sends_the_largest_and_nothing_else(values: str) -> None:
    update = draw(SHAPES, seed=8)
    found, given = flat(through(TopK(keep=0.1, values=values), update)), flat(update)
    assert set(np.flatnonzero(found)) == set(np.argsort(-np.abs(given))[:31])
    kept = found != 0
    assert np.allclose(found[kept], given[kept], rtol=0 if values == "float32" else 2**-10, atol=0)


def test_signs_are_scaled_by_the_mean_magnitude() -> None:
    found = through(Sign(), {"a": torch.tensor([1.0, -2.0, 0.0, 5.0]), "b": torch.tensor([-1e-3])})
    assert found["a"].tolist() == [2.0, -2.0, 2.0, 2.0] and found["b"].tolist() == pytest.approx([-1e-3])


def test_sketches_add_up_and_find_what_stands_out() -> None:
    first, second = draw(SHAPES, 1), draw(SHAPES, 2)
    both = {name: first[name] + second[name] for name in SHAPES}
    codec = Sketch(rows=3, size=0.3)
    apart = [flat(through(codec, update, client=client)) for client, update in enumerate((first, second))]
    assert np.allclose(sum(apart), flat(through(codec, both, client=5)), atol=1e-4)
    heavy = {"v": 0.01 * draw({"v": torch.Size((5000,))})["v"]}
    heavy["v"][[3, 99, 1234, 4000, 4999]] += torch.tensor([5.0, -4.0, 6.0, 7.0, -8.0])
    found = through(Sketch(rows=7, size=0.5, recover=0.001), heavy)["v"]
    assert found.nonzero().reshape(-1).tolist() == [3, 99, 1234, 4000, 4999]
    assert torch.allclose(found[[3, 99, 1234, 4000, 4999]], heavy["v"][[3, 99, 1234, 4000, 4999]], atol=0.2)


@pytest.mark.parametrize("rows", range(1, 9))
def test_the_median_is_numpys(rows: int) -> None:
    table = np.random.default_rng(rows).standard_normal((rows, 200)).astype(np.float32)
    assert np.allclose(median(list(table)), np.median(table, axis=0))


RANDOM = [name for name in CODECS if name.startswith(("quantize", "qsgd", "randomk", "powersgd", "sketch"))]


@pytest.mark.parametrize("name", CODECS)
def test_a_message_depends_on_seed_round_client_and_nothing_else(name: str) -> None:
    codec, update = CODECS[name](), draw(SHAPES)
    message = codec.encode(update, {}, 3, 4, 5)[0]
    other_order = {key: update[key] for key in reversed(update)}
    torch.manual_seed(99)
    assert message == CODECS[name]().encode(other_order, {}, 3, 4, 5)[0]
    others = [codec.encode(update, {}, *words)[0] for words in ((2, 4, 5), (3, 5, 5), (3, 4, 6))]
    if name in RANDOM and name != "quantize, fed back":
        assert message not in others[:2] and (message != others[2] or name.startswith("sketch"))
    else:
        assert others == [message] * 3


def assert_refused_or_finite(codec: Compression, message: bytes, shapes: dict[str, torch.Size]) -> None:
    try:
        found = codec.decode(message, shapes)
    except FedsimError:
        return
    assert shapes_of(found) == shapes and all(array.isfinite().all() for array in found.values())


FORGED = {"w": torch.Size((4, 9)), "b": torch.Size((3,))}


@pytest.mark.parametrize("name", CODECS)
@given(data=st.data())
@settings(max_examples=25, deadline=None)
def test_a_forged_message_is_refused_or_decoded_to_finite_numbers(name: str, data: st.DataObject) -> None:
    codec = CODECS[name]()
    layout = Layout.of(FORGED)
    payload = bytearray(codec.encode(draw(FORGED), {}, 0, 0, 0)[0][HEADER_BYTES:])
    for place in data.draw(st.lists(st.integers(0, len(payload) - 1), max_size=8)):
        payload[place] = data.draw(st.sampled_from([0, 1, 127, 128, 255]) | st.integers(0, 255))
    cut = data.draw(st.integers(0, len(payload)))
    forged = (bytes(payload), bytes(payload[:cut]), data.draw(st.binary(max_size=400)), bytes(payload) + b"\0")
    for body in forged:
        assert_refused_or_finite(codec, seal(codec.number, codec.agreed(layout), body), FORGED)


@pytest.mark.parametrize("name", CODECS)
def test_a_damaged_message_is_refused(name: str) -> None:
    codec = CODECS[name]()
    message = codec.encode(draw(FORGED), {}, 0, 0, 0)[0]
    damaged = [message[:cut] for cut in range(len(message))] + [message + b"\0"]
    flipped = [bytes([byte ^ 1 << place % 8]) for place, byte in enumerate(message)]
    damaged += [message[:place] + flip + message[place + 1 :] for place, flip in enumerate(flipped)]
    for wrong in damaged:
        with pytest.raises(FedsimError, match="compressed message"):
            codec.decode(wrong, FORGED)


def test_a_message_for_another_model_or_other_keys_is_refused() -> None:
    message = Quantize(bits=4).encode(draw(SHAPES), {}, 0, 0, 0)[0]
    others: list[tuple[Compression, dict[str, torch.Size]]] = [
        (Quantize(bits=4), {**SHAPES, "s": torch.Size((1,))}),
        (Quantize(bits=4, bucket=255), SHAPES),
    ]
    others += [(Quantize(bits=4), {"v": SHAPES["w"], "b": SHAPES["b"], "s": SHAPES["s"]}), (QSGD(), SHAPES)]
    for codec, shapes in others:
        with pytest.raises(FedsimError, match="run both sides with the same model"):
            codec.decode(message, shapes)
    with pytest.raises(FedsimError, match="not bytes"):
        Quantize().decode("fs", SHAPES)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", CODECS)
def test_what_is_not_a_number_is_not_sent(name: str) -> None:
    for value in (math.nan, math.inf, -math.inf, 3e38):
        with pytest.raises(FedsimError, match=r"lower client\.lr"):
            CODECS[name]().encode({**draw(SHAPES), "s": torch.tensor(value)}, {}, 0, 0, 0)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Quantize(bits=0), "compression.bits=0"),
        (lambda: Quantize(bits=9), "compression.bits=9"),
        (lambda: Quantize(bucket=0), "compression.bucket=0"),
        (lambda: Quantize(rotate="yes"), "compression.rotate=yes"),  # type: ignore[arg-type]
        (lambda: Quantize(entropy="zip"), "compression.entropy=zip"),
        (lambda: Quantize(bits=2, error_feedback=True), "needs buckets below 18"),
        (lambda: QSGD(levels=0), "compression.levels=0"),
        (lambda: NF4(error_feedback=1), "compression.error_feedback=1"),  # type: ignore[arg-type]
        (lambda: NF4(down_bits=17), "compression.down_bits=17"),
        (lambda: TopK(keep=0), "compression.keep=0"),
        (lambda: TopK(keep=1.5), "compression.keep=1.5"),
        (lambda: TopK(keep=1e-4), "at least 0.0032"),
        (lambda: RandomK(values="float64"), "compression.values=float64"),
        (lambda: PowerSGD(rank=0), "compression.rank=0"),
        (lambda: PowerSGD(rank=8), "compression.rank=8 shortens none"),
        (lambda: Sketch(rows=0), "compression.rows=0"),
        (lambda: Sketch(size=0.01), "compression.size=0.01"),
        (lambda: Sketch(recover=2), "compression.recover=2"),
    ],
)
def test_keys_that_make_no_sense_are_refused(make: Callable[[], Compression], words: str) -> None:
    with pytest.raises(FedsimError, match=words):
        make().check(SHAPES)


def test_every_codec_takes_a_model_and_says_what_a_user_should_know() -> None:
    shapes = {"w": torch.Size((64, 128)), "b": torch.Size((64,))}
    for make in CODECS.values():
        make().check(shapes)
    assert Quantize().notes(shapes) == [] == Uncompressed().notes(shapes)
    assert "1 of 2 arrays, 64 coordinates in all" in PowerSGD().notes(shapes)[0]
    (told,) = Quantize(bits=8, bucket=1).notes(
        shapes
    )  # eight bytes of minimum and maximum beside each coordinate's own
    assert told == "a compressed message takes 74,312 bytes, and the 8,256 coordinates as they are 33,024"


def model() -> Params:
    return {
        "w": draw(SHAPES)["w"],
        "half": draw({"h": torch.Size((9,))}, 4)["h"].bfloat16(),
        "double": draw({"d": torch.Size(())}, 5)["d"].double(),
        "batches": torch.tensor(12_345_678_901),
        "mask": torch.tensor([[True, False], [False, True]]),
        "none": torch.zeros(0, 2),
    }


@pytest.mark.parametrize("bits", [1, 2, 7, 8, 9, 16])
def test_a_model_comes_down_within_a_step_and_its_integers_exactly(bits: int) -> None:
    codec, arrays = Uncompressed(down_bits=bits), model()
    assert codec.down is not None and not codec.compresses
    message = codec.encode_model(arrays, 0, 3)
    assert len(message) == codec.down.expected_bytes(arrays)
    found = codec.decode_model(message, {name: torch.zeros_like(array) for name, array in arrays.items()})
    assert list(found) == list(arrays)
    for name, array in arrays.items():
        assert found[name].dtype == array.dtype and found[name].shape == array.shape
        if not array.is_floating_point():
            assert torch.equal(found[name], array)
        elif array.numel():
            step = float(array.max() - array.min()) / (2**bits - 1)
            assert float((found[name].double() - array.double()).abs().max()) <= step + 2e-7 + 0.02 * (name == "half")
    assert message == codec.encode_model(dict(reversed(arrays.items())), 0, 3)
    assert message != codec.encode_model(arrays, 0, 4)


def test_a_models_rounding_keeps_its_mean() -> None:
    codec, arrays = QSGD(down_bits=2), {"w": draw(SHAPES)["w"][:2]}
    found = np.stack([flat(codec.decode_model(codec.encode_model(arrays, 0, i), arrays)) for i in range(1000)])
    spread = np.maximum(found.std(axis=0, ddof=1) / math.sqrt(1000), 1e-6)
    assert np.abs((found.mean(axis=0) - flat(arrays)) / spread).max() < 6


@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_a_forged_model_is_refused_or_finite(data: st.DataObject) -> None:
    codec, arrays = Uncompressed(down_bits=5), {"w": torch.ones(3, 4), "n": torch.tensor(3)}
    assert codec.down is not None
    payload = bytearray(codec.encode_model(arrays, 0, 0)[HEADER_BYTES:])
    for place in data.draw(st.lists(st.integers(0, len(payload) - 1), max_size=5)):
        payload[place] = data.draw(st.integers(0, 255))
    for body in (bytes(payload), bytes(payload[: data.draw(st.integers(0, 20))]), data.draw(st.binary(max_size=60))):
        try:
            found = codec.decode_model(seal(255, codec.down.agreed(arrays), body), arrays)
        except FedsimError:
            continue
        assert found["w"].isfinite().all() and found["w"].shape == (3, 4) and found["n"].shape == ()


def test_a_model_that_cannot_be_sent_is_refused() -> None:
    with pytest.raises(FedsimError, match=r"compression\.down_bits cannot encode"):
        Uncompressed(down_bits=8).encode_model({"w": torch.tensor([1.0, math.inf])}, 0, 0)
    with pytest.raises(FedsimError, match=r"compression\.down_bits=null"):
        TopK().encode_model(model(), 0, 0)


def test_every_entropy_coder_is_tested() -> None:
    assert list(CODERS) == ["none", "deflate", "ans"]
