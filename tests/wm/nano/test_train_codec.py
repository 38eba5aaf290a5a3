"""Training the small codec: the loss falls, merged codes are never used, k-means is k-means, Muon is orthogonal."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from wm.models.codec.codec import ImageCodec
from wm.models.codec.vqgan import VQGAN
from wm.nano import train_codec as nano_train_codec
from wm.nano.codebook import Codebook, spread_seeds
from wm.nano.muon import Muon, orthogonalise
from wm.nano.preset import TINY, build_codec
from wm.nano.train_codec import CodecSettings, _merge, _patches, train_codec


def pictures(count: int, seed: int = 0) -> Tensor:
    """16 px pictures of four 8 px squares, each of one of five colours, and a little noise."""
    rng = np.random.default_rng(seed)
    colours = np.array([(230, 40, 40), (40, 200, 60), (40, 60, 230), (240, 240, 240), (20, 20, 20)])
    squares = colours[rng.integers(0, 5, (count, 2, 2))].repeat(8, 1).repeat(8, 2)
    noisy = squares + rng.normal(0, 2, squares.shape)
    return torch.from_numpy(noisy.clip(0, 255).round().astype(np.uint8)).permute(0, 3, 1, 2).contiguous()


SETTINGS = CodecSettings(encoder_steps=60, decoder_steps=60, batch=32, decoder_batch=16)


def trained(
    settings: CodecSettings = SETTINGS,
) -> tuple[ImageCodec, dict[str, float], list[tuple[str, int, int, float]]]:
    torch.manual_seed(0)
    blank = build_codec(TINY)
    calls: list[tuple[str, int, int, float]] = []
    figures = train_codec(blank.vqgan.requires_grad_(True), pictures(256), settings, lambda *call: calls.append(call))
    return ImageCodec(blank.vqgan, blank.scale), figures, calls


@pytest.fixture(scope="module")
def codec_and_figures() -> tuple[ImageCodec, dict[str, float], list[tuple[str, int, int, float]]]:
    return trained()


def test_training_reduces_both_losses(codec_and_figures: Any) -> None:
    _, figures, calls = codec_and_figures
    assert [call[:3] for call in calls] == [
        *[("codec encoder", step, 60, ) for step in range(1, 61)],
        *[("codec decoder", step, 60, ) for step in range(1, 61)],
    ]  # fmt: skip
    encoder, decoder = ([call[3] for call in calls if call[0] == f"codec {half}"] for half in ("encoder", "decoder"))
    assert figures["encoder_loss"] == encoder[-1] < 0.2 * encoder[0]
    assert figures["decoder_loss"] == decoder[-1] < 0.3 * decoder[0]
    assert 5 <= figures["codes_used"] <= 16


def test_the_trained_codec_reconstructs_its_images(codec_and_figures: Any) -> None:
    codec = codec_and_figures[0]
    unseen = pictures(64, seed=9).permute(0, 2, 3, 1)
    error = codec.decode(codec.encode(unseen)).astype(float) - unseen.numpy()
    assert np.sqrt((error**2).mean()) < 30  # grey levels; the pictures' own deviation is 90
    assert unseen.float().std() > 80


def test_equal_squares_get_equal_codes_and_others_other_ones(codec_and_figures: Any) -> None:
    codec = codec_and_figures[0]
    clean = pictures(128, seed=3).permute(0, 2, 3, 1)
    codes = codec.encode(clean).flatten().tolist()
    colours_of_squares = (
        clean.float().unflatten(2, (2, 8)).unflatten(1, (2, 8)).mean((2, 4)).div(64).round().flatten(0, 2)
    )
    meanings: dict[tuple[float, ...], set[int]] = {}
    for code, colour in zip(codes, colours_of_squares.tolist(), strict=True):
        meanings.setdefault(tuple(colour), set()).add(code)
    assert len(meanings) == 5
    assert sum(len(own) for own in meanings.values()) == len(set().union(*meanings.values())) <= 7


def test_merged_codes_are_never_the_nearest(codec_and_figures: Any) -> None:
    codec, figures, _ = codec_and_figures
    rng = np.random.default_rng(4)
    odd = [np.zeros((1, 16, 16, 3)), np.full((1, 16, 16, 3), 255), rng.integers(0, 256, (500, 16, 16, 3))]
    observed = torch.cat(
        [codec.encode(pictures(500, 5).permute(0, 2, 3, 1)), codec.encode(np.concatenate(odd).astype(np.uint8))]
    )
    table_KD = codec.vqgan.quantize.embedding.weight
    removed = set(torch.nonzero((table_KD == table_KD.max()).all(1)).flatten().tolist())
    assert len(removed) == codec.num_codes - figures["codes_used"]
    assert not removed & set(observed.flatten().tolist())


def test_a_codec_depends_on_the_seed_alone(codec_and_figures: Any) -> None:
    short = CodecSettings(encoder_steps=6, decoder_steps=3, batch=16, decoder_batch=8)
    codecs = []
    for seed_before in (1, 2):
        blank = build_codec(TINY)
        torch.manual_seed(0)
        for parameter in blank.vqgan.parameters():
            nn.init.normal_(parameter, std=0.1)
        torch.manual_seed(seed_before)  # what else the process has drawn must not matter
        figures = train_codec(blank.vqgan.requires_grad_(True), pictures(64), short, lambda *_: None)
        codecs.append((ImageCodec(blank.vqgan, blank.scale).codec_id, figures))
    assert codecs[0] == codecs[1]


def blobs(seed: int = 0) -> tuple[Tensor, Tensor]:
    """300 points about six far centres, and the centres."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.eye(6) * 10
    points = centres.repeat_interleave(50, 0) + 0.1 * torch.randn(300, 6, generator=generator)
    return points, points.view(6, 50, 6).mean(1)


def test_kmeans_finds_the_centres() -> None:
    points, means = blobs()
    for seed in range(5):
        book = Codebook(torch.zeros(6, 6), torch.Generator().manual_seed(seed))
        book.start(points)
        order = torch.cdist(means, book.vectors_KD).argmin(1)
        assert sorted(order.tolist()) == list(range(6))
        torch.testing.assert_close(book.vectors_KD[order], means, atol=1e-5, rtol=0)


def test_seeds_are_points_far_apart() -> None:
    points, means = blobs()
    seeds = spread_seeds(points, 6, torch.Generator().manual_seed(0))
    assert all((seed == points).all(1).any() for seed in seeds)
    assert sorted(torch.cdist(seeds, means).argmin(1).tolist()) == list(range(6))


def test_one_round_of_lloyd_against_the_plain_loop() -> None:
    generator = torch.Generator().manual_seed(1)
    points, codes = torch.randn(40, 3, generator=generator), torch.randn(7, 3, generator=generator)
    codes[6] = 100.0  # owns nothing and stays
    expected = codes.clone()
    owners = [min(range(7), key=lambda k: float(((point - codes[k]) ** 2).sum())) for point in points]
    for k in range(7):
        own = [point for point, owner in zip(points, owners, strict=True) if owner == k]
        if own:
            expected[k] = torch.stack(own).mean(0)
    book = Codebook(codes.clone(), generator)
    book.start(points, keep=True, rounds=1)
    torch.testing.assert_close(book.vectors_KD, expected)


def test_codebook_follows_its_features_and_resets_dead_codes() -> None:
    generator = torch.Generator().manual_seed(2)
    codes, points = torch.tensor([[0.0, 0.0], [5.0, 5.0]]), torch.tensor([[1.0, 0.0], [3.0, 0.0]])
    book = Codebook(codes.clone(), generator)
    book.follow(points, torch.tensor([0, 0]))
    # Counts: .95 + .05 * 2 and .95; sums: .05 * (1 + 3) and .95 * 5.
    torch.testing.assert_close(book.vectors_KD, torch.tensor([[0.2 / 1.05, 0.0], [5.0, 5.0]]))
    for _ in range(100):
        book.follow(points, torch.tensor([0, 0]))
    assert torch.allclose(book.vectors_KD[0], torch.tensor([2.0, 0.0]), atol=0.05)
    assert book.vectors_KD[1].tolist() in points.tolist()


def test_merging_keeps_the_most_used_of_look_alikes() -> None:
    vqgan = build_codec(TINY).vqgan
    book = vqgan.quantize.embedding.weight.data
    book.zero_()
    book[:, 0] = torch.arange(16.0)  # codes 0, 1, ... in a row
    book[1, 0] = 0.1  # looks like code 0
    features = torch.zeros(60, 8)
    features[:, 0] = torch.tensor([0.0] * 10 + [0.1] * 20 + [5.0] * 30)

    class First(nn.Module):
        def forward(self, vectors: Tensor) -> Tensor:
            return vectors[:, :1]

    assert _merge(vqgan, First(), features, merge_rms=0.15) == 2
    torch.testing.assert_close(book[5, 0], torch.tensor(5.0))
    torch.testing.assert_close(book[1, 0], torch.tensor(2.0 / 30))  # the mean of what both had
    assert vqgan.nearest(features[None]).unique().tolist() == [1, 5]


def test_patches_are_the_tokens_in_order() -> None:
    pixels = torch.arange(2 * 3 * 4 * 4.0).view(2, 3, 4, 4)
    patches = _patches(pixels, 2)
    assert patches.shape == (2, 4, 12)
    for token, (row, column) in enumerate([(0, 0), (0, 2), (2, 0), (2, 2)]):
        torch.testing.assert_close(patches[:, token].view(2, 3, 2, 2), pixels[:, :, row : row + 2, column : column + 2])


def test_context_loss_is_zero_for_an_encoder_of_single_patches() -> None:
    class Local(VQGAN):
        def __init__(self) -> None:
            nn.Module.__init__(self)
            self.side = 2

        @property
        def side_tokens(self) -> int:
            return self.side

        def features(self, pixels_BCHW: Tensor) -> Tensor:
            return _patches(pixels_BCHW, 8).mean(-1, keepdim=True).expand(-1, -1, 8)

    class Global(Local):
        def features(self, pixels_BCHW: Tensor) -> Tensor:
            return super().features(pixels_BCHW) + pixels_BCHW.mean((1, 2, 3))[:, None, None]

    generator = torch.Generator().manual_seed(0)
    pixels = pictures(16).float() / 127.5 - 1
    for kind, is_zero in ((Local(), True), (Global(), False)):
        loss = nano_train_codec._context_loss(kind, pixels, kind.features(pixels), generator)
        assert (float(loss) < 1e-8) == is_zero


@pytest.mark.parametrize("shape", [(8, 8), (4, 32), (48, 6), (1, 7), (64, 64)])
def test_orthogonalise_levels_singular_values_keeps_directions(shape: tuple[int, int]) -> None:
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(3)) * 7
    u_KK, values, v_KK = torch.linalg.svd(matrix, full_matrices=False)
    result = orthogonalise(matrix)
    inside = u_KK.T @ result @ v_KK.T
    diagonal = inside.diagonal()
    remaining = values > 0.02 * values.max()
    assert ((diagonal > 0.5) & (diagonal < 1.3))[remaining].all()
    torch.testing.assert_close(inside, torch.diag(diagonal), atol=1e-3, rtol=0)
    cosine = (result * (u_KK @ v_KK)).sum() / result.norm() / (u_KK @ v_KK).norm()
    assert cosine > 0.95


def test_muon_against_the_plain_formula() -> None:
    generator = torch.Generator().manual_seed(4)
    weight = torch.randn(6, 2, 3, 3, generator=generator)
    gradients = [torch.randn(6, 2, 3, 3, generator=generator) for _ in range(3)]
    parameter, untouched = nn.Parameter(weight.clone()), nn.Parameter(torch.ones(2, 2))
    optimizer = Muon([parameter, untouched], lr=0.1, momentum=0.9)
    expected, momentum = weight.clone(), torch.zeros_like(weight)
    for gradient in gradients:
        parameter.grad = gradient.clone()
        optimizer.step()
        momentum = 0.9 * momentum + 0.1 * gradient
        nesterov = 0.1 * gradient + 0.9 * momentum
        expected -= 0.1 * orthogonalise(nesterov.view(6, 18)).view_as(expected)
        torch.testing.assert_close(parameter.data, expected)
    assert (untouched == 1).all()
    tall = nn.Parameter(torch.zeros(8, 2))
    tall.grad = torch.randn(8, 2, generator=generator)
    Muon([tall], lr=1.0).step()
    torch.testing.assert_close(tall.data, -2.0 * orthogonalise(tall.grad))  # the square root of 8 / 2
