"""What pyproject.toml cannot say: a wheel carries configs/ and finetune_jobs/ inside the package toolkit."""

from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

HERE = Path(__file__).parent
CARRIED = ("configs", "finetune_jobs")


class BuildWithResources(build_py):
    """build_py, and a copy of the folders that a checkout has beside its packages."""

    def run(self) -> None:
        super().run()
        if self.editable_mode:
            return
        for folder in CARRIED:
            source = next(p for p in (HERE / folder, HERE / "scripts" / folder) if p.is_dir())
            for file in sorted(source.rglob("*")):
                if file.is_file() and "local" not in file.relative_to(source).parts[:-1]:
                    target = Path(self.build_lib, "toolkit", folder, file.relative_to(source))
                    self.mkpath(str(target.parent))
                    self.copy_file(str(file), str(target))


setup(cmdclass={"build_py": BuildWithResources})
