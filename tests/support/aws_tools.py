"""boto3 and the aws command as a folder that any Python 3 can use: what of the environment's packages STS needs."""

from __future__ import annotations

import os
import shutil
import sysconfig
from collections.abc import Iterable
from pathlib import Path

__all__ = ["put_into"]

_PACKAGES = (
    *("awscli", "boto3", "botocore", "s3transfer", "jmespath", "urllib3", "dateutil"),
    *("colorama", "docutils", "rsa", "pyasn1", "yaml"),
)
_MODULES = ("six.py",)
# One of four hundred services, each with its models.
_SERVICE = "sts"


def put_into(folder: Path) -> Path:
    """Copy them (by hard links, where that goes), and give what PYTHONPATH is to name."""
    site = Path(sysconfig.get_path("purelib"))
    (packages := folder / "packages").mkdir()
    for name in _PACKAGES:
        shutil.copytree(site / name, packages / name, ignore=_left_out, copy_function=_copy)
    for name in _MODULES:
        _copy(str(site / name), str(packages / name))
    # The command wants to find the others by their names.
    for model in (site / "awscli" / "botocore" / "data").glob("*/*/service-2.json*"):
        there = packages / model.relative_to(site).with_name("service-2.json")
        if there.parts[-3] != _SERVICE:
            there.parent.mkdir(parents=True)
            there.write_text("{}")
    return packages


def _left_out(folder: str, names: Iterable[str]) -> set[str]:
    if os.path.isdir(os.path.join(folder, _SERVICE)):
        return {name for name in names if name != _SERVICE and os.path.isdir(os.path.join(folder, name))}
    return {name for name in names if name in ("__pycache__", "examples", "topics")}


def _copy(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # on another file system
        shutil.copyfile(source, target)
