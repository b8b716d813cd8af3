"""A value on an `#SBATCH` line, which sbatch takes apart by rules of its own: blanks part options, `#` begins a
comment, quotes group, a backslash escapes. No shell looks at it, so `$` is a letter.
"""

import re

_SAFE = re.compile(r"[\w@%+=:,./-]*", re.ASCII)


def option(name: str, value: str) -> str:
    """`name=value`, so that sbatch reads just that value."""
    if _SAFE.fullmatch(value):
        return f"{name}={value}"
    escaped = re.sub(r'([\\"#])', r"\\\1", value)
    return f'{name}="{escaped}"'


def log_pattern(folder: str) -> str:
    """The file `slurm-%j.log` in `folder`, as `--output` writes it: `%%` is a `%` of the folder."""
    return f"{folder.replace('%', '%%')}/slurm-%j.log"
