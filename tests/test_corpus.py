"""Sealed texts: splits, duplicates, byte counts, fingerprints, damage."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from autoresearch.data import corpus
from autoresearch.data.corpus import Recipe
from autoresearch.data.sources.files import FileSource
from autoresearch.data.sources.python import PythonSource
from autoresearch.errors import LabError


def quiet(stage, done, total):
    pass


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder of 200 texts with awkward characters, and a cache of its own."""
    monkeypatch.setenv("AUTORESEARCH_CACHE", str(tmp_path / "cache"))
    texts = tmp_path / "texts"
    texts.mkdir()
    lines = [
        {
            "text": f"Document {n}: naïve café, 東京 {n * n}, \x00 {chr(0x1F600 + n % 50)}\n"
            * 5
        }
        for n in range(200)
    ]
    (texts / "a.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return texts


def recipe(path, **more):
    settings = {"vocabulary": 300, "validation_bytes": 3000, "holdout_bytes": 3000}
    return Recipe(str(path), **{**settings, **more})


def test_the_bytes_of_all_tokens_sum_to_the_length_of_the_text(folder):
    sealed = corpus.prepare(recipe(folder), quiet)

    widths = sealed.token_bytes()
    for split, counts in sealed.manifest["splits"].items():
        tokens = sealed.tokens(split)
        assert tokens.dtype == np.uint16
        assert int(widths[tokens].sum()) == counts["bytes"]
        assert int((widths[tokens] == 0).sum()) == counts["documents"]
        assert len(sealed.decode_split(split)) == counts["bytes"]
        sealed.decode_split(split).decode()


def test_a_token_that_is_half_a_character_counts_its_bytes(folder):
    sealed = corpus.prepare(recipe(folder), quiet)

    assert all(sealed.token_bytes()[:256] == 1)  # single bytes, also those above 0x7f
    assert sealed.token_bytes()[-1] == 0


def test_a_document_is_in_one_split_only_and_duplicates_leave_the_training_text(folder):
    twice = folder / "b.jsonl"
    twice.write_text((folder / "a.jsonl").read_text().replace("\\n", "\\n"))

    sealed = corpus.prepare(recipe(folder), quiet)

    texts = {
        split: set(sealed.decode_split(split).decode().split("Document ")) - {""}
        for split in corpus.SPLITS
    }
    assert not texts["train"] & texts["validation"]
    assert not texts["train"] & texts["holdout"]
    assert not texts["validation"] & texts["holdout"]
    assert sum(sealed.manifest["duplicates_removed"].values()) > 0


def test_preparing_twice_does_nothing_and_any_change_is_another_fingerprint(folder):
    first = corpus.prepare(recipe(folder), quiet)
    before = first.path("train").stat().st_mtime_ns

    again = corpus.prepare(recipe(folder), quiet)
    other_size = corpus.prepare(recipe(folder, vocabulary=310), quiet)
    with (folder / "a.jsonl").open("a") as file:
        file.write('\n{"text": "one more"}')
    other_text = corpus.prepare(recipe(folder), quiet)

    assert again.fingerprint == first.fingerprint
    assert again.path("train").stat().st_mtime_ns == before
    assert len({first.fingerprint, other_size.fingerprint, other_text.fingerprint}) == 3


def test_the_same_files_elsewhere_are_the_same_text(folder, tmp_path):
    first = corpus.prepare(recipe(folder), quiet)
    folder.rename(tmp_path / "moved")

    second = corpus.prepare(recipe(tmp_path / "moved"), quiet)

    assert second.fingerprint == first.fingerprint


def test_a_changed_text_is_not_found_until_it_is_prepared(folder):
    corpus.prepare(recipe(folder), quiet)
    (folder / "new.txt").write_text("something else entirely")

    with pytest.raises(LabError, match="Next: autoresearch prepare"):
        corpus.require(recipe(folder))


@pytest.mark.parametrize("name", ["train.u16", "tokenizer.txt"])
def test_a_truncated_file_is_named(folder, name):
    sealed = corpus.prepare(recipe(folder), quiet)
    path = sealed.folder / name
    path.chmod(0o644)
    path.write_bytes(path.read_bytes()[:-10])

    with pytest.raises(LabError, match=f"{name} is truncated or changed"):
        corpus.require(recipe(folder))


def test_a_changed_byte_is_found_by_verify(folder):
    sealed = corpus.prepare(recipe(folder), quiet)
    path = sealed.path("validation")
    body = bytearray(path.read_bytes())
    body[10] ^= 1
    path.chmod(0o644)
    path.write_bytes(body)

    with pytest.raises(LabError, match=r"validation\.u16"):
        corpus.require(recipe(folder)).verify()


def test_special_words_in_a_document_are_ordinary_text(folder):
    (folder / "c.txt").write_text("before <|document|> after\n" * 40)

    sealed = corpus.prepare(recipe(folder), quiet)

    marks = sum(int((sealed.tokens(s) == 299).sum()) for s in corpus.SPLITS)
    documents = sum(c["documents"] for c in sealed.manifest["splits"].values())
    assert marks == documents


def test_kill_9_while_preparing_leaves_nothing_that_is_trusted(folder):
    words = (
        "from autoresearch.data import corpus; import sys;"
        f"corpus.prepare(corpus.Recipe({str(folder)!r}, 300, 3000, 3000),"
        "lambda *a: print(*a, flush=True))"
    )
    whole = corpus.prepare(recipe(folder), quiet).fingerprint
    for delay in (0.0, 0.05, 0.2, 0.5):
        subprocess.run(["rm", "-rf", os.environ["AUTORESEARCH_CACHE"]], check=True)
        process = subprocess.Popen(
            [sys.executable, "-c", words], stdout=subprocess.PIPE
        )
        process.stdout.readline()
        time.sleep(delay)
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()

        found = corpus.prepare(recipe(folder), quiet)
        found.verify()
        assert found.fingerprint == whole


@pytest.mark.parametrize(
    ("name", "body", "says"),
    [
        ("bad.jsonl", b'{"text": "ok"}\n{"no": 1}\n', "line 2"),
        ("bad.jsonl", b"[" * 100_000, "line 1"),
        ("bad.txt", b"\xff\xfe\x00", "not UTF-8"),
        ("bad.parquet", b"PAR1 not really", "parquet"),
    ],
)
def test_a_bad_file_gets_one_clear_sentence(tmp_path, name, body, says):
    (tmp_path / name).write_bytes(body)

    with pytest.raises(LabError, match=says):
        list(FileSource(tmp_path).iter_documents())


def test_parquet_needs_a_column_named_text(tmp_path):
    import pyarrow
    import pyarrow.parquet

    table = pyarrow.table({"body": ["a", "b"]})
    pyarrow.parquet.write_table(table, tmp_path / "x.parquet")

    with pytest.raises(LabError, match="no column 'text'; it has: body"):
        list(FileSource(tmp_path).iter_documents())


def test_parquet_and_large_texts_become_documents(tmp_path):
    import pyarrow
    import pyarrow.parquet

    table = pyarrow.table({"text": ["first", "", "second"]})
    pyarrow.parquet.write_table(table, tmp_path / "x.parquet")
    (tmp_path / "stories.txt").write_text("one<|endoftext|>two<|endoftext|>three")
    (tmp_path / "y.md").write_text("# notes")

    texts = [document.text for document in FileSource(tmp_path).iter_documents()]

    assert texts == ["one", "two", "three", "first", "second", "# notes"]


def test_too_little_text_is_the_humans_mistake(tmp_path, monkeypatch):
    monkeypatch.setenv("AUTORESEARCH_CACHE", str(tmp_path / "cache"))
    (tmp_path / "only.txt").write_text("one document")

    with pytest.raises(LabError, match="too few documents"):
        corpus.prepare(recipe(tmp_path / "only.txt"), quiet)


def test_python_holds_out_only_what_lies_in_test_directories():
    documents = list(PythonSource(("numpy",)).iter_documents())

    held = [d.name for d in documents if d.may_hold_out]
    assert len(held) > 100
    assert all({"test", "tests"} & set(name.split("/")[:-1]) for name in held)
    assert any(name.startswith("numpy/") for name in held)
    assert not any("site-packages" in document.name for document in documents)
