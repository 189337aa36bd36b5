"""Pipelines from text to images: one model of three parts, the sampling loop, agreement with full precision."""

from pathlib import Path

import pytest
import torch

from search_spaces.discovery import discover, skipped
from workers import quality
from workers.errors import TaskError
from workers.measurement import Workload
from workers.task import Split, workloads
from workers.tasks.pipeline_models import Pipeline, build_pipeline, encode, schedule_of
from workers.tasks.text_to_image import TextToImage

SMALL = {"steps": 3, "samples": 2}


@pytest.fixture(scope="module")
def task() -> TextToImage:
    return TextToImage(**SMALL)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def model(task: TextToImage) -> Pipeline:
    return build_pipeline(task.checkpoint)


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
            for tokens in (begin["input_ids"], encode(task.checkpoint, ["", ""]))
        )
        for step in schedule.timesteps:
            right, free = (
                model.unet(latents, step, encoder_hidden_states=states).sample for states in (with_text, without)
            )
            latents = schedule.step(free + 7.5 * (right - free), step, latents).prev_sample
        images = model.decoded(latents)
    made = quality.judged(task, model, torch.zeros(1), Split.EVALUATION)
    torch.testing.assert_close(made, images.flatten(1), rtol=1e-4, atol=1e-5)
    assert task.accuracy(made, Split.EVALUATION) == pytest.approx(1.0)
    assert task.accuracy(-made, Split.EVALUATION) == 0.0


def test_a_step_points_to_the_image_that_the_schedule_says(task: TextToImage, model: Pipeline) -> None:
    batch, schedule = task.calibration()[1], schedule_of(task.checkpoint, 3)
    step = batch["timestep"][0]
    with torch.inference_mode():
        predicted = model.denoised(batch["latents"], batch["timestep"], model.encoded(batch["input_ids"]))
        pointed = schedule.step(predicted, step, batch["latents"]).pred_original_sample
        torch.testing.assert_close(task.forward(model, batch), model.decoded(pointed).flatten(1), rtol=1e-3, atol=1e-4)


def test_sampling_begins_at_tokens_and_ends_at_images(task: TextToImage, model: Pipeline) -> None:
    timed = workloads(task, 3)[Workload.SAMPLING]
    with torch.inference_mode():
        path, images = timed.run(model, timed.prepare(model))  # type: ignore[misc]
    assert images.shape == (3, 3, 16, 16)
    assert [len(batch["latents"]) for batch in path] == [6] * 3  # with the prompt and without
    assert TextToImage(**SMALL, guidance=1.0).latency_batch(1)["latents"].shape == (1, 4, 8, 8)  # type: ignore[arg-type]


def test_prompts_take_turns(tmp_path: Path) -> None:
    (tmp_path / "prompts").write_text("a\n\nb\nc\nd\n")
    task = TextToImage(**SMALL, prompts=str(tmp_path / "prompts"))  # type: ignore[arg-type]
    firsts = [bytes(task._begin(part)["input_ids"][:, 1].tolist()) for part in ("calibration", *list(Split)[:2])]
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

    from workers.tasks import pipeline_models

    model.text_encoder.save_pretrained(tmp_path / "text_encoder")  # type: ignore[operator]
    model.unet.save_pretrained(tmp_path / "unet")  # type: ignore[operator]
    whole = AutoencoderKL(**pipeline_models._AUTOENCODER)
    whole.load_state_dict(model.vae.state_dict(), strict=False)
    whole.save_pretrained(tmp_path / "vae")
    batch = TextToImage(**SMALL).latency_batch(1)  # type: ignore[arg-type]
    with torch.inference_mode():
        torch.testing.assert_close(build_pipeline(str(tmp_path))(**batch), model(**batch))


def test_a_runtime_without_parts_is_refused(task: TextToImage) -> None:
    with pytest.raises(TaskError, match="use the backend x86"):
        task.generate(torch.nn.Identity(), Split.EVALUATION)
