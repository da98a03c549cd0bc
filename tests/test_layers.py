"""The architecture's layers, sizes and forbidden constructs, read from the source without running it.

Every check is a function from sources to a list of problems, so that each is also shown a bad source here.
"""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from source_checks import (
    CHECKS,
    READS_WEIGHTS,
    RUN_IN_SANDBOX,
    Sources,
    heavy_problems,
    layer_problems,
    leak_problems,
    module_name,
    size_problems,
    svf_problems,
    unsafe_problems,
)

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def sources() -> Sources:
    files = sorted((ROOT / "t2cli").rglob("*.py"))
    assert files
    return {module_name(file.relative_to(ROOT)): file.read_text(encoding="utf-8") for file in files}


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_the_package_has_no(check: Callable[[Sources], list[str]], sources: Sources) -> None:
    problems = check(sources)
    assert not problems, "\n".join(problems)


def test_no_file_names_a_machine_or_a_package_registry() -> None:
    # Also files that are not tracked yet. A checkout owned by somebody else, as in containers, is fine.
    command = ["git", "-c", "safe.directory=*", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    if not (ROOT / ".git").exists():
        pytest.skip("this is no git checkout, so there is no list of its files")
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, check=True).stdout.decode().split("\0")
    contents = {name: (ROOT / name).read_bytes() for name in listed if (ROOT / name).is_file()}
    texts = {name: raw.decode(errors="replace") for name, raw in contents.items() if b"\0" not in raw}
    assert "pyproject.toml" in texts
    problems = leak_problems(texts)
    assert not problems, "\n".join(problems)


HELPER = "t2cli.models.helper"
BAD: list[tuple[Callable[[Sources], list[str]], Sources]] = [
    (layer_problems, {"t2cli.svf.basis": "from t2cli.models.base import BaseModel"}),
    (layer_problems, {"t2cli.errors": "from t2cli import svf"}),
    (layer_problems, {"t2cli.evaluation.evaluate": "def f():\n    from t2cli.training import loop"}),
    (layer_problems, {"t2cli.training.loop": "import t2cli.cli.output"}),
    (layer_problems, {"t2cli.tasks.base": "TABLE = {'x': 't2cli.dispatch.prompt:choose'}"}),
    (layer_problems, {"t2cli.tasks.base": "from ..cli import app"}),
    (layer_problems, {"t2cli.tasks.base": "if TYPE_CHECKING:\n    import t2cli.unheard_of.thing"}),
    (layer_problems, {"t2cli.unheard_of.thing": ""}),
    (svf_problems, {"t2cli.svf.basis": "import safetensors"}),
    (svf_problems, {"t2cli.svf.basis": "from t2cli.errors import T2Error"}),
    (heavy_problems, {"t2cli.registry.local": "import safetensors.torch"}),
    (heavy_problems, {"t2cli.cli.chat": "try:\n    from torch import nn\nexcept ImportError:\n    pass"}),
    (heavy_problems, {"t2cli.tasks.base": f"import {HELPER}", HELPER: "import numpy"}),
    (heavy_problems, {"t2cli.models.catalog": "from t2cli.models import helper", HELPER: "import transformers"}),
    (heavy_problems, {"t2cli.cli": "if TYPE_CHECKING:\n    pass\nelse:\n    import torch"}),
    (size_problems, {"t2cli.files": "\n" * 301}),
    (size_problems, {"t2cli.files": "class A:\n    async def f(self):\n" + "        1\n" * 50}),
    (unsafe_problems, {"t2cli.files": "import pickle"}),
    (unsafe_problems, {"t2cli.files": "def f():\n    from torch import load"}),
    (unsafe_problems, {"t2cli.files": "torch.load(path, weights_only=True)"}),
    (unsafe_problems, {READS_WEIGHTS: "torch.load(path)"}),
    (unsafe_problems, {READS_WEIGHTS: "torch.load(path, weights_only=False)"}),
    (unsafe_problems, {READS_WEIGHTS: "torch.load(path, weights_only=safe)"}),
    (unsafe_problems, {READS_WEIGHTS: "torch.load(path, weights_only=1)"}),
    (unsafe_problems, {READS_WEIGHTS: "torch.load(path, pickle_module=p, weights_only=True)"}),
    (unsafe_problems, {READS_WEIGHTS: "torch.load(path, **{'weights_only': True})"}),
    (unsafe_problems, {READS_WEIGHTS: "torch.load(path, weights_only=True, **more)"}),
    (unsafe_problems, {READS_WEIGHTS: "load = torch.load"}),
    (unsafe_problems, {READS_WEIGHTS: "from torch import load"}),
    (unsafe_problems, {READS_WEIGHTS: "torch.serialization.load(path, weights_only=True)"}),
    (unsafe_problems, {"t2cli.export.lora": "torch.load(path, weights_only=True)"}),
    (unsafe_problems, {"t2cli.files": "yaml.load(text)"}),
    (unsafe_problems, {"t2cli.files": "class L(yaml.Loader): ...\nyaml.load(text, Loader=L)"}),
    (unsafe_problems, {"t2cli.files": "yaml.unsafe_load(text)"}),
    (unsafe_problems, {"t2cli.files": "Auto.from_pretrained(x, trust_remote_code=trust)"}),
    (unsafe_problems, {"t2cli.files": "options = {'trust_remote_code': True}"}),
    (unsafe_problems, {"t2cli.files": "eval('1')"}),
    (unsafe_problems, {"t2cli.files": "builtins.exec('1')"}),
    (unsafe_problems, {"t2cli.tasks.sandbox": "exec('1')"}),
    (unsafe_problems, {"t2cli.tasks.base": "from t2cli.tasks.sandboxed import judge"}),
    (unsafe_problems, {"t2cli.tasks.base": "import t2cli.tasks.sandboxed.candidate"}),
]


@pytest.mark.parametrize(("check", "source"), BAD, ids=lambda value: getattr(value, "__name__", ""))
def test_a_bad_source_is_found(check: Callable[[Sources], list[str]], source: Sources) -> None:
    assert len(check(source)) == 1


# Neither list below is written out as it would be found, so that this file passes its own check.
@pytest.mark.parametrize("folder", ["root", "work", "home/ann", "Users/ann"])
def test_a_machine_path_is_found(folder: str) -> None:
    assert leak_problems({"a.md": f"see\n(/{folder}/x)"}) == [f"a.md:2: /{folder}/"]
    assert not leak_problems({"a.md": f"example.com/{folder}/x, ~/{folder}/x and ./{folder}/x"})


@pytest.mark.parametrize("host", [("pypi", "org"), ("files", "pythonhosted", "org"), ("download", "pytorch", "org")])
def test_a_registry_host_is_found(host: tuple[str, ...]) -> None:
    assert leak_problems({"a.txt": f"https://{'.'.join(host)}/simple"})


def test_what_is_allowed_is_not_found() -> None:
    good = {
        "t2cli.registry.local": "if TYPE_CHECKING:\n    import torch\ndef f():\n    import numpy",
        "t2cli.svf.linear": "import math\nfrom torch import nn\nfrom t2cli.svf.basis import Basis",
        READS_WEIGHTS: "torch.load(path, map_location='cpu', weights_only=True)",
        f"{RUN_IN_SANDBOX}judge": "exec('1')",
        "t2cli.cli.app": "from t2cli import __version__\nfrom t2cli.training.loop import train",
        "t2cli.training.loop": "class L(yaml.CSafeLoader): ...\nyaml.load(text, Loader=L)\nmodel.eval()",
    }
    assert [problem for check in CHECKS for problem in check(good)] == []
