"""Our model and processor against recordings of the original on a real checkpoint, one case for each embodiment tag.

How to record them: consumer.py and produce_original.py beside this file, and docs/parity.md.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from gr00t.data.processor import Gr00tN1d7Processor
from gr00t.model.gr00t_n1d7 import Gr00tN1d7
from parity.consumer import Rig, check_model, check_preprocessor, load_model, tag_of

RIG = Rig.from_env()
CASES = [pytest.param(path, id=tag_of(path)) for path in RIG.files()] or [pytest.param(None, id="nothing recorded")]


@pytest.fixture(scope="module")
def checkpoint() -> Path:
    reason = RIG.missing()
    if reason:
        pytest.skip(reason)
    assert RIG.checkpoint is not None
    return RIG.checkpoint


@pytest.fixture(scope="module")
def model(checkpoint: Path) -> Gr00tN1d7:
    return load_model(checkpoint, RIG.device)


@pytest.fixture(scope="module")
def processor(checkpoint: Path) -> Gr00tN1d7Processor:
    return Gr00tN1d7Processor.from_pretrained(checkpoint)


@pytest.mark.parametrize("path", CASES)
def test_the_model_acts_as_the_original(path: Path, model: Gr00tN1d7) -> None:
    print(f"action_pred differs by {check_model(path, model, RIG):.1e}")


@pytest.mark.parametrize("path", CASES)
def test_the_preprocessor_prepares_as_the_original(path: Path, processor: Gr00tN1d7Processor) -> None:
    print({part: f"{value:.1e}" for part, value in check_preprocessor(path, processor, RIG).items()})
