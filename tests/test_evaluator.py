"""Claim and audit on a small text model: honest scores, and scores that are refused."""

import difflib
import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from autoresearch.errors import ExperimentFailed
from autoresearch.experiment import Candidate, Device, Proposal
from autoresearch.git import Repository, compute_blob_id
from autoresearch.lab import apparatus
from autoresearch.lab.folder import Lab
from autoresearch.measure import compile_cache, evaluator, trainer
from autoresearch.measure.workbench import RunTerms, Workbench
from autoresearch.sandbox.process import ResourceLimits, StopFlag
from tests import nights

HERE = Path(__file__).parent / "nanogpt"
SLOT = Device("cpu", None, 1)


@pytest.fixture
def lab(tmp_path):
    """The nanoGPT-style script, ported, on bytes of a made-up language."""
    shutil.copy(HERE / "prepare.py", tmp_path)
    shutil.copy(HERE / "after.py", tmp_path / "train.py")
    (tmp_path / "program.md").write_text("budget_tokens = 20000")
    book = Repository(tmp_path)
    book.run_git("init", "-q")
    book.run_git("add", ".")
    book.run_git("-c", "user.name=t", "-c", "user.email=t@t", "commit", "-qm", "lab")
    return Lab.find(tmp_path)


def bench_of(lab, tokens=20_000):
    terms = RunTerms(None, tokens, 1.0, 120.0, ResourceLimits(4.0))
    found = apparatus.load_apparatus(lab, Repository(lab.folder))

    def watch(candidate, progress):
        pass

    return Workbench(lab, found, terms, StopFlag(), watch, nights.walls())


def score(bench, source, keep=None, by="test"):
    candidate = Candidate(Proposal(0, "t", source, "", by), compute_blob_id(source))
    run = trainer.train_candidate(bench, candidate, seed=7, device=SLOT)
    if keep is not None:
        shutil.copy(run.weights, keep)
    return evaluator.score_run(bench, run, device=SLOT)


def test_a_nanogpt_script_needs_about_fifteen_changed_lines():
    before, after = (
        (HERE / n).read_text().splitlines() for n in ("before.py", "after.py")
    )

    diff = list(difflib.unified_diff(before, after, n=0))[2:]

    assert sum(line.startswith("+") for line in diff) <= 16


def test_an_honest_score_is_that_of_one_process_and_a_tied_model_is_served(
    lab, tmp_path
):
    weights = tmp_path / "kept.safetensors"

    found = score(bench_of(lab), lab.read_file("train.py"), keep=weights)

    assert found.value == pytest.approx(in_one_process(lab, weights), abs=1e-5)
    assert found.error < 1e-6


def in_one_process(lab, weights):
    """The same evaluation without guests, cages or audits."""
    words = """
import sys, types
sys.path.insert(0, ".")
import prepare
class Enough(Exception): pass
def begin(build):
    globals()["build"] = build
    raise Enough
prepare.begin = begin
try: exec(open("train.py").read(), globals())
except Enough: pass
from autoresearch.guest import safetensors_format, standalone, torch_model
model = build()
torch_model.load_state(model, safetensors_format.decode(open(sys.argv[1], "rb").read()), "cpu")
print(standalone.evaluate_in_process(prepare, model, "cpu"))
"""
    done = subprocess.run(
        (sys.executable, "-c", words, str(weights)),
        cwd=lab.folder,
        capture_output=True,
        text=True,
        check=True,
    )
    return float(done.stdout.split()[-1])


@pytest.mark.parametrize(
    ("old", "new", "kind"),
    [
        (
            "x = self.wte(idx)",
            "x = 9 * self.wte(torch.roll(idx, -1, 1)) + self.wte(idx)",
            "cheat",
        ),
        (
            "run.submit(model)",
            "model.wpe.weight.data.fill_(float('inf'))\nrun.submit(model)",
            "diverged",
        ),
        (
            "run.submit(model)",
            "GPT.forward = lambda self, idx: self.lm_head(self.wte(idx))\nrun.submit(model)",
            "not the model you trained",
        ),
        (
            "run.submit(model)",
            "model.extra = nn.Linear(2, 2)\nrun.submit(model)",
            "not the model you trained",
        ),
        ("run.submit(model)", "model = model.lm_head\nrun.submit(model)", "no score"),
    ],
    ids=["looks ahead", "inf", "another forward", "extra weights", "half a model"],
)
def test_what_is_not_an_honest_model_has_no_score(lab, old, new, kind):
    source = lab.read_file("train.py").replace(old, new)

    with pytest.raises(ExperimentFailed) as failed:
        score(bench_of(lab), source)

    assert failed.value.failure.kind == kind


@pytest.mark.parametrize("change", ["+ b'x'", "[:-4]", "* 2", "[:0]"])
def test_an_answer_to_the_probe_of_another_size_is_a_failed_run(lab, change):
    """Also one that is no whole number of floats."""
    submits = (
        "from autoresearch.guest import torch_model as served\n"
        "honest = served.answer_consistency_row\n"
        f"served.answer_consistency_row = lambda model, row: honest(model, row) {change}\n"
        "run.submit(model)"
    )
    source = lab.read_file("train.py").replace("run.submit(model)", submits)

    with pytest.raises(ExperimentFailed) as failed:
        score(bench_of(lab), source)

    assert failed.value.failure.kind == "crash"
    assert "an answer to the probe of another size" in failed.value.failure.detail


def test_a_compiled_wrapped_or_half_precision_model_is_served_as_trained(lab):
    source = lab.read_file("train.py").replace(
        "run.submit(model)",
        "class Wrapped(nn.Module):\n"
        "    def __init__(self, inner):\n"
        "        super().__init__()\n"
        "        self.module = inner\n"
        "    def forward(self, idx):\n"
        "        return self.module(idx)\n"
        "run.submit(Wrapped(model.bfloat16()))",
    )

    found = score(bench_of(lab, 4000), source)

    assert 0 < found.value < 9


def test_a_model_with_a_buffer_of_no_elements_is_served(lab):
    plain = lab.read_file("train.py")
    source = plain.replace(
        "        self.wte = ",
        "        self.register_buffer('none', torch.zeros(0, 3))\n        self.wte = ",
        1,
    )
    assert source != plain

    assert 0 < score(bench_of(lab, 4000), source).value < 9


def test_what_the_model_process_prints_reaches_nobody(lab):
    source = lab.read_file("train.py").replace(
        "        return self.lm_head",
        "        print('MISFIT', idx[0].tolist())\n"
        "        self.calls = getattr(self, 'calls', 0) + (idx.shape[0] > 8)\n"
        "        if self.calls > 1: raise SystemExit(3)  # the first one is a diagnostic\n"
        "        return self.lm_head",
    )

    with pytest.raises(ExperimentFailed) as failed:
        score(bench_of(lab, 4000), source)

    assert failed.value.failure.kind == "no score"
    assert "[" not in failed.value.failure.detail


def test_a_checkpoint_of_ones_own_is_scored_like_a_run(lab):
    words = (
        sys.executable,
        "train.py",
        "--tokens",
        "4000",
        "--device",
        "cpu",
        "--out",
        "mine",
    )
    trained = subprocess.run(words, cwd=lab.folder, capture_output=True, text=True)
    assert trained.returncode == 0, trained.stderr
    unofficial = float(trained.stdout.split("val_bpb:")[1].split()[0])

    from autoresearch.commands.score import score_checkpoint

    found = score_checkpoint(
        lab,
        apparatus.load_apparatus(lab, Repository(lab.folder)),
        lab.file_path("mine"),
    )

    assert found.value == pytest.approx(unofficial, abs=1e-5)
    assert {p.name for p in lab.file_path("mine").iterdir()} == {
        "model.safetensors",
        "config.json",
        "train.py",
    }


KNOWS_HOW = """
    def compile(self):
        import os, pathlib
        torch.compiler.set_stance("force_eager")  # of what this one shows nothing
        made = pathlib.Path(os.getenv("TORCHINDUCTOR_CACHE_DIR"), "made")
        {}

    def _init(self"""


@pytest.fixture
def long(monkeypatch):
    """Every text is long, even on a CPU."""
    monkeypatch.setattr(evaluator, "LONG_SECONDS", {"cpu": 0.0})
    monkeypatch.setattr(evaluator.gpu_specs, "rows_at_a_time", lambda *_: 8)


def knows_how(lab, words):
    source = lab.read_file("train.py").replace(
        "\n    def _init(self", KNOWS_HOW.format(words)
    )
    assert "def compile" in source
    return source


def test_a_model_is_compiled_for_a_long_text_and_the_persons_own_code_kept(lab, long):
    bench, kept = bench_of(lab, 4000), compile_cache.cache_folder(lab, "serve")
    plain = score(bench, lab.read_file("train.py"))
    assert not kept.exists()

    candidate = score(bench, knows_how(lab, 'made.write_text("not kept")'))
    assert not kept.exists()
    found = score(bench, knows_how(lab, 'made.write_text("kept")'), by="human")

    assert (kept / "made").read_text() == "kept"
    for one in (candidate, found):
        assert one.value == pytest.approx(plain.value, abs=1e-6)


@pytest.mark.parametrize("words", ['raise RuntimeError("no compiler")', "1 / 0"])
def test_a_model_that_cannot_be_compiled_is_scored_as_it_was(lab, long, words):
    bench = bench_of(lab, 4000)
    breaks = f"self.ln_f = None; {words}"

    found = score(bench, knows_how(lab, breaks))

    plain = score(bench, lab.read_file("train.py"))
    assert found.value == pytest.approx(plain.value, abs=1e-6)


OWN_LOSSES = """pass

    def losses(self, ids, y):
        logits, before = self(ids).flatten(0, 1), self.asked
        self.asked += 1
        found = torch.nn.functional.cross_entropy(logits, y.flatten(), reduction="none")
        return found.view(y.shape) {}

    asked = 0"""


def test_a_compiled_model_may_claim_by_losses_of_its_own(lab, long):
    bench = bench_of(lab, 4000)
    plain = score(bench, lab.read_file("train.py"))

    honest = score(bench, knows_how(lab, OWN_LOSSES.format("")))
    forgotten = score(bench, knows_how(lab, OWN_LOSSES.format("- 0.02")))

    for found in (honest, forgotten):
        assert found.value == pytest.approx(plain.value, abs=1e-6)


def test_losses_that_lie_once_they_are_asked_in_earnest_are_found_out(lab, long):
    lies = knows_how(lab, OWN_LOSSES.format("- (0.2 if before else 0)"))

    with pytest.raises(ExperimentFailed) as failed:
        score(bench_of(lab, 4000), lies)

    assert failed.value.failure.kind == "cheat"


@pytest.mark.parametrize("words", ["import time; time.sleep(60)", "os._exit(1)"])
def test_one_that_compiles_for_too_long_or_dies_of_it_is_asked_without(
    lab, long, monkeypatch, words
):
    monkeypatch.setattr(evaluator, "COMPILE_SECONDS", 2.0)
    source = knows_how(lab, words)

    assert 0 < score(bench_of(lab, 4000), source).value < 9


AUDITED = """
import os, pathlib
from autoresearch.guest import runtime as guest, torch_model as served
made = pathlib.Path(os.getenv("TORCHINDUCTOR_CACHE_DIR"), "made")
claims, honest = [], served.claim_losses
def claim(*words):
    claims.append(1)
    found = honest(*words)
    claims.pop()
    return found
served.claim_losses = claim
run = prepare.begin(GPT)"""


def test_what_a_claiming_process_left_reaches_no_audited_one(lab, long):
    """It had read the answers, and one of the person's own may have written them down."""
    bench = bench_of(lab, 4000)
    score(bench, knows_how(lab, 'made.write_text("answers")'), by="human")
    source = lab.read_file("train.py").replace("run = prepare.begin(GPT)", AUDITED)
    serving = (
        'if guest._hello["mode"] == "serve" and {} made.exists(): raise SystemExit'
    )
    looks = "        return self.lm_head"

    for_all = source.replace(looks, f"        {serving.format('')}\n{looks}")
    for_audits = source.replace(
        looks, f"        {serving.format('not claims and')}\n{looks}"
    )

    assert 0 < score(bench, for_audits).value < 9
    with pytest.raises(ExperimentFailed):
        score(bench, for_all)


def test_weights_that_come_too_early_are_let_go(lab):
    source = lab.read_file("train.py").replace(
        "run.submit(model)", "run.tokens_seen = 1\nrun.submit(model)"
    )
    bench = bench_of(lab, 4000)
    score(bench, lab.read_file("train.py"))
    before = len(os.listdir("/proc/self/fd"))

    with pytest.raises(ExperimentFailed, match="submitted after 1 of"):
        score(bench, source)

    assert len(os.listdir("/proc/self/fd")) <= before


def test_descriptors_that_nobody_asked_for_are_closed(lab, monkeypatch):
    """Four a message: a long text would be more of them than a process may have."""
    monkeypatch.setattr(evaluator.gpu_specs, "rows_at_a_time", lambda *_: 8)
    sends = """
import os
from autoresearch.sandbox import ipc as channel
plain = channel.Channel.send
def send(link, message, *descriptors):
    more = [os.open("/dev/null", 0) for _ in range(4 - len(descriptors))]
    if message["say"] == "submit":
        more = []
    plain(link, message, *descriptors, *more)
channel.Channel.send = send
run = prepare.begin(GPT)"""
    source = lab.read_file("train.py").replace("run = prepare.begin(GPT)", sends)
    bench = bench_of(lab, 4000)
    score(bench, lab.read_file("train.py"))
    before = len(os.listdir("/proc/self/fd"))

    with pytest.raises(ExperimentFailed, match="probe"):
        score(bench, source)
    score(bench, source.replace('"submit"', '"submit" or message["say"] == "probed"'))

    assert len(os.listdir("/proc/self/fd")) <= before


def test_a_short_text_is_not_worth_compiling_for(lab, long, monkeypatch):
    monkeypatch.setattr(evaluator, "LONG_SECONDS", {"cpu": 60.0})
    source = knows_how(lab, 'made.write_text("compiled")')

    score(bench_of(lab, 4000), source, by="human")

    assert not compile_cache.cache_folder(lab, "serve").exists()


def test_audit_batches_never_show_an_answer_before_its_question():
    drawn = [(0, 5), (0, 2), (1, 9), (0, 9), (1, 1), (2, 2)]

    batches = list(evaluator.batch_audit_cuts(drawn, 2))

    seen = [index for batch in batches for index in batch]
    assert sorted(seen) == list(range(6))
    for batch in batches:
        assert len({drawn[i][0] for i in batch}) == len(batch)
    for row in range(3):
        cuts = [drawn[i][1] for i in seen if drawn[i][0] == row]
        assert cuts == sorted(cuts)


def test_every_validation_token_is_scored_once_and_the_bytes_add_up(lab):
    bench = bench_of(lab)

    sheet = evaluator.load_evaluation_rows(bench, SLOT, "validation")
    tokens, widths = bench.apparatus.load_text("validation")

    assert sheet.text_bytes == int(widths[tokens].sum())
    assert int(sheet.scored_mask.sum()) == int((widths[tokens[1:]] > 0).sum())
    assert importlib.util.find_spec("torch")
