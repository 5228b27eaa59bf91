"""Labs whose prepare.py scores outputs: send inputs, score what comes back."""

import json
import os
import time
from typing import Any

from autoresearch import sealed_memory
from autoresearch.experiment import Device, Run
from autoresearch.measure.calibration import ServingTimes
from autoresearch.measure.model_process import serve_model
from autoresearch.measure.workbench import Workbench
from autoresearch.sealed_memory import ProtocolError

LARGEST_OUTPUT_BYTES = 64 << 20


def score_outputs_task(
    workbench: Workbench, run: Run, device: Device, split: str
) -> float:
    """Request the outputs on a split's inputs, and score them in this process."""
    inputs = json.dumps(workbench.apparatus.load_inputs(split)).encode()
    sent = sealed_memory.seal_bytes(inputs, "inputs")
    try:
        with serve_model(workbench, run, device, {}, ServingTimes()) as process:
            process.has_seen_held_out = True
            process.send({"say": "answer"}, sent)
            deadline = time.monotonic() + ServingTimes().batch_seconds
            message, descriptors = process.receive(deadline)
            if message.get("say") != "done" or len(descriptors) != 1:
                for descriptor in descriptors:
                    os.close(descriptor)
                raise ProtocolError("no outputs")
            outputs = read_outputs(descriptors[0])
    finally:
        os.close(sent)
    try:
        return workbench.apparatus.score_outputs(outputs, split)
    except (TypeError, ValueError, LookupError, ArithmeticError) as error:
        raise ProtocolError(f"outputs that prepare.py cannot score ({error})") from None


def read_outputs(descriptor: int) -> Any:
    """Read the outputs that a model process sealed."""
    try:
        return json.loads(
            bytes(sealed_memory.map_verified(descriptor, LARGEST_OUTPUT_BYTES))
        )
    except (ValueError, RecursionError):
        raise ProtocolError("outputs that are not JSON") from None
    finally:
        os.close(descriptor)
