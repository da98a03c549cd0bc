"""t2 push, t2 pull, t2 list --remote and references to the Hub, by real processes against a real server."""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from hub_server import Fault, Hub, Repo
from typer.testing import Result

from t2cli.registry.local import ExpertEntry, LocalRegistry
from t2cli.registry.vectors import read_z

NAME = "org/experts"
T2 = Callable[..., subprocess.CompletedProcess[str]]
Make = Callable[..., ExpertEntry]


@pytest.fixture(autouse=True)
def logged_in(environment: None, hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let processes talk to the test's Hub, whatever proxies there are; uploads go by LFS."""
    hub.writers["hf_writer"] = True
    for name in list(os.environ):
        if "proxy" in name.lower():
            monkeypatch.delenv(name)
    settings = {"HF_ENDPOINT": hub.url, "HF_TOKEN": "hf_writer", "HF_HOME": tmp_path / "hf", "HF_HUB_DISABLE_XET": 1}
    for name, value in settings.items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.setenv("T2_REGISTRY", str(tmp_path / "mine"))


@pytest.fixture
def pushed(t2: T2, registry: Path) -> subprocess.CompletedProcess[str]:
    """Publish math@2 of a registry of experts."""
    return t2("push", "math@2", NAME, "--registry", registry, "--json")


def stopped(result: subprocess.CompletedProcess[str], code: int, *said: str) -> None:
    assert (result.returncode, result.stdout) == (code, ""), result.stderr
    lines = result.stderr.splitlines()
    assert lines[0].startswith("error: "), result.stderr
    assert lines[-1].startswith("hint: "), result.stderr
    assert len(lines) <= 3, result.stderr
    for text in said:
        assert text in result.stderr
    assert "hf_writer" not in result.stderr


def test_publish_list_pull_and_show(
    t2: T2, hub: Hub, registry: Path, pushed: subprocess.CompletedProcess[str], tmp_path: Path
) -> None:
    entry = LocalRegistry([registry]).find("math@2")
    assert pushed.returncode == 0, pushed.stderr
    assert json.loads(pushed.stdout) == {
        "schema": "t2.push/1",
        "expert": "math@2",
        "digest": entry.digest,
        "repo": NAME,
        "ref": "hf://org/experts/math@2",
        "commit": hub.repo(NAME).head,
        "tag": "math-v2",
        "pushed": True,
    }
    assert "%|" not in pushed.stderr  # stderr is no terminal: no progress bars

    again = t2("push", "math@2", NAME, "--registry", registry)
    assert (again.returncode, again.stdout) == (0, "hf://org/experts/math@2\n")
    assert "nothing changed" in again.stderr

    listed = t2("list", "--remote", NAME, "--json")
    (one,) = json.loads(listed.stdout)["experts"]
    assert (one["digest"], one["source"]) == (entry.digest, "hf://org/experts")
    assert "math" in t2("list", "--remote", f"hf://{NAME}@math-v2").stdout

    pulled = t2("pull", f"{NAME}/math@2", "--json")
    assert pulled.returncode == 0, pulled.stderr
    path = tmp_path / "mine" / entry.manifest.base.folder / "math" / "2"
    record = {"expert": "math@2", "base": entry.manifest.base.folder, "digest": entry.digest, "path": str(path)}
    assert json.loads(pulled.stdout) == {
        "schema": "t2.pull/1",
        "repo": NAME,
        "revision": None,
        "commit": hub.repo(NAME).head,
        "experts": [{**record, "pulled": True}],
    }
    assert json.loads(t2("list", "--json").stdout)["experts"][0]["digest"] == entry.digest
    second = t2("pull", NAME)
    assert (second.stdout, "was here already" in second.stderr) == ("math@2\n", True)

    shown = t2("show", "hf://org/experts/math@2", "--json")
    assert json.loads(shown.stdout)["source"] == "hf://org/experts"


def at_a_terminal(*arguments: str) -> str:
    """Return what t2 writes to stderr where that is a terminal."""
    pty, termios = pytest.importorskip("pty"), pytest.importorskip("termios")
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (24, 80))
    command = [sys.executable, "-m", "t2cli", *arguments]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=theirs) as process:
        os.close(theirs)
        seen = b""
        with contextlib.suppress(OSError):  # Linux's way to say that the other side has closed
            while chunk := os.read(ours, 4096):
                seen += chunk
    os.close(ours)
    assert process.returncode == 0, seen
    return seen.decode()


def test_a_pull_shows_its_bytes_at_a_terminal_only(
    t2: T2, hub: Hub, pushed: object, registry: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    entry = LocalRegistry([registry]).find("math@2")
    total = sum((entry.path / name).stat().st_size for name in ("expert.yaml", "z.safetensors"))
    hub.slow = 0.2  # so that the bar is drawn again between the files
    seen = at_a_terminal("pull", NAME)
    assert re.search(r"pull: +\d+%\|.*\dk?/" + f"{total / 1000:.2f}k", seen), seen
    for place, (arguments, watched) in enumerate([(("--quiet",), at_a_terminal), ((), lambda *a: t2(*a).stderr)]):
        monkeypatch.setenv("T2_REGISTRY", str(tmp_path / f"silent{place}"))
        assert "pull:" not in watched("pull", NAME, *arguments)


def test_offline(t2: T2, hub: Hub, pushed: object, registry: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert t2("show", "hf://org/experts/math@2").returncode == 0
    hub.asked.clear()
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert t2("show", "hf://org/experts/math@2").returncode == 0
    for command in (["show", "hf://org/experts/math"], ["pull", NAME], ["list", "--remote", NAME]):
        stopped(t2(*command), 6, "HF_HUB_OFFLINE is set", "org/experts")
    stopped(t2("push", "math", NAME, "--registry", registry), 6, "HF_HUB_OFFLINE is set")
    assert hub.asked == []


def test_exit_codes(t2: T2, hub: Hub, pushed: object, make_expert: Make, tmp_path: Path) -> None:
    make_expert(tmp_path / "mine", "math", description="mine")
    make_expert(tmp_path / "mine", "math", description="mine too")
    stopped(t2("pull", NAME), 1, "another expert", "--registry")
    stopped(t2("push", "math@2", NAME), 1, "never changes")
    stopped(t2("push", "maths", NAME), 3, "maths")
    stopped(t2("push", "math", "org"), 2, "ORG/REPO")
    stopped(t2("push", "math", f"{NAME}/math"), 2, "ORG/REPO")
    stopped(t2("pull", f"{NAME}/nothing"), 3, "nothing")
    stopped(t2("pull", "org/nothing"), 3, "org/nothing", "HF_TOKEN")
    stopped(t2("list", "--remote", f"{NAME}/math"), 2, "ORG/REPO")
    hub.faults.append(Fault("GET", r"expert\.yaml$", content=b"x"))
    stopped(t2("pull", NAME), 5, "expert.yaml")
    hub.writers["hf_writer"] = False
    stopped(t2("push", "math@1", NAME), 1, "token")
    hub.faults.append(Fault("GET", "/api/", times=9, status=429, headers={"Retry-After": "600"}))
    stopped(t2("pull", NAME), 6, "requests")


def test_a_failure_that_passed_is_not_talked_about(t2: T2, hub: Hub, registry: Path) -> None:
    hub.faults += [Fault("PUT", "/lfs/", status=500), Fault("GET", "/resolve/", cut=0)]
    for command in (["push", "math@2", NAME, "--registry", registry, "--quiet"], ["pull", NAME, "--quiet"]):
        result = t2(*command)
        assert (result.returncode, result.stderr) == (0, "")
    assert [fault.times for fault in hub.faults] == [0, 0]


def test_an_empty_repository_is_said_to_be_empty(t2: T2, hub: Hub) -> None:
    hub.repos[NAME] = Repo()
    result = t2("list", "--remote", NAME)
    assert (result.returncode, result.stdout) == (0, "")
    assert "there are no experts in org/experts" in result.stderr


def test_killed_at_any_moment_a_pull_leaves_whole_experts_only(
    t2: T2, hub: Hub, registry: Path, make_expert: Make, tmp_path: Path
) -> None:
    for name in ("a", "b", "c", "d"):
        make_expert(registry, name)
        assert t2("push", name, NAME, "--registry", registry).returncode == 0
    folder = tmp_path / "pulled"
    chance, seen = random.Random(0), set()
    hub.slow = 0.05
    command = [sys.executable, "-m", "t2cli", "pull", NAME, "--registry", str(folder)]
    began = time.monotonic()
    assert t2("pull", NAME, "--registry", tmp_path / "whole").returncode == 0
    usual = time.monotonic() - began
    for _ in range(12):
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        time.sleep(usual * chance.uniform(0.4, 1.1))
        process.send_signal(signal.SIGKILL)
        process.communicate()
        local = LocalRegistry([folder])
        entries = local.list()
        assert local.problems == []
        assert [problem for entry in entries for problem in local.verify(entry)] == []
        seen.add(len(entries))
        if len(entries) == 4:
            for entry in entries[chance.randrange(4) :]:
                local.remove(entry.reference)
    assert t2("pull", NAME, "--registry", folder).returncode == 0
    whole = {entry.digest for entry in LocalRegistry([tmp_path / "whole"]).list()}
    assert {entry.digest for entry in LocalRegistry([folder]).list()} == whole
    assert list(folder.rglob("*.tmp")) == []
    assert len(seen) > 1, "no pull was killed half-way"


@pytest.fixture
def chat_on_hub(t2: T2, chat_experts: dict[str, ExpertEntry], tmp_path: Path) -> dict[str, ExpertEntry]:
    """Publish the experts of the tiny base."""
    for name in ("math", "story"):
        result = t2("push", name, NAME, "--registry", tmp_path / "experts")
        assert result.returncode == 0, result.stderr
    return chat_experts


def test_references_to_the_hub_answer_and_mix(
    run: Callable[..., Result],
    chat_on_hub: dict[str, ExpertEntry],
    base_folder: Callable[[str], Path],
    tmp_path: Path,
) -> None:
    base = ["--base", base_folder("llama")]
    said = [*base, "--max-new-tokens", "8", "--json", "what is it"]
    remote = run("chat", *said, "--expert", "hf://org/experts/math")
    assert remote.exit_code == 0, remote.stderr
    assert remote.stderr.splitlines()[-1] == "[hf://org/experts/math@1]"
    local = run("chat", *said, "--expert", "math", "--registry", tmp_path / "experts")
    assert json.loads(remote.stdout)["answer"] == json.loads(local.stdout)["answer"]

    mixed = run("mix", "hf://org/experts/math@1:0.5", "hf://org/experts/story:0.25", "--name", "both", *base)
    assert mixed.exit_code == 0, mixed.stderr
    assert mixed.stdout == "both@1 = 0.5 hf://org/experts/math@1 + 0.25 hf://org/experts/story@1\n"
    here = run("mix", "math:0.5", "story:0.25", "--name", "both", *base, "--registry", tmp_path / "experts")
    assert here.exit_code == 0, here.stderr
    ours, theirs = (LocalRegistry([tmp_path / name]).find("both") for name in ("mine", "experts"))
    assert {name: z.tolist() for name, z in read_z(ours).items()} == {
        name: z.tolist() for name, z in read_z(theirs).items()
    }
    assert [parent.ref for parent in ours.manifest.parents] == ["hf://org/experts/math@1", "hf://org/experts/story@1"]
    tree = run("show", "both", *base)
    assert "0.5 hf://org/experts/math@1\n" in tree.stdout  # found: no note that it is not here

    by_hand = run("chat", *said, "--mix", "hf://org/experts/math@1:0.5,hf://org/experts/story@1:0.25")
    named = run("chat", *said, "--expert", "both")
    assert json.loads(by_hand.stdout)["answer"] == json.loads(named.stdout)["answer"]
