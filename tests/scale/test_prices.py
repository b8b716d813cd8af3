"""A user's price file is read strictly, and what a schedule costs follows from it by arithmetic that one can redo."""

import datetime
import json
from pathlib import Path
from typing import Any

import pytest

from omnihuman_jax.commands import goodput as goodput_command
from omnihuman_jax.commands import plan as plan_command
from omnihuman_jax.scale.prices import read_prices
from omnihuman_jax.scale.schedule_cost import Offer, Span, compared, days_until, rank, verdict

ROOT = Path(__file__).resolve().parents[2]
CONFIG = str(ROOT / "configs" / "omnihuman_1b.py")
# Invented, and round so that one can redo the sums.
PRICES = """
as_of: 2026-01-31
accelerators:
  v5p: {chip_hour: 10.0, least_chips: 8, most_chips: 16}
  h100: {chip_hour: 20, least_chips: 8, most_chips: 8}
storage_gb_month: 1.0
restarts: {per_chip_month: 3.04, seconds: 600}
"""


def write(folder: Path, text: str = PRICES) -> Path:
    path = folder / "prices.yaml"
    path.write_text(text)
    return path


def test_a_price_file(tmp_path: Path) -> None:
    prices = read_prices(write(tmp_path))
    assert prices.as_of == datetime.date(2026, 1, 31) and prices.currency == "USD"
    assert (prices.chips["v5p"].chip_hour, prices.chips["v5p"].most_chips) == (10.0, 16)
    assert (prices.storage_gb_month, prices.restarts_per_chip_month, prices.restart_s) == (1.0, 3.04, 600.0)


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("as_of: 2026-01-31", "", "as_of is None: say on which day these prices held"),
        ("as_of: 2026-01-31", "as_of: soon", "as_of is 'soon'"),
        ("chip_hour: 10.0", "chip_hour: .nan", "accelerators.v5p.chip_hour is nan; it must be a finite number, 0 or"),
        ("chip_hour: 10.0", "chip_hour: -1", "accelerators.v5p.chip_hour is -1; it must be"),
        ("chip_hour: 10.0", "chip_hour: cheap", "accelerators.v5p.chip_hour is 'cheap'"),
        ("chip_hour: 10.0, ", "", "accelerators.v5p has no chip_hour"),
        ("v5p:", "v5q:", "accelerators has 'v5q', which is unknown.*did you mean v5"),
        ("storage_gb_month: 1.0", "storage_gb_month: .inf", "storage_gb_month is inf"),
        (
            "storage_gb_month",
            "storage_gb_moth",
            "has .storage_gb_moth., which is unknown.*did you mean storage_gb_month",
        ),
        ("seconds: 600", "seconds: -5", "restarts.seconds is -5"),
        ("least_chips: 8, most_chips: 16", "least_chips: 8, most_chips: 4", "least_chips 8 is above most_chips 4"),
        ("most_chips: 16", "most_chips: 0", "most_chips is 0; it must be a whole number, 1 or more"),
        (PRICES, "[1, 2]", r"the file is \[1, 2\], not fields with values"),
        (PRICES, "as_of: [", "is no YAML"),
    ],
)
def test_what_is_no_price_is_refused_in_one_line(tmp_path: Path, old: str, new: str, words: str) -> None:
    assert old in PRICES
    with pytest.raises(ValueError, match=words) as refused:
        read_prices(write(tmp_path, PRICES.replace(old, new)))
    assert "\n" not in str(refused.value) and "prices.yaml" in str(refused.value)


def planned(tmp_path: Path, *options: str) -> dict[str, Any]:
    out = tmp_path / "plan.json"
    argv = ["--config", CONFIG, "--prices", str(write(tmp_path)), "--json", str(out), *options]
    assert plan_command.main(argv) == 0
    return json.loads(out.read_text())


def test_the_schedule_on_all_that_the_file_names(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan = planned(tmp_path)
    offers = {offer["topology"]: offer for offer in plan["offers"]}
    assert set(offers) | {row["topology"] for row in plan["refused"]} == {"v5p:2x2x2", "v5p:2x2x4", "h100:8"}
    assert plan["as_of"] == "2026-01-31" and [offer["cost"]["value"] for offer in plan["offers"]] == sorted(
        offer["cost"]["value"] for offer in plan["offers"]
    )
    one = offers["v5p:2x2x2"]
    # The sums, by hand: goodput from restarts, days from steps, money from hours and bytes.
    rate = 3.04 * 8 / (30.4 * 86_400)
    lost = 600 + 500 * one["step_s"]["value"] / 2
    assert one["goodput"] == pytest.approx(1 - rate * lost)
    days = plan["steps"] * one["step_s"]["value"] / one["goodput"] / 86_400
    assert one["days"]["value"] == pytest.approx(days)
    assert one["restarts"] == pytest.approx(rate * days * 86_400)
    assert one["chips_cost"] == pytest.approx(days * 24 * 8 * 10)
    assert one["cost"]["value"] == pytest.approx(one["chips_cost"] + one["storage_cost"]) and one["storage_cost"] > 0
    for span in ("step_s", "days", "cost"):
        assert one[span]["low"] < one[span]["value"] < one[span]["high"]
    printed = capsys.readouterr().out
    assert "nothing of it measured" in printed and "prices of 2026-01-31" in printed


def test_limits_rank_and_a_plan_is_compared_afterwards(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan = planned(tmp_path, "--budget", "1", "--by", "2030-01-01", "--start", "2026-02-01")
    assert all("over the budget" in offer["within_limits"] for offer in plan["offers"])
    # A run that took 2 s a step: events as its log has them.
    (tmp_path / "events").mkdir()
    lines = [
        {"event": "start", "t": 0.0, "process": 0, "processes": 1, "devices": 8, "restart": 0},
        {"event": "steps", "t": 200.0, "s": 200.0, "wait_s": 0.0, "first": 1, "last": 100},
        {"event": "end", "t": 200.0, "code": 0},
    ]
    (tmp_path / "events" / "0000-0.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    argv = [str(tmp_path), "--plan", str(tmp_path / "plan.json")]
    assert goodput_command.main([*argv, "--topology", "v5p:2x2x2"]) == 0
    printed = capsys.readouterr().out
    assert "beside the plan for v5p:2x2x2 (prices of 2026-01-31)" in printed and "a step 2 s, planned" in printed
    with pytest.raises(ValueError, match="no offer for it in"):
        goodput_command.main([*argv, "--topology", "v5p:4x4x4"])
    with pytest.raises(ValueError, match="--topology names an offer of --plan; give both"):
        goodput_command.main([str(tmp_path), "--topology", "v5p:4x4x4"])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--budget", "5"], "--budget needs --prices"),
        (["--by", "2026-12-31"], "--by needs --prices"),
        (["--prices", "x.yaml", "--topology", "v5p:2x2x2"], "not with --topology or --sweep"),
        (["--prices", "x.yaml", "--budget", "nan"], "--budget nan must be a finite number above 0"),
        (["--prices", "x.yaml"], "x.yaml does not exist; docs/cost.md has an example"),
    ],
)
def test_options_that_do_not_go_together(options: list[str], words: str) -> None:
    with pytest.raises((ValueError, FileNotFoundError), match=words):
        plan_command.main(["--config", CONFIG, *options])


def offer(cost: Span, days: Span) -> Offer:
    return Offer(
        topology="x", chips=1, layout="", step_s=Span(value=1, low=1, high=1), days=days, cost=cost, goodput=0.9,
        restarts=0, chips_cost=0, storage_cost=0, mfu=0.4, memory_share=0.5,
    )  # fmt: skip


def test_a_bar_across_a_limit_is_perhaps() -> None:
    one = offer(Span(value=100, low=80, high=120), Span(value=10, low=8, high=12))
    limits = {(130, 13): "yes", (110, None): "perhaps", (90, None): "perhaps over the budget",
              (70, 9): "over the budget, perhaps over the date", (None, 7): "over the date"}  # fmt: skip
    assert {pair: verdict(one, *pair) for pair in limits} == limits
    dear = offer(Span(value=200, low=150, high=250), Span(value=1, low=1, high=1))
    assert sorted([dear, one], key=lambda o: rank(o, 130, 20)) == [one, dear]
    assert days_until(datetime.date(2026, 2, 3), datetime.date(2026, 2, 1)) == 3
    with pytest.raises(ValueError, match="is before the start"):
        days_until(datetime.date(2026, 1, 1), datetime.date(2026, 2, 1))


def test_measured_beside_planned() -> None:
    plan = {"step_s": {"value": 2.0, "low": 1.5, "high": 3.0}, "goodput": 0.95}
    found = compared(plan, step_s=4.0, goodput=0.8, steps_left=86_400)
    assert (found["step_ratio"], found["within_bar"]) == (2.0, 0.0)
    assert found["days_left"] == pytest.approx(4.0 / 0.8) and found["goodput_difference"] == pytest.approx(-0.15)
