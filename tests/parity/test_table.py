"""The table of docs/parity.md: written between its markers and nowhere else."""

import pytest

from tests.parity import table


def test_only_what_stands_between_the_markers_changes():
    rows = [
        {"claim": "b", "value": 3.14e-7, "limit": 1e-5, "test": "tests/b.py"},
        {"claim": "a", "value": 0.0, "limit": 1e-4, "test": "tests/a.py"},
    ]
    page = f"# Title\n\n{table.BEGIN}\n| old |\n{table.END}\n\nprose\n"
    new = table.replaced(page, table.table(rows))
    assert new.startswith(f"# Title\n\n{table.BEGIN}\n| claim |") and new.endswith(f"{table.END}\n\nprose\n")
    assert "old" not in new and new.index("`tests/a.py`") < new.index("| b | 3.1e-07 | 1e-05 | `tests/b.py` |")
    assert table.replaced(new, table.table(rows)) == new


def test_a_claim_is_one_row_with_its_largest_value():
    """A claim may be measured by quick and by slow tests."""
    row = {"claim": "a", "limit": 1e-5, "test": "tests/a.py"}
    lines = table.table([row | {"value": value} for value in (2e-7, 1.76e-6, 0.0)]).splitlines()
    assert lines[2:] == ["| a | 1.8e-06 | 1e-05 | `tests/a.py` |"]
    assert table.table([row | {"value": 0, "limit": 0}]).endswith("| a | 0 | 0 | `tests/a.py` |")


@pytest.mark.parametrize("page", ["", table.BEGIN, table.END + table.BEGIN, (table.BEGIN + table.END) * 2])
def test_a_page_without_the_markers_is_refused(page):
    with pytest.raises(ValueError, match="markers"):
        table.replaced(page, "")


def test_the_page_has_a_table():
    page = table.PAGE.read_text()
    rows = [line for line in page.split(table.BEGIN)[1].split(table.END)[0].splitlines() if line.startswith("|")]
    assert len(rows) > 2, "run `make parity`"
    for line in rows[2:]:
        _, _, seen, limit, test, _ = (cell.strip() for cell in line.split("|"))
        assert float(seen) <= float(limit), line
        assert (table.ROOT / test.strip("`")).is_file(), line
