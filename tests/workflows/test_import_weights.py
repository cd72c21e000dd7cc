"""Published checkpoints: the same network as one built by hand, and everything else refused by name."""

from __future__ import annotations

import json
import os
from functools import cache

import pytest
import torch
from published_networks import PublishedDPTN, PublishedGFLA, PublishedPATN, PublishedXingGAN
from torch import nn

from reposer.errors import UserError
from reposer.generation.pose_transfer import PoseTransfer
from reposer.models.pose_maps import gaussian_maps
from reposer.structures import PairBatch
from reposer.weights.files import LicenseError
from reposer.workflows.import_weights import import_weights


@pytest.fixture(autouse=True)
def _terms(tmp_path, monkeypatch):
    monkeypatch.setenv("REPOSER_WEIGHTS", str(tmp_path / "weights"))


def random_values(net: nn.Module) -> nn.Module:
    """Sizes in which every layer tells, norms and statistics among them."""
    rng = torch.Generator().manual_seed(0)
    for name, tensor in net.state_dict().items():
        if name.endswith("running_var"):
            tensor.uniform_(0.5, 2.0, generator=rng)
        elif tensor.is_floating_point():
            scale = tensor[0].numel() ** -0.5 if tensor.dim() > 1 else 0.3
            tensor.normal_(float(tensor.dim() == 1 and name.endswith("weight")), scale, generator=rng)
    return net.eval()


def batch(size: tuple[int, int] = (128, 64)) -> PairBatch:
    """Of GFLA's own size: its norms multiply the rounding of smaller maps."""
    rng = torch.Generator().manual_seed(1)
    image = torch.randint(256, (1, 3, *size), generator=rng, dtype=torch.uint8)
    label, mask = torch.zeros(1, *size, dtype=torch.uint8), torch.ones(1, *size, dtype=torch.bool)
    joints = [torch.rand(1, 18, 2, generator=rng) * 32 for _ in range(2)]
    joints[0][0, 4] = torch.nan
    return PairBatch(image, image, label, label, mask, mask, *joints, torch.tensor([1]))


def inputs(pairs: PairBatch) -> tuple[torch.Tensor, ...]:
    height, width = pairs.source_image.shape[2:]
    poses = [gaussian_maps(p, height, width) for p in (pairs.source_keypoints, pairs.target_keypoints)]
    return (pairs.source_image / 127.5 - 1, *poses)


@cache
def published(name: str) -> nn.Module:
    made = {
        "patn": lambda: PublishedPATN(),
        "patn_fashion": lambda: PublishedPATN("instance"),
        "patn_plain": lambda: PublishedPATN(dropout=False),
        "xinggan": lambda: PublishedXingGAN(),
        "xinggan_fashion": lambda: PublishedXingGAN("instance"),
        "dptn": PublishedDPTN,
        "gfla": lambda: PublishedGFLA(),
        "gfla_fashion": lambda: PublishedGFLA(True),
    }
    return random_values(made[name]())


def by_hand(net: nn.Module, pairs: PairBatch) -> torch.Tensor:
    image, source, target = inputs(pairs)
    with torch.inference_mode():
        if isinstance(net, PublishedPATN | PublishedXingGAN):
            return net(image, torch.cat([source, target], 1))
        return net(image, source, target)


CASES = [
    pytest.param("patn", 221, 41_365_763, (128, 64), marks=pytest.mark.slow),
    pytest.param("patn_fashion", 90, 41_358_019, (256, 176), marks=pytest.mark.slow),
    pytest.param("patn_plain", 221, 41_365_763, (128, 64), marks=pytest.mark.slow),
    pytest.param("xinggan", 317, 44_853_189, (128, 64), marks=pytest.mark.slow),
    pytest.param("xinggan_fashion", 167, 44_844_634, (256, 176), marks=pytest.mark.slow),
    pytest.param("dptn", 188, 9_794_371, (256, 256), marks=pytest.mark.slow),
    pytest.param("gfla", 196, 12_926_471, (128, 64), marks=pytest.mark.slow),
    pytest.param("gfla_fashion", 204, 14_047_395, (256, 256), marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("name", "entries", "parameters", "size"), CASES)
def test_an_imported_network_is_the_one_built_by_hand(name, entries, parameters, size, tmp_path, run):
    net = published(name)
    state = net.state_dict()
    assert sum(p.numel() for p in net.parameters()) == parameters
    # 221 with the counters of torch 0.4.1 and later; files of before lack them
    assert len(state) == entries
    if name.startswith(("patn", "xinggan")):
        state = {key: value for key, value in state.items() if not key.endswith("num_batches_tracked")}
    if name == "patn_fashion":
        state |= {
            f"model.att.3.conv_block_stream1.{i}.running_{what}": torch.ones(256)
            for i in (2, 7)
            for what in ("mean", "var")
        }
    torch.save(state, tmp_path / "latest_net_netG.pth")
    kind = name.split("_")[0]
    out = tmp_path / "imported"
    arguments = ("import-weights", kind, tmp_path / "latest_net_netG.pth", "--out", out)
    code, _, said = run(*arguments)
    assert code == 1
    assert "--accept-license" in said
    assert not out.exists()
    assert run(*arguments, "--accept-license")[0] == 0
    transfer = PoseTransfer.from_pretrained(out)
    assert (transfer.config.generator, tuple(transfer.config.size)) == (kind, size)
    pairs = batch()
    with torch.inference_mode():
        found = transfer.generator(pairs)
    assert found.std() > (0.05 if kind == "xinggan" else 0.2)  # it mixes 21 pictures of noise
    torch.testing.assert_close(found, by_hand(net, pairs), atol=3e-3, rtol=0)
    card = (out / "README.md").read_text()
    for part in ("github.com", "latest_net_netG.pth", "License", "Norm:", transfer.config.weights_sha256):
        assert part in card
    assert ("commercially" in card) == (kind != "patn")
    assert json.loads((out / "config.json").read_text())["step"] == 0


@pytest.mark.parametrize(
    ("name", "shown"),
    [(b"w\xff.pth", r"w\xff.pth"), ("é.pth".encode(), "é.pth"), (b"a\x1bb.pth", r"a\x1bb.pth")],
)
def test_a_file_of_any_name_is_imported_and_named(name, shown, tmp_path, run):
    file = tmp_path / os.fsdecode(name)
    torch.save(dict(published("gfla").state_dict()), file)
    out = tmp_path / "out"
    code, _, err = run("import-weights", "gfla", file, "--out", out, "--accept-license")
    assert code == 0, err
    assert json.loads((out / "config.json").read_text())["trained_on"].endswith(f", file {shown}")
    assert f"file `{shown}`" in (out / "README.md").read_text()
    assert PoseTransfer.from_pretrained(out).config.trained_on.endswith(shown)


@pytest.fixture
def gfla(tmp_path):
    """The state of a published file to change, and a call that writes and imports it."""
    state = dict(published("gfla").state_dict())

    def tried(changed: dict[str, torch.Tensor], network: str = "gfla") -> str:
        torch.save(changed, tmp_path / "file.pth")
        with pytest.raises(UserError) as raised:
            import_weights(network, tmp_path / "file.pth", tmp_path / "out", accept_license=True)
        assert not (tmp_path / "out").exists()
        said = str(raised.value)
        assert "\n" not in said
        return said

    return state, tried


def test_a_file_that_lacks_or_has_more_is_refused_by_name(gfla):
    state, tried = gfla
    less = {k: v for k, v in state.items() if k != "flow_net.mask2.0.bias"}
    assert "lacks flow_net.mask2.0.bias" in tried(less)
    assert "target.decoder9.weight" in tried(state | {"target.decoder9.weight": torch.ones(2)})
    assert "(64, 3, 4, 4)" in tried(state | {"source.block0.model.2.weight": torch.ones(64, 4, 4, 4)})
    unequal = state | {"flow_net.jump1.conv1.weight": state["flow_net.jump1.conv1.weight"] + 1}
    assert "flow_net.jump1.conv1.weight is not equal to" in tried(unequal)
    assert "NaN" in tried(state | {"flow_net.mask2.0.bias": torch.full((1,), torch.nan)})


def test_a_file_of_another_network_is_refused_by_name(gfla):
    state, tried = gfla
    assert "is of gfla, not of patn" in tried(state, "patn")
    assert "flow net alone" in tried({k: v for k, v in state.items() if k.startswith("flow_net.")})
    judge = {"block0.model.1.weight_orig": torch.ones(2), "block0.model.1.weight_u": torch.ones(2)}
    assert "discriminator" in tried(judge)
    assert "none of its names" in tried({"conv.weight": torch.ones(2)})
    xing = {"model.att.0.gamma": torch.ones(1), "model.stream1_down.1.weight": torch.ones(2)}
    assert "is of xinggan, not of patn" in tried(xing, "patn")
    assert "is of xinggan, not of dptn" in tried(xing, "dptn")
    assert "lacks " in tried(xing | {"model.stream1_down.2.weight": torch.ones(64)}, "xinggan")
    assert "did you mean gfla" in tried(state, "gflaa")


def test_a_size_is_asked_for_only_where_a_file_does_not_tell(gfla, tmp_path):
    state, _ = gfla
    torch.save(state, tmp_path / "file.pth")
    with pytest.raises(UserError, match=r"--size: .* is of pictures of 128x64"):
        import_weights("gfla", tmp_path / "file.pth", tmp_path / "o", accept_license=True, size=(256, 256))
    assert not (tmp_path / "o").exists()


@pytest.mark.slow
def test_dptn_works_at_the_size_that_is_said(tmp_path):
    torch.save(published("dptn").state_dict(), tmp_path / "file.pth")
    import_weights("dptn", tmp_path / "file.pth", tmp_path / "o", accept_license=True, size=(128, 64))
    assert tuple(PoseTransfer.from_pretrained(tmp_path / "o").config.size) == (128, 64)
    older = {
        key.replace("PTM.", "transformer."): value for key, value in published("dptn").state_dict().items()
    }
    torch.save(older, tmp_path / "older.pth")
    assert "9,794,371" in import_weights("dptn", tmp_path / "older.pth", tmp_path / "p", accept_license=True)


@pytest.mark.slow
def test_a_data_parallel_file_is_read_without_its_prefix(tmp_path):
    state = {f"module.{key}": value for key, value in published("gfla").state_dict().items()}
    torch.save(state, tmp_path / "file.pth", _use_new_zipfile_serialization=False)  # as torch 0.4 wrote them
    with pytest.raises(LicenseError, match="NOT FOR COMMERCIAL USE"):
        import_weights("gfla", tmp_path / "file.pth", tmp_path / "out")
    assert "12,926,471" in import_weights(
        "gfla", tmp_path / "file.pth", tmp_path / "out", accept_license=True
    )
    pairs = batch()
    with torch.inference_mode():
        found = PoseTransfer.from_pretrained(tmp_path / "out").generator(pairs)
    torch.testing.assert_close(found, by_hand(published("gfla"), pairs), atol=3e-3, rtol=0)
