"""Guests that wait: they score the same, know nothing, and nobody stays behind."""

import os
import signal
from dataclasses import replace
from functools import partial

import pytest

from autoresearch.commands.new import LABS
from autoresearch.errors import ExperimentFailed
from autoresearch.experiment import HUMAN_AUTHOR, Candidate, Device, Proposal
from autoresearch.git import Repository, compute_blob_id
from autoresearch.lab import apparatus
from autoresearch.measure import evaluator, trainer
from autoresearch.measure.warm_pool import WarmPool
from autoresearch.measure.workbench import RunTerms, Workbench
from autoresearch.run import session
from autoresearch.sandbox.process import COMPILE_CACHE_FOLDER, ResourceLimits, StopFlag
from tests import nights

SLOT = Device()
SOURCE = "an empty train.py"


@pytest.fixture
def bench(tmp_path):
    """Lab `line`, whose guests wait, on a processor as well."""
    lab = nights.line_lab(tmp_path / "lab")
    # As if the first baseline had compiled something: only then a training guest waits.
    trainer.compile_cache.cache_folder(lab, "train").mkdir(parents=True)
    found = apparatus.load_apparatus(lab, Repository(lab.folder))
    terms = RunTerms(None, 100, 1.0, 60.0, ResourceLimits(4.0))
    made = Workbench(lab, found, terms, StopFlag(), lambda c, p: None, nights.walls())
    made = replace(made, warm_pool=WarmPool(partial(trainer.start_warm_process, made)))
    yield made
    made.warm_pool.close()


def wait_for(bench, count):
    def there():
        return sum(map(len, bench.warm_pool._processes.values())) == count

    nights.wait_for(there, what=f"{count} waiting guests")


def score(bench, source, seed):
    candidate = Candidate(Proposal(0, "t", source, "", "test"), compute_blob_id(source))
    run = trainer.train_candidate(bench, candidate, seed=seed, device=SLOT)
    found = evaluator.score_run(bench, run, device=SLOT)
    trainer.discard_runs(run)
    return found.value


def test_a_guest_that_waited_scores_like_one_that_did_not(bench):
    source = bench.lab.read_file("train.py")

    alone = score(replace(bench, warm_pool=None), source, seed=3)
    bench.warm_pool.refill(SLOT, 2)
    wait_for(bench, 3)
    waited = score(bench, source, seed=3)

    assert waited == alone


def test_while_a_run_trains_those_after_it_get_ready(bench):
    score(bench, bench.lab.read_file("train.py"), seed=3)

    for thread in bench.warm_pool._threads:
        thread.join()
    assert len(bench.warm_pool._processes[SLOT, "train"]) == 1
    # One of those that were to serve did, unless the run was over before it was there.
    most = trainer.MAX_WARM_SERVERS
    assert len(bench.warm_pool._processes[SLOT, "serve"]) in (most - 1, most)


def test_after_the_first_run_somebody_waits_to_train(bench):
    trainer.compile_cache.cache_folder(bench.lab, "train").rmdir()
    start = "run = prepare.begin(build_model)"
    compiles = (
        "import os, pathlib\n"
        "_place = pathlib.Path(os.environ['TORCHINDUCTOR_CACHE_DIR'])\n"
        "_place.mkdir(exist_ok=True)\n"
        "(_place / 'kernel').write_text('x')\n"
    )
    source = bench.lab.read_file("train.py")
    source = source.replace(start, compiles + start)
    first = Proposal(0, "baseline", source, "", HUMAN_AUTHOR)

    run = trainer.train_candidate(
        bench, Candidate(first, compute_blob_id(source)), seed=3, device=SLOT
    )

    for thread in bench.warm_pool._threads:
        thread.join()
    (guest,) = bench.warm_pool._processes[SLOT, "train"]
    assert [path.name for path in (guest.folder / COMPILE_CACHE_FOLDER).iterdir()] == [
        "kernel"
    ]
    trainer.discard_runs(run)


def test_who_is_wanted_twice_at_once_comes_once(bench):
    for _ in range(4):
        bench.warm_pool.refill(SLOT, 2)

    for thread in bench.warm_pool._threads:
        thread.join()
    assert sum(map(len, bench.warm_pool._processes.values())) == 3


def test_who_waits_has_not_been_told_what_it_will_run(bench):
    bench.warm_pool.refill(SLOT, 1)
    wait_for(bench, 2)

    guest = bench.warm_pool.take_process(SLOT, "serve", SOURCE)

    names = sorted(path.name for path in guest.folder.iterdir())
    assert names == [".compiled", "prepare.py"]
    assert not list(guest.folder.joinpath(".compiled").iterdir())
    guest.kill()


def test_one_that_died_while_it_waited_is_not_given_out(bench):
    bench.warm_pool.refill(SLOT, 1)
    wait_for(bench, 2)
    (guest,) = bench.warm_pool._processes[SLOT, "serve"]
    nights.wait_for(guest.list_pids, what="its first process")
    for pid in guest.list_pids():
        os.kill(pid, signal.SIGKILL)
    nights.wait_for(lambda: not guest.is_running, what="its end")

    assert bench.warm_pool.take_process(SLOT, "serve", SOURCE) is None


def test_a_train_py_that_sets_variables_starts_before_torch_is_there(bench):
    bench.warm_pool.refill(SLOT, 1)
    wait_for(bench, 2)

    sets = "import os; os.environ['PYTORCH_ALLOC_CONF'] = 'expandable_segments:True'"

    assert bench.warm_pool.take_process(SLOT, "serve", sets) is None


def test_a_train_py_that_reads_variables_need_not_wait_for_torch(bench):
    bench.warm_pool.refill(SLOT, 2)
    wait_for(bench, 3)
    reads = "import os; place = os.environ.get('TMPDIR', '/tmp')"
    flagship = (LABS / "gpt" / "train.py").read_text()

    for source in (reads, flagship):
        assert bench.warm_pool.take_process(SLOT, "serve", source) is not None


def test_nobody_trains_ahead_before_there_is_something_to_lend(bench):
    trainer.compile_cache.cache_folder(bench.lab, "train").rmdir()

    assert trainer.start_warm_process(bench, SLOT, "train") is None


def test_all_go_home_with_the_night(bench):
    bench.warm_pool.refill(SLOT, 2)
    wait_for(bench, 3)

    bench.warm_pool.close()

    assert nights.guests_of(bench.lab) == []


def test_who_is_started_while_the_night_closes_goes_home_too(bench):
    bench.warm_pool.refill(SLOT, 2)

    bench.warm_pool.close()

    assert nights.guests_of(bench.lab) == []


def test_what_a_run_leaves_in_its_folder_goes_with_it(bench):
    source = bench.lab.read_file("train.py")

    score(replace(bench, warm_pool=None), source, seed=3)
    with pytest.raises(ExperimentFailed):
        score(replace(bench, warm_pool=None), "raise SystemExit(3)", seed=3)

    assert list((bench.lab.state_folder / "runs").glob("guest-*")) == []


def test_on_a_processor_nobody_waits(tmp_path):
    lab = nights.line_lab(tmp_path / "lab")
    options = session.SessionOptions(proposers=(nights.script(lab),), seed=1)

    with session.open_session(lab, options, StopFlag()) as (opened, _):
        assert opened.workbench.warm_pool is None
