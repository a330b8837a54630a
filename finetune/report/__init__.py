"""The HTML page of a run, or of several."""

from __future__ import annotations

from dataclasses import dataclass

from toolkit.declaration import key


@dataclass(kw_only=True)
class ReportConfig:
    """One HTML page of a run's curves, or of several runs', that needs neither account nor network.

    RUN is a run folder, or a folder that holds some; without one all below runs_dir are shown. One run's page goes into
    its folder, several runs' page into the folder that was named, as report.html.
    """

    runs_dir: str = key("folder with the run folders", "runs", folder=True)
    out: str | None = key("file of the page; null for report.html in the folder that is shown", None, folder=True)
    reports_dir: str = key(
        "folder of evaluations (<split>/<part>/open_loop.json, closed_loop.json), shown where they are of the run's "
        "checkpoint",
        "reports",
        folder=True,
    )
