"""Secrets and images that a spec writes out: one rule over all of its strings, whatever manifest, command or script
they end in.

Whoever may read a job reads them. It is a net, not a proof: names that say what they hold, and values whose form is
known.
"""

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

# By words, which `_`, `-` and `.` part: TOKENIZERS_PARALLELISM holds none. A path to a secret is none either.
_SECRET_WORD = re.compile(r".*(TOKEN|SECRETS?|CREDENTIALS?)|.*PASSW.*|(API)?KEY", re.IGNORECASE)
_PLACES = {"FILE", "PATH", "DIR"}
# Kubernetes' own fields of a reference, a toleration, an affinity.
_REFERENCES = {"key", "secret"}
_SECRET_VALUE = re.compile(
    r"(^|[^A-Za-z0-9])(hf_[A-Za-z0-9]{16,}|gh[pousr]_[A-Za-z0-9]{20,}|github_pat_\w{20,}|sk-[A-Za-z0-9_-]{16,}|AKIA[A-Z0-9]{16}"
    r"|AIza[\w-]{30,}|xox[abp]-\w{8,}|glpat-[\w-]{16,}|Bearer +[\w.~+/-]{16,})"
    r"|-----BEGIN [A-Z ]*PRIVATE KEY|://[^/\s:@]+:[^/\s:@]+@"
)
# NAME=value, --name=value and --name value; a value that the shell or Kubernetes fills in ($NAME, `cat file`) is a
# reference.
_ASSIGNED = re.compile(
    r"(?:(?<![\w$-])([A-Za-z_][\w.-]*)=|(?<!\S)--([a-z][\w.-]*)(?:=|\s+)(?!-))(?=[\"']?[^\s\"'$`])", re.IGNORECASE
)
_DIGEST = re.compile(r"[a-z0-9][\w.:/-]*@sha256:[0-9a-f]{64}")
_IMAGE_IN_TEXT = re.compile(r"(?:docker|oras|library)://([^\s\"';]+)|--container-image[=\s]+([^\s\"';]+)")


def names_secret(name: str) -> bool:
    """Whether a variable or option of that name holds one, by its words."""
    words = re.split(r"[_.\W]+", name)
    return words[-1].upper() not in _PLACES and any(_SECRET_WORD.fullmatch(word) for word in words)


def check_secrets(data: Mapping[str, Any], known: Collection[str]) -> None:
    """ValueError with the field of the first literal secret.

    Args:
        data: a spec as plain values.
        known: names and fields that look like secrets and are none.
    """
    for field, text, name in _strings(data, ""):
        if field in known:
            continue
        cure = f"refer to it in secrets; if it is none, say not_secret: [{name or field}]"
        if name and text and not text.startswith("$") and names_secret(name) and name not in known:
            raise ValueError(f"{field} looks like a secret, and everyone who may read jobs could read it; {cure}")
        if _SECRET_VALUE.search(text):
            raise ValueError(
                f"the value of {field} looks like a credential; name it under secrets instead, and revoke this one"
            )
        for match in _ASSIGNED.finditer(text):
            inner = match[1] or match[2]
            if names_secret(inner) and inner not in known:
                cure = f"refer to it in secrets; if it is none, say not_secret: [{inner}]"
                raise ValueError(
                    f"{field} sets {inner} to what looks like a secret, which everyone who may read jobs could "
                    f"read; {cure}"
                )


def _strings(data: Any, path: str, name: str = "") -> Iterator[tuple[str, str, str]]:
    """Field, text and the name that it is the value of, of all strings; of mappings' keys too."""
    if isinstance(data, str):
        yield path, data, name
    elif isinstance(data, Mapping):
        # An entry of Kubernetes' `env`.
        entry = data.get("name") if isinstance(data.get("name"), str) and isinstance(data.get("value"), str) else None
        for key, value in data.items():
            key = str(key)
            inner = f"{path}.{key}" if path else key
            yield inner, key, ""
            own = entry if entry is not None and key == "value" else "" if key.lower() in _REFERENCES else key
            yield from _strings(value, inner, own)
    elif isinstance(data, Sequence) and not isinstance(data, bytes):
        for index, value in enumerate(data):
            yield from _strings(value, f"{path}[{index}]")
            # An option and its value as two arguments.
            before = data[index - 1] if index else None
            if isinstance(value, str) and isinstance(before, str) and re.fullmatch(r"--[\w.-]+", before):
                yield f"{path}[{index}]", f"{before} {value}", ""


def check_image(where: str, image: str, *, allow_tag: bool) -> None:
    """An image by digest is the one that was tested; a tag is whatever it points to when a pod starts, also after a
    restart.
    """
    if _DIGEST.fullmatch(image):
        return
    if "@" in image or not re.fullmatch(r"[a-z0-9][\w.:/-]*", image):
        raise ValueError(f"{where} {image!r} is not of the form repo@sha256:<64 hex digits>")
    if not allow_tag:
        raise ValueError(
            f"{where} {image!r} is given by tag, and a tag can change while the job runs; give its "
            "digest, or pass --allow-tag"
        )


def images_of_pod(pod: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Where, and which image, of all containers and image volumes of a pod."""
    for kind in ("initContainers", "containers", "ephemeralContainers"):
        for container in pod.get(kind) or ():
            if "image" in container:
                yield f"image of {kind}[{container['name']}]", str(container["image"])
    for volume in pod.get("volumes") or ():
        if reference := (volume.get("image") or {}).get("reference"):
            yield f"image of volumes[{volume['name']}]", str(reference)


def images_in_text(lines: Sequence[str]) -> Iterator[str]:
    """Images of registries that lines of bash or options of SLURM name, as Apptainer and Pyxis write them."""
    for line in lines:
        for match in _IMAGE_IN_TEXT.finditer(line):
            image = match[1] or match[2]
            if not image.startswith(("/", ".")):
                # Pyxis parts registry and repository by '#'; a file is what it is.
                yield image.replace("#", "/")
