"""`python prepare.py score DIR`: score a checkpoint exactly as a night would.

DIR is what `python train.py --out DIR` wrote: train.py and model.safetensors. The model
is served by fresh sandboxed processes and scored by claim and audit. Run it in the
folder of the lab; nothing is recorded.
"""

import shutil
import sys
from pathlib import Path
from typing import NoReturn

from autoresearch.errors import ExperimentFailed, LabError
from autoresearch.experiment import Candidate, Proposal, Run, Score
from autoresearch.git import Repository, compute_blob_id
from autoresearch.guest import safetensors_format
from autoresearch.lab import apparatus
from autoresearch.lab.folder import Lab
from autoresearch.measure import evaluator
from autoresearch.measure.workbench import Workbench, list_usable_devices
from autoresearch.sandbox import process
from autoresearch.text import format_exact


def main(arguments: list[str]) -> NoReturn:
    """Score a folder, print one line and exit; on errors one sentence and code 2."""
    try:
        if len(arguments) != 1:
            raise LabError("usage: python prepare.py score DIR")
        lab = Lab.find(Path.cwd())
        found = apparatus.load_apparatus(lab, Repository(lab.folder))
        score = score_checkpoint(lab, found, Path(arguments[0]))
    except (LabError, ExperimentFailed) as error:
        print(error, file=sys.stderr)
        raise SystemExit(2) from None
    print(f"{found.metric}: {format_exact(score.value)}   ({score.seconds:.1f} s)")
    raise SystemExit(0)


def score_checkpoint(lab: Lab, found: apparatus.Apparatus, folder: Path) -> Score:
    """A checkpoint's score on the validation split.

    Raises LabError for files that are missing or invalid, ExperimentFailed if the model
    cannot be scored.
    """
    model = folder / "model.safetensors"
    if not model.is_file() or not (folder / "train.py").is_file():
        raise LabError(
            f"{folder} has no model.safetensors and train.py. "
            "Next: python train.py --out DIR writes both"
        )
    source = (folder / "train.py").read_text()
    try:
        safetensors_format.validate_weights(model.read_bytes())
    except safetensors_format.InvalidWeights as error:
        raise LabError(f"{model} holds {error}") from None
    scratch = lab.run_folder(0, 0).with_name("score")
    scratch.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(model, scratch / model.name)
    workbench = Workbench.open(lab, apparatus=found)
    proposal = Proposal(0, "a checkpoint", source, "", "score")
    run = Run(
        Candidate(proposal, compute_blob_id(source)),
        *(0, 0.0, 0.0, 0.0, scratch / model.name, (), lab.log_folder / "score.log"),
    )
    try:
        return evaluator.score_run(workbench, run, device=list_usable_devices(found)[0])
    finally:
        process.remove_folder(scratch)
