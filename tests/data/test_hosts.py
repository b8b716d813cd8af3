"""Batches on real host processes: the same bits from 1, 2, 4 and 8 of them."""

import collections
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.data import one_host, synthetic

ROOT = Path(__file__).resolve().parent.parent.parent


def start(dataset: Path | str, index: int, count: int) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "tests.data.one_host", str(dataset), str(index), str(count)]
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT, env=environment)


def global_batches(dataset: Path | str, count: int) -> tuple[list[dict[str, list[str]]], collections.Counter[str]]:
    """(step by step the sha256 of each array's sequences in the order of the global batch, placeholders) of `count`
    processes.
    """
    processes = [start(dataset, index, count) for index in range(count)]
    told = [json.loads(process.communicate()[0]) for process in processes]
    assert all(process.returncode == 0 for process in processes)
    steps = zip(*(host["sums"] for host in told), strict=True)
    sums = [{name: [one for host in step for one in host[name]] for name in step[0]} for step in steps]
    return sums, sum((collections.Counter(t["placeholders"]) for t in told), collections.Counter())


@pytest.mark.slow
def test_1_2_4_and_8_processes_make_the_same_200_batches(tmp_path):
    """Across a change of stage, with a record that cannot be read; every array of every batch."""
    table = synthetic.catalog(60, latent_frames=(1, 3))
    dataset = synthetic.write_dataset(tmp_path, table)
    synthetic.damage(dataset, table, 7)
    alone, holes = global_batches(dataset, 1)
    assert len(alone) == one_host.STEPS and len(alone[0]) == 17
    assert all(len(sequences) == 8 for step in alone for sequences in step.values())
    assert len({json.dumps(step) for step in alone}) == one_host.STEPS
    assert list(holes) == ["w7"] and holes["w7"] > 5
    for count in (2, 4, 8):
        sums, placeholders = global_batches(dataset, count)
        assert sums == alone and placeholders == holes


@pytest.mark.slow
def test_hosts_make_the_same_batches_of_two_data_sets_with_weights(tmp_path):
    """As above, a data set beside it that has the same ids and no damage."""
    tables = [synthetic.catalog(60, latent_frames=(1, 3)), synthetic.catalog(40, seed=1, latent_frames=(1, 3))]
    first, second = (synthetic.write_dataset(tmp_path / f"{i}", table) for i, table in enumerate(tables))
    synthetic.damage(second, tables[1], 7)
    alone, holes = global_batches(f"{first},{second}", 1)
    assert len(alone) == one_host.STEPS and list(holes) == ["1/w7"]
    for count in (2, 4):
        sums, placeholders = global_batches(f"{first},{second}", count)
        assert sums == alone and placeholders == holes
