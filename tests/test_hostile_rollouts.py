"""Rollouts whose texts are hostile are written and read as any others, letter for letter."""

import pytest
from support.hostile import MARK, TEXTS, hostile_rollouts

from rlora.store.rollouts import RolloutFolder
from rlora.store.run_dir import rollout_rows

pytestmark = pytest.mark.unit


def test_hostile_texts_come_back_from_disk_letter_for_letter(tmp_path) -> None:
    folder, groups = RolloutFolder(tmp_path), hostile_rollouts()
    folder.save(0, groups)
    folder.flush()
    folder.close()
    found = rollout_rows(folder.steps()[0])
    expected = [(group, rollout) for group in groups for rollout in group.rollouts]
    assert len(found) == 2 * len(TEXTS)
    for row, (group, rollout) in zip(found, expected, strict=True):
        assert row["text"] == rollout.completion.text
        assert row["question"] == group.prompt.problem.question
        assert row["gold"] == group.prompt.problem.answer
        assert row["extracted"] == rollout.verdict.extracted
        assert row.get("reason", "") == rollout.verdict.reason


def test_there_is_a_text_for_each_way_to_break_a_page() -> None:
    texts = TEXTS.values()
    for part in ("</script>", "<!--", "onerror=", "\u2028", "\ud83d ", "\x00", "\u202e", "{{ ", "\\frac{1}{2 and"):
        assert any(part in text for text in texts), part
    assert max(len(line) for text in texts for line in text.split("\n")) >= 20_000
    assert sum(MARK in text for text in texts) >= 10
