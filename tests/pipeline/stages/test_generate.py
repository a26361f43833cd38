"""The generate stage on groups that die as they are told to; no Ray runs."""

import asyncio
import pickle
from contextlib import asynccontextmanager
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest

from model.engine.sequence import Completion, FinishReason, SamplingParams
from model.inputs.prompt import Prompt
from parallel.groups.errors import DeadGroupError, GroupError, MovedGroupError
from parallel.ranks.requests import Failure, Outcome, Request
from pipeline.output.poison import GROUPS
from pipeline.prompts.named_answers import named_answer_fields
from pipeline.prompts.named_prompts import NamedPrompt
from pipeline.prompts.prompt_columns import decode_prompt, encode_prompt
from pipeline.schema import PREPARED_FIELDS, RESULT_FIELDS
from pipeline.stages.generate import Generate

SAMPLING = SamplingParams(max_tokens=5, seed=99)


class Groups:
    """One group that `answer`s or dies, and notes who was in it."""

    def __init__(self, answer):
        self.answer = answer
        self.leases = []  # (row ids, tokens, alone), in order
        self.sets = []  # row ids that went to one rank together
        self.is_exclusive = False

    @asynccontextmanager
    async def lease(self, num_tokens, *, exclusive=False):
        assert not self.is_exclusive
        self.is_exclusive = exclusive
        lease = Lease(self)
        yield lease
        self.is_exclusive = False
        self.leases.append((lease.rows, num_tokens, exclusive))


class Lease:
    def __init__(self, groups):
        self.groups = groups
        self.rows = []

    async def generate(self, sets):
        for requests in sets:
            self.rows += [request.request_id for request in requests]
            self.groups.sets.append([request.request_id for request in requests])
        return [self.answers(requests) for requests in sets]

    def answers(self, requests) -> list[Outcome | DeadGroupError]:
        try:
            return [self.groups.answer(request, self) for request in requests]
        except DeadGroupError as death:
            return [death] * len(requests)


def without_pixels(batch: pa.Table, *rows: int) -> pa.Table:
    """As where these rows show what the row before them shows."""
    index = batch.column_names.index("prompt_patches")
    values = [None if n in rows else v for n, v in enumerate(batch["prompt_patches"].to_pylist())]
    field = batch.schema.field(index)
    return batch.set_column(index, field, pa.array(values, field.type))


def caption(request: Request, finish_reason: FinishReason = "stop") -> Completion:
    return Completion(
        text=f"caption of {request.request_id}",
        token_ids=(1, 2),
        finish_reason=finish_reason,
        num_prompt_tokens=len(request.prompt.token_ids),
        num_generated_tokens=2,
        mean_logprob=-0.25,
        min_logprob=-0.5,
    )


def make_prompt(num_text_tokens: int, *grids: tuple[int, int]) -> Prompt:
    grid_hw = np.array(grids, np.int32).reshape(-1, 2)
    num_patches = int(grid_hw.prod(axis=1).sum())
    patches = np.arange(num_patches * 3 * 14 * 14) % 251
    return Prompt(
        token_ids=np.arange(num_text_tokens + num_patches // 4, dtype=np.int32),
        patches=patches.astype(np.uint8).reshape(-1, 3, 14, 14),
        grid_hw=grid_hw,
    )


def prepared(*prompts: Prompt | None) -> pa.Table:
    """What the prepare stage hands over; None is a row that failed there."""
    rows = []
    for number, prompt in enumerate(prompts):
        if prompt is None:
            columns = {"status": "error", "error_code": "media_missing", "error": "no such file"}
        else:
            columns = encode_prompt(prompt) | {"seed": 1000 + number, "frame_times_s": [0.5]}
        rows.append(columns | {"row_id": f"row {number}", "weight": number * 0.5})
    fields = [pa.field("row_id", pa.string()), pa.field("weight", pa.float64()), *PREPARED_FIELDS]
    columns = [pa.array([row.get(field.name) for row in rows], field.type) for field in fields]
    return pa.Table.from_arrays(columns, schema=pa.schema(fields))


def generate(groups: Groups, *batches: pa.Table, sampling: SamplingParams = SAMPLING) -> pa.Table:
    """Send the batches through one stage at the same time."""
    stage = Generate(groups, sampling, backoff_s=0.0)

    async def one(batch):
        return [table async for table in stage(batch)]

    async def main():
        return await asyncio.gather(*(one(batch) for batch in batches))

    return pa.concat_tables([table for tables in asyncio.run(main()) for table in tables])


def test_samples_and_the_log_probabilities_of_tokens_have_columns_if_asked_for():
    sampling = replace(SAMPLING, temperature=1.0, n=2, token_logprobs=True)

    def answer(request, _):
        first = replace(caption(request), token_logprobs=(-0.5, 0.0))
        is_cut = "2" in request.request_id
        other = replace(caption(request, "length" if is_cut else "stop"), text="another")
        return replace(first, others=(other,))

    groups = Groups(answer)
    out = generate(
        groups, prepared(make_prompt(3), None, make_prompt(4)), sampling=sampling
    ).to_pylist()
    assert [row["caption"] for row in out] == ["caption of row 0", None, "caption of row 2"]
    assert [row["samples"] for row in out] == [
        ["caption of row 0", "another"],
        None,
        ["caption of row 2", "another"],
    ]
    assert [row["status"] for row in out] == ["ok", "error", "truncated"]
    assert [row["token_logprobs"] for row in out] == [[-0.5, 0.0], None, [-0.5, 0.0]]
    assert [row["num_generated_tokens"] for row in out] == [4, None, 4]
    assert groups.leases == [(["row 0", "row 2"], 3 + 2 * 5 + 4 + 2 * 5, False)]


def test_a_caption_of_damaged_media_says_so():
    batch = prepared(*[make_prompt(3, (2, 2))] * 3, None)
    at = batch.column_names.index("num_decode_errors")
    batch = batch.set_column(at, batch.schema.field(at), pa.array([0, 2, 2, None], pa.int32()))
    groups = Groups(
        lambda request, _: caption(request, "length" if "2" in request.request_id else "stop")
    )
    out = generate(groups, batch)
    assert out["status"].to_pylist() == ["ok", "damaged", "truncated", "error"]
    assert out["num_decode_errors"].to_pylist() == [0, 2, 2, None]


@pytest.mark.parametrize(
    "prompt",
    [
        pytest.param(make_prompt(7, (2, 4), (6, 2)), id="two images"),
        pytest.param(make_prompt(3), id="text only"),
    ],
)
def test_a_prompt_survives_the_columns(prompt):
    table = pa.concat_tables([prepared(None, prompt), prepared(prompt)])  # in two chunks
    assert decode_prompt(table, 0) is None
    for row in (1, 2):
        back = decode_prompt(table, row)
        assert back is not None
        assert np.array_equal(back.token_ids, prompt.token_ids)
        assert np.array_equal(back.grid_hw, prompt.grid_hw)
        assert back.image_digests == prompt.image_digests
        assert np.array_equal(back.patches.ravel(), prompt.patches.ravel())
        assert (back.patches.shape == prompt.patches.shape) or not prompt.num_patches
        assert (back.patches.dtype, back.token_ids.dtype) == (np.uint8, np.int32)


def test_pixels_are_hashed_by_none_but_who_prepares_them(monkeypatch):
    prompt = make_prompt(7, (2, 4), (6, 2))
    table = prepared(prompt, make_prompt(5))

    def hash_again(*_):
        pytest.fail("somebody hashes pixels again")

    monkeypatch.setattr("model.inputs.prompt.image_digests", hash_again)
    with pytest.raises(pytest.fail.Exception):
        make_prompt(7, (2, 4), (6, 2))
    back = decode_prompt(table, 0)
    assert back is not None
    assert len(set(back.image_digests)) == 2
    assert pickle.loads(pickle.dumps(back)).image_digests == prompt.image_digests
    assert decode_prompt(table, 1) is not None


def test_the_patches_are_not_copied_on_the_way_to_the_engine():
    table = prepared(make_prompt(3, (8, 8)))
    prompt = decode_prompt(table, 0)
    assert prompt is not None
    source = table["prompt_patches"].chunk(0).buffers()[2]
    assert source.address <= prompt.patches.ctypes.data < source.address + source.size
    buffers = []
    pickle.dumps(prompt, protocol=5, buffer_callback=buffers.append)
    assert max(buffer.raw().nbytes for buffer in buffers) == prompt.patches.nbytes


def test_every_row_gets_its_caption_and_keeps_what_it_carries():
    groups = Groups(
        lambda request, _: caption(request, "length" if "2" in request.request_id else "stop")
    )
    out = generate(groups, prepared(make_prompt(3, (2, 2)), None, make_prompt(4)))
    assert out["row_id"].to_pylist() == ["row 0", "row 1", "row 2"]
    assert out["weight"].to_pylist() == [0.0, 0.5, 1.0]
    assert out["caption"].to_pylist() == ["caption of row 0", None, "caption of row 2"]
    assert out["status"].to_pylist() == ["ok", "error", "truncated"]
    assert out["finish_reason"].to_pylist() == ["stop", None, "length"]
    assert out["error_code"].to_pylist() == [None, "media_missing", None]
    assert out["error"].to_pylist() == [None, "no such file", None]
    assert out["num_prompt_tokens"].to_pylist() == [4, None, 4]
    assert out["mean_logprob"].to_pylist() == [-0.25, None, -0.25]
    assert out["frame_times_s"].to_pylist() == [[0.5], None, [0.5]]
    assert set(out.column_names) == {"weight", *(field.name for field in RESULT_FIELDS)}
    for field in RESULT_FIELDS:
        assert out.schema.field(field.name).type == field.type
    assert groups.leases == [(["row 0", "row 2"], 4 + 5 + 4 + 5, False)]


def test_each_row_is_sampled_with_its_own_seed():
    seeds = {}

    def answer(request, _):
        seeds[request.request_id] = request.params
        return caption(request)

    generate(Groups(answer), prepared(make_prompt(1), make_prompt(1)))
    assert {row: params.seed for row, params in seeds.items()} == {"row 0": 1000, "row 1": 1001}
    assert {params.max_tokens for params in seeds.values()} == {5}


@pytest.mark.parametrize(
    ("failure", "code", "text"),
    [
        pytest.param(
            Failure(code="prompt_too_long", message="9 > 8"), "prompt_too_long", "9 > 8", id="known"
        ),
        pytest.param(Failure(code="odd", message="m"), "engine_error", "odd: m", id="unknown code"),
    ],
)
def test_a_prompt_that_the_engine_refuses_is_an_error_of_its_row(failure, code, text):
    groups = Groups(
        lambda request, _: failure if request.request_id == "row 0" else caption(request)
    )
    out = generate(groups, prepared(make_prompt(1), make_prompt(1)))
    assert out["status"].to_pylist() == ["error", "ok"]
    assert (out["error_code"][0].as_py(), out["error"][0].as_py()) == (code, text)


def test_a_batch_of_failed_rows_needs_no_group():
    groups = Groups(None)
    out = generate(groups, prepared(None, None))
    assert out["status"].to_pylist() == ["error"] * 2
    assert groups.leases == []


def test_an_empty_batch_stays_empty():
    assert generate(Groups(None), prepared()).num_rows == 0


def test_rows_that_a_death_interrupted_are_asked_again_and_the_others_are_not():
    deaths = []

    def answer(request, lease):
        if request.request_id != "row 1" and len(deaths) < 4:  # two rows in each of two deaths
            deaths.append(request.request_id)
            raise DeadGroupError("killed")
        return caption(request)

    groups = Groups(answer)
    out = generate(groups, prepared(make_prompt(1), make_prompt(1), make_prompt(1)))
    assert out["caption"].to_pylist() == [f"caption of row {n}" for n in range(3)]
    assert [rows for rows, _, _ in groups.leases] == [
        ["row 0", "row 1", "row 2"],
        ["row 0", "row 2"],
        ["row 0", "row 2"],
    ]


def test_a_poison_row_is_found_and_its_neighbours_are_captioned():
    def answer(request, lease):
        if "row 1" in lease.rows:
            raise DeadGroupError("signal 11")
        return caption(request)

    groups = Groups(answer)
    out = generate(groups, prepared(make_prompt(1), make_prompt(1), None, make_prompt(1)))
    assert out["status"].to_pylist() == ["ok", "error", "error", "ok"]
    assert out["error_code"].to_pylist() == [None, "poison_row", "media_missing", None]
    assert "signal 11" in out["error"][1].as_py()
    alone = [rows for rows, _, alone in groups.leases if alone]
    assert sorted(alone) == [["row 0"], *[["row 1"]] * GROUPS.alone, ["row 3"]]
    assert len(groups.leases) - len(alone) == GROUPS.shared


def test_a_row_that_works_alone_is_not_poison():
    def answer(request, lease):
        if len(lease.rows) > 1:
            raise DeadGroupError("no memory")
        return caption(request)

    out = generate(Groups(answer), prepared(make_prompt(1), make_prompt(1)))
    assert out["status"].to_pylist() == ["ok", "ok"]


def test_a_row_whose_group_dies_of_something_else_while_it_is_alone_is_not_poison():
    deaths = iter(range(GROUPS.shared + 1))

    def answer(request, lease):
        if next(deaths, None) is not None:
            raise DeadGroupError("its node was taken away")
        return caption(request)

    groups = Groups(answer)
    out = generate(groups, prepared(make_prompt(1)))
    assert out["status"].to_pylist() == ["ok"]
    assert [alone for _, _, alone in groups.leases] == [False] * 3 + [True] * 2


def test_a_group_error_stops_the_stage():
    class Closed(Groups):
        def lease(self, num_tokens, *, exclusive=False):
            raise GroupError("groups failed 9 times")

    with pytest.raises(GroupError, match="9 times"):
        generate(Closed(None), prepared(make_prompt(1)))


def test_the_questions_of_a_row_are_answered_with_their_own_sampling_and_joined():
    prompts = (
        NamedPrompt(name="mood", text="?", sampling=SamplingParams(max_tokens=7)),
        NamedPrompt(name="count", text="?", sampling=SamplingParams(temperature=0.5)),
    )
    asked = []

    def answer(request, lease):
        asked.append((request.request_id, request.params))
        return caption(request)

    table = prepared(make_prompt(3), make_prompt(4), None, None)
    ids = pa.array(["a", "a", "b", "b"])
    table = table.set_column(0, "row_id", ids)
    for name in ("prompt_part", "prompt_question"):
        table = table.append_column(name, pa.array([0, 1] * 2))
    stage = Generate(Groups(answer), SAMPLING, prompts)

    async def run():
        return [part async for part in stage(table)]

    (result,) = asyncio.run(run())

    rows = result.to_pylist()
    assert [params for _, params in asked] == [
        replace(prompts[0].sampling, seed=1000),
        replace(prompts[1].sampling, seed=1001),
    ]
    assert [row["row_id"] for row in rows] == ["a", "b"]
    assert rows[0]["mood"] == rows[0]["count"] == "caption of a"
    assert [row["status"] for row in rows] == ["ok", "error"]
    assert rows[0]["num_prompt_tokens"] == 7
    assert rows[1]["error"] == "no such file"
    expected = [field.name for field in (*RESULT_FIELDS, *named_answer_fields(prompts))]
    assert set(result.column_names) == {*expected, "weight"}


def test_prompts_about_the_same_pixels_go_to_one_rank_together():
    seen = {}

    def answer(request, lease):
        seen[request.request_id] = request.prompt.patches
        return caption(request)

    groups = Groups(answer)
    shown = make_prompt(3, (2, 2))
    batch = prepared(shown, shown, shown, None, shown, make_prompt(2), make_prompt(1))

    out = generate(groups, without_pixels(batch, 1, 2))

    assert out["caption"].null_count == 1
    assert groups.sets == [["row 0", "row 1", "row 2"], ["row 4"], ["row 5"], ["row 6"]]
    assert seen["row 0"] is seen["row 1"] is seen["row 2"]  # so that they are sent once
    assert np.array_equal(seen["row 0"], shown.patches)


def test_of_prompts_about_the_same_pixels_each_is_tried_alone_after_deaths():
    def answer(request, lease):
        if request.request_id == "row 1":
            raise DeadGroupError("it broke")
        return caption(request)

    groups = Groups(answer)
    shown = make_prompt(3, (2, 2))

    out = generate(groups, without_pixels(prepared(shown, shown, shown), 1, 2))

    assert out["error_code"].to_pylist() == [None, "poison_row", None]
    assert out["caption"].null_count == 1
    assert [alone for _, _, alone in groups.leases] == [False] * 3 + [True] * 4


def test_groups_that_end_with_their_node_are_no_deaths_of_the_rows_that_they_had():
    ends = iter(range(3 * (GROUPS.shared + GROUPS.alone)))

    def answer(request, lease):
        if next(ends, None) is not None:
            raise MovedGroupError("its node ended")
        return caption(request)

    groups = Groups(answer)
    table = generate(groups, prepared(make_prompt(3), make_prompt(4)))
    assert table["status"].to_pylist() == ["ok", "ok"]
    assert not any(alone for _, _, alone in groups.leases)
