"""Pipelines from text to images: one model of three parts, the sampling loop, agreement with full precision."""

from pathlib import Path

import pytest
import torch

from search_spaces.discovery import discover, skipped
from workers import quality
from workers.errors import TaskError
from workers.measurement import Workload
from workers.task import Split, workloads
from workers.tasks.diffusion.pipelines import Pipeline, build_pipeline, encode
from workers.tasks.diffusion.text_to_image import TextToImage

SMALL = {"steps": 3, "samples": 2}


@pytest.fixture(scope="module")
def task() -> TextToImage:
    return TextToImage(**SMALL)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def model(task: TextToImage) -> Pipeline:
    return build_pipeline(task.checkpoint, task.guidance)


def test_layers_of_all_parts_are_in_one_space(task: TextToImage, model: Pipeline) -> None:
    layers = discover(model, lambda m: task.forward(m, task.calibration()[0]))
    assert {layer.name.partition(".")[0] for layer in layers} == {"text_encoder", "unet", "vae"}
    assert not any("vae.encoder" in layer.name for layer in layers)
    assert set(skipped(model)) == {"text_encoder.embeddings.position_embedding"}


def test_images_are_what_diffusers_makes_of_the_same_noise(task: TextToImage, model: Pipeline) -> None:
    from diffusers.schedulers import DDIMScheduler

    schedule = DDIMScheduler(clip_sample=False)
    schedule.set_timesteps(3)
    begin = task._begin(Split.EVALUATION)
    latents = begin["latents"]
    with torch.inference_mode():
        with_text, without = (
            model.text_encoder(tokens).last_hidden_state
            for tokens in (begin["prompts"][:, 0], encode(task.checkpoint, ["", ""]))
        )
        for step in schedule.timesteps:
            right, free = (
                model.unet(latents, step, encoder_hidden_states=states).sample for states in (with_text, without)
            )
            done = schedule.step(free + 7.5 * (right - free), step, latents)
            latents = done.prev_sample
        images = model.decoded(done.pred_original_sample)
    made = quality.judged(task, model, Split.EVALUATION)
    torch.testing.assert_close(made, images.flatten(1), rtol=1e-3, atol=1e-4)
    assert task.accuracy(made, Split.EVALUATION) == pytest.approx(1.0)
    assert task.accuracy(-made, Split.EVALUATION) == 0.0


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_a_prediction_points_to_what_the_schedule_says(kind: str) -> None:
    from diffusers.schedulers import DDIMScheduler

    schedule = DDIMScheduler(clip_sample=False, prediction_type=kind)
    schedule.set_timesteps(3)
    parts = [torch.nn.Identity()] * 3
    pipeline = Pipeline(*parts, schedule=schedule, guidance=1.0)
    latents, predicted = torch.randn(2, 2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    for step in schedule.timesteps:
        pointed = schedule.step(predicted, step, latents).pred_original_sample
        torch.testing.assert_close(pipeline.pointed(latents, step.expand(2), predicted), pointed)


@pytest.mark.parametrize("guidance", [1.0, 7.5])
def test_what_is_timed_makes_the_images_that_are_judged(guidance: float) -> None:
    task = TextToImage(**SMALL, guidance=guidance)  # type: ignore[arg-type]
    model = task.build_model()
    timed = workloads(task, 2)[Workload.SAMPLING]
    with torch.inference_mode():
        images = timed.run(model, timed.prepare(model))
        _, judged = task._sampled_with_path(model, task._begin("calibration"))
    assert isinstance(images, torch.Tensor)
    assert images.shape == (2, 3, 16, 16)
    torch.testing.assert_close(images, judged, rtol=1e-3, atol=1e-4)


def test_latency_is_of_any_number_of_images(task: TextToImage, model: Pipeline) -> None:
    timed = workloads(task, 3)[Workload.SAMPLING]
    with torch.inference_mode():
        assert len(timed.run(model, timed.prepare(model))) == 3  # type: ignore[arg-type]
    assert [len(value) for value in task.latency_batch(3).values()] == [3, 3, 3]


def test_prompts_take_turns(tmp_path: Path) -> None:
    (tmp_path / "prompts").write_text("a\n\nb\nc\nd\n")
    task = TextToImage(**SMALL, prompts=str(tmp_path / "prompts"))  # type: ignore[arg-type]
    firsts = [bytes(task._begin(part)["prompts"][:, 0, 1].tolist()) for part in ("calibration", *list(Split)[:2])]
    assert firsts == [b"ad", b"bb", b"cc"]


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"prompts": "/no/such"}, "cannot read the prompts '/no/such'"),
        ({"guidance": 0.5}, "'guidance' must be a number from 1"),
        ({"steps": 0}, "'steps' must be an integer from 1"),
        ({"checkpoint": "no/such"}, "cannot load the .* of checkpoint 'no/such'"),
    ],
)
def test_what_cannot_be_used_is_explained(
    parameters: dict[str, object], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(TaskError, match=message):
        TextToImage(**parameters).calibration()  # type: ignore[arg-type]


def test_a_folder_of_the_parts_is_a_checkpoint(model: Pipeline, tmp_path: Path) -> None:
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

    from workers.tasks.diffusion import pipelines

    model.text_encoder.save_pretrained(tmp_path / "text_encoder")  # type: ignore[operator]
    model.unet.save_pretrained(tmp_path / "unet")  # type: ignore[operator]
    whole = AutoencoderKL(**pipelines._AUTOENCODER)
    whole.load_state_dict(model.vae.state_dict(), strict=False)
    whole.save_pretrained(tmp_path / "vae")
    batch = TextToImage(**SMALL).latency_batch(1)  # type: ignore[arg-type]
    with torch.inference_mode():
        torch.testing.assert_close(build_pipeline(str(tmp_path), 7.5)(**batch), model(**batch))
