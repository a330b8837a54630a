"""The packages of pyproject.toml with some of its extras, a line each: python requirements.py slurm deepspeed"""

import sys
import tomllib

with open("pyproject.toml", "rb") as file:
    project = tomllib.load(file)["project"]
extras = project["optional-dependencies"]
print("\n".join([*project["dependencies"], *(line for name in sys.argv[1:] for line in extras[name])]))
