"""Names that the API server would refuse: looked at before anything is sent."""

import re

from launch.spec import RunSpec

_LABEL = r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?"
_SUBDOMAIN = rf"{_LABEL}(\.{_LABEL})*"
KINDS = {
    "label": (_LABEL, 63, "lower-case letters, digits and '-' inside, at most 63"),
    # Kueue's labels hold it too.
    "queue": (_SUBDOMAIN, 63, "lower-case letters, digits, '-' and '.' inside, at most 63"),
    "subdomain": (_SUBDOMAIN, 253, "lower-case letters, digits, '-' and '.' inside, at most 253"),
    "label value": (r"[A-Za-z0-9]([-\w.]*[A-Za-z0-9])?", 63, "letters, digits, '-', '_' and '.' inside, at most 63"),
    "key": (r"[-\w.]+", 253, "letters, digits, '-', '_' and '.', at most 253"),
}


def check(spec: RunSpec) -> None:
    """ValueError on the first name in the spec that Kubernetes has no room for."""
    rows = [
        ("namespace", spec.namespace, "label"),
        ("queue", spec.queue, "queue"),
        ("priority", spec.priority, "queue" if spec.queue else "subdomain"),
        ("service_account", spec.service_account, "subdomain"),
        ("reservation", spec.reservation, "label value"),
        ("placement_policy", spec.placement_policy, "label value"),
        *((f"volumes[{index}].name", volume.name, "label") for index, volume in enumerate(spec.volumes)),
        *((f"secrets.{name}.secret", ref.secret, "subdomain") for name, ref in spec.secrets.items()),
        *((f"secrets.{name}.key", ref.key, "key") for name, ref in spec.secrets.items()),
    ]
    for field, value, kind in rows:
        pattern, longest, words = KINDS[kind]
        if value and not (len(value) <= longest and re.fullmatch(pattern, value, re.ASCII)):
            raise ValueError(f"{field} {value!r} is not a valid Kubernetes name: it may have {words} characters")
    if not spec.namespace or not all(volume.name for volume in spec.volumes):
        raise ValueError("namespace and the names of volumes must not be empty")
