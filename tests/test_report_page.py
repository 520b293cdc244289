"""The page of `python -m nanoreason report` in a real browser: clicks, keys, filters, hostile texts, 5,000 samples.

chromedriver is spoken to by W3C WebDriver over HTTP; where it or chromium is missing, these tests are skipped.
"""

import json
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from nanoreason.__main__ import main
from nanoreason.run import Run, RunConfig
from nanoreason.search import prompt, search, write

pytestmark = pytest.mark.skipif(
    not (shutil.which("chromedriver") and (shutil.which("chromium") or shutil.which("google-chrome"))),
    reason="chromedriver and chromium are not installed: pages are not tried in a browser",
)
HOSTILE = "</script><img src=x onerror='window.hacked=1'><script>window.hacked=1</script>"


class Browser:
    """A headless chromium. Its log is empty as long as no script failed and nothing was refused."""

    def __init__(self):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        self.process = subprocess.Popen(["chromedriver", f"--port={port}"], stdout=subprocess.DEVNULL)
        self.session = ""
        try:
            self.wait_until_ready()
            flags = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
                     "--window-size=1400,950"]  # fmt: skip
            wanted = {"goog:chromeOptions": {"args": flags}, "goog:loggingPrefs": {"browser": "ALL"}}
            found = self.call("POST", "/session", {"capabilities": {"alwaysMatch": wanted}})
            self.session = f"/session/{found['sessionId']}"
        except BaseException:
            self.close()
            raise

    def wait_until_ready(self) -> None:
        for _ in range(300):
            try:
                if self.call("GET", "/status")["ready"]:
                    return
            except OSError:
                time.sleep(0.1)
        raise RuntimeError("chromedriver does not answer")

    def call(self, method: str, path: str, body: dict | None = None):
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, {"Content-Type": "application/json"}, method=method)
        try:
            with urllib.request.urlopen(request, timeout=120) as answer:
                return json.load(answer)["value"]
        except urllib.error.HTTPError as error:
            raise AssertionError(error.read().decode()) from None

    def open(self, page: Path) -> None:
        self.call("POST", f"{self.session}/url", {"url": page.resolve().as_uri()})
        self.settle()

    def settle(self) -> None:
        """Until what was done is on the screen: two frames, which take their time on a machine that is busy."""
        script = "const done = arguments[0]; requestAnimationFrame(() => requestAnimationFrame(() => done()))"
        self.call("POST", f"{self.session}/execute/async", {"script": script, "args": []})

    def js(self, script: str, *args):
        return self.call("POST", f"{self.session}/execute/sync", {"script": script, "args": list(args)})

    def keys(self, text: str) -> None:
        steps = [{"type": kind, "value": key} for key in text for kind in ("keyDown", "keyUp")]
        actions = [{"type": "key", "id": "keyboard", "actions": steps}]
        self.call("POST", f"{self.session}/actions", {"actions": actions})
        self.settle()

    def pointer(self, selector: str, click: bool = True) -> None:
        """To the middle of the first element that matches, and a click there."""
        found = self.call("POST", f"{self.session}/element", {"using": "css selector", "value": selector})
        self.js("arguments[0].scrollIntoView({block: 'center'})", found)
        steps = [{"type": "pointerMove", "duration": 0, "origin": found, "x": 0, "y": 0}]
        steps += [{"type": "pointerDown", "button": 0}, {"type": "pointerUp", "button": 0}] * click
        actions = [{"type": "pointer", "id": "mouse", "parameters": {"pointerType": "mouse"}, "actions": steps}]
        self.call("POST", f"{self.session}/actions", {"actions": actions})
        self.settle()

    def choose(self, name: str, value: str) -> None:
        self.js("const s = document.getElementById(arguments[0]); s.value = arguments[1];"
                "s.dispatchEvent(new Event('change'))", f"choose-{name}", value)  # fmt: skip

    def text(self, selector: str) -> str:
        return self.js("return document.querySelector(arguments[0]).textContent", selector)

    def texts(self, selector: str) -> list[str]:
        return self.js("return [...document.querySelectorAll(arguments[0])].map((e) => e.textContent)", selector)

    def count(self) -> str:
        return self.text("#count")

    def errors(self) -> list:
        return self.call("POST", f"{self.session}/se/log", {"type": "browser"})

    def close(self) -> None:
        try:
            if self.session:
                self.call("DELETE", self.session)
        finally:
            self.process.terminate()
            self.process.wait()


@pytest.fixture(scope="module")
def browser():
    browser = Browser()
    yield browser
    browser.close()


def line(step: int, group: int, right: float, **fields) -> dict:
    said = "20 - 6 = 14 , 14 + 5 = 19 no" + (" wait 6 * 5 = 30 , 30 + 20 = 50 yes" if right else "")
    return {"step": step, "kind": "rollout", "group": group, "difficulty": 3, "prompt": f"50 from 6 5 20 #{group}",
            "answer": "6 * 5 = 30 , 30 + 20 = 50", "response": f"<think> {said}", "tokens": 9, "stop_reason": "eos",
            "right": right, "valid": right, "reward": 1.1 * right, "rewards": {"accuracy": right, "format": 1.0},
            "advantage": right - 0.5, **fields}  # fmt: skip


def page_of(out: Path, runs: dict[str, tuple[list[dict], list[dict]] | None]) -> Path:
    """The page of one run or two: {folder: (samples, metrics)}, or None where the folder is there."""
    for name, (samples, metrics) in ((name, left) for name, left in runs.items() if left):
        run = Run(RunConfig(out=str(out / name), threads=1 + (name == "b")))
        for sample in samples:
            run.sample(**sample)
        for metric in metrics:
            run.log(**metric)
        run.close()
    assert main(["report", *(str(out / name) for name in runs), "--out", str(out / "page.html")]) == 0
    return out / "page.html"


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> Path:
    """Steps 2 and 1, each with two groups: right, wrong, cut; and one with tokens."""
    samples = [line(step, group, right) for step in (1, 2) for group in (0, 1) for right in (1.0, 0.0)]
    samples[-1] |= {"stop_reason": "length"}
    tokens = {"token_ends": [1, 3, 3], "logprobs": [-0.5, None, -1.0], "entropies": [0.25, None, 1.5]}
    samples.append(line(2, 1, 0.0, response="a b", token_advantages=[-0.25, None, 0.75], **tokens))
    metrics = [{"step": step, "reward": step / 2, "accuracy": 0.5, "num_tokens": 100 * step} for step in (1, 2, 3)]
    return page_of(tmp_path_factory.mktemp("small"), {"a": (samples, metrics)})


@pytest.fixture
def opened(browser, small) -> Browser:
    browser.open(small)
    yield browser
    assert browser.errors() == []


def test_curves_are_drawn_and_can_be_chosen_and_read(opened):
    assert opened.texts("figcaption") == ["reward", "accuracy"]
    assert opened.js("return document.querySelectorAll('figure path.curve').length") == 2
    opened.pointer("figure svg", click=False)  # its middle point: step 2, reward 1
    assert opened.text("figure output") == "a, seed 0, step 2: 1"
    opened.choose("x", "num_tokens")
    assert "num_tokens" in opened.text("figure output")
    opened.js("document.querySelector('details.picker').open = true")
    opened.pointer("details.picker input")
    assert opened.texts("figcaption") == ["accuracy"]
    opened.pointer(".legend button")
    assert opened.texts("figcaption") == []  # its only arm is not shown


def test_filters_narrow_the_responses_by_verdict_step_behaviour_and_words(opened):
    assert opened.count() == "9 of 9 responses"
    for verdict, count in (("right", 4), ("wrong", 5), ("truncated", 1), ("all", 9)):
        opened.pointer(f"[data-verdict={verdict}]")
        assert opened.count() == f"{count} of 9 responses"
        assert opened.texts("button[aria-pressed=true][data-verdict]") == [verdict]
    opened.choose("step", "2")
    assert opened.count() == "5 of 9 responses"
    opened.choose("behavior", "backtracking")
    assert opened.count() == "2 of 9 responses"
    opened.choose("behavior", "none")
    assert opened.count() == "1 of 9 responses" and opened.text("#response").startswith("a b")
    opened.choose("behavior", "")
    opened.pointer("#words")
    opened.keys("14 + 5 = 19")
    assert opened.count() == "4 of 9 responses"
    opened.keys("zzz")
    assert opened.count() == "0 of 9 responses" and "no response passes" in opened.text("#detail")


def test_keys_go_through_responses_groups_and_filters(opened):
    assert opened.text("#prompt") == "50 from 6 5 20 #0" and opened.text("#verdict") == "right"
    opened.keys("j")
    assert opened.text("#verdict") == "wrong" and opened.texts(".row[aria-selected=true]")[0].startswith("2 ")
    opened.keys("jk")
    assert opened.text("#verdict") == "wrong"
    opened.keys("n")
    assert opened.text("#prompt") == "50 from 6 5 20 #1" and "step 2" in opened.text("#detail")
    opened.keys("p")
    assert opened.text("#prompt") == "50 from 6 5 20 #0"
    opened.keys("t")
    assert opened.count() == "1 of 9 responses"
    opened.keys("a/")
    assert opened.js("return document.activeElement.id") == "words"
    opened.keys("j")  # typed, not obeyed
    assert opened.js("return document.activeElement.value") == "j" and opened.count() == "0 of 9 responses"
    opened.keys("\ue003\ue00c")  # backspace, escape
    assert opened.js("return document.activeElement.id") != "words" and opened.count() == "9 of 9 responses"
    opened.keys("?")
    assert opened.js("return document.getElementById('keys').open")
    opened.keys("j?")
    assert not opened.js("return document.getElementById('keys').open")
    opened.pointer("#list")
    assert opened.js("return document.activeElement.id") == "list"
    before = opened.text("#detail")
    opened.keys("\ue013")  # arrow up
    assert opened.text("#detail") != before


def test_a_group_shows_its_rewards_and_advantages_and_leads_to_its_responses(opened):
    opened.keys("j")
    rows = opened.texts(".group-table tbody tr")
    assert rows == ["1right1.111+0.509eos", "2wrong001\u22120.509eos"]
    assert "accuracy 0, format 1" in opened.text("#detail")
    assert opened.texts(".outline li") == ["wrong20 - 6 = 14 , 14 + 5 = 19"]
    opened.pointer(".group-table tbody tr")
    assert opened.text("#verdict") == "right" and len(opened.texts(".outline li")) == 2
    opened.pointer(".row.sample:nth-child(3)")
    assert opened.text("#verdict") == "wrong"


def test_tokens_are_coloured_and_say_their_values(opened):
    opened.js("choose({behavior: 'none'})")
    assert opened.texts("#choose-color option") == ["plain", "log-prob", "entropy", "advantage"]
    assert opened.texts(".token") == ["a", " b", " EOS"] and opened.texts(".forced") == [" b"]

    def backgrounds() -> list[str]:
        return opened.js("return [...document.querySelectorAll('.token')].map((e) => e.style.background)")

    assert backgrounds() == ["", "", ""]
    strengths = {  # .62 times: 1 - probability; nats of 2; share of the largest advantage in the group
        "logprob": ("--low", 0.62 * (1 - 0.60653), 0.62 * (1 - 0.36788)),
        "entropy": ("--entropy", 0.62 * 0.125, 0.62 * 0.75),
        "advantage": ("--low", 0.62, 0.62 / 3),  # -0.5 - 0.25; -0.5 + 0.75 is raised
    }
    for name, (tone, first, last) in strengths.items():
        opened.keys("c")
        assert opened.js("return document.getElementById('choose-color').value") == name
        found = backgrounds()
        assert found[1] == "" and tone in found[0]
        for background, strength in ((found[0], first), (found[2], last)):
            assert abs(float(background.rstrip(")").split(",")[-1]) - strength) < 0.002
    assert "--high" in backgrounds()[2]
    opened.pointer(".token", click=False)
    assert opened.text("#token-value") == (
        "token 1 of 3, log-prob -0.5, probability 0.6065, entropy 0.25, advantage \u22120.75"
    )


def test_dark_and_light_follow_the_system_and_the_key_and_paper_is_white(opened):
    def emulate(media: str, scheme: str) -> None:
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        command = {"cmd": "Emulation.setEmulatedMedia", "params": {"media": media, "features": features}}
        opened.call("POST", f"{opened.session}/goog/cdp/execute", command)
        opened.settle()

    def page() -> str:
        return opened.js("return getComputedStyle(document.body).backgroundColor")

    emulate("", "dark")
    assert page() == "rgb(20, 23, 27)"
    opened.keys("d")
    assert page() == "rgb(255, 255, 255)"
    opened.keys("d")
    emulate("print", "dark")
    opened.js("dispatchEvent(new Event('beforeprint'))")
    assert page() == "rgb(255, 255, 255)"
    assert len(opened.texts("#printed article")) == 9 and "9 of 9 responses" in opened.text("#printed")
    assert opened.js("return getComputedStyle(document.querySelector('.browser')).display") == "none"
    opened.js("dispatchEvent(new Event('afterprint'))")
    assert opened.texts("#printed article") == []
    emulate("", "light")


def test_two_runs_show_their_differences_and_each_its_curves(browser, tmp_path):
    metrics = [{"step": 1, "reward": 0.0}, {"step": 2, "reward": 1.0}]
    browser.open(page_of(tmp_path, {"a": ([line(1, 0, 1.0)], metrics), "b": ([line(1, 0, 0.0)], metrics)}))
    assert browser.texts("table.settings tbody tr") == ["threads12"]
    browser.pointer("#all-settings")
    assert len(browser.texts("table.settings tbody tr")) > 1
    assert browser.texts("table.settings tr.differs") == ["threads12"]
    dashes = browser.js(
        "return [...document.querySelectorAll('path.curve')].map((e) => e.getAttribute('stroke-dasharray'))"
    )
    assert dashes == ["", "5 3"] and browser.texts(".legend button") == ["A", "B"]
    browser.choose("arm", "B")
    assert browser.count() == "1 of 2 responses" and browser.text("#verdict") == "wrong"
    assert browser.errors() == []


def test_threads_and_searches_are_drawn(browser, tmp_path):
    threads = [{"path": "", "prompt": "p", "text": "root", "runs": [[0, 20], [60, 90]], "rounds": [[20, 60]]},
               {"path": "0", "step": "4 * 2 = 8", "prompt": "q", "text": "child", "runs": [[20, 60]]}]  # fmt: skip
    numbers, target = (3, 5, 7), 26
    searched = {"prompt": prompt(numbers, target, "compact"), "response": write(search(numbers, target, "dfs-sum"),
                "compact")}  # fmt: skip
    samples = [line(2, 0, 1.0, kind="threads", threads=threads), line(1, 0, 1.0, **searched)]
    browser.open(page_of(tmp_path, {"a": (samples, [])}))
    assert browser.js("return document.querySelectorAll('svg.threads rect').length") == 3
    assert browser.texts("svg.threads text[text-anchor=end]") == ["root", "4 * 2 = 8"]
    widths = browser.js(
        "return [...document.querySelectorAll('svg.threads rect')].map((e) => +e.getAttribute('width'))"
    )
    assert widths[1] == pytest.approx(widths[0] * 1.5) and widths[2] == pytest.approx(widths[0] * 2)
    browser.keys("j")
    items = browser.texts(".outline li")
    assert items[-1].startswith("right5+21=26") and "to node 0,0" in items and browser.errors() == []


def test_what_a_model_writes_stays_text(browser, tmp_path):
    hostile = dict.fromkeys(("prompt", "answer", "response", "marked", "stop_reason", "kind"), HOSTILE)
    thread = {"text": HOSTILE, "step": HOSTILE, "prompt": HOSTILE, "runs": [[0, 1]]}
    samples = [line(1, 0, 0.0, **hostile, rewards={HOSTILE: 1.0}, threads=[thread]),
               line(1, 0, 0.0, response="a\u202eb\x1b[2J\ud800")]  # fmt: skip
    browser.open(page_of(tmp_path, {"a": (samples, [{"step": 1, HOSTILE: 1.0}])}))
    browser.js("dispatchEvent(new Event('beforeprint'))")
    assert browser.text("#response") == HOSTILE == browser.text("#prompt") and HOSTILE in browser.text("figcaption")
    assert browser.js("return [window.hacked || null, document.images.length, document.scripts.length]") == [None, 0, 2]
    browser.keys("j")
    assert browser.text("#response") == "a\u27e6U+202E\u27e7b\u241b[2J\ufffd"
    assert browser.errors() == []


def test_five_thousand_samples_open_at_once(browser, tmp_path):
    said = "<think> " + " wait ".join(["20 - 6 = 14 , 14 + 5 = 19 no"] * 3)
    ends = [i for i, c in enumerate(said) if c == " "] + [len(said)]
    tokens = {
        "prompt": "4 + 3 =",
        "response": said,
        "token_ends": ends,
        "logprobs": [-0.125] * len(ends),
        "entropies": [0.25] * len(ends),
    }
    samples = [
        line(step, group, float(i % 2), **tokens) for step in range(50) for group in range(10) for i in range(10)
    ]
    Run(RunConfig(out=str(tmp_path / "a"))).close()
    (tmp_path / "a" / "samples.jsonl").write_text("".join(json.dumps(sample) + "\n" for sample in samples))
    path = page_of(tmp_path, {"a": None})
    command = f"{browser.session}/goog/cdp/execute"
    browser.call("POST", command, {"cmd": "Performance.enable", "params": {"timeDomain": "threadTicks"}})
    browser.open(path)
    assert browser.count() == "5,000 of 5,000 responses"
    found = browser.call("POST", command, {"cmd": "Performance.getMetrics", "params": {}})["metrics"]
    seconds = {metric["name"]: metric["value"] for metric in found}["TaskDuration"]  # of the processor: a busy machine
    assert 0 < seconds < 10  # has no part in it; half a second is usual
    assert browser.js("return document.querySelectorAll('.row').length") < 100  # only those that are seen are there
    browser.js("const list = document.getElementById('list'); list.scrollTop = list.scrollHeight")
    browser.keys("r")
    assert browser.count() == "2,500 of 5,000 responses"
    assert browser.errors() == []
