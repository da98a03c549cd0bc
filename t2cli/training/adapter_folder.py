"""The best policy of a run that is no expert, in the run's own folder: as PEFT saves it, and what it scored.

adapter/             adapter_config.json, adapter_model.safetensors
evaluation.json      the paired comparison with the base, as in an expert's manifest
"""

from __future__ import annotations

import json
import shutil
import tempfile
from dataclasses import asdict
from pathlib import Path

import torch

from t2cli.files import disk_error, sync_files, write_atomic
from t2cli.registry.manifest import EvaluationRecord
from t2cli.training.checkpoint import RunFolder
from t2cli.training.policy import Saves


def save_adapter(folder: RunFolder, policy: Saves, numbers: torch.Tensor, evaluation: EvaluationRecord) -> Path:
    """Write the policy of `numbers` (parameters,) and its evaluation; return the adapter's folder.

    It is whole or absent, and replaces one that a run killed just now has left. Raises T2Error if it cannot be written.
    """
    final = folder.path / "adapter"
    try:
        made = Path(tempfile.mkdtemp(dir=folder.path, prefix=".adapter.", suffix=".tmp"))
        try:
            policy.save(made, numbers)
            sync_files(made)
            made.chmod(0o755)
            write_atomic(folder.path / "evaluation.json", json.dumps(asdict(evaluation), indent=1))
            shutil.rmtree(final, ignore_errors=True)
            made.replace(final)
        finally:
            shutil.rmtree(made, ignore_errors=True)
    except OSError as error:
        raise disk_error(final, error) from error
    return final
