"""The checks that a proposal passes before it may train.

Promises: one order of checks for proposers and for the recorder (the change limits,
then the same code, then a near-duplicate), so both refuse the same proposals in the
same words. Nothing of the proposal is executed. Not covered: the dry run (`preflight`).
"""

from autoresearch.experiment import Failure, Proposal
from autoresearch.lab import constraints
from autoresearch.lab.program import Program
from autoresearch.records import queries
from autoresearch.records.ledger import Ledger


def find_rejection(
    ledger: Ledger, proposal: Proposal, program: Program
) -> Failure | None:
    """Why a proposal may not train ("refused" or "duplicate"); None when it may.

    A proposal that is already in the ledger is not compared with itself.
    """
    limits = constraints.ChangeLimits(program.max_constants, program.max_changed_lines)
    parent = ledger.load_source(proposal.parent)
    if why := constraints.find_violation(proposal.source, parent, limits):
        return Failure(proposal, "refused", why)
    code = constraints.fingerprint_code(proposal.source)
    twin = ledger.find_same_code(code, proposal.parent, proposal.number)
    if twin is not None:
        return Failure(proposal, "duplicate", f"the same code as experiment {twin}")
    near = queries.describe_near_duplicate(ledger, proposal.source, proposal.parent)
    return Failure(proposal, "duplicate", near) if near else None
