"""Make a folder of a checked dataset with a dataset card, and send it to the Hugging Face hub when asked.

    python -m data_prep.publish split=color_object licence=cc-by-4.0
    python -m data_prep.publish split=color_object repo_id=owner/name upload=true

Where `out` was published already and upload=true, it is sent as it is, with what was written into its card by hand."""

from __future__ import annotations

from typing import TYPE_CHECKING

from toolkit.command_line import run_main

if TYPE_CHECKING:
    from data_prep import PublishConfig


def main(config: PublishConfig) -> None:
    """Make the folder, upload it where that is asked, and print what there is to say."""
    # Imported only after the configuration has been accepted: a refusal should not wait for the decoders.
    from data_prep.published_dataset import publish_dataset

    print("\n".join(publish_dataset(config).lines()))


if __name__ == "__main__":
    run_main(main, "publish")
