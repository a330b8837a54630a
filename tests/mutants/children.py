"""A pytest plugin: processes that tests start measure their lines too, under the test's name (see coverage.ini)."""

import os
from pathlib import Path


def pytest_configure() -> None:
    os.environ["COVERAGE_PROCESS_START"] = str(Path(__file__).with_name("coverage.ini"))
