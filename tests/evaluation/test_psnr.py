"""PSNR against hand-made pictures."""

import math

import numpy as np
import pytest

from omnihuman_jax.evaluation import psnr as metric


def test_known_error_gives_known_decibels():
    truth = np.zeros((2, 4, 6, 3))
    assert metric.psnr(truth + 0.2, truth) == pytest.approx(20.0)
    assert metric.psnr(truth + 2.0, truth) == pytest.approx(0.0)
    assert metric.psnr(truth, truth) == math.inf


def test_only_masked_pixels_count():
    truth = np.zeros((1, 4, 6, 3))
    pictures = truth.copy()
    pictures[:, 1:3, 2:4] = 0.2
    mask = metric.box_mask(np.array([[2, 1, 4, 3]]), 4, 6)
    assert mask.sum() == 4
    assert metric.psnr(pictures, truth, mask) == pytest.approx(20.0)
    assert metric.psnr(pictures, truth, ~mask) == math.inf
    assert math.isnan(metric.psnr(pictures, truth, np.zeros_like(mask)))
    assert math.isnan(metric.psnr(np.full_like(truth, np.nan), truth)), "no number is not the best one"


def test_boxes_are_cut_to_the_picture_and_missing_ones_are_empty():
    mask = metric.box_mask(np.array([[-5, -5, 2, 1], [np.nan] * 4]), 4, 6)
    np.testing.assert_array_equal(np.argwhere(mask), [[0, 0, 0], [0, 0, 1]])


def test_errors_of_windows_add_up():
    a, b = np.full((1, 2, 2, 3), 0.1), np.full((3, 4, 4, 3), 0.3)
    parts = [metric.squared_error(x, np.zeros_like(x)) for x in (a, b)]
    total = metric.psnr_of(sum(error for error, _ in parts), sum(count for _, count in parts))
    values = np.concatenate([a.ravel(), b.ravel()])
    assert total == pytest.approx(10 * math.log10(4 / np.mean(values**2)))


def test_shapes_must_agree():
    with pytest.raises(ValueError, match="one shape"):
        metric.psnr(np.zeros((1, 2, 2, 3)), np.zeros((1, 2, 3, 3)))
    with pytest.raises(ValueError, match="mask"):
        metric.psnr(np.zeros((1, 2, 2, 3)), np.zeros((1, 2, 2, 3)), np.ones((1, 2, 3), bool))
