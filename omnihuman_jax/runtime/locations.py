"""Where a file or a folder is: a path, or a URI of a bucket. The one place that turns text into either.

`pathlib` takes `gs://bucket/run` for a folder `gs:`, which it makes: text that a user gives comes through here.
"""

import argparse
import functools
import importlib.util
import os
import posixpath
import re
from pathlib import Path
from typing import TypeAlias

import fsspec.config
from etils import epath

from omnihuman_jax.runtime import variables

PACKAGES = {"gs": "gcsfs", "s3": "s3fs"}
"""Scheme -> the package that reads it, an extra of this one: `omnihuman-jax[gcs]`, `omnihuman-jax[s3]`."""
_EXTRAS = {"gs": "gcs", "s3": "s3"}
CHECKPOINT_SCHEMES = ("gs",)
"""Orbax has a driver for these; it takes an s3:// URI for a relative path and fails with every save."""

StrPath = str | os.PathLike[str]
Location: TypeAlias = "Path | epath.Path"

# Whether a bucket has folders is a request of its own for every file; gcsfs warns where the answer is refused.
os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
# fsspec keeps listings for ever: those of a bucket would lack what TensorStore or another process has written since.
for _scheme in PACKAGES:
    fsspec.config.conf.setdefault(_scheme, {})["use_listings_cache"] = False
# s3fs gives up after a minute by itself, or sooner, and asks again.
REQUEST_TIMEOUT_S = variables.number("OMNIHUMAN_REQUEST_TIMEOUT_S", 300.0, "seconds")
fsspec.config.conf["s3"]["config_kwargs"] = {"read_timeout": min(60.0, REQUEST_TIMEOUT_S)}


class LocationError(argparse.ArgumentTypeError, ValueError):
    """Text that is no path and no URI that can be used here: one line, for the command line as well."""


def scheme(text: StrPath) -> str:
    """`gs` of `gs://bucket/run`; "" of a path."""
    head, separator, _ = os.fspath(text).partition("://")
    return head if separator else ""


def location(text: StrPath) -> Location:
    """A path, or the folder or file of a bucket.

    Raises:
        LocationError: a scheme that is not known, one slash too few, or a package that is not installed.
    """
    kind = check_scheme(text)
    if not kind:
        return Path(text)
    if importlib.util.find_spec(PACKAGES[kind]) is None:
        raise LocationError(
            f"{os.fspath(text)} needs the package {PACKAGES[kind]}; install it with"
            f" `pip install 'omnihuman-jax[{_EXTRAS[kind]}]'`"
        )
    _check_credentials(kind)
    if kind == "gs":
        _limit_silence()
    return epath.Path(text)


def _check_credentials(kind: str) -> None:
    """LocationError for variables that name nothing: gcsfs would ask other places for minutes before it fails, botocore
    raises what is no error of a user.
    """
    if kind == "s3":
        _check_aws()
        return
    named = os.environ.get("GOOGLE_APPLICATION_CREDENTIALS")
    if named and "STORAGE_EMULATOR_HOST" not in os.environ and not os.path.isfile(named):
        raise LocationError(
            f"GOOGLE_APPLICATION_CREDENTIALS is {named!r}, and no file is there; mount the key there, or unset it where"
            " the machine has an account of its own"
        )


def _check_aws() -> None:
    endpoint, profile = os.environ.get("AWS_ENDPOINT_URL"), os.environ.get("AWS_PROFILE")
    if endpoint and not re.match(r"https?://[^/]", endpoint):
        raise LocationError(f"AWS_ENDPOINT_URL is {endpoint!r}; it must be http://HOST[:PORT] or https://HOST[:PORT]")
    if profile:
        from botocore.session import Session

        if profile not in (known := Session().available_profiles):
            raise LocationError(
                f"AWS_PROFILE is {profile!r}; the AWS configuration has {', '.join(known) or 'none'}; name one"
                " of these, or unset it"
            )


@functools.cache
def _limit_silence() -> None:
    """gcsfs would wait for ever for a server that does not answer. What is given as plain seconds is for the whole
    transfer, and its end is not tried again; silence of a socket is.
    """
    from aiohttp import ClientTimeout

    silence = ClientTimeout(total=None, sock_connect=REQUEST_TIMEOUT_S, sock_read=REQUEST_TIMEOUT_S)
    fsspec.config.conf["gs"]["requests_timeout"] = silence


def local(text: StrPath, what: str = "") -> Path:
    """A path; LocationError for a bucket's URI, where only a folder of this machine will do.

    `what` is what the error calls it: a field of the config, or nothing on the command line, which says it itself.
    """
    if check_scheme(text, what):
        raise LocationError(
            f"{_named(text, what)}, a bucket; give a local or mounted folder here (docs/storage.md says what can be in"
            " a bucket)"
        )
    return Path(text)


def check_checkpoints(text: StrPath, what: str) -> None:
    """LocationError unless Orbax can save there."""
    if check_scheme(text, what) not in ("", *CHECKPOINT_SCHEMES):
        raise LocationError(
            f"{_named(text, what)}: Orbax cannot save there; give gs://BUCKET/PATH, or a local or mounted folder"
        )


def check_scheme(text: StrPath, what: str = "") -> str:
    """`scheme` of what can be a location; LocationError for others. Nothing is opened."""
    kind, lead, text = scheme(text), _named(text, what), os.fspath(text)
    if kind == "file":
        raise LocationError(f"{lead}: give the path without file://")
    if kind and kind not in PACKAGES:
        known = ", ".join(f"{known}://" for known in PACKAGES)
        raise LocationError(f"{lead}: {kind}:// is not supported; use {known} or a path")
    if not kind and (typo := re.match(rf"({'|'.join(PACKAGES)}):/?", text)):
        raise LocationError(f"{lead}: write {typo[1]}://BUCKET/PATH, or ./{text} if it is a path")
    if kind and not re.match(rf"{kind}://[^/]+(/|$)", text):
        raise LocationError(f"{lead} names no bucket; write {kind}://BUCKET/PATH")
    return kind


def _named(text: StrPath, what: str) -> str:
    return f"{what} is {os.fspath(text)}" if what else os.fspath(text)


def is_remote(path: StrPath) -> bool:
    """Whether this is a bucket's."""
    return bool(scheme(path))


def seen_from(folder: StrPath, place: StrPath) -> str:
    """Where `place` is, as text that a file in `folder` can hold: relative where both are on a disk, or in one bucket,
    so that they can be moved together; else the whole path or URI.
    """
    text, start = os.fspath(place), os.fspath(folder)
    if (scheme(text), scheme(start)) == ("", ""):
        return os.path.relpath(text, start)
    if is_remote(text) and _bucket(text) == _bucket(start):
        return posixpath.relpath(_key(text), _key(start))
    return text if is_remote(text) else os.path.abspath(text)


def resolved(folder: StrPath, text: str) -> str:
    """The path or URI that `seen_from` wrote as `text`."""
    if is_remote(text):
        return text
    if not is_remote(folder) or os.path.isabs(text):
        return os.path.normpath(os.path.join(folder, text))
    key = posixpath.normpath(posixpath.join(_key(os.fspath(folder)), text))
    return f"{_bucket(os.fspath(folder))}{key}".rstrip("/")


def _bucket(uri: str) -> str:
    """`gs://bucket` of `gs://bucket/a/b`."""
    head, _, rest = uri.partition("://")
    return f"{head}://{rest.partition('/')[0]}"


def _key(uri: str) -> str:
    """`/a/b` of `gs://bucket/a/b`."""
    return "/" + uri.partition("://")[2].partition("/")[2].strip("/")
