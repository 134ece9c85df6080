"""What the queue is told of a cluster whose tasks differ."""

from __future__ import annotations

import pytest
from store_data import pack

from pilotq.api import PACKED_BYTES_MAX, admit
from pilotq.deltas import HOLES, Blocks, Form
from pilotq.errors import UserError
from pilotq.model import ClusterBody, Description, FileRef, Resources, Submission


def submission(*forms: Form, text: str = "x", files: list[FileRef] | None = None) -> Submission:
    blocks = Blocks()
    for form in forms:
        blocks.add(form, [text])
    body = ClusterBody(owner="bob", iwd="/home/bob")
    return Submission(body, Description(["x"], files=files or []), len(forms), blocks.packed())


def test_files_and_logs_of_any_task_count() -> None:
    forms = [
        Form.of({"files": [FileRef("a", "d1", 1)]}),
        Form.whole(pack({"argv": ["x"]})),
        Form.of({"files": [FileRef("a", "d2", 1)], "log": f"/home/bob/{HOLES[0]}.log"}),
    ]
    admitted = admit(submission(*forms, files=[FileRef("x", "d0", 1)]), 1.0)
    assert (admitted.digests, admitted.has_log, admitted.count) == (["d0", "d1", "d2"], True, 3)
    assert not admit(submission(*forms[:2]), 1.0).has_log


def test_a_task_as_large_as_may_be_is_taken_and_one_that_is_larger_is_not() -> None:
    room = PACKED_BYTES_MAX - len(Form.whole(b"").packed)
    fits = Form.of({"argv": ["y" * (room - 200), HOLES[0]]})
    assert admit(submission(fits, text="z" * 10), 1.0).count == 1
    with pytest.raises(UserError, match="the limit is"):
        admit(submission(fits, text="z" * 200), 1.0)


def test_needs_are_those_of_all() -> None:
    with pytest.raises(UserError, match="request_"):
        admit(submission(Form.whole(pack({"needs": Resources(3)}))), 1.0)
