"""The page of a report in a browser: charts draw, filters filter, keys move, and nothing that was said runs."""

import dataclasses
import json
import shutil
import urllib.error
import urllib.request
from threading import Thread

import pytest
from support.browser import open_page
from support.hostile import MARK, TEXTS
from support.report import rollouts_of, with_hostile_rollouts
from support.rollouts import completion, group
from support.runs import SIZE, stopped, toy

from rlora.loop import run
from rlora.report.live import LiveRun
from rlora.report.runs import read_run, read_runs
from rlora.report.server import LiveServer
from rlora.report.write import page_of, write_report
from rlora.store.rollouts import RolloutFolder

pytestmark = [pytest.mark.loop, pytest.mark.browser]
READY = "!!(window.rlora && document.querySelector('#group li'))"
"""Whether a group of rollouts is shown."""


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    return run(toy(tmp_path_factory.mktemp("page") / "run", **SIZE))


def written(runs, path):
    write_report(page_of(runs, {one.name: [] for one in runs}), path)
    return path


@pytest.fixture(scope="module")
def file(trained, tmp_path_factory):
    return written([read_run(trained)], tmp_path_factory.mktemp("file") / "report.html")


@pytest.fixture
def page(file):
    with open_page(file) as opened:
        opened.wait_for(READY)
        yield opened
        assert opened.console_errors() == []


def select(page, name, value) -> None:
    """Set a field of the filters as a reader does, and wait until it was filtered."""
    page.run(
        f"""(async () => {{
            const field = document.getElementById("filters").elements[{json.dumps(name)}];
            field.value = {json.dumps(str(value))};
            await window.rlora.browser.filter();
        }})()"""
    )


def count_of(page) -> int:
    return int(page.run("document.getElementById('count').textContent").split(" ")[0].replace(",", ""))


@pytest.mark.parametrize("width", [390, 1400])
def test_every_chart_draws_and_nothing_is_cut_off(file, width) -> None:
    with open_page(file, width=width) as page:
        page.wait_for(READY)
        page.run("document.querySelectorAll('[data-chart]').forEach((one) => one.scrollIntoView())")
        names = page.run("[...document.querySelectorAll('[data-chart]')].map((one) => one.dataset.chart)")
        assert {"reward", "groups", "verdicts", "agreement", "entropy", "seconds", "proof"} <= set(names)
        for name in names:
            page.run(f"document.querySelector('[data-chart=\"{name}\"]').scrollIntoView()")
            page.wait_for(f"document.querySelector('[data-chart=\"{name}\"]').dataset.drawn === 'true'")
        assert page.overflow() == []
        assert page.axe() == []
        assert page.console_errors() == []


def test_filters_leave_what_they_say(page, trained) -> None:
    rows = [row for _, row in rollouts_of(trained)]
    assert count_of(page) == len(rows)
    kinds = page.run("[...document.getElementById('filters').elements.kind.options].map((o) => [o.value, o.text])")
    for value, name in kinds[1:]:
        select(page, "kind", value)
        assert count_of(page) == sum(row["verdict"].replace("_", " ") == name for row in rows), name
    select(page, "kind", "")
    select(page, "tokensHigh", 3)
    assert count_of(page) == sum(len(row["token_ids"]) <= 3 for row in rows)
    select(page, "rewardLow", 0.5)
    assert count_of(page) == sum(len(row["token_ids"]) <= 3 and row["reward"] >= 0.5 for row in rows)
    select(page, "tokensHigh", "")
    select(page, "rewardLow", "")
    text = next(row["text"] for row in rows if len(row["text"]) >= 3)[:3]
    select(page, "text", text)
    assert count_of(page) == sum(text.lower() in row["text"].lower() for row in rows)
    select(page, "text", "")
    select(page, "problem", rows[0]["problem"])
    assert count_of(page) == sum(rows[0]["problem"] in row["problem"] for row in rows)
    select(page, "problem", "no such problem")
    assert count_of(page) == 0
    assert "No rollout passes" in page.run("document.getElementById('where').textContent")
    page.click("button[type=reset]")
    page.wait_for(f"document.getElementById('count').textContent.startsWith('{len(rows):,} of')")


def where(page) -> str:
    page.run("new Promise((done) => setTimeout(done, 50))")
    return page.run("document.getElementById('where').textContent")


def test_keys_move_through_groups_and_steps(page) -> None:
    assert where(page) == "step 0, group 1 of 30"
    page.keys("n")
    assert where(page) == "step 0, group 2 of 30"
    page.keys("p")
    assert where(page) == "step 0, group 1 of 30"
    page.keys("]")
    assert where(page) == "step 1, group 7 of 30"
    page.keys("]")
    page.keys("[")
    assert where(page) == "step 1, group 7 of 30"
    page.keys("/")
    assert page.run("document.activeElement.name") == "text"
    page.keys("n")  # is typed
    assert where(page).startswith("step")
    assert page.run("document.getElementById('filters').elements.text.value") == "n"


def test_a_problem_is_followed_through_the_steps(page, trained) -> None:
    rows = rollouts_of(trained)
    steps_of: dict[str, set[int]] = {}
    for step, row in rows:
        steps_of.setdefault(row["problem"], set()).add(step)
    problem, steps = max(steps_of.items(), key=lambda one: len(one[1]))
    select(page, "problem", problem)
    page.keys("f")
    page.run("new Promise((done) => setTimeout(done, 50))")
    shown = page.run("[...document.querySelectorAll('#steps button')].map((one) => one.textContent)")
    assert [int(text.split(" ")[1].rstrip(":")) for text in shown] == sorted(steps)
    page.click("#steps li:last-child button")
    assert where(page).startswith(f"step {max(steps)},")


@pytest.mark.parametrize("colour", ["difference", "entropy", "probability"])
def test_tokens_are_coloured_one_by_one(page, trained, colour) -> None:
    step, row = next((step, row) for step, row in rollouts_of(trained) if len(row["token_ids"]) > 2)
    assert step == 0
    select(page, "problem", row["problem"])
    select(page, "colour", colour)
    cards = page.run("[...document.querySelectorAll('.completions .said')].map((one) => one.textContent)")
    place = next(i for i, text in enumerate(cards) if text.startswith(row["text"]))
    spans = page.run(
        f"""[...document.querySelectorAll('.completions .said')[{place}].children]
            .map((one) => [one.textContent, one.className, one.title])"""
    )
    assert len(spans) == len(row["token_ids"])
    assert "".join(text for text, _, _ in spans).rstrip("\u23f9") == row["text"]
    assert all(title for _, _, title in spans)
    assert page.axe(within="#rollouts") == []


def test_hostile_rollouts_are_shown_as_text(trained, tmp_path) -> None:
    file = written([with_hostile_rollouts(trained, tmp_path)], tmp_path / "report.html")
    with open_page(file) as page:
        page.wait_for(READY)
        num_groups = page.run("Number(document.getElementById('where').textContent.split(' of ')[1])")
        assert num_groups == len(TEXTS)
        for number, text in enumerate(TEXTS.values()):
            page.wait_for(
                f"document.getElementById('where').textContent.endsWith('group {number + 1} of {num_groups}')"
            )
            shown = page.run("document.querySelector('.completions .said').textContent")
            if "$" not in text and "\\" not in text and text:  # no formula is drawn in its place
                assert shown == text.encode("utf-16", "surrogatepass").decode("utf-16", "replace") or text in shown
            assert (
                page.run("document.querySelectorAll('#group script, #group img, #group iframe, #group a').length") == 0
            )
            page.keys("n")
            page.keys("c")
        assert page.run(f"window.{MARK}") is None
        assert page.overflow() == []
        assert page.console_errors() == []


def test_mathematics_is_drawn_by_the_browser(trained, tmp_path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(trained, folder)
    for path in (folder / "rollouts").iterdir():
        path.unlink()
    said = dataclasses.replace(completion([1]), text=r"It costs $5, so \(\frac{1}{2} < x^2\) and $\sqrt{2}$.")
    rollouts = RolloutFolder(folder / "rollouts")
    rollouts.save(0, [group([1], [said], [1.0])])
    rollouts.close()
    with open_page(written([read_run(folder)], tmp_path / "report.html")) as page:
        page.wait_for(READY)
        names = page.run("[...document.querySelectorAll('.completions math *')].map((one) => one.localName)")
        assert {"mfrac", "msup", "msqrt"} <= set(names)
        width = page.run("document.querySelector('.completions mfrac').getBoundingClientRect().height")
        assert width > 15
        assert "It costs $5, so" in page.run("document.querySelector('.completions .said').textContent")
        assert page.console_errors() == []


def test_several_runs_lie_over_each_other(trained, tmp_path) -> None:
    other = run(toy(tmp_path / "other", **SIZE, seed=1))
    with open_page(written(read_runs([trained, other]), tmp_path / "report.html")) as page:
        page.wait_for(READY)
        page.wait_for("'reward' in window.rlora.drawn")
        lines = page.run(
            """window.rlora.drawn.reward.then(([view]) => ["run:0", "run:1"].map(
                (name) => view.model.document.get_model_by_name(name).data.step.length))"""
        )
        assert lines == [SIZE["num_steps"]] * 2
        assert page.run("document.querySelectorAll('#chart-reward .legend span.swatch').length") == 2
        sets = page.run("[...document.getElementById('filters').elements.set.options].map((one) => one.text)")
        assert sets == ["run: training", "other: training"]
        select(page, "set", 1)
        assert count_of(page) == len(rollouts_of(other))
        assert page.axe() == []
        assert page.console_errors() == []


def test_a_live_page_grows_without_being_loaded_again(tmp_path) -> None:
    config = toy(tmp_path / "run", **SIZE)
    stopped(config, after=3)
    live = LiveRun(tmp_path / "run")
    with LiveServer(live, host="127.0.0.1", port=0) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        with open_page(server.address) as page:
            page.wait_for(READY)
            page.run("window.isTheSame = true")
            before = len(read_run(tmp_path / "run").rows)
            run(config)
            page.wait_for("document.getElementById('live').textContent === 'ended after 5 steps'", seconds=30)
            page.wait_for(
                f"""window.rlora.browser && document.getElementById("count").textContent.startsWith(
                    "{len(rollouts_of(tmp_path / "run")):,} of")""",
                seconds=30,
            )
            assert before < SIZE["num_steps"]
            assert page.run("window.isTheSame") is True
            steps = page.run(
                """window.rlora.drawn.reward.then(([view]) =>
                    [...view.model.document.get_model_by_name("run:0").data.step])"""
            )
            assert steps == list(range(SIZE["num_steps"]))
            assert page.console_errors() == []
        with pytest.raises(urllib.error.HTTPError, match="403"):
            urllib.request.urlopen(server.address.replace(server.token, "guess"), timeout=10)
        with pytest.raises(urllib.error.HTTPError, match="404"):
            urllib.request.urlopen(server.address.replace("/?", "/elsewhere?"), timeout=10)
        assert server.server_address[0] == "127.0.0.1"
        server.shutdown()
