"""The command line in odd surroundings: consoles that lack characters or are gone, full disks, Ctrl-C, no terminal."""

import errno
import io
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

import nanoreason
from nanoreason import run as settings_code
from nanoreason.__main__ import main
from nanoreason.console import Console, steady
from nanoreason.experiments import reproduce as reproduction
from nanoreason.experiments.reproduce import Job, no_interrupts, run_jobs
from nanoreason.recipes import sft
from nanoreason.run import RunConfig, read_jsonl, say

ROOT = Path(nanoreason.__file__).parent.parent
BASE = str(ROOT / "data" / "checkpoints" / "star-base")
TINY = ["sft", "--preset", "tiny", "--steps", "1", "--eval-problems", "1"]
unix = pytest.mark.skipif(os.name != "posix", reason="needs /dev/full, file limits and process groups")


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


class Failing(io.StringIO):
    """A stream on which every write fails, or only the flush."""

    encoding = "utf-8"

    def __init__(self, number, at="write"):
        super().__init__()
        self.number, self.at = number, at

    def write(self, text):
        if self.at == "write":
            raise OSError(self.number, os.strerror(self.number))
        return super().write(text)

    def flush(self):
        raise OSError(self.number, os.strerror(self.number))


@pytest.mark.parametrize(
    "encoding, shown", [("ascii", "? wait ?"), ("cp1252", "\xab wait \xbb"), ("utf-8", "\xab wait \xbb")]
)
def test_what_a_console_cannot_show_is_replaced(encoding, shown, monkeypatch):
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding=encoding))
    say("« wait »")
    with steady():
        print("« wait »")
        say("\udcff ∑")  # what no encoding has
    assert raw.getvalue().decode(encoding).split("\n")[:2] == [shown, shown]


@pytest.mark.parametrize("number, told", [(errno.EPIPE, False), (errno.ENOSPC, True)])
@pytest.mark.parametrize("at", ["write", "flush"])
def test_a_stream_that_takes_nothing_ends_nothing_and_only_a_full_disk_is_told_once(
    number, told, at, monkeypatch, capsys
):
    monkeypatch.setattr(sys, "stdout", Failing(number, at))
    with steady() as out:
        for _ in range(3):
            print("text")
            say("more")
    assert out.error.errno == number
    assert capsys.readouterr().err.count("going on without it") == told


def test_streams_that_are_not_there_are_the_null_device_and_are_given_back(monkeypatch):
    for name in ("stdin", "stdout", "stderr"):
        monkeypatch.setattr(sys, name, None)
    say("nobody reads this")
    with steady():
        print("nor this", file=sys.stderr)
        say("nor this")
        assert sys.stdin.read() == "" and not sys.stderr.isatty()
    assert (sys.stdin, sys.stdout, sys.stderr) == (None, None, None)


def test_a_console_is_the_stream_but_for_its_errors():
    stream = io.StringIO()
    stream.close()
    console = Console(stream)
    assert console.write("text") == 4 and console.closed and console.error is None
    console.flush()


def train(*flags: str, **how) -> subprocess.CompletedProcess:
    command = [sys.executable, str(ROOT / "train.py"), *TINY, "--out", "run", *flags]
    return subprocess.run(command, stderr=subprocess.PIPE, timeout=120, **how)


@unix
@pytest.mark.parametrize("surroundings", ["gone", "full", "closed", "ascii"])
def test_a_run_ends_well_whatever_becomes_of_its_output(surroundings):
    """`gone`: its reader has left, as with `| head -1`."""
    how = {"env": {**os.environ, "PYTHONPATH": str(ROOT)}}
    if surroundings == "gone":
        read, write = os.pipe()
        os.close(read)
        how["stdout"] = write
    elif surroundings == "full":
        how["stdout"] = open("/dev/full", "wb")
    elif surroundings == "closed":
        how["preexec_fn"] = lambda: [os.close(descriptor) for descriptor in (0, 1)]
    else:
        how["stdout"] = subprocess.DEVNULL
        how["env"] |= {"PYTHONIOENCODING": "ascii", "LANG": "C"}
    done = train(**how)
    told = b"the output cannot be written (No space left on device): going on without it\n"
    assert (done.returncode, done.stderr) == (0, told if surroundings == "full" else b"")
    assert read_jsonl("run/metrics.jsonl")[-1]["step"] == 1


@unix
@pytest.mark.parametrize("command", [[], ["eval", BASE, "--problems", "1", "--samples", "0"]], ids=["help", "eval"])
def test_what_leaves_nothing_but_its_output_says_by_its_exit_code_that_it_is_lost(command, monkeypatch, capfd):
    monkeypatch.setattr(sys, "stdout", open("/dev/full", "w"))
    assert main(command) == 2
    assert capfd.readouterr().err.count("\n") == 1


@unix
def test_a_full_disk_is_one_line_and_the_checkpoint_before_it_is_kept(capsys, monkeypatch):
    """Stood in for by a limit on the size of files: a write fails in the same way, at the same places."""
    import resource

    assert main([*TINY, "--out", "run"]) == 0
    capsys.readouterr()
    before = {path: path.read_bytes() for path in Path("run/policy").iterdir()}
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    for bytes_ in (0, 3000, 20_000):  # of the settings, of the weights
        resource.setrlimit(resource.RLIMIT_FSIZE, (bytes_, limits[1]))
        try:
            code = main([*TINY, "--out", f"new{bytes_}"])
            again = main([*TINY, "--out", "run", "--resume", "--save-every", "1"])
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        lines = capsys.readouterr().err.splitlines()
        assert code == 2 and len(lines) == 1 + (again != 0) and all("File too large" in line for line in lines)
    assert {path: path.read_bytes() for path in Path("run/policy").iterdir()} == before


@pytest.mark.parametrize("out", ["", "file", "file/below", "/dev/null/x", "/proc/x"])
@pytest.mark.parametrize(
    "command", [TINY, ["reproduce", "star", "--preset", "tiny", "--workers", "1"]], ids=["sft", "reproduce"]
)
def test_a_folder_that_cannot_be_one_is_one_line(command, out, capsys):
    Path("file").write_text("a person's own")
    assert main([*command, f"--out={out}"]) == 2
    message = capsys.readouterr().err
    assert message.startswith("train.py: --out") and message.count("\n") == 1
    assert [path.name for path in Path().iterdir()] == ["file"]


def test_other_errors_of_the_system_and_a_lack_of_memory_are_one_line_and_our_own_are_not(monkeypatch, capsys):
    def raising(error):
        def run(config):
            raise error

        return run

    for error, said in [
        (PermissionError(errno.EACCES, "Permission denied", "some/file"), "some/file: Permission denied"),
        (OSError("a disk that is full"), "a disk that is full"),
        (MemoryError(), "not enough memory"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"), "not enough memory"),
    ]:
        monkeypatch.setattr(sft, "run", raising(error))
        assert main([*TINY, "--out", "run"]) == 2
        message = capsys.readouterr().err
        assert said in message and message.count("\n") == 1
    monkeypatch.setattr(sft, "run", raising(RuntimeError("an error in the code")))
    with pytest.raises(RuntimeError, match="in the code"):
        main([*TINY, "--out", "run"])


# ------------------------------------------------------------------------------------------------------ processes


def job(name: str, folder: Path) -> Job:
    return Job(name, "sft", RunConfig(out=str(folder / name)), {}, "", ())


def waiting(job: Job) -> None:
    """Says that it runs, and at its end how it ended."""
    Path(job.config.out).with_suffix(".pid").write_text(str(os.getpid()))
    try:
        time.sleep(60)
    except KeyboardInterrupt:
        Path(job.config.out).with_suffix(".stopped").write_text("")
        raise


def started(folder: Path, count: int) -> list[int]:
    """The workers' ids, once so many have a job."""
    for _ in range(600):
        found = [path.read_text() for path in folder.glob("*.pid")]
        if len(found) == count and all(found):
            return [int(text) for text in found]
        time.sleep(0.1)
    raise TimeoutError


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z" if Path("/proc").is_dir() else True


RUN_TWO = """
import sys
from pathlib import Path
sys.path[:0] = [{root!r}, {tests!r}]
import test_console as t
if __name__ == "__main__":
    t.run_jobs([t.job(name, Path({folder!r})) for name in "ab"], 1000, run=t.waiting)
"""


def two_jobs(folder: Path) -> subprocess.Popen:
    Path("two.py").write_text(RUN_TWO.format(root=str(ROOT), tests=str(Path(__file__).parent), folder=str(folder)))
    restore = lambda: signal.signal(signal.SIGINT, signal.default_int_handler)  # noqa: E731
    return subprocess.Popen(
        [sys.executable, "two.py"], stderr=subprocess.PIPE, start_new_session=True, preexec_fn=restore, text=True
    )


@unix
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL], ids=["ctrl-c", "kill"])
def test_workers_end_with_their_parent_and_ctrl_c_lets_their_jobs_put_down_where_they_are(how, tmp_path):
    process = two_jobs(tmp_path)
    workers = started(tmp_path, 2)  # of 1000 that were asked for
    if how == signal.SIGINT:
        os.killpg(process.pid, how)  # as a terminal does: to all of them
    else:
        process.kill()
    error = process.communicate(timeout=30)[1]
    for _ in range(100):
        if not any(map(alive, workers)):
            break
        time.sleep(0.1)
    assert not any(map(alive, workers))
    assert len(list(tmp_path.glob("*.stopped"))) == (2 if how == signal.SIGINT else 0)
    assert error.count("Traceback") == (how == signal.SIGINT)  # the parent's own: here nobody catches it
    assert error.rstrip().endswith("KeyboardInterrupt" if how == signal.SIGINT else "")


@unix
@pytest.mark.slow
@pytest.mark.parametrize("seconds", [0.5, 2, 4, 6, 8])
def test_ctrl_c_at_any_moment_of_the_start_is_one_line_and_leaves_no_process(seconds, tmp_path):
    command = [sys.executable, str(ROOT / "train.py"), "reproduce", "star", "--preset", "tiny", "--seeds", "2"]
    restore = lambda: signal.signal(signal.SIGINT, signal.default_int_handler)  # noqa: E731
    process = subprocess.Popen(
        [*command, "--workers", "2", "--out", "out"], stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True,
        start_new_session=True, preexec_fn=restore, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    time.sleep(seconds)
    os.killpg(process.pid, signal.SIGINT)
    error = process.communicate(timeout=60)[1]
    assert process.returncode in (130, -signal.SIGINT) and len(error.strip().splitlines()) <= 1
    with pytest.raises(ProcessLookupError):
        os.killpg(process.pid, 0)


@unix
def test_ctrl_c_does_not_reach_what_is_started_without_interrupts():
    def blocked() -> bool:
        return signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, [])  # a child has its parent's mask

    with no_interrupts():
        assert blocked()
    assert not blocked()


def test_one_worker_per_core_that_may_be_used_and_none_without_a_job(monkeypatch, tmp_path):
    asked = []
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0}, raising=False)
    monkeypatch.setattr(reproduction, "run_jobs", lambda jobs, workers: asked.append(workers) or 1 / 0)
    with pytest.raises(ZeroDivisionError):
        reproduction.reproduce("star", "tiny", 1, tmp_path / "out", "cpu")
    assert asked == [1]  # as under `taskset -c 0`
    made = []
    monkeypatch.setattr(reproduction, "ProcessPoolExecutor", lambda workers, **_: made.append(workers) or 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run_jobs([job(name, tmp_path) for name in "abc"], 1000)
    assert made == [3] and not multiprocessing.active_children()


# -------------------------------------------------------------------------------------------------- the run folder


def said_of(capsys, *flags: str) -> str:
    """The one line with which a command is refused."""
    assert main([*TINY, *flags]) == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    return message


def contents() -> dict:
    return {path: path.read_bytes() for path in Path("run").rglob("*") if path.is_file() and path.name != ".lock"}


def test_a_checkpoint_without_its_settings_is_neither_gone_on_from_nor_overwritten(capsys):
    assert main([*TINY, "--out", "run"]) == 0
    Path("run/config.json").unlink()
    before = contents()
    for more in ([], ["--resume"], ["--width", "16"]):
        message = said_of(capsys, "--out", "run", *more)
        assert "run holds policy, metrics.jsonl, samples.jsonl but no config.json" in message
    with pytest.raises(FileExistsError, match="no config.json"):
        sft.run(sft.SftConfig(out="run", resume=True))
    assert contents() == before


def test_resume_where_there_is_no_run_is_refused_and_where_it_never_began_is_not(capsys):
    assert "--resume: rum holds no run" in said_of(capsys, "--out", "rum", "--resume")
    assert not Path("rum").exists()
    settings_code.Run(replace(sft.PRESETS["tiny"], steps=1, eval_problems=1, out="run")).close()
    assert main([*TINY, "--out", "run", "--resume"]) == 0  # stopped before its first line


def test_a_folder_of_something_else_is_left_alone(capsys):
    Path("run").mkdir()
    for text, said in [
        ("{}", "not that of a run"),
        ('{"section": "star"}', "not that of a run"),
        ("{", "not valid"),
    ]:
        Path("run/config.json").write_text(text)
        for more in ([], ["--resume"]):
            assert said in said_of(capsys, "--out", "run", *more)
        assert Path("run/config.json").read_text() == text


@pytest.mark.parametrize("damage", ["cut", "deleted", "another"])
def test_a_log_that_is_shorter_than_its_checkpoint_knows_is_told_and_the_run_goes_on(damage, capsys):
    flags = [*TINY, "--log-every", "1", "--save-every", "1", "--decay", "none", "--out", "run"]
    assert main([*flags, "--steps", "3"]) == 0
    log = Path("run/metrics.jsonl")
    if damage == "deleted":
        log.unlink()
    else:
        lines = log.read_text().splitlines(keepends=True)
        log.write_text("".join(lines[:1] if damage == "cut" else [*lines, *lines]))
    capsys.readouterr()
    assert main([*flags, "--steps", "4", "--resume"]) == 0
    left = {"cut": 1, "deleted": 0, "another": 6}[damage]
    assert f"metrics.jsonl has {left} lines up to step 3, of 3" in capsys.readouterr().out
    assert [line["step"] for line in read_jsonl(log)][-1] == 4
    assert json.loads(Path("run/policy/training.json").read_text())["logged"]["metrics.jsonl"] == left + 1


def test_a_finished_run_whose_log_is_gone_says_so(capsys):
    assert main([*TINY, "--out", "run"]) == 0
    Path("run/metrics.jsonl").unlink()
    capsys.readouterr()
    assert "holds no line" in said_of(capsys, "--out", "run", "--resume")


@pytest.mark.parametrize("line", ["{", "[]", '{"loss": 1}', '{"step": "1"}', "[" * 5000, "\udcff"])
def test_a_damaged_line_of_a_log_is_named(line, capsys):
    assert main([*TINY, "--out", "run"]) == 0
    with open("run/metrics.jsonl", "a", encoding="utf-8", errors="surrogateescape") as file:
        file.write(f"{line}\n")
    assert "metrics.jsonl" in said_of(capsys, "--out", "run", "--resume")
