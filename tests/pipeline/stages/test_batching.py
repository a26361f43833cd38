"""Which rows share a batch, and how many rows are let in."""

import asyncio

import pyarrow as pa
import pytest

from pipeline.stages.batching import Batching, Room

SMALL, LARGE = b"x" * 1000, b"x" * (1 << 20)
LARGE_BINARY = pa.large_binary()
STRUCT = pa.struct([("bytes", pa.large_binary()), ("path", pa.string())])


def batches(media, kind=LARGE_BINARY, *, num_rows=1, num_small_rows=4):
    table = pa.table({"row_id": [str(n) for n in range(len(media))], "m": pa.array(media, kind)})
    batching = Batching(num_rows=num_rows, num_small_rows=num_small_rows)
    found = [[int(i) for i in part["row_id"].to_pylist()] for part in batching.cut(table, "m")]
    assert [number for part in found for number in part] == list(range(len(media)))
    sliced = batching.cut(pa.concat_tables([table, table]).slice(len(media)), "m")
    assert [part.num_rows for part in sliced] == [len(part) for part in found]  # also of a view
    return found


@pytest.mark.parametrize(
    ("media", "kind", "expected"),
    [
        pytest.param([SMALL] * 6, LARGE_BINARY, [[0, 1, 2, 3], [4, 5]], id="small ones together"),
        pytest.param([LARGE] * 3, LARGE_BINARY, [[0], [1], [2]], id="large ones alone"),
        pytest.param(
            [SMALL, SMALL, LARGE, SMALL, SMALL],
            LARGE_BINARY,
            [[0, 1], [2], [3, 4]],
            id="a large one between",
        ),
        pytest.param([LARGE[: 1 << 19]] * 3, LARGE_BINARY, [[0], [1], [2]], id="too much in all"),
        pytest.param([None, None], LARGE_BINARY, [[0, 1]], id="null"),
        pytest.param(["a.mp4", "b.mp4"], pa.string(), [[0], [1]], id="paths"),
        pytest.param([["a.mp4"], ["b"], []], pa.list_(pa.string()), [[0], [1], [2]], id="lists"),
        pytest.param(
            [{"bytes": SMALL, "path": "a"}, {"bytes": SMALL, "path": None}],
            STRUCT,
            [[0, 1]],
            id="structs with bytes",
        ),
        pytest.param(
            [{"bytes": SMALL, "path": "a"}, {"bytes": None, "path": "b"}],
            STRUCT,
            [[0], [1]],
            id="a struct with a path alone",
        ),
        pytest.param([[SMALL], [SMALL, SMALL]], pa.list_(LARGE_BINARY), [[0, 1]], id="lists"),
        pytest.param([["a.png"], []], pa.list_(pa.string()), [[0], [1]], id="a list of paths"),
        pytest.param([], LARGE_BINARY, [], id="no rows"),
    ],
)
def test_rows_share_a_batch_while_their_media_are_small(media, kind, expected):
    assert batches(media, kind) == expected


def test_paths_need_not_be_text():
    paths = pa.array([b"caf\xe9.mp4", b"b.mp4"])
    table = pa.table({"m": pa.Array.from_buffers(pa.string(), 2, paths.buffers())})

    found = Batching(num_rows=1, num_small_rows=4).cut(table, "m")
    assert [part.num_rows for part in found] == [1, 1]


def test_large_rows_share_a_batch_where_there_are_very_many():
    assert batches([LARGE] * 5, num_rows=2) == [[0, 1], [2, 3], [4]]


def test_batches_enter_in_order_while_there_is_room():
    async def main() -> None:
        room, log = Room(4), []

        async def batch(name: str, num_rows: int, end: asyncio.Event) -> None:
            async with room.hold(num_rows):
                log.append(name)
                await end.wait()

        ends = {name: asyncio.Event() for name in "abcd"}
        tasks = [
            asyncio.create_task(batch(name, num_rows, ends[name]))
            for name, num_rows in {"a": 3, "b": 9, "c": 1, "d": 3}.items()
        ]
        await asyncio.sleep(0.01)
        assert log == ["a"]  # b needs all room, and c would have some but waits behind it
        ends["a"].set()
        await asyncio.sleep(0.01)
        assert log == ["a", "b"]
        tasks[1].cancel()  # gives back what it has
        await asyncio.sleep(0.01)
        assert log == ["a", "b", "c", "d"]
        for end in ends.values():
            end.set()
        await asyncio.gather(*tasks, return_exceptions=True)

    asyncio.run(main())
