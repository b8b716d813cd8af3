"""A run opened for sampling, and the sampler that both commands share."""

import dataclasses

import jax
import numpy as np
import pytest

from omnihuman_jax import sharding
from omnihuman_jax.conditions import Condition, ConditionSet
from omnihuman_jax.data import records
from omnihuman_jax.data.packing import PackInput
from omnihuman_jax.data.record_source import open_records
from omnihuman_jax.diffusion.solver import SamplingConfig, SolverState
from omnihuman_jax.sampling import trained_run
from omnihuman_jax.sampling.sampler import Sampler, needs_guidance, shape_for
from omnihuman_jax.serving.guidance_omnihuman import Branch, GuidanceConfig
from omnihuman_jax.typing import ArraySpec

ALL = ConditionSet.of(*Condition)
OFF = SamplingConfig(num_steps=4, guidance=GuidanceConfig(scale=1.0))
ON = SamplingConfig(num_steps=4, guidance=GuidanceConfig(scale=3.0, final_scale=1.0))


@pytest.fixture(scope="module")
def windows(run) -> list[PackInput]:
    """The dataset's four windows, of two sizes, as inputs: all conditions, no motion frames."""
    source = open_records(run.dataset)
    return [as_input(source[i], run, slot=i) for i in range(4)]


def as_input(record: records.WindowRecord, run: trained_run.TrainedRun, **changes) -> PackInput:
    base = PackInput(
        latents_FHWC=record.latents_FHWC.astype(np.float32),
        reference_HWC=record.references_RHWC[0].astype(np.float32),
        text_SE=record.text_SE.astype(np.float32),
        pooled_E=record.pooled_E.astype(np.float32),
        audio_TE=record.audio_TE.astype(np.float32),
        audio_valid_T=record.audio_valid_T,
        keypoints_TJ3=record.keypoints_TJ3.astype(np.float32),
        keypoints_valid_T=record.keypoints_valid_T,
        margin=run.spec.margin,
        active=ALL,
    )
    return dataclasses.replace(base, **changes)


JOINT = (Branch(drops_text=True, drops_audio=True, scale=3.0),)


def make(run, windows, config=OFF, *, batch=4, branches=()) -> Sampler:
    return Sampler(run, config, shape_for(run, windows), batch, branches)


def test_a_window_is_sampled_the_same_alone_and_in_a_batch_and_in_any_order(run, windows):
    together = make(run, windows)
    out = together(windows, seed=3)
    assert [latents.shape for latents in out] == [window.latents_FHWC.shape for window in windows]
    assert all(np.isfinite(latents).all() for latents in out)
    for again, before in zip(together(windows[::-1], seed=3), out[::-1], strict=True):
        np.testing.assert_allclose(again, before, atol=1e-5)
    (alone,) = make(run, windows[:1], batch=1)(windows[:1], seed=3)
    np.testing.assert_allclose(alone, out[0], atol=1e-5)
    assert np.abs(together(windows[:1], seed=4)[0] - out[0]).max() > 0.1
    assert together.compilations() == 1


def test_the_truth_does_not_enter_unless_it_is_given_as_motion_frames(run, windows):
    sampler = make(run, windows)
    blank = [dataclasses.replace(window, latents_FHWC=0 * window.latents_FHWC) for window in windows]
    for with_truth, without in zip(sampler(windows, seed=0), sampler(blank, seed=0), strict=True):
        np.testing.assert_array_equal(with_truth, without)
    moving = [dataclasses.replace(window, motion=True) for window in windows]
    for given, window, free in zip(sampler(moving, seed=0), windows, sampler(windows, seed=0), strict=True):
        np.testing.assert_array_equal(given[:2], window.latents_FHWC[:2])
        assert np.abs(given[2:] - free[2:]).max() > 1e-4, "the rest follows what is given"
    assert sampler.compilations() == 1, "motion frames are data, not another program"


@pytest.mark.parametrize("condition", list(Condition))
def test_each_condition_changes_the_sample(run, windows, condition):
    sampler = make(run, windows)
    without = [dataclasses.replace(window, active=ALL.without(condition)) for window in windows]
    if condition is Condition.TEXT:
        empty = {"text_SE": run.spec.empty_text_SE, "pooled_E": run.spec.empty_pooled_E}
        without = [dataclasses.replace(window, **empty) for window in without]
    for a, b in zip(sampler(windows, seed=0), sampler(without, seed=0), strict=True):
        assert np.abs(a - b).max() > 1e-4


def test_guidance_moves_the_sample_and_scale_one_does_not(run, windows):
    def sampled(config: SamplingConfig, *branches: Branch) -> np.ndarray:
        return make(run, windows[:1], config, batch=1, branches=branches)(windows[:1], seed=0)[0]

    off = sampled(OFF)
    at_one = dataclasses.replace(ON, guidance=GuidanceConfig(scale=1.0, final_scale=1.0))
    np.testing.assert_allclose(sampled(at_one, dataclasses.replace(*JOINT, scale=1.0)), off, atol=1e-5)
    joint = sampled(ON, *JOINT)
    assert np.abs(joint - off).max() > 1e-3


@pytest.mark.slow
def test_text_and_audio_guided_apart_by_one_scale_are_guided_together(run, windows):
    def sampled(**guidance: float) -> np.ndarray:
        config = SamplingConfig(num_steps=4, guidance=GuidanceConfig(**guidance))
        branches = needs_guidance(config.guidance, windows[:1])
        assert len(branches) == (2 if "text_scale" in guidance else 1)
        return make(run, windows[:1], config, batch=1, branches=branches)(windows[:1], seed=0)[0]

    together = sampled(scale=3.0)
    np.testing.assert_allclose(sampled(scale=3.0, text_scale=3.0), together, atol=2e-5)
    for other in (sampled(scale=3.0, text_scale=1.0), sampled(scale=1.0, text_scale=3.0)):
        assert np.abs(other - together).max() > 1e-3


@pytest.mark.slow
def test_the_second_order_solver_remembers_across_chunks_of_steps(run, windows):
    def sampled(chunk: int) -> np.ndarray:
        sampler = make(run, windows[:1], dataclasses.replace(OFF, num_steps=10, solver="ab2"), batch=1)
        sampler.chunk, sampler.num_chunks = chunk, 10 // chunk
        out = sampler(windows[:1], seed=0)[0]
        assert sampler.compilations() == 1
        return out

    # Chunks of one step would be Euler's, if a chunk forgot the one before it.
    np.testing.assert_allclose(sampled(1), sampled(10), atol=2e-4)
    euler = make(run, windows[:1], dataclasses.replace(OFF, num_steps=10), batch=1)(windows[:1], seed=0)[0]
    assert np.abs(sampled(10) - euler).max() > 1e-2


def test_guidance_is_only_asked_for_where_it_can_matter(windows):
    silent = [
        dataclasses.replace(window, active=ConditionSet.of(Condition.REFERENCE, Condition.POSE)) for window in windows
    ]
    assert needs_guidance(ON.guidance, windows)
    assert not needs_guidance(ON.guidance, silent)
    assert not needs_guidance(OFF.guidance, windows)


def test_guidance_off_costs_half(run, windows):
    """Operations of one chunk of steps, counted by the compiler."""

    def cost(*branches: Branch) -> float:
        sampler = make(run, windows, ON, batch=1, branches=branches)
        rows = sampler.batch * (1 + len(branches))
        batch = jax.tree.map(ArraySpec.abstract, sampler.shape.arrays(rows), sampler._shardings)
        tokens = jax.ShapeDtypeStruct(
            (sampler.batch, sampler.shape.latent_tokens, sampler.shape.patch_channels), np.float32
        )
        with jax.set_mesh(run.mesh):
            t = np.zeros((sampler.chunk + 1, sampler.batch, 1), np.float32)
            lowered = sampler._advance.lower(
                run.params, batch, SolverState(tokens), t, np.ones((sampler.chunk, len(branches)), np.float32)
            )
        return lowered.cost_analysis()["flops"]

    assert cost(*JOINT) / cost() == pytest.approx(2.0, rel=0.05)


@pytest.mark.parametrize("steps", [3, 20])
def test_progress_adds_up_and_all_steps_are_one_program(run, windows, steps):
    sampler = make(run, windows[:1], dataclasses.replace(OFF, num_steps=steps), batch=1)
    heard: list[float] = []
    sampler(windows[:1], 0, heard.append)
    assert sum(heard) == pytest.approx(1.0) and len(heard) >= min(steps, 5)
    assert sampler.chunk * sampler.num_chunks == steps and sampler.compilations() == 1


@pytest.mark.slow
def test_devices_that_share_a_sample_agree_with_one(tiny, run, windows):
    shared = trained_run.open_run(tiny.run, mesh=sharding.MeshConfig(data=1, fsdp=1, context=2, tensor=2))
    assert dict(shared.mesh.shape) == {"data": 1, "fsdp": 1, "context": 2, "tensor": 2}
    weight = (
        shared.params["dual_blocks"]["video"]
        if "video" in shared.params["dual_blocks"]
        else shared.params["dual_blocks"]
    )
    assert any(not leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves(weight)), "the weights are split"
    alone = make(run, windows[:1], batch=1)(windows[:1], seed=0)[0]
    together = make(shared, windows[:1], batch=1)(windows[:1], seed=0)[0]
    np.testing.assert_allclose(together, alone, atol=2e-5)


def test_ema_is_the_default_and_raw_weights_are_others(tiny, run):
    raw = trained_run.open_run(tiny.run, weights="raw")
    assert (run.weights, run.step, raw.weights) == ("ema", 6, "raw")
    pairs = zip(jax.tree.leaves(run.params), jax.tree.leaves(raw.params), strict=True)
    assert all(np.abs(np.asarray(a) - np.asarray(b)).max() > 0 for a, b in pairs)


def test_a_run_without_its_dataset_can_still_be_opened(tiny, tmp_path):
    """config.json names a folder that may be on another machine; the run has its own copy of the spec."""
    opened = trained_run.open_run(tiny.run)
    assert opened.spec.speech_encoder == str(tiny.speech) and (tiny.run / "dataset.json").is_file()
    with pytest.raises(FileNotFoundError, match="no dataset here"):
        trained_run.open_run(tiny.run, dataset=tmp_path)


def test_what_is_no_run_is_a_one_line_error(tiny, tmp_path):
    for path, message in ((tmp_path / "none", "no such run"), (tmp_path, "checkpoints does not exist")):
        with pytest.raises(FileNotFoundError, match=message):
            trained_run.open_run(path)
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(FileNotFoundError, match="no finished checkpoint"):
        trained_run.open_run(tmp_path)
    with pytest.raises(ValueError, match="no step 5; it has"):
        trained_run.open_run(tiny.run, step=5)
    with pytest.raises(ValueError, match="choose ema or raw"):
        trained_run.open_run(tiny.run, weights="best")


def test_too_many_windows_a_call_are_refused(run, windows):
    with pytest.raises(ValueError, match="1 to 2 windows"):
        make(run, windows, batch=2)(windows, seed=0)
