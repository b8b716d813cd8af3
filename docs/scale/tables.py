"""The tables of docs/scale.md: compiles what is not compiled yet (`--compile`), and writes the tables anew from the
results.

    python docs/scale/tables.py                      # tables, from the results in docs/scale/*.json
    python docs/scale/tables.py --compile            # first every missing result: minutes each; no TPU needed
    python docs/scale/tables.py --compile 13b_v5p-8x8x8 7b_v6e-16x16

A row whose result is missing is computed by formula and says so.
"""

import argparse
import dataclasses
import json
import re
import subprocess
import sys
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path

from omnihuman_jax.commands import plan_scale
from omnihuman_jax.config import load_config
from omnihuman_jax.scale import described_devices
from omnihuman_jax.scale.cost_report import CostReport, load_report
from omnihuman_jax.scale.hardware import ACCELERATORS, GIB, parse_topology
from omnihuman_jax.scale.roofline import sensitivity

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
PAGE = HERE.parent / "scale.md"


@dataclasses.dataclass(frozen=True, slots=True)
class Run:
    """One compilation: a config on a topology, one sequence a data-parallel group."""

    name: str
    config: str
    topology: str
    slices: int = 1
    overrides: tuple[str, ...] = ()

    @property
    def command(self) -> list[str]:
        """As one types it."""
        slices = ["--slices", str(self.slices)] if self.slices > 1 else []
        return [
            "plan",
            "--config",
            self.config,
            "--topology",
            self.topology,
            *slices,
            "--micro-batch",
            "1",
            *self.overrides,
        ]


def _runs(size: str) -> tuple[Run, ...]:
    config = f"configs/omnihuman_{size}.py:720p"
    return (
        Run(f"{size}_v5p-4x4x8", config, "v5p:4x4x8"),
        Run(f"{size}_v5p-8x8x8", config, "v5p:8x8x8"),
        Run(f"{size}_v6e-16x16", config, "v6e:16x16"),
        Run(f"{size}_v6e-16x16x2", config, "v6e:16x16", 2),
    )


def _mesh(fsdp: int, context: int, remat: str, *more: str) -> tuple[str, ...]:
    return (
        f"--config.mesh.fsdp={fsdp}",
        f"--config.mesh.context={context}",
        f"--config.execution.remat={remat}",
        *more,
    )


FIT = (*_runs("13b"), *_runs("7b"))
_THIRTEEN, _SEVEN = "configs/omnihuman_13b.py:720p", "configs/omnihuman_7b.py:720p"
_LESS = "--config.step.offload=moments_ema"
# 64 chips as data 2 x fsdp 4 x context 8, so that no group of a weight's shards is a whole torus.
WEAK = (
    Run("13b_v5p-4x4x4", _THIRTEEN, "v5p:4x4x4", 1, _mesh(4, 8, "attention")),
    *(Run(f"13b_v5p-{shape}", _THIRTEEN, f"v5p:{shape}") for shape in ("4x4x8", "4x8x8", "8x8x8")),
)
# Per generation from the smallest slice on: the first that fits is the answer, the one before shows that it is.
SMALLEST = (
    Run("13b_v4-2x4x4", _THIRTEEN, "v4:2x4x4", 1, _mesh(4, 8, "block_offload")),
    Run("13b_v5e-4x8", _THIRTEEN, "v5e:4x8", 1, _mesh(4, 8, "block_offload")),
    Run("13b_v5e-8x8", _THIRTEEN, "v5e:8x8", 1, _mesh(8, 8, "block_offload")),
    Run("13b_v5p-2x2x1", _THIRTEEN, "v5p:2x2x1", 1, _mesh(1, 4, "block_offload")),
    Run("13b_v5p-2x2x2", _THIRTEEN, "v5p:2x2x2", 1, _mesh(1, 8, "block")),
    Run("13b_v6e-2x4", _THIRTEEN, "v6e:2x4", 1, _mesh(1, 8, "block_offload", _LESS)),
    Run("13b_v6e-4x4", _THIRTEEN, "v6e:4x4", 1, _mesh(2, 8, "block_offload")),
    Run("13b_tpu7x-2x2x1", _THIRTEEN, "tpu7x:2x2x1", 1, _mesh(1, 8, "block")),
    Run("13b_tpu8t-2x2x1", _THIRTEEN, "tpu8t:2x2x1", 1, _mesh(1, 4, "block")),
    Run("13b_tpu8i-4", _THIRTEEN, "tpu8i:4", 1, _mesh(1, 8, "block")),
    Run("7b_tpu7x-2x2x1", _SEVEN, "tpu7x:2x2x1", 1, _mesh(1, 8, "block")),
)
# The layout that XLA gathers by all-reduces, beside WEAK[0].
TORUS = Run("13b_v5p-4x4x4_whole-torus", _THIRTEEN, "v5p:4x4x4", 1, _mesh(8, 8, "attention"))
# The configuration of highest predicted MFU, and how one gets there.
_FUSED = "--config.execution.attention.fused_backward=True"
HIGHEST = (
    FIT[0],
    Run("13b_v5p-4x4x8_fused", _THIRTEEN, "v5p:4x4x8", 1, (_FUSED,)),
    Run("13b_v5p-4x4x8_fused-products", _THIRTEEN, "v5p:4x4x8", 1, (_FUSED, "--config.execution.remat=products")),
    FIT[2],
    Run("13b_v6e-16x16_fused", _THIRTEEN, "v6e:16x16", 1, (_FUSED,)),
)
BEST = (
    Run("13b_best_v5p-4x4x8", _THIRTEEN, "v5p:4x4x8"),
    Run("13b_best_v6e-16x16", _THIRTEEN, "v6e:16x16"),
)
ALL = {run.name: run for run in (*FIT, TORUS, *WEAK, *SMALLEST, *HIGHEST)}


def result(run: Run) -> CostReport:
    """The compiled result if there is one, else the formulas'."""
    path = HERE / f"{run.name}.json"
    if path.is_file():
        return load_report(json.loads(path.read_text(encoding="utf-8")))
    topology = parse_topology(run.topology, run.slices)
    config = plan_scale.with_layout(load_config(ROOT / run.config, run.overrides), topology, micro_batch=1)
    return plan_scale.plan(config, topology, compile_step=False)


def missing(run: Run) -> bool:
    """Whether it could be compiled and is not."""
    generation = run.topology.partition(":")[0]
    return generation not in described_devices.FORMULA_ONLY and not (HERE / f"{run.name}.json").is_file()


def how(plan: CostReport) -> str:
    """Where a row's numbers come from."""
    if plan.estimated:
        return "formula, planned" if plan.topology.accelerator.planned else "formula"
    return "compiled" if not plan.costs.memory.needed else "refused by the compiler"


def place(plan: CostReport) -> str:
    """`2 x v6e:16x16`."""
    return (f"{plan.topology.num_slices} x " if plan.topology.num_slices > 1 else "") + plan.topology.name


def size(run: Run) -> str:
    """`13 B`."""
    return run.name.split("_")[0].upper().replace("B", " B")


def chips(plan: CostReport) -> str:
    """`64`; `64 (128 devices)` where a chip is several of JAX's."""
    devices = f" ({plan.devices} devices)" if plan.devices != plan.topology.chips else ""
    return f"{plan.topology.chips}{devices}"


def layout(plan: CostReport) -> str:
    """`data 2 x fsdp 8 x context 8`."""
    return " x ".join(f"{axis} {ways}" for axis, ways in plan.mesh.items() if ways > 1)


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Markdown."""
    yield "| " + " | ".join(head) + " |"
    yield "|" + "---|" * len(head)
    for row in rows:
        yield "| " + " | ".join(row) + " |"


def fit_table() -> Iterator[str]:
    """Memory of the pods' topologies."""
    rows = []
    for run in FIT:
        plan = result(run)
        m = plan.costs.memory
        rows.append([
            size(run), place(plan), chips(plan), layout(plan), plan.remat,
            f"{m.arguments / GIB:.1f}", f"{m.temporaries / GIB:.1f}", f"{m.peak / GIB:.1f} of {m.limit / GIB:.1f}",
            "yes" if m.fits else "**no**", f"{plan.costs.compile_s:.0f}" if plan.costs.compile_s else "-", how(plan),
        ])  # fmt: skip
    head = (
        "model",
        "topology",
        "chips",
        "mesh",
        "remat",
        "arguments GiB a device",
        "temporaries GiB a device",
        "peak GiB a device",
        "fits",
        "compile s",
        "from",
    )
    yield from table(head, rows)


def roofline_table() -> Iterator[str]:
    """Seconds by cause, and MFU."""
    rows = []
    for run in FIT:
        plan = result(run)
        line = plan.roofline
        if line is None:
            continue
        c = line.compute_s
        rows.append([
            size(run), place(plan), f"{plan.useful_flops:.2e}",
            f"{plan.costs.flops / plan.useful_flops:.2f}", f"{c['attention_forward']:.1f}",
            f"{c['attention_backward']:.1f}",
            f"{c['matmul']:.1f}", f"{c['memory']:.1f}", f"{line.ici_s:.2f}", f"{line.dcn_s:.2f}",
            f"{line.as_compiled_s:.1f}",
            f"**{line.mfu:.1%}**", f"{line.mfu_overlapped:.1%}", f"{line.mfu_serial:.1%}", f"{line.hfu:.1%}", how(plan),
        ])  # fmt: skip
    head = (
        "model", "topology", "useful FLOPs a device", "executed / useful", "attention forward s", "backward s",
        "products s",
        "memory-bound s", "ICI s", "DCN s", "step s", "MFU", "all overlapped", "nothing overlapped", "HFU", "from",
    )  # fmt: skip
    yield from table(head, rows)


def torus_table() -> Iterator[str]:
    """Two layouts of one model on one slice: what they send for the weights and their gradients."""
    rows = []
    for run in (TORUS, WEAK[0]):
        plan = result(run)
        for c in sorted(plan.costs.communications, key=lambda c: -c.sent_bytes):
            if c.sent_bytes > GIB and c.kind != "all-to-all":
                rows.append(
                    [layout(plan), c.kind, " x ".join(c.axes), str(c.count), f"{c.sent_bytes / GIB:.1f}", how(plan)]
                )
    yield from table(("mesh", "collective", "axes", "times a step", "GiB sent a device", "from"), rows)


def check_table() -> Iterator[str]:
    """Formula against program."""
    rows = []
    for run in ALL.values():
        plan = result(run)
        if plan.estimated or not plan.costs.works:
            continue
        kinds = ("attention_forward", "attention_backward", "matmul")
        ratio = [_flops(plan.costs, kind) / _flops(plan.formula, kind) for kind in kinds]
        peak = plan.costs.memory.peak / plan.formula.memory.peak
        xla = f"{plan.costs.xla_flops / plan.costs.xla_flops_matched:.3f}" if plan.costs.xla_flops else "-"
        rows.append([run.name, *(f"{x:.3f}" for x in ratio), xla, f"{peak:.2f}"])
    yield from table(
        (
            "program",
            "attention forward",
            "attention backward",
            "products",
            "XLA's count / ours, bodies once",
            "peak memory",
        ),
        rows,
    )


def _flops(costs: plan_scale.ProgramCosts, kind: str) -> float:
    return sum(work.flops for work in costs.works if work.kind == kind)


def collectives_table() -> Iterator[str]:
    """Every collective of one program."""
    plan = next((p for p in map(result, FIT) if not p.estimated and p.costs.communications), None)
    if plan is None:
        yield "No program is compiled yet: `make scale`."
        return
    yield f"{plan.name} on {place(plan)}, {layout(plan)}, one sequence a group:"
    yield ""
    rows = [
        [
            c.kind,
            " x ".join(c.axes),
            str(c.count),
            f"{c.sent_bytes / GIB:.3f}",
            f"{c.seconds:.3f}",
            c.network,
            "yes" if c.hidden else "no",
        ]
        for c in sorted(plan.costs.communications, key=lambda c: -c.seconds)
    ]
    yield from table(
        ("collective", "axes", "times a step", "GiB sent a device", "s on its links", "over", "can hide"), rows
    )


def sensitivity_table() -> Iterator[str]:
    """MFU over both efficiencies."""
    attention, matmul = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8), (0.5, 0.6, 0.7, 0.8)
    for run in (FIT[1], FIT[2]):
        plan = result(run)
        used = plan.topology.accelerator.efficiencies
        found = sensitivity(
            plan.topology.accelerator, plan.costs.works, plan.costs.communications, attention=attention, matmul=matmul,
            useful_flops=plan.useful_flops, devices_per_chip=plan.devices // plan.topology.chips,
        )  # fmt: skip
        assumed = f"attention {used.attention_forward:.0%}, products {used.matmul:.0%}"
        yield f"13 B on {place(plan)} (assumed above: {assumed}; {how(plan)}):"
        yield ""
        rows = [[f"**{a:.0%}**", *(f"{x:.1%}" for x in row)] for a, row in zip(attention, found, strict=True)]
        yield from table(("attention \\ products", *(f"{m:.0%}" for m in matmul)), rows)
        yield ""


def weak_table() -> Iterator[str]:
    """Per chip, from 64 to 512 chips."""
    plans = [result(run) for run in WEAK]
    # Formulas and programs count differently: never one beside the other.
    compiled = [p for p in plans if not p.estimated]
    plans = compiled if len(compiled) > 1 else plans
    sent = [sum(c.sent_bytes for c in p.costs.communications if c.network == "ici") for p in plans]
    rows = [
        [
            place(p), str(p.topology.chips), layout(p), f"{p.costs.flops:.4e}",
            f"{p.costs.flops / plans[0].costs.flops:.4f}",
            f"{s / GIB:.2f}", f"{s / sent[0]:.4f}", f"{p.costs.memory.peak / GIB:.2f}", how(p),
        ]
        for p, s in zip(plans, sent, strict=True)
    ]  # fmt: skip
    yield from table(
        (
            "13 B on",
            "chips",
            "mesh",
            "FLOPs a chip",
            "/ first row",
            "ICI GiB a chip",
            "/ first row",
            "peak GiB",
            "from",
        ),
        rows,
    )


def smallest_table() -> Iterator[str]:
    """One clip a group: 13 B on each generation; 7 B where it was compiled too."""
    rows = []
    for run in SMALLEST:
        plan = result(run)
        m, line = plan.costs.memory, plan.roofline
        offload = "moments and EMA offloaded, " if any("offload=moments" in x for x in run.overrides) else ""
        rows.append([
            size(run), place(plan), chips(plan), layout(plan), f"{offload}remat {plan.remat}",
            f"{m.peak / GIB:.1f} of {m.limit / GIB:.1f}", "yes" if m.fits else "**no**",
            f"{line.mfu:.1%}" if line else "-", how(plan),
        ])  # fmt: skip
    head = ("model", "topology", "chips", "mesh", "what is kept", "peak GiB a device", "fits", "MFU", "from")
    yield from table(head, rows)


def best_table() -> Iterator[str]:
    """The sweep's first rows, by formula."""
    rows = []
    for run in BEST:
        topology = parse_topology(run.topology, run.slices)
        for candidate in plan_scale.candidates(load_config(ROOT / run.config), topology)[:400]:
            e = candidate.estimate
            if (
                e.remat.endswith("_offload")
                or e.sequences // (e.mesh["data"] * e.mesh["fsdp"]) > 1
                or e.roofline is None
            ):
                continue
            if len([row for row in rows if row[0] == run.topology]) < 4:
                memory = f"{e.costs.memory.peak / GIB:.1f} of {e.costs.memory.limit / GIB:.1f}"
                rows.append(
                    [
                        run.topology,
                        layout(e),
                        e.remat,
                        memory,
                        f"{e.roofline.mfu:.1%}",
                        f"{e.roofline.as_compiled_s:.0f}",
                    ]
                )
    yield from table(("topology", "mesh", "remat", "peak GiB", "MFU", "step s"), rows)


def highest_table() -> Iterator[str]:
    """The best of the sweep and the fused backward kernel, on the layouts of the other tables."""
    rows = []
    for run in HIGHEST:
        plan = result(run)
        m, line = plan.costs.memory, plan.roofline
        rows.append([
            place(plan), layout(plan), plan.remat, "yes" if _FUSED in run.overrides else "no",
            f"{m.peak / GIB:.1f} of {m.limit / GIB:.1f}", f"**{line.mfu:.1%}**" if line else "-",
            f"{line.as_compiled_s:.1f}" if line else "-", how(plan),
        ])  # fmt: skip
    yield from table(("13 B on", "mesh", "remat", "fused backward", "peak GiB", "MFU", "step s", "from"), rows)


def rest_table() -> Iterator[str]:
    """Where the step's time goes that is not useful arithmetic at the peak."""
    rows = []
    for run in FIT[:4]:
        plan = result(run)
        line = plan.roofline
        if line is None:
            continue
        peak = plan.topology.accelerator.peak_flops * plan.topology.chips / plan.devices
        attention, total = plan.attention_flops / plan.devices, line.as_compiled_s
        kernels = sum(_flops(plan.costs, kind) for kind in ("attention_forward", "attention_backward"))
        again = (kernels - attention) / peak
        products = (plan.costs.flops - kernels - (plan.useful_flops - attention)) / peak
        arithmetic = sum(line.compute_s[kind] for kind in ("attention_forward", "attention_backward", "matmul"))
        slow = arithmetic - plan.costs.flops / peak
        exposed = total - line.busy_s
        shares = [
            line.mfu,
            again / total,
            products / total,
            slow / total,
            line.compute_s["memory"] / total,
            exposed / total,
        ]
        rows.append([place(plan), *(f"{share:.1%}" for share in shares), how(plan)])
    head = (
        "13 B on", "useful (MFU)", "attention computed again", "products computed again", "kernels below the peak",
        "memory-bound", "exposed collectives", "from",
    )  # fmt: skip
    yield from table(head, rows)


def hardware_table() -> Iterator[str]:
    """The accelerators, and where each's efficiencies come from."""
    rows = [
        [
            row.name + (" (planned)" if row.planned else ""),
            f"{row.peak_flops / 1e12:.0f}", f"{row.hbm_bytes / GIB:.1f}", f"{row.hbm_bandwidth / 1e9:.0f}",
            f"{row.link_bandwidth / 1e9:.0f}" + (f" x {2 * row.torus_dims}" if row.torus_dims else ""),
            f"{row.dcn_bandwidth / 1e9:.1f}",
            " / ".join(f"{share:.0%}" for share in (
                row.efficiencies.matmul, row.efficiencies.attention_forward, row.efficiencies.attention_backward,
            )),
        ]
        for row in ACCELERATORS.values()
    ]  # fmt: skip
    head = (
        "chip", "bf16 TFLOP/s", "usable HBM GiB", "HBM GB/s", "link GB/s, one way x links", "DCN GB/s a chip",
        "products / attention forward / backward",
    )  # fmt: skip
    yield from table(head, rows)
    yield "\nWhere the efficiencies come from, and of planned chips all figures:\n"
    for row in ACCELERATORS.values():
        source = f"{row.source}; efficiencies: {row.efficiencies.source}" if row.planned else row.efficiencies.source
        yield from textwrap.wrap(f"- **{row.name}**: {source}", 120, subsequent_indent="  ")


TABLES = {
    "fit": fit_table, "torus": torus_table, "roofline": roofline_table, "check": check_table,
    "collectives": collectives_table,
    "sensitivity": sensitivity_table, "weak": weak_table, "smallest": smallest_table, "best": best_table,
    "highest": highest_table, "rest": rest_table,
    "hardware": hardware_table,
}  # fmt: skip


def write_tables() -> None:
    """Replaces what stands between the page's markers."""
    text = PAGE.read_text(encoding="utf-8")
    for name, make in TABLES.items():
        start, end = f"<!-- table: {name} -->\n", f"<!-- end: {name} -->"
        if start not in text or end not in text:
            raise ValueError(f"{PAGE}: no markers for the table {name}")
        body = "\n".join(make())
        text = re.sub(re.escape(start) + ".*?" + re.escape(end), lambda _: start + body + "\n" + end, text, flags=re.S)  # noqa: B023
    PAGE.write_text(text, encoding="utf-8")


def main() -> int:
    """Compiles if asked to, and writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--compile", nargs="*", metavar="NAME", help="compile these; without names, every missing one")
    options = parser.parse_args()
    wanted = [] if options.compile is None else options.compile or [name for name, run in ALL.items() if missing(run)]
    if unknown := [name for name in wanted if name not in ALL]:
        parser.error(f"unknown: {', '.join(unknown)}; there are {', '.join(ALL)}")
    for number, name in enumerate(wanted, 1):
        print(f"[{number}/{len(wanted)}] {name}", flush=True)
        command = [sys.executable, "-m", "omnihuman_jax.cli", *ALL[name].command, "--json", str(HERE / f"{name}.json")]
        subprocess.run(command, check=True, cwd=ROOT)
    described_devices.prepare()
    write_tables()
    return 0


if __name__ == "__main__":
    sys.exit(main())
