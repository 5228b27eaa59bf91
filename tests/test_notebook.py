"""The notebook: what git is told, and what nobody can make it do."""

import os
import subprocess
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoresearch.errors import LabError
from autoresearch.git import (
    TRAILERS,
    GitError,
    Repository,
    VerdictCommit,
    parse_trailers,
    shorten_title,
)
from autoresearch.records import commit_message
from autoresearch.text import to_one_line

BEFORE, AFTER = "RATE = 1\n", "RATE = 2  # Δ\n"
CRLF = "RATE = 3\r\nx = '$Id$'\r\n"
HUMAN = {
    "PATH": os.environ["PATH"],
    "GIT_CONFIG_NOSYSTEM": "1",
    "GIT_CONFIG_GLOBAL": "/dev/null",
    **{f"GIT_{who}_NAME": "ada" for who in ("AUTHOR", "COMMITTER")},
    **{f"GIT_{who}_EMAIL": "ada@example.org" for who in ("AUTHOR", "COMMITTER")},
}


def git(folder: Path, *words: str, **more) -> str:
    """Git as a person runs it, with this folder's configuration."""
    done = subprocess.run(
        ("git", *words), cwd=folder, env=HUMAN, capture_output=True, check=True, **more
    )
    return done.stdout.decode().rstrip("\n")


def a_lab(folder: Path) -> Repository:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in (("prepare.py", "1\n"), ("program.md", "# Goal\n")):
        (folder / name).write_text(text)
    (folder / "train.py").write_text(BEFORE)
    git(folder, "init", "-q", "-b", "main")
    git(folder, "add", ".")
    git(folder, "commit", "-q", "-m", "a lab")
    return Repository(folder)


@pytest.fixture
def book(tmp_path):
    return a_lab(tmp_path / "lab")


def an_entry(**changes) -> VerdictCommit:
    words = {
        "title": "[AutoResearch] faster | Δbpb=-0.0012",
        "body": "It was slow.",
        "trailers": (("Experiment", "7"), ("Verdict", "keep: gain 0.0012")),
        "author": "search",
        "committed_at": 1_700_000_000.9,
    }
    return VerdictCommit(**(words | changes))


def keep(book: Repository, source: str = AFTER, number: int = 7, **changes) -> str:
    """What the books do with a keep."""
    head = book.head_commit()
    commit = book.create_commit(an_entry(**changes), book.write_blob(source), head)
    assert book.advance_branch(book.current_branch(), commit, head)
    book.set_experiment_ref(number, commit)
    book.update_working_file(head, commit)
    return commit


def listing(book: Repository, commit: str) -> dict[str, str]:
    """Every path of a commit, with mode, type and object."""
    lines = git(book.folder, "ls-tree", "-r", "-t", "-z", commit).split("\0")
    return {line.partition("\t")[2]: line.partition("\t")[0] for line in lines if line}


def differing(book: Repository, commit: str) -> set[str]:
    now, before = listing(book, commit), listing(book, f"{commit}^")
    return {name for name in now | before if now.get(name) != before.get(name)}


# -- one commit per verdict ------------------------------------------------------------


def test_a_commit_differs_from_its_parent_only_in_train_py(book):
    commit = book.create_commit(an_entry(), book.write_blob(AFTER), book.head_commit())

    assert differing(book, commit) == {"train.py"}
    assert git(book.folder, "show", f"{commit}:train.py") == AFTER.rstrip("\n")


ODD_NAMES = (
    "a\ttrain.py",
    "not-train.py",
    "train.py.orig",
    "with space and 'quotes'",
    'double"quote',
    "line\nbreak",
    "Δelta-ü-日本",
    ":(top)magic",
    "-rf",
    "*",
    "sub/train.py",
    "sub/deeper/train.py",
    "sub/prepare.py",
)


def test_other_files_sub_folders_and_odd_names_stay_as_they_are(book):
    for name in ODD_NAMES:
        path = book.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"content of {name}")
    (book.folder / b"latin-\xe9".decode(errors="surrogateescape")).write_text("x")
    (book.folder / "run.sh").write_text("#!/bin/sh\n")
    (book.folder / "run.sh").chmod(0o755)
    (book.folder / "link").symlink_to("train.py")
    git(book.folder, "add", "--all", "--", ".")
    gitlink = f"160000,{book.head_commit()},submodule"
    git(book.folder, "update-index", "--add", "--cacheinfo", gitlink)
    git(book.folder, "commit", "-q", "-m", "odd files")

    commit = book.create_commit(an_entry(), book.write_blob(AFTER), book.head_commit())

    names = subprocess.run(
        ("git", "ls-tree", "-r", "-z", "--name-only", commit),
        cwd=book.folder,
        capture_output=True,
        check=True,
    ).stdout.split(b"\0")
    assert len(names) - 1 == 3 + len(ODD_NAMES) + 4
    changed = git(book.folder, "diff", "--name-only", f"{commit}^", commit)
    assert changed == "train.py"


def test_an_executable_train_py_stays_executable(book):
    (book.folder / "train.py").chmod(0o755)
    git(book.folder, "commit", "-q", "-am", "executable")

    commit = keep(book)

    assert listing(book, commit)["train.py"].startswith("100755")
    assert os.access(book.folder / "train.py", os.X_OK)
    assert git(book.folder, "status", "--porcelain") == ""


def test_nothing_is_checked_out_and_no_branch_moves_for_a_discarded_idea(book):
    head = book.head_commit()

    commit = book.create_commit(an_entry(), book.write_blob(AFTER), head)
    book.set_experiment_ref(3, commit)

    assert book.head_commit() == head
    assert (book.folder / "train.py").read_text() == BEFORE
    assert git(book.folder, "status", "--porcelain") == ""
    assert book.find_commit(3) == commit
    assert book.find_commit(4) is None
    assert not book.has_commit(commit)


def test_author_committer_and_time_are_said_outright(book):
    commit = book.create_commit(
        an_entry(author="human:ada"), book.write_blob(AFTER), book.head_commit()
    )

    said = git(book.folder, "log", "-1", "--format=%an|%cn|%ce|%at|%ct", commit)
    assert said == (
        "human:ada|AutoResearch|autoresearch@localhost|1700000000|1700000000"
    )


@pytest.mark.parametrize(
    "author",
    ["", ".", "...", "<>", "'", '"', "\n", " ", "\x1b[31m", "\0", "<x> y", "é"],
)
def test_an_odd_author_is_no_crash(book, author):
    commit = book.create_commit(
        an_entry(author=author), book.write_blob(AFTER), book.head_commit()
    )

    assert git(book.folder, "log", "-1", "--format=%an", commit).strip()


def test_the_same_verdict_makes_the_same_commit_again(book):
    first, second = (
        book.create_commit(an_entry(), book.write_blob(AFTER), book.head_commit())
        for _ in range(2)
    )

    assert first == second


# -- what is planted does not run ------------------------------------------------------

HOOKS = (
    *("reference-transaction", "pre-commit", "commit-msg", "prepare-commit-msg"),
    *("post-commit", "post-checkout", "post-index-change", "post-merge"),
    *("post-rewrite", "pre-auto-gc", "post-update", "update", "pre-receive"),
    "fsmonitor-watchman",
)


@pytest.fixture
def planted(book, tmp_path, monkeypatch):
    """A repository and a home full of traps; the file that a sprung one writes to."""
    sprung = tmp_path / "sprung"
    trap = tmp_path / "trap.sh"
    trap.write_text(f'#!/bin/sh\necho "$0 $*" >> {sprung}\nexec cat\n')
    trap.chmod(0o755)
    remote = tmp_path / "remote.sh"
    remote.write_text(f'#!/bin/sh\necho "$0 $*" >> {sprung}\nexit 1\n')
    remote.chmod(0o755)
    hooks = tmp_path / "hooks"
    for folder in (hooks, book.folder / ".git" / "hooks"):
        folder.mkdir(exist_ok=True)
        for name in HOOKS:
            (folder / name).unlink(missing_ok=True)
            (folder / name).symlink_to(trap)
    attributes = "* filter=evil diff=evil text eol=crlf ident\n"
    (book.folder / ".gitattributes").write_text(attributes)
    git(book.folder, "add", ".gitattributes")
    git(book.folder, "commit", "-q", "--no-verify", "-m", "attributes")
    sprung.unlink(missing_ok=True)
    (book.folder / ".git" / "info" / "attributes").write_text(attributes)
    (tmp_path / "attributes").write_text(attributes)
    config = f"""
        [core]
            hooksPath = {hooks}
            fsmonitor = {trap}
            attributesFile = {tmp_path / "attributes"}
            autocrlf = true
            editor = {trap}
            pager = {trap}
            sshCommand = {trap}
            alternateRefsCommand = {trap}
        [filter "evil"]
            clean = {trap}
            smudge = {trap}
            required = true
        [diff]
            external = {trap}
        [diff "evil"]
            textconv = {trap}
        [commit]
            gpgSign = true
        [tag]
            gpgSign = true
        [gpg]
            program = {trap}
        [log]
            showSignature = true
        [i18n]
            commitEncoding = UTF-16
            logOutputEncoding = UTF-16
        [gc]
            recentObjectsHook = {trap}
            auto = 1
        [extensions]
            partialClone = evil
        [remote "evil"]
            url = {tmp_path / "nowhere"}
            uploadpack = {remote}
            promisor = true
        [core]
            repositoryFormatVersion = 1
        [protocol]
            allow = always
    """
    with (book.folder / ".git" / "config").open("a") as file:
        file.write(config)
    home = tmp_path / "home"
    home.mkdir()
    (home / ".gitconfig").write_text(config)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(home / ".gitconfig"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(home))
    monkeypatch.setenv("GIT_EXTERNAL_DIFF", str(trap))
    monkeypatch.setenv("GIT_EDITOR", str(trap))
    monkeypatch.setenv("GIT_SSH_COMMAND", str(trap))
    return sprung


def test_the_traps_of_the_next_tests_are_live(book, planted):
    (book.folder / "train.py").write_text("X = 1\n")
    unsigned = ("-c", "commit.gpgSign=false", "commit", "-qam", "x")
    promised = ("cat-file", "-e", "1" * 40)

    for words in (unsigned, promised):
        subprocess.run(
            ("git", *words),
            cwd=book.folder,
            env=HUMAN,
            capture_output=True,
            stdin=subprocess.DEVNULL,
            timeout=60,
        )

    said = planted.read_text()
    for trap in ("reference-transaction", "post-index-change", "trap.sh", "remote.sh"):
        assert trap in said


@pytest.mark.parametrize("source", [AFTER, CRLF])
def test_planted_hooks_filters_attributes_and_configuration_do_nothing(
    book, planted, source
):
    book.require_usable()
    book.add_excludes("results.tsv")
    commit = keep(book, source)
    book.list_verdict_commits()
    book.read_log(5)
    book.pack_objects()
    assert book.read_file_at("HEAD", "gone.py") is None
    assert book.find_commit(999) is None
    with pytest.raises(GitError):
        book.run_git("cat-file", "-e", "1" * 40)

    assert not planted.exists()
    assert book.has_commit(commit)
    assert book.read_file_at(commit, "train.py")[1] == source.encode()
    assert (book.folder / "train.py").read_bytes() == source.encode()
    raw = book.run_git_bytes("cat-file", "commit", commit)
    assert b"encoding" not in raw
    assert b"gpgsig" not in raw
    assert "Δbpb".encode() in raw
    assert "Δbpb" in book.read_log(1)


def test_variables_of_somebody_elses_repository_are_not_followed(
    book, tmp_path, monkeypatch
):
    other = a_lab(tmp_path / "other")
    monkeypatch.setenv("GIT_DIR", str(other.folder / ".git"))
    monkeypatch.setenv("GIT_WORK_TREE", str(other.folder))
    monkeypatch.setenv("GIT_INDEX_FILE", str(tmp_path / "index"))
    monkeypatch.setenv("GIT_OBJECT_DIRECTORY", str(tmp_path / "objects"))
    monkeypatch.setenv("GIT_AUTHOR_NAME", "mallory")
    (tmp_path / "objects").mkdir()

    keep(book)

    assert git(other.folder, "log", "--format=%s") == "a lab"
    assert git(book.folder, "log", "-1", "--format=%an") == "search"
    assert list((tmp_path / "objects").iterdir()) == []


def test_a_replaced_object_does_not_replace_what_is_read(book):
    honest = book.read_file_at("HEAD", "prepare.py")
    forged = book.write_blob("cheat()\n")
    git(book.folder, "replace", honest[0], forged)
    assert git(book.folder, "show", "HEAD:prepare.py") == "cheat()"

    assert book.read_file_at("HEAD", "prepare.py") == honest


# -- the branch ------------------------------------------------------------------------


def test_a_keep_moves_the_branch_and_the_clean_train_py(book):
    commit = keep(book)

    assert book.head_commit() == commit
    assert (book.folder / "train.py").read_text() == AFTER
    assert git(book.folder, "status", "--porcelain") == ""
    assert sorted(os.listdir(book.folder)) == [
        ".git",
        "prepare.py",
        "program.md",
        "train.py",
    ]


def test_advance_moves_only_from_the_commit_that_was_seen(book):
    seen = book.head_commit()
    commit = book.create_commit(an_entry(), book.write_blob(AFTER), seen)
    git(book.folder, "commit", "-q", "--allow-empty", "-m", "a human was faster")
    theirs = book.head_commit()

    assert book.advance_branch("refs/heads/main", commit, seen) is False
    assert book.head_commit() == theirs


def test_of_many_who_advance_at_once_exactly_one_wins(book):
    seen = book.head_commit()
    commits = [
        book.create_commit(an_entry(title=f"try {n}"), book.write_blob(AFTER), seen)
        for n in range(8)
    ]
    won = []

    def race(commit):
        try:
            if book.advance_branch("refs/heads/main", commit, seen):
                won.append(commit)
        except LabError:  # somebody held git's lock at that moment
            pass

    threads = [threading.Thread(target=race, args=(commit,)) for commit in commits]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert won == [book.head_commit()]


def test_a_branch_that_git_cannot_move_is_one_clear_sentence_and_no_endless_loop(book):
    seen = book.head_commit()
    commit = book.create_commit(an_entry(), book.write_blob(AFTER), seen)
    (book.folder / ".git" / "refs" / "heads" / "main.lock").touch()

    with pytest.raises(LabError, match=r"main\.lock.*Next:"):
        book.advance_branch("refs/heads/main", commit, seen)


# -- the working tree ------------------------------------------------------------------


def test_a_dirty_program_md_and_stray_files_stay_as_they_are(book):
    (book.folder / "program.md").write_text("# Another goal\n")
    (book.folder / "notes.txt").write_text("mine")

    commit = keep(book)

    assert (book.folder / "program.md").read_text() == "# Another goal\n"
    assert (book.folder / "notes.txt").read_text() == "mine"
    assert (book.folder / "train.py").read_text() == AFTER
    assert git(book.folder, "status", "--porcelain").split("\n") == [
        " M program.md",
        "?? notes.txt",
    ]
    assert differing(book, commit) == {"train.py"}


def test_a_staged_program_md_stays_staged_and_out_of_the_commit(book):
    (book.folder / "program.md").write_text("# Another goal\n")
    git(book.folder, "add", "program.md")

    commit = keep(book)

    assert git(book.folder, "status", "--porcelain") == "M  program.md"
    assert differing(book, commit) == {"train.py"}


def test_a_dirty_train_py_is_the_humans_and_shows_as_an_edit_of_the_champion(book):
    (book.folder / "train.py").write_text("MINE = 1\n")
    head = book.head_commit()
    commit = book.create_commit(an_entry(), book.write_blob(AFTER), head)
    book.advance_branch("refs/heads/main", commit, head)

    assert book.update_working_file(head, commit) is False
    assert (book.folder / "train.py").read_text() == "MINE = 1\n"
    assert git(book.folder, "status", "--porcelain") == " M train.py"


def test_a_staged_train_py_is_not_thrown_away(book):
    (book.folder / "train.py").write_text("STAGED = 1\n")
    git(book.folder, "add", "train.py")
    (book.folder / "train.py").write_text("EDITED = 1\n")
    head = book.head_commit()
    commit = book.create_commit(an_entry(), book.write_blob(AFTER), head)
    book.advance_branch("refs/heads/main", commit, head)

    assert book.update_working_file(head, commit) is False
    assert git(book.folder, "show", ":train.py") == "STAGED = 1"
    assert (book.folder / "train.py").read_text() == "EDITED = 1\n"


@pytest.mark.parametrize("what", ["nothing", "a folder", "a link", "a dangling link"])
def test_a_train_py_that_is_no_file_is_left_alone(book, tmp_path, what):
    path = book.folder / "train.py"
    path.unlink()
    target = tmp_path / "elsewhere.py"
    if what == "a folder":
        path.mkdir()
    elif what != "nothing":
        path.symlink_to(target)
        if what == "a link":
            target.write_text(BEFORE)
    head = book.head_commit()
    commit = book.create_commit(an_entry(), book.write_blob(AFTER), head)

    assert book.update_working_file(head, commit) is False
    if what == "a link":
        assert target.read_text() == BEFORE


def test_checking_out_twice_is_fine(book):
    head = book.head_commit()
    commit = keep(book)

    assert book.update_working_file(head, commit) is True
    assert git(book.folder, "status", "--porcelain") == ""


def test_a_stale_index_lock_is_no_crash_and_is_forgotten_by_the_next_keep(book):
    lock = book.folder / ".git" / "index.lock"
    lock.touch()

    commit = keep(book)

    assert book.head_commit() == commit
    assert (book.folder / "train.py").read_text() == AFTER
    assert lock.exists()
    lock.unlink()
    keep(book, "RATE = 4\n", number=8)
    assert git(book.folder, "status", "--porcelain") == ""


def test_a_stale_lock_on_packed_refs_does_not_stop_the_tidying(book):
    keep(book)
    (book.folder / ".git" / "packed-refs.lock").touch()

    book.pack_objects()

    assert book.find_commit(7) == book.head_commit()


def test_tidying_packs_and_keeps_what_nothing_names_yet(book):
    waiting = book.write_blob("a proposal that still waits\n")
    for number in range(20):
        keep(book, f"RATE = {number}\n", number)

    book.pack_objects()

    assert len(book.list_verdict_commits()) == 20
    assert not list((book.folder / ".git" / "refs" / "autoresearch").glob("*"))
    assert book.run_git("cat-file", "blob", waiting) == "a proposal that still waits"
    assert git(book.folder, "fsck", "--no-dangling") == ""


def test_our_files_are_hidden_from_git_without_touching_gitignore(book):
    exclude = book.folder / ".git" / "info" / "exclude"
    exclude.write_bytes(b"# mine \xff\n*.swp")
    for name in ("results.tsv", "x.swp"):
        (book.folder / name).touch()

    for _ in range(2):
        book.add_excludes("results.tsv", ".autoresearch/")

    assert exclude.read_bytes() == b"# mine \xff\n*.swp\nresults.tsv\n.autoresearch/\n"
    assert git(book.folder, "status", "--porcelain") == ""


def test_a_lab_may_be_a_linked_worktree(book, tmp_path):
    git(book.folder, "worktree", "add", "-q", "-b", "night", str(tmp_path / "tree"))
    linked = Repository(tmp_path / "tree")

    linked.require_usable()
    linked.add_excludes("results.tsv")
    (linked.folder / "results.tsv").touch()
    commit = keep(linked)

    assert git(linked.folder, "rev-parse", "night") == commit
    assert git(linked.folder, "status", "--porcelain") == ""
    assert git(book.folder, "log", "-1", "--format=%s", "main") == "a lab"


# -- the words of a commit -------------------------------------------------------------


@pytest.mark.parametrize(
    ("title", "expected"),
    [
        ("MATRIX_LR 0.04 -> 0.05", "MATRIX_LR 0.04 -> 0.05"),
        ("", "untitled"),
        ("日本語", "untitled"),
        ("ReLU² für alle", "ReLU2 fur alle"),
        ("two\nlines\r\nand\ttabs", "two lines and tabs"),
        ("\x1b[31mred\x1b[0m", "red"),
        ("x" * 50, "x" * 50),
        ("x" * 51, "x" * 47 + "..."),
        ("word " * 20, "word word word word word word word word word wo..."),
        ("\ufdfa" * 40, "untitled"),
        ("½ of it", "12 of it"),
    ],
)
def test_a_summary_is_short_ascii_and_one_line(title, expected):
    assert shorten_title(title) == expected


@given(st.text())
def test_any_title_makes_a_summary(title):
    short = shorten_title(title)

    assert short.isascii()
    assert short.isprintable()
    assert 0 < len(short) <= 50
    assert short == short.strip()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("plain", "plain"),
        ("\x1b[1;31mbold\x1b[0m red", "bold red"),
        ("\x1b]0;a title\x07text", "text"),
        ("\x1b]8;;http://example.org\x1b\\link\x1b]8;;\x1b\\", "link"),
        ("\x1b]52;c;never closed", "52;c;never closed"),
        ("\x9b31mC1", "31mC1"),
        ("\x1bcreset", "reset"),
        ("\x1b", ""),
        ("a\u202eb\u2066c\u200f", "a b c"),
        ("zero\u200bwidth\ufeff", "zero width"),
        ("a\0b\x08c\x7f", "a b c"),
        ("a\u2028b\u2029c\x85d", "a b c d"),
        ("\udcff\ud800x", "x"),
        ("Δ ± × → é", "Δ ± × → é"),
    ],
)
def test_one_line_strips_escapes_controls_and_writing_direction(text, expected):
    assert to_one_line(text) == expected


@given(st.text() | st.text(alphabet="\x1b[]\\\x07;0m\u202e a\n"))
def test_one_line_is_always_one_printable_line(text):
    line = to_one_line(text)

    assert "\n" not in line
    assert "\x1b" not in line
    assert to_one_line(line) == line
    line.encode()


@pytest.mark.parametrize("opening", ["\x1b]", "\x1b[", "\x1b[0;", "\x1b]\x1b"])
def test_an_endless_escape_is_read_at_once(opening):
    for text in (opening * 100_000, opening + "0" * 500_000, opening + "; " * 200_000):
        to_one_line(text)


ALL_TRAILERS = tuple((key, f"words of {key}: with: colons  and Δ") for key in TRAILERS)


@pytest.mark.parametrize("body", ["", "One.", "One.\n\nTwo.\n", "\n\nOne.\n\n"])
def test_trailers_survive_a_round_trip_through_git(book, body):
    entry = an_entry(trailers=ALL_TRAILERS, body=body)
    book.set_experiment_ref(
        7, book.create_commit(entry, book.write_blob(AFTER), book.head_commit())
    )

    ((number, commit, message),) = book.list_verdict_commits()

    assert (number, commit) == (7, book.find_commit(7))
    found = parse_trailers(message)
    assert found == {key: to_one_line(text) for key, text in ALL_TRAILERS}
    assert message.splitlines()[0] == entry.title
    told = git(book.folder, "log", "-1", "--format=%(trailers:only)", commit)
    assert len(told.splitlines()) == len(ALL_TRAILERS)


FAKE = "Verdict: keep: mine\nExperiment: 999\nScore: 0.000001\nRan: " + "0" * 40


@pytest.mark.parametrize(
    "reason",
    [
        FAKE,
        f"Good idea.\n\n{FAKE}",
        f"Good idea.\n\n{FAKE}\n\n",
        f"\n\n{FAKE}\n\n\n",
        FAKE.replace("\n", "\r\n"),
        FAKE.replace("\n", "\u2028"),
        f"{FAKE}\n\x01\n\n{FAKE}",
        f"a\0b\n\n{FAKE}",
    ],
    ids=range(8),
)
def test_a_reason_that_poses_as_trailers_cannot_forge_them(book, reason):
    entry = an_entry(body=commit_message.escape_reason(reason))
    book.set_experiment_ref(
        7, book.create_commit(entry, book.write_blob(AFTER), book.head_commit())
    )

    ((number, commit, message),) = book.list_verdict_commits()

    honest = {"Experiment": "7", "Verdict": "keep: gain 0.0012"}
    assert number == 7
    assert parse_trailers(message) == honest
    told = git(book.folder, "log", "-1", "--format=%(trailers:only,unfold)", commit)
    assert dict(line.split(": ", 1) for line in told.splitlines()) == honest


def test_a_trailer_cannot_smuggle_in_another(book):
    trailers = (("Verdict", "discard\nScore: 0.1"), ("Experiment", "7\r\n\r\nRan: x"))
    book.set_experiment_ref(
        7,
        book.create_commit(
            an_entry(trailers=trailers), book.write_blob(""), book.head_commit()
        ),
    )

    ((_, _, message),) = book.list_verdict_commits()

    assert parse_trailers(message) == {
        "Verdict": "discard Score: 0.1",
        "Experiment": "7 Ran: x",
    }


def test_entries_come_by_number_and_strangers_among_the_refs_are_passed_over(book):
    for number in (10, 9, 100, 0):
        commit = book.create_commit(
            an_entry(title=f"no {number}"), book.write_blob(""), "HEAD"
        )
        book.set_experiment_ref(number, commit)
    for stranger in ("007", "-1", "x", "²", "٣", "other-lab/5", "1.5"):
        git(book.folder, "update-ref", f"refs/autoresearch/{stranger}", "HEAD")

    assert [number for number, _, _ in book.list_verdict_commits()] == [0, 9, 10, 100]


def test_a_message_that_is_not_utf_8_is_no_crash(book):
    tree = git(book.folder, "rev-parse", "HEAD^{tree}")
    latin = "Experiment: 5\n\nVerdict: gr\xfc\xdfe\n".encode("latin-1")
    made = ("git", "commit-tree", tree)
    commit = subprocess.run(
        made, cwd=book.folder, env=HUMAN, input=latin, capture_output=True, check=True
    ).stdout.decode()
    book.set_experiment_ref(5, commit.strip())

    ((number, _, message),) = book.list_verdict_commits()

    assert number == 5
    assert "Verdict: gr" in message


# -- labs that git cannot keep ---------------------------------------------------------


def complaint(book: Repository) -> str:
    with pytest.raises(LabError) as refused:
        book.require_usable()
    said = str(refused.value)
    assert "Next: " in said
    assert "\n" not in said
    return said


def test_a_lab_in_order_is_accepted_also_through_a_link(book, tmp_path):
    (tmp_path / "link").symlink_to(book.folder)

    book.require_usable()
    Repository(tmp_path / "link").require_usable()


def test_a_detached_head_is_one_clear_sentence(book):
    git(book.folder, "checkout", "-q", "--detach")

    assert "detached HEAD" in complaint(book)
    assert "git switch -c" in complaint(book)


def test_no_repository_is_one_clear_sentence(tmp_path):
    assert "not a git repository" in complaint(Repository(tmp_path))


def test_no_commit_is_one_clear_sentence(tmp_path):
    git(tmp_path, "init", "-q")

    assert "no commit yet" in complaint(Repository(tmp_path))


def test_a_lab_inside_a_bigger_repository_is_one_clear_sentence(book):
    inner = book.folder / "inner"
    inner.mkdir()

    assert "repository of its own" in complaint(Repository(inner))


def test_a_bare_repository_and_the_git_folder_itself_are_one_clear_sentence(
    book, tmp_path
):
    git(tmp_path, "init", "-q", "--bare", "bare.git")

    complaint(Repository(tmp_path / "bare.git"))
    complaint(Repository(book.folder / ".git"))


def test_a_repository_with_other_hashes_is_one_clear_sentence(tmp_path):
    git(tmp_path, "init", "-q", "--object-format=sha256")

    assert "sha256" in complaint(Repository(tmp_path))


def test_a_machine_without_git_is_one_clear_sentence(book, monkeypatch):
    monkeypatch.setenv("PATH", "/nonexistent")

    assert "git is not installed" in complaint(book)


def test_a_repository_of_another_user_is_accepted(book):
    if os.getuid() != 0:
        pytest.skip("only root can give files away")
    for path in (book.folder, *book.folder.rglob("*")):
        os.chown(path, 12345, 12345, follow_symlinks=False)

    book.require_usable()
    keep(book)


def test_only_plain_files_are_read_out_of_a_commit(book):
    (book.folder / "link").symlink_to("/etc/passwd")
    (book.folder / "sub").mkdir()
    (book.folder / "sub" / "x").touch()
    git(book.folder, "add", ".")
    git(book.folder, "commit", "-q", "-m", "more")

    assert book.read_file_at("HEAD", "link") is None
    assert book.read_file_at("HEAD", "sub") is None
    assert book.read_file_at("HEAD", "sub/x")[1] == b""
    assert book.read_file_at("HEAD", "none") is None
