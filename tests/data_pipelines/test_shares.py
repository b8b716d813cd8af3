"""Shares with their interval, and precision and recall made of them."""

import pytest

from data_pipelines.shares import Share, precision_and_recall


def test_wilsons_interval() -> None:
    # The textbook says 0.49 to 0.94 of 8 in 10, and everything of none.
    assert Share(8, 10).interval == pytest.approx((0.490, 0.943), abs=0.001)
    assert Share(0, 0).interval == (0.0, 1.0) and str(Share(0, 0)) == "-"


def test_precision_is_of_those_given_and_recall_of_those_due() -> None:
    given, due = [True, True, True, False], [True, False, False, True]
    assert precision_and_recall(given, due) == (Share(1, 3), Share(1, 2))
    with pytest.raises(ValueError, match="longer"):
        precision_and_recall([True], due)
