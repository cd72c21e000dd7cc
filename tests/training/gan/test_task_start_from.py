"""Starting from the networks of another run: its averaged generator and its discriminator, nothing else."""

import pytest
import torch
from tiny_training import TINY_D, TINY_SAN, tiny_config

from reposer.data.packed import PackedPeople
from reposer.errors import UserError
from reposer.storage import checkpoint
from reposer.trained.networks import GENERATOR, open_network, save_generator
from reposer.training.gan import task
from reposer.training.gan.data import GanData
from reposer.training.loop import train


def test_a_new_run_begins_with_the_other_runs_networks(prepared, tmp_path):
    config = tiny_config(prepared)
    train(config, tmp_path / "first", device="cpu")
    first = checkpoint.latest(tmp_path / "first" / "checkpoints")
    still = config.changed(  # a step so small that float32 does not see it
        optimizer=config.optimizer.changed(lr=1e-30), start_from=tmp_path / "first", ema_decay=0.0
    )
    train(still, tmp_path / "second", device="cpu")
    second = checkpoint.latest(tmp_path / "second" / "checkpoints")
    for name in first.groups["ema"]:
        if "running" in name or "num_batches" in name:
            continue  # BatchNorm's statistics move with the batches, as they should
        assert torch.equal(first.groups["ema"][name], second.groups["generator"][name]), name
    weight = next(name for name in first.groups["discriminator"] if name.endswith("weight"))
    assert torch.equal(first.groups["discriminator"][weight], second.groups["discriminator"][weight])


def test_a_run_without_checkpoint_and_other_sizes_are_named(prepared, tmp_path):
    config = tiny_config(prepared, start_from=tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"start_from=.*nowhere"):
        train(config, tmp_path / "run", device="cpu")
    train(tiny_config(prepared), tmp_path / "first", device="cpu")
    wide = {**TINY_SAN, "ngf": 8}
    config = tiny_config(prepared, start_from=tmp_path / "first", generator_args=wide)
    with pytest.raises(UserError, match="weight"):
        train(config, tmp_path / "other", device="cpu")


def test_a_new_run_begins_with_an_exported_generator(prepared, tmp_path, monkeypatch):
    config = tiny_config(prepared)
    train(config, tmp_path / "first", device="cpu")
    opened = []

    def counted(kind, name):
        opened.append(name)
        return open_network(kind, name)

    monkeypatch.setattr(task, "open_network", counted)
    exported = open_network(GENERATOR, tmp_path / "first")
    save_generator(tmp_path / "exported", exported.network, exported.info)
    still = config.changed(
        optimizer=config.optimizer.changed(lr=1e-30), start_from=tmp_path / "exported", ema_decay=0.0
    )
    train(still, tmp_path / "second", device="cpu")
    second = checkpoint.latest(tmp_path / "second" / "checkpoints")
    for name, tensor in exported.network.state_dict().items():
        if "running" not in name and "num_batches" not in name:
            assert torch.equal(tensor, second.groups["generator"][name]), name
    assert second.meta["inputs"]["start_from"] == exported.weights_hash
    assert opened == [str(tmp_path / "exported")]  # once, for its hash and its weights


def test_a_generator_of_held_out_people_is_no_beginning(prepared, tmp_path, monkeypatch):
    """The new run would say that it saw its own training people alone."""
    train(tiny_config(prepared), tmp_path / "first", device="cpu")
    info, people = open_network(GENERATOR, tmp_path / "first").info, PackedPeople.open(prepared / "packed")
    data = GanData(tiny_config(prepared))
    data.check_beginning(info, "start_from=first")
    other = next(split for split in people.splits.tolist() if split != "train")
    held_out = info.changed(**people.training_facts("train", other))
    for seen in (held_out, held_out.changed(images_hash="")):  # of which images is not recorded
        with pytest.raises(UserError, match=r"start_from=first: was trained on people that .* holds out"):
            data.check_beginning(seen, "start_from=first")
    data.check_beginning(held_out.changed(images_hash="f" * 64), "others of the same numbers")
    fifth = GanData(tiny_config(prepared).changed(data=tiny_config(prepared).data.changed(budget=0.5)))
    with pytest.raises(UserError, match="has seen 100 %"):
        fifth.check_beginning(info, "start_from=first")
    fifth.check_beginning(info.changed(images_hash="f" * 64), "others of the same numbers")


def test_a_run_says_what_share_it_saw_and_is_no_beginning_for_less(prepared, tmp_path):
    config = tiny_config(prepared)
    half = config.changed(data=config.data.changed(budget=0.5, budget_seed=2))
    train(half, tmp_path / "half", device="cpu")
    info = open_network(GENERATOR, tmp_path / "half").info
    assert (info.budget, info.budget_seed) == (0.5, 2)
    assert info.trained_on == f"{prepared.name} (50 % of each person's images)"
    less = half.changed(data=half.data.changed(budget=0.25), start_from=tmp_path / "half")
    with pytest.raises(UserError, match=r"start_from=.*half: has seen 50 % of each person's images"):
        train(less, tmp_path / "less", device="cpu")
    train(half.changed(start_from=tmp_path / "half"), tmp_path / "again", device="cpu")


@pytest.mark.parametrize("name", ["transport", "shipped-transport"])
def test_a_generator_of_another_kind_is_no_beginning(prepared, tmp_path, name):
    with pytest.raises(
        UserError, match=rf"start_from={name}: its generator is transport\w*, and this one is san"
    ):
        train(tiny_config(prepared, start_from=name), tmp_path / "run", device="cpu")
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_two_discriminators_train_and_resume(prepared, tmp_path):
    config = tiny_config(prepared, discriminator_args={**TINY_D, "shape": True})
    train(config, tmp_path / "run", device="cpu", max_minutes=0)
    assert train(config, tmp_path / "run", device="cpu").finished
    names = checkpoint.latest(tmp_path / "run" / "checkpoints").groups["discriminator"]
    assert {name.split(".")[0] for name in names} == {"appearance", "shape"}
