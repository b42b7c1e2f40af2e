"""The browser that tests look at pages with: it finds every fault of a faulty page, and none of another."""

import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from support.browser import open_page
from support.devtools import BrowserError

pytestmark = pytest.mark.browser

FAULTY = """<!doctype html><html lang="en"><head><title>Faults</title></head><body style="margin: 0"><main>
<h1>Faults</h1>
<p id="pale" style="color: #bbb">Pale words on white</p>
<div id="wide" style="width: 1500px">Wider than the window</div>
<p id="long" style="white-space: nowrap; width: 300px">A line that %s</p>
<p id="cut" style="width: 80px; overflow: hidden; white-space: nowrap; text-overflow: ellipsis">Words that are cut</p>
<p id="low" style="height: 10px; overflow: hidden">Words of which only the upper half is seen</p>
<svg width="100" height="20"><text id="label" x="70" y="15">A label</text></svg>
<div id="roll" style="width: 100px; overflow-x: auto"><div style="width: 900px">This can be scrolled to</div></div>
<input id="field" type="text">
</main><script>
console.error("a message", 3);
setTimeout(() => { throw new Error("thrown late"); }, 0);
</script></body></html>""" % ("goes on " * 40)

SOUND = """<!doctype html><html lang="en"><head><title>Sound</title><style>
@media (prefers-color-scheme: dark) { body { background: #111; color: #eee } a { color: #9cf } }
#narrow { max-width: 40em } @media (max-width: 500px) { #late { width: 600px } }
</style></head><body><main><h1>Sound</h1>
<p id="narrow">Words that wrap where the window ends.</p><div id="late">A part</div>
<label>Name <input id="name"></label> <button id="say">Say</button> <a id="link" href="#say">Link</a>
<p id="out"></p>
</main><script>
const out = document.querySelector("#out");
document.querySelector("#say").onclick = () => { out.textContent = document.querySelector("#name").value; };
document.addEventListener("keydown", (event) => {
    if (event.key === "ArrowDown") out.textContent = (event.shiftKey ? "shifted " : "") + "down";
});
</script></body></html>"""


def written(folder: Path, html: str) -> Path:
    (folder / "page.html").write_text(html, encoding="utf-8")
    return folder / "page.html"


def test_every_fault_of_a_page_is_found(tmp_path) -> None:
    with open_page(written(tmp_path, FAULTY)) as page:
        broken = {one.rule: one for one in page.axe()}
        assert [(where, "1.91" in why) for where, _, why in broken["color-contrast"].nodes] == [("#pale", True)]
        assert [where for where, _, _ in broken["label"].nodes] == ["#field"]
        assert broken.keys() == {"color-contrast", "label", "scrollable-region-focusable"}
        assert "Expected contrast ratio of 4.5:1" in str(broken["color-contrast"])
        found = {line.split()[0]: line for line in page.overflow()}
        assert found.keys() == {"div#wide", "p#long", "p#cut", "p#low", "text#label"}
        assert found["div#wide"].endswith("ends 100 px beyond the right edge")
        assert "has text that ends" in found["p#long"]
        assert found["text#label"].endswith('"A label" is text cut off by its picture')
        errors = page.console_errors()
        assert errors[0] == "a message 3"
        assert errors[1].startswith("Error: thrown late")
        assert len(errors) == 2


def test_a_sound_page_has_no_fault(tmp_path) -> None:
    with open_page(written(tmp_path, SOUND)) as page:
        assert (page.axe(), page.overflow(), page.console_errors()) == ([], [], [])
        assert 0 < page.first_paint_seconds() < 5


def test_a_rule_can_be_left_out_and_a_part_looked_at(tmp_path) -> None:
    with open_page(written(tmp_path, FAULTY)) as page:
        assert "color-contrast" not in {one.rule for one in page.axe(but=["color-contrast"])}
        assert {one.rule for one in page.axe(within="#field")} == {"label"}


def test_a_page_is_clicked_and_typed_into(tmp_path) -> None:
    with open_page(written(tmp_path, SOUND)) as page:
        page.click("#name")
        page.keys("Ada x{Backspace}9")
        page.click("#say")
        assert page.run("out.textContent") == "Ada 9"
        page.keys("{ArrowDown}")
        assert page.run("out.textContent") == "down"
        page.keys("{Shift+ArrowDown}")
        assert page.run("out.textContent") == "shifted down"
        page.click("#name")
        page.keys("{Control+a}b")
        assert page.run("document.querySelector('#name').value") == "b"
        with pytest.raises(BrowserError, match="there is no #nowhere"):
            page.click("#nowhere")


def test_the_order_of_focus_is_that_of_the_tab_key(tmp_path) -> None:
    with open_page(written(tmp_path, SOUND)) as page:
        assert page.focus_order() == ['input#name ""', 'button#say "Say"', 'a#link "Link"']
        page.run("document.querySelector('#link').tabIndex = 1")
        assert [one.rule for one in page.axe()] == ["tabindex"]


def test_what_only_a_narrow_window_cuts_off_is_found_there(tmp_path) -> None:
    with open_page(written(tmp_path, SOUND)) as page:
        page.resize(390, 800)
        assert page.run("innerWidth") == 390
        assert [line.split()[0] for line in page.overflow()] == ["div#late"]
        page.resize(1400, 900)
        assert page.overflow() == []


def test_a_page_is_drawn_in_the_colours_that_were_asked_for(tmp_path) -> None:
    with open_page(written(tmp_path, SOUND), scheme="dark") as page:
        assert page.run("getComputedStyle(document.body).backgroundColor") == "rgb(17, 17, 17)"
        assert page.axe() == []
        page.screenshot(tmp_path / "seen.png")
        assert (tmp_path / "seen.png").read_bytes().startswith(b"\x89PNG")


def test_javascript_comes_to_its_value_or_raises(tmp_path) -> None:
    with open_page(written(tmp_path, SOUND)) as page:
        assert page.run("({a: [1, null, 'x']})") == {"a": [1, None, "x"]}
        assert page.run("new Promise((done) => setTimeout(done, 20, 5))") == 5
        page.run("setTimeout(() => { document.title = 'later'; }, 50)")
        assert page.wait_for("document.title === 'later'") is True
        with pytest.raises(BrowserError, match="ReferenceError: nothing is not defined"):
            page.run("nothing")
        with pytest.raises(BrowserError, match=r"false did not come true in 0\.1 s"):
            page.wait_for("false", seconds=0.1)


ASKING = {
    "a picture": "new Image().src = 'http://192.0.2.1/picture.png'",
    "another name": "fetch('https://example.org/data').catch(() => null)",
    "a worker": "new Worker(URL.createObjectURL(new Blob([\"fetch('http://192.0.2.1/').catch(() => null)\"])))",
    "a socket": "new WebSocket('ws://192.0.2.1/')",
    "another port": "fetch('http://127.0.0.1:9/').catch(() => null)",
    "a frame": "const f = document.createElement('iframe'); f.src = 'http://192.0.2.1/'; document.body.append(f)",
}


@pytest.mark.parametrize("what", ASKING)
def test_a_page_that_asks_the_network_fails_when_it_is_closed(tmp_path, what) -> None:
    page = open_page(written(tmp_path, SOUND))
    page.run(f"{{ {ASKING[what]}; null }}")
    page.run("new Promise((done) => setTimeout(done, 300))")
    with pytest.raises(AssertionError, match=r"page\.html asked for (https?|ws)://"):
        page.close()


def test_the_network_cannot_be_reached(tmp_path) -> None:
    page = open_page(written(tmp_path, SOUND))
    assert page.run("fetch('https://example.org/').then(() => 'reached', () => 'not')") == "not"
    assert "net::ERR_NAME_NOT_RESOLVED" in page.console_errors()[-1]
    page.close(is_checked=False)


def test_a_script_in_the_page_needs_no_network(tmp_path) -> None:
    worker = (
        "new Worker(URL.createObjectURL(new Blob(['postMessage(6 * 7)']))).onmessage = (e) => { window.got = e.data }"
    )
    with open_page(written(tmp_path, SOUND)) as page:
        page.run(f"{worker}; null")
        assert page.wait_for("window.got") == 42
        assert page.foreign_requests() == []


@pytest.fixture
def served(tmp_path) -> Iterator[str]:
    class Silent(SimpleHTTPRequestHandler):
        def log_message(self, *_) -> None:
            pass

    written(tmp_path, SOUND)
    (tmp_path / "more.json").write_text("[1, 2]")
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Silent, directory=tmp_path)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


def test_a_page_may_ask_its_own_host(served) -> None:
    with open_page(f"{served}page.html") as page:
        assert page.run("fetch('more.json').then((got) => got.json())") == [1, 2]
        assert f"{served}more.json" in page.requests
        page.run("fetch('missing.json').then(() => null)")
        assert any("404" in line for line in page.console_errors())


def test_an_address_that_nobody_answers_is_an_error() -> None:
    with pytest.raises(BrowserError, match=r"http://127\.0\.0\.1:9/: net::ERR_"):
        open_page("http://127.0.0.1:9/")


def test_pages_do_not_share_what_they_keep(served) -> None:
    with open_page(f"{served}page.html") as first, open_page(f"{served}page.html") as second:
        first.run("localStorage.setItem('a', '1')")
        assert second.run("localStorage.getItem('a')") is None
