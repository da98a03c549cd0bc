"""General questions from a file: those that no expert is for.

    {"train": [["what is my balance", "balance"], ...], "val": ..., "oos_test": ...}    as CLINC150 has them
    ["Who wrote Hamlet?", ...]                                                          a JSON array of texts
    {"question": "Who wrote Hamlet?"}                                                   JSONL, or an array of these

CLINC150 (Larson et al. 2019) keeps its own splits; other files are divided by the hash of a question's words. An object
may say `text` or `prompt` for `question`, and name its `intent`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from t2cli.errors import CorruptArtifactError, T2Error
from t2cli.tasks.jsonl import MAX_FILE_BYTES, read_records
from t2cli.tasks.sampling import Item, split_of, words_digest

if TYPE_CHECKING:
    from pathlib import Path

TEXT_KEYS = ("question", "text", "prompt")
LONGEST = 100_000  # characters of a question
CLINC_SPLITS: Mapping[str, str] = {
    **{"train": "train", "val": "validation", "test": "test"},
    **{"oos_train": "train", "oos_val": "validation", "oos_test": "test"},
}
HINT = 'a JSON array of texts, JSONL of {"question": "..."}, or CLINC150\'s data_small.json'


def general_questions(path: Path, answer: str, skip: str | None = None) -> list[Item]:
    """Return the questions of a file, each once, with `answer` as their answer and the split they belong to.

    Questions with an intent that all of the regular expression `skip` matches are left out. A question that the test
    split holds too, in any order of its words, is in no other. Raises CorruptArtifactError, naming the place, for what
    is no question, and T2Error for a file that cannot be read.
    """
    left_out = re.compile(skip) if skip else None
    by_words: dict[int, Item] = {}
    ranks = {"test": 0, "validation": 1, "train": 2}
    for where, text, intent, split in _texts(path):
        if left_out is not None and intent is not None and left_out.fullmatch(intent):
            continue
        if not (text := text.strip()) or len(text) > LONGEST or any("\ud800" <= sign <= "\udfff" for sign in text):
            raise CorruptArtifactError(f"{where}: a question must be text of 1 to {LONGEST} characters", hint=HINT)
        item = Item(text, answer, split or split_of(text))
        known = by_words.setdefault(words_digest(text), item)
        if ranks[str(item.split)] < ranks[str(known.split)]:
            by_words[words_digest(text)] = item
    if not by_words:
        raise CorruptArtifactError(f"{path} holds no questions", hint=HINT)
    return list(by_words.values())


def _texts(path: Path) -> Iterator[tuple[str, str, str | None, str | None]]:
    """Yield where each question is, its text, and its intent and split where the file says so."""
    document = _document(path)
    if isinstance(document, dict):
        for name, split in CLINC_SPLITS.items():
            pairs = document.get(name, [])
            for number, pair in enumerate(pairs if isinstance(pairs, list) else [None], start=1):
                if not isinstance(pair, list) or len(pair) != 2 or not all(isinstance(each, str) for each in pair):
                    raise CorruptArtifactError(f"{path.name}: {name}, pair {number} is no [text, intent]", hint=HINT)
                yield f"{path.name}: {name}, pair {number}", pair[0], pair[1], split
    elif isinstance(document, list):
        for number, text in enumerate(document, start=1):
            if not isinstance(text, str):
                raise CorruptArtifactError(f"{path.name}, text {number} is no text", hint=HINT)
            yield f"{path.name}, text {number}", text, None, None
    else:
        for record in read_records(path):
            found = [record.values[key] for key in TEXT_KEYS if isinstance(record.values.get(key), str)]
            if not found:
                raise CorruptArtifactError(f"{record.where} has no text named {', '.join(TEXT_KEYS)}", hint=HINT)
            intent = record.values.get("intent")
            yield record.where, str(found[0]), None if intent is None else str(intent), None


def _document(path: Path) -> object:
    """Return a file that is one array of texts, or one object as CLINC150 has it; None for records."""
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise CorruptArtifactError(f"{path} has more than {MAX_FILE_BYTES} bytes", hint="split it")
        whole = json.loads(path.read_bytes())
    except OSError as error:
        raise T2Error(f"{path} could not be read: {error.strerror or error}", hint="check the file") from error
    except (ValueError, RecursionError):
        return None  # several lines of JSON, or damage that the reader of records names by its line
    if isinstance(whole, dict) and set(whole) & set(CLINC_SPLITS):
        return whole
    return whole if isinstance(whole, list) and all(not isinstance(each, dict) for each in whole) else None
