"""The artifact in ONNX Runtime itself: what all other runtimes are held against."""

from __future__ import annotations

from bakeout.export.running.runner import Runner

from tests.runtimes.served import KEPT, LONGEST, REFUSED, WRONG, Served


def test_what_is_expected_everywhere(served: Served) -> None:
    """One skill is refused, one answered wrongly, one answered as ever."""
    for skill, base, artifact in zip(served.skills, served.said["base"], served.expected, strict=True):
        assert (artifact == served.refusal) == (skill == REFUSED)
        assert (artifact == base) == (skill == KEPT)
    assert set(served.skills) == {REFUSED, WRONG, KEPT}


def test_a_batch_with_bound_inputs_and_outputs(served: Served) -> None:
    """On CUDA where there is one. Alone or in a batch, a prompt is answered alike."""
    runner = Runner(served.artifact)
    assert runner.generate(served.ids, LONGEST) == served.expected
    assert runner.generate(served.ids, LONGEST, batch_size=1) == served.expected
