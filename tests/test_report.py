"""A run directory as one page: what is read of it, what is packed, and what stands in the page."""

import base64
import json
import re
import zlib

import numpy as np
import pytest
from support.cohorts import SIZE as COHORT_SIZE
from support.hostile import TEXTS, hostile_rollouts
from support.report import rollouts_of, with_hostile_rollouts
from support.runs import SIZE, toy
from support.supervised import toy_sft

from rlora.commands import report as command
from rlora.diagnosis import Finding
from rlora.errors import ConfigError, RunDirError
from rlora.loop import run
from rlora.report.charts import chart
from rlora.report.mathematics import Formulas, formulas_in
from rlora.report.panels import RL_PANELS, SUPERVISED_PANELS, columns_of
from rlora.report.rollouts import PROBABILITY_EDGES, pack_runs, packed
from rlora.report.runs import read_run, read_runs, settings_of
from rlora.report.write import diagnosis_html, page_of, panels_of, with_intervals
from rlora.store.run_dir import metrics_rows
from rlora.supervised import loop as supervised_loop


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    return run(toy(tmp_path_factory.mktemp("report") / "run", **SIZE))


@pytest.fixture(scope="module")
def taught(tmp_path_factory):
    return supervised_loop.run(toy_sft(tmp_path_factory.mktemp("taught")))


def unpacked(text: str):
    return json.loads(zlib.decompress(base64.b64decode(text)))


@pytest.mark.loop
def test_the_index_and_the_chunks_hold_every_rollout_in_order(trained) -> None:
    pack = pack_runs([read_run(trained)], limit=10**6)
    texts = [rollout for chunk in pack.chunks for rollout in unpacked(chunk)]
    expected = rollouts_of(trained)
    assert len(pack) == len(texts) == len(expected) == pack.chunk_ends[-1]
    kinds = pack.head()["kinds"]
    for place, (step, row) in enumerate(expected):
        assert pack.index["step"][place] == step
        assert pack.index["reward"][place] == row["reward"]
        assert kinds[pack.index["kind"][place]] == row["verdict"]
        assert pack.index["tokens"][place] == len(row["token_ids"])
        assert pack.stops[pack.index["stop"][place]] == row["stop"]
        assert pack.problems[pack.index["problem"][place]]["id"] == row["problem"]
        assert texts[place]["text"] == row["text"]
        assert texts[place].get("extracted", "") == row["extracted"]


@pytest.mark.loop
def test_letters_say_in_which_range_a_tokens_values_lie(trained) -> None:
    pack = pack_runs([read_run(trained)], limit=10**6)
    texts = [rollout for chunk in pack.chunks for rollout in unpacked(chunk)]
    num_seen = 0
    for (_, row), text in zip(rollouts_of(trained), texts, strict=True):
        if "lengths" not in text:
            continue
        num_seen += 1
        said = row["text"].encode()
        assert sum(ord(letter) - 35 for letter in text["lengths"]) == len(said)
        for letter, logprob in zip(text["probability"], row["logprobs"], strict=True):
            place, value = ord(letter) - 65, float(np.float32(np.exp(logprob)))
            assert place == 0 or PROBABILITY_EDGES[place - 1] <= value + 1e-6
            assert place == len(PROBABILITY_EDGES) or value <= PROBABILITY_EDGES[place] + 1e-6
        is_trained = text["advantage"] != 0
        assert set(text["entropy"]) <= set("ABCDEFGHIJKL") if is_trained else set(text["entropy"]) <= {"-"}
    assert num_seen == len(texts)


@pytest.mark.loop
def test_where_not_all_fit_steps_are_left_out_evenly_and_counted(trained) -> None:
    per_step = SIZE["problems_per_step"] * SIZE["samples_per_problem"]
    pack = pack_runs([read_run(trained)], limit=3 * per_step)
    assert sorted(set(pack.index["step"])) == [0, 2, 4]
    assert pack.num_left_out == 2
    assert len(pack_runs([read_run(trained)], limit=1)) == per_step


@pytest.mark.loop
def test_a_steps_reward_has_the_interval_of_its_groups(trained) -> None:
    one = read_run(trained)
    rows = with_intervals(one, 0, pack_runs([one], limit=10**6))
    for row in rows:
        assert row["reward/low"] <= row["reward/mean"] <= row["reward/high"]
        assert row["reward/high"] - row["reward/low"] > 0


@pytest.mark.loop
def test_the_page_of_a_run_stands_alone_and_says_what_came_out(trained) -> None:
    html = page_of([read_run(trained)], {"run": []}).html
    summary = json.loads((trained / "summary.json").read_text())
    assert "Reinforcement learning on digits: rank 1 on all layers of toy" in html
    assert f"{100 * summary['policy']['accuracy']:.1f} %" in html
    assert "Nothing that is known to go wrong was seen." in html
    outside = re.sub(r"<script.*?</script>", "", html, flags=re.DOTALL)  # Bokeh's own text names its site
    assert not re.search(r"(src|href)=(?![\"'](#|data:))", outside)
    assert "default-src &#39;none&#39;" in html


@pytest.mark.loop
def test_a_mean_reward_that_is_no_share_is_not_written_in_per_cent(tmp_path) -> None:
    folder = run(toy(tmp_path / "run", **SIZE), reward=lambda completion, problem: 0.25 + 0.5 * (len(completion) % 2))
    page = page_of([read_run(folder)], {"run": []})
    assert page.html.count("0.25 [") + page.html.count("0.75 [") + page.html.count("0.5 [") >= 1
    assert not re.search(r"[0-9] % \[", page.html)
    assert "forest" not in page.html.split("</style>")[1].split("<script")[0]
    held_out = next(panel for panel in panels_of([read_run(folder)]) if panel.name == "held_out")
    assert (held_out.unit, held_out.factor) == ("", 1.0)


@pytest.mark.loop
def test_every_metric_that_is_drawn_is_logged(trained, taught) -> None:
    made_here = {"reward/low", "reward/high"}
    often = {"verdict/timeout_share", "evaluation/accuracy", "evaluation/loss"}
    for panels, folder in ((RL_PANELS, trained), (SUPERVISED_PANELS, taught)):
        logged = {name for row in metrics_rows(folder) for name in row}
        for panel in panels:
            names = {*panel.metrics, *filter(None, [panel.compared])}
            lacking = names - logged - made_here - often
            phases = {name for name in lacking if name.startswith("seconds/")}
            assert not lacking - phases, panel.name


@pytest.mark.loop
def test_a_supervised_run_has_a_page_without_rollouts(taught) -> None:
    html = page_of([read_run(taught)], {"run": []}).html
    assert "Supervised training on" in html
    assert "nats a token" in html
    assert 'id="rollouts"' not in html


@pytest.mark.loop
def test_runs_of_two_kinds_are_no_page(trained, taught) -> None:
    with pytest.raises(RunDirError, match="make a report of each kind"):
        read_runs([trained, taught])


@pytest.mark.loop
def test_runs_are_told_apart_by_what_they_differ_in(trained, tmp_path) -> None:
    other = run(toy(tmp_path / "run", **COHORT_SIZE, seed=3))
    runs = read_runs([trained, other])
    assert [one.name for one in runs] == [f"{trained.parent.name}/run", f"{tmp_path.name}/run"]
    settings = settings_of(runs)
    assert [one["seed"] for one in settings] == ["0", "3"]
    assert "run_dir" not in settings[0]
    html = page_of(runs, {one.name: [] for one in runs}).html
    assert "2 runs" in html


@pytest.mark.loop
def test_the_command_writes_the_page_beside_the_run(trained, tmp_path, capfd) -> None:
    command.main([str(trained)])
    assert (trained / "report.html").stat().st_size > 1e6
    command.main([str(trained), "--to", str(tmp_path / "a.html"), "--max-rollouts", "1"])
    said = "".join(capfd.readouterr())
    assert "4 steps' rollouts are left out" in said
    assert f"{tmp_path / 'a.html'}: " in said


@pytest.mark.unit
def test_what_is_no_run_is_refused(tmp_path) -> None:
    with pytest.raises(RunDirError, match=r"is not a run directory: it holds no config\.json"):
        command.main([str(tmp_path)])
    with pytest.raises(ConfigError, match="--max-rollouts is 0"):
        command.main([str(tmp_path), "--max-rollouts", "0"])
    with pytest.raises(ConfigError, match="name the run directory"):
        command.main([])


@pytest.mark.loop
def test_hostile_rollouts_are_text_in_the_page(trained, tmp_path) -> None:
    """Nothing of them stands in the page as it is: they are inside of compressed chunks, or escaped."""
    hostile = with_hostile_rollouts(trained, tmp_path)
    page = page_of([hostile], {hostile.name: [Finding(name="x", what=TEXTS["script"], remedy="<b>")]})
    scripts = re.findall(r"<script(?![^>]*json)[^>]*>(.*?)</script>", page.html, flags=re.DOTALL)
    assert not any("hostileRan" in script for script in scripts)
    assert "<script>window.hostileRan" not in page.html
    texts = [rollout["text"] for chunk in page.pack.chunks for rollout in unpacked(chunk)]
    assert texts == [rollout.completion.text for group in hostile_rollouts() for rollout in group.rollouts]


@pytest.mark.unit
def test_findings_are_shown_with_what_to_do() -> None:
    finding = Finding(name="no_signal", what="No group is mixed.", remedy="Take easier problems.", examples=("a < b",))
    html = str(diagnosis_html({"a": [finding], "b": []}))
    assert "<strong>No group is mixed.</strong>" in html
    assert "Take easier problems." in html
    assert "a &lt; b" in html
    assert html.count("healthy") == 1


@pytest.mark.unit
@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("It costs $5 and $7 in all", []),
        (r"so \(5 + 7\) and \[x^2\]", ["5 + 7", "x^2"]),
        ("so $x^2 = 4$ and $$\\frac{1}{2}$$", ["x^2 = 4", r"\frac{1}{2}"]),
        ("$12$ apples at $ 3 $", ["12"]),
        ("$" * 1001, []),
        ("", []),
    ],
)
def test_formulas_are_found_and_prices_are_not(text, expected) -> None:
    assert formulas_in(text) == expected


@pytest.mark.unit
def test_formulas_are_typeset_and_what_is_none_is_left_out() -> None:
    formulas = Formulas()
    for text in TEXTS.values():
        formulas.find(text)
    formulas.find(r"$\frac{1}{2}$ and again $\frac{1}{2}$, $x^2$")
    found = formulas.typeset()
    assert "<mfrac>" in found[r"\frac{1}{2}"]
    assert list(formulas.typeset(most=1)) == [r"\frac{1}{2}"]


@pytest.mark.unit
def test_a_chart_draws_what_there_is() -> None:
    rows = [{"step": step, "reward/mean": 0.1 * step, "evaluation/accuracy": 0.5} for step in range(3)]
    reward, held_out = RL_PANELS[:2]
    assert columns_of(reward, rows)["reward/mean"] == pytest.approx([0, 0.1, 0.2])
    assert np.isnan(columns_of(reward, rows)["reward/low"]).all()
    assert columns_of(held_out, rows)["evaluation/accuracy"] == [50, 50, 50]
    assert chart(reward, [rows], ["a"]) is not None
    assert chart(reward, [[{"step": 0}]], ["a"]) is None
    assert chart(reward, [[]], ["a"]) is None


@pytest.mark.unit
def test_what_is_packed_comes_back() -> None:
    values = [{"text": text} for text in TEXTS.values()]
    assert unpacked(packed(values)) == values
