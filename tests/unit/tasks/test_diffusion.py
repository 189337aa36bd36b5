"""Diffusion: the arguments of each step, the sampling loop, agreement with full precision."""

from pathlib import Path

import pytest
import torch
from torch import nn

from search_spaces.discovery import discover, skipped
from workers import quality
from workers.candidate import Candidate
from workers.device.placement import PlacedTask
from workers.errors import TaskError
from workers.evaluation.evaluator import Evaluator
from workers.measurement import Workload
from workers.model.fingerprint import fingerprint
from workers.setup import MeasurementSettings, WorkerSetup
from workers.task import Split, workloads
from workers.tasks import build_task
from workers.tasks.diffusion.denoisers import TINY, build_denoiser
from workers.tasks.diffusion.denoising import Diffusion

SMALL = {"steps": 4, "samples": 2}


@pytest.fixture(scope="module", params=TINY)
def task(request: pytest.FixtureRequest) -> Diffusion:
    return Diffusion(**SMALL, checkpoint=request.param)


@pytest.fixture(scope="module")
def model(task: Diffusion) -> nn.Module:
    return task.build_model()


def test_every_step_of_the_schedule_is_in_the_data(task: Diffusion) -> None:
    steps = [750, 500, 250, 0]  # of 1,000, as DDIM takes four
    for batches in (task.calibration(), task.evaluation(Split.EVALUATION), task.evaluation(Split.HELD_OUT)):
        assert [batch["timestep"].tolist() for batch in batches] == [[step] * 2 for step in steps]


def test_the_loop_is_what_diffusers_makes_of_the_same_noise(task: Diffusion, model: nn.Module) -> None:
    from diffusers import DDIMScheduler

    scheduler = DDIMScheduler(clip_sample=False)
    scheduler.set_timesteps(4)
    first = task.evaluation(Split.EVALUATION)[0]
    latents = first[task._denoiser.latents]
    with torch.inference_mode():
        for step in scheduler.timesteps:
            noise = model(**{**first, task._denoiser.latents: latents, "timestep": step.expand(2)}).sample
            latents = scheduler.step(noise, step, latents).prev_sample
    made = quality.judged(task, model, Split.EVALUATION)
    torch.testing.assert_close(made, latents.flatten(1))
    assert task.accuracy(made, Split.EVALUATION) == pytest.approx(1.0)


def test_a_later_step_goes_on_from_the_latents_of_the_one_before(task: Diffusion) -> None:
    batches = task.evaluation(Split.EVALUATION)
    latents = [batch[task._denoiser.latents] for batch in batches]
    assert len({tensor.numpy().tobytes() for tensor in latents}) == 4
    moving = {task._denoiser.latents, "timestep"}
    rest = [{name: value for name, value in batch.items() if name not in moving} for batch in batches]
    assert all(torch.equal(step[name], rest[0][name]) for step in rest for name in rest[0])
    assert rest[0]


def test_accuracy_is_the_mean_cosine_of_final_latents() -> None:
    task = Diffusion(**SMALL)
    right = task._finals[Split.HELD_OUT]
    assert task.accuracy(3.0 * right, Split.HELD_OUT) == pytest.approx(1.0)
    assert task.accuracy(torch.stack([right[0], -right[1]]), Split.HELD_OUT) == pytest.approx(0.5)
    assert task.accuracy(torch.stack([right[0], right[1] * torch.nan]), Split.HELD_OUT) == pytest.approx(0.5)


def test_every_weight_is_a_layer_or_says_why_not(task: Diffusion, model: nn.Module) -> None:
    layers = discover(model, lambda m: task.forward(m, task.latency_batch(1)))
    assert {layer.name: layer.frozen_reason for layer in layers if layer.frozen_reason} == {}
    assert skipped(model) == {}
    held = sum(layer.weight_bytes for layer in layers)
    assert held > 0.95 * sum(parameter.nbytes for parameter in model.parameters())


def test_maps_are_judged_by_the_samples_they_make_and_loops_are_timed(task: Diffusion) -> None:
    settings = MeasurementSettings(threads=1, repeats=10, warmup_s=0.0, workloads=(Workload.SAMPLING,))
    parameters = {**SMALL, "checkpoint": task.checkpoint}
    found = Evaluator(WorkerSetup(task="diffusion", task_parameters=parameters, measurement=settings))
    refusals = found.description.refusals
    choices = {name: "int8_static" for name, refused in refusals.items() if "int8_static" not in refused}
    measurement = found.measure(Candidate(number=0, choices=choices))
    assert 0.8 < measurement.accuracy < 1.0 - 1e-7
    assert 0.0 < measurement.divergence < 0.2
    assert [samples.workload for samples in measurement.latency] == [Workload.FORWARD, Workload.SAMPLING]


def test_sampling_makes_whole_samples(task: Diffusion, model: nn.Module) -> None:
    timed = workloads(task, 3)[Workload.SAMPLING]
    with torch.inference_mode():
        path, latents = timed.run(model, timed.prepare(model))
    assert (len(path), len(latents)) == (4, 3)
    torch.testing.assert_close(latents[0], latents[2])


@pytest.mark.parametrize("subfolder", ["", "unet"])
def test_a_published_folder_is_a_checkpoint(subfolder: str, tmp_path: Path) -> None:
    from diffusers import DDIMScheduler

    original = build_denoiser("tiny-unet", "")
    original.save_pretrained(tmp_path / subfolder)
    if subfolder:
        DDIMScheduler(prediction_type="v_prediction", clip_sample=False).save_pretrained(tmp_path / "scheduler")
    task = Diffusion(**SMALL, checkpoint=str(tmp_path), subfolder=subfolder)
    assert fingerprint(task.build_model()) == fingerprint(original)
    assert task._schedule.config.prediction_type == ("v_prediction" if subfolder else "epsilon")
    assert task.calibration()[0]["encoder_hidden_states"].shape == (2, 8, 32)


def test_unconditional_models_take_latents_alone(tmp_path: Path) -> None:
    from diffusers import UNet2DModel

    UNet2DModel(
        sample_size=(8, 4), block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4, attention_head_dim=4,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"), up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    ).save_pretrained(tmp_path)  # fmt: skip
    task = Diffusion(**SMALL, checkpoint=str(tmp_path))
    assert {name: tuple(value.shape) for name, value in task.calibration()[0].items()} == {
        "sample": (2, 3, 8, 4), "timestep": (2,)
    }  # fmt: skip


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"checkpoint": "no/such"}, r"cannot load the model of checkpoint 'no/such': .* tiny-unet, tiny-dit"),
        ({"steps": 0}, "'steps' must be an integer from 1 to 1000"),
        ({"subfolder": 3}, "'subfolder' must be text, but got 3"),
    ],
)
def test_what_cannot_be_used_is_explained(
    parameters: dict[str, object], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(TaskError, match=message):
        Diffusion(**parameters).build_model()  # type: ignore[arg-type]


def test_models_with_other_conditions_are_refused(tmp_path: Path) -> None:
    from diffusers import UNet2DModel

    UNet2DModel(
        num_class_embeds=5, block_out_channels=(8,), layers_per_block=1, norm_num_groups=4,
        down_block_types=("DownBlock2D",), up_block_types=("UpBlock2D",),
    ).save_pretrained(tmp_path)  # fmt: skip
    with pytest.raises(TaskError, match=r"checkpoint .* is a UNet2DModel with num_class_embeds; write a task for it"):
        Diffusion(checkpoint=str(tmp_path)).build_model()


def test_jobs_of_others_read_no_checkpoints_outside_the_data_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build_denoiser("tiny-dit", "").save_pretrained(tmp_path / "outside")
    build_denoiser("tiny-dit", "").save_pretrained(tmp_path / "data" / "inside")
    monkeypatch.setenv("AUTOTUNE_DATA", str(tmp_path / "data"))
    with pytest.raises(TaskError, match="must be a path inside the workers' folder"):
        Diffusion(checkpoint="../outside").build_model()
    with pytest.raises(TaskError, match="must be a path inside the workers' folder"):
        Diffusion(checkpoint="inside", subfolder="../../outside").build_model()
    assert Diffusion(checkpoint="inside").build_model()


@pytest.mark.parametrize("name", ["diffusion", "digits-cnn"])
def test_a_task_on_a_device_generates_only_if_it_does_so_elsewhere(name: str) -> None:
    task = build_task(name, {})
    assert hasattr(PlacedTask(task, "cpu"), "generate") is hasattr(task, "generate") is (name == "diffusion")
