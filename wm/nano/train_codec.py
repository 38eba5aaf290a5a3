"""Train a small VQGAN from nothing, for the nano world (a 7B checkpoint brings its own codec).

Three steps, none of which changes the format of the result:

1. the encoder learns with a throw-away decoder of one patch, first without quantiser, then with a codebook that k-means
   starts and exponential moving averages move (van den Oord et al., arXiv 1711.00937, appendix A.1);
2. codes that mean the same are merged: noise must not give one patch of background many codes;
3. the real decoder learns on the codes.

Shape suffixes: B images, C channels, H and W px, N tokens, D code width, K codes.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.models.chameleon.modeling_chameleon import ChameleonVQVAEEncoderResnetBlock

from wm.models.codec.vqgan import VQModel
from wm.nano.codebook import Codebook
from wm.nano.muon import Muon
from wm.training.kernels.autocast import lowered
from wm.training.planning.schedule import LONG_WARMUP, warmup_warning

_PIXEL_CHANNELS = 3

WARMUP_STEPS = 10
"""Of the encoder's and of the decoder's training."""


Report = Callable[[str, int, int, float], None]
"""Called with (phase, step, steps, loss)."""


@dataclass(frozen=True)
class CodecSettings:
    """``noise``: standard deviation of the extra input noise, in pixels' own scale of -1 to 1. ``merge_rms``: codes
    whose reconstructions of one patch differ by less (root mean square, same scale) become one."""

    encoder_steps: int = 300
    decoder_steps: int = 500
    batch: int = 64
    decoder_batch: int = 16
    lr: float = 5e-3
    muon_lr: float = 0.07
    noise: float = 0.05
    context: float = 3.0
    commitment: float = 0.25
    merge_rms: float = 0.15
    seed: int = 0


def train_codec(vqgan: VQModel, pixels_BCHW: Tensor, settings: CodecSettings, report: Report) -> dict[str, float]:
    """Train a VQGAN in place. Pixels are scaled as Chameleon's image processor does (x / 127.5 - 1).

    Args:
        vqgan: The network, with random weights.
        pixels_BCHW: uint8, all images.
        settings: Steps, rates and noise.
        report: Called with stage, step, steps and loss.

    Returns:
        Figures: losses, codes in use.
    """
    generator = torch.Generator().manual_seed(settings.seed)
    for module in vqgan.modules():
        if isinstance(module, nn.Conv2d):
            # torch's default shrinks the signal by the square root of 3 a layer; here the scale is kept.
            nn.init.kaiming_normal_(module.weight, nonlinearity="linear", generator=generator)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    encoder_loss, codes_used = _train_encoder(vqgan, pixels_BCHW, settings, generator, report)
    decoder_loss = _train_decoder(vqgan, pixels_BCHW, settings, generator, report)
    vqgan.eval()
    return {"encoder_loss": encoder_loss, "decoder_loss": decoder_loss, "codes_used": float(codes_used)}


def _train_encoder(
    vqgan: VQModel, pixels_BCHW: Tensor, settings: CodecSettings, generator: torch.Generator, report: Report
) -> tuple[float, int]:
    side = pixels_BCHW.shape[-1] // vqgan.side_tokens
    width = vqgan.config.embed_dim
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        probe = nn.Sequential(nn.Linear(width, 256), nn.GELU(), nn.Linear(256, _PIXEL_CHANNELS * side * side))
    modules = nn.ModuleList([vqgan.encoder, vqgan.quant_conv, probe]).train()
    optimizers = _optimizers(modules, settings)
    # It moves the network's own table of vectors.
    codebook = Codebook(vqgan.quantize.embedding.weight.data, generator)
    # First without quantiser: k-means needs features that have settled.
    warm = settings.encoder_steps // 2
    smooth = math.nan
    for step in range(settings.encoder_steps):
        _set_lr(optimizers, step, settings.encoder_steps)
        clean_BCHW = _batch(pixels_BCHW, settings.batch, generator)
        noisy_BCHW = clean_BCHW + settings.noise * torch.randn(clean_BCHW.shape, generator=generator)
        with lowered():
            features_BND = vqgan.features(noisy_BCHW).float()
        loss = settings.context * _context_loss(vqgan, noisy_BCHW, features_BND, generator)
        if step < warm:
            quantised_BND = features_BND
        else:
            if step == warm:
                codebook.start(_many_features(vqgan, pixels_BCHW, settings, generator))
            codes_BN = vqgan.nearest(features_BND.detach())
            codes_BND = vqgan.quantize.embedding(codes_BN).detach()
            loss = loss + settings.commitment * F.mse_loss(features_BND, codes_BND)
            # Straight through: the gradient passes the quantiser unchanged.
            quantised_BND = features_BND + (codes_BND - features_BND).detach()
            codebook.follow(features_BND.detach().flatten(0, 1), codes_BN.flatten())
        # The throw-away decoder sees one token a patch, which forces codes to be local.
        with lowered():
            patches_BNP = probe(quantised_BND).float()
        error = F.mse_loss(patches_BNP, _patches(clean_BCHW, side))
        loss = loss + 3 * error
        _descend(loss, optimizers)
        smooth = error.item() if math.isnan(smooth) else 0.95 * smooth + 0.05 * error.item()
        report("codec encoder", step + 1, settings.encoder_steps, smooth)
    vqgan.encoder.eval()
    codebook.start(_many_features(vqgan, pixels_BCHW, settings, generator), keep=True)
    num_codes = _merge(vqgan, probe, _many_features(vqgan, pixels_BCHW, settings, generator), settings.merge_rms)
    return smooth, num_codes


def _train_decoder(
    vqgan: VQModel, pixels_BCHW: Tensor, settings: CodecSettings, generator: torch.Generator, report: Report
) -> float:
    modules = nn.ModuleList([vqgan.decoder, vqgan.post_quant_conv]).train()
    for block in vqgan.decoder.modules():
        if isinstance(block, ChameleonVQVAEEncoderResnetBlock):
            nn.init.zeros_(block.conv2.weight)  # a residual block begins as the identity
    # The encoder and its codes are final: only the decoder learns here.
    optimizers = _optimizers(modules, settings)
    smooth = math.nan
    for step in range(settings.decoder_steps):
        _set_lr(optimizers, step, settings.decoder_steps)
        clean_BCHW = _batch(pixels_BCHW, settings.decoder_batch, generator)
        with lowered():
            with torch.no_grad():
                codes_BN = vqgan.nearest(vqgan.features(clean_BCHW).float())
            decoded_BCHW = vqgan.decode_features(vqgan.quantize.embedding(codes_BN))
        loss = F.mse_loss(decoded_BCHW.float(), clean_BCHW)
        _descend(loss, optimizers)
        smooth = loss.item() if math.isnan(smooth) else 0.95 * smooth + 0.05 * loss.item()
        report("codec decoder", step + 1, settings.decoder_steps, smooth)
    return smooth


def _context_loss(vqgan: VQModel, pixels_BCHW: Tensor, features_BND: Tensor, generator: torch.Generator) -> Tensor:
    """Compute how far a patch's feature moves among other neighbours and after a small shake of the camera.

    Its feature in a collage of patches from other images of the batch, all shifted by up to 1 px, must equal that in
    its own image. Else one changed patch would change the codes around it.
    """
    batch, tokens = features_BND.shape[:2]
    grid = vqgan.side_tokens
    # Each position gets the images in an order of its own.
    owner_BN = torch.argsort(torch.rand(tokens, batch, generator=generator), dim=1).T
    side = pixels_BCHW.shape[-1] // grid
    patches = pixels_BCHW.reshape(batch, -1, grid, side, grid, side).permute(0, 2, 4, 1, 3, 5).flatten(1, 2)
    position = torch.arange(tokens)
    collage = patches[owner_BN, position].reshape(batch, grid, grid, -1, side, side).permute(0, 3, 1, 4, 2, 5)
    with lowered():
        moved_BND = vqgan.features(collage.flatten(4, 5).flatten(2, 3))
    home_BND = features_BND[owner_BN, position]
    scale = home_BND.detach().var(dim=(0, 1)).mean() + 1e-6
    return F.mse_loss(moved_BND.float(), home_BND) / scale * 0.1


@torch.no_grad()
def _merge(vqgan: VQModel, probe: nn.Module, features_MD: Tensor, merge_rms: float) -> int:
    """Merge codes that look alike (see :class:`CodecSettings`), most used first; returns how many stay.

    A merged code's vector moves out of reach, so that its row stays in the table and is never the nearest.
    """
    vectors_KD = vqgan.quantize.embedding.weight.data
    counts_K = torch.bincount(torch.cdist(features_MD, vectors_KD).argmin(1), minlength=len(vectors_KD))
    # Codes are compared as the throw-away decoder sees them, in pixels.
    images_KP = probe(vectors_KD)
    centres: list[int] = []
    # The most used first: a rare look-alike joins a common code, not the other way round.
    for code in counts_K.argsort(descending=True).tolist():
        distances = [(images_KP[code] - images_KP[other]).square().mean().sqrt().item() for other in centres]
        if counts_K[code] == 0 or (distances and min(distances) < merge_rms):
            continue
        centres.append(code)
    for _ in range(10):  # Lloyd's rounds, so that those that stay share out what the merged ones covered
        owner_M = torch.cdist(features_MD, vectors_KD[centres]).argmin(1)
        counts = torch.bincount(owner_M, minlength=len(centres)).float()[:, None]
        sums = torch.zeros_like(vectors_KD[centres]).index_add_(0, owner_M, features_MD)
        vectors_KD[centres] = torch.where(counts > 0, sums / counts.clamp(min=1), vectors_KD[centres])
    # Out of reach of any feature.
    gone_K = torch.ones(len(vectors_KD), dtype=torch.bool)
    gone_K[centres] = False
    vectors_KD[gone_K] = vectors_KD[centres].abs().max() * 100
    return len(centres)


@torch.no_grad()
def _many_features(vqgan: VQModel, pixels_BCHW: Tensor, settings: CodecSettings, generator: torch.Generator) -> Tensor:
    """Compute features (M, D) of noisy images, for k-means."""
    clean_BCHW = _batch(pixels_BCHW, 1024, generator)
    noisy_BCHW = clean_BCHW + settings.noise * torch.randn(clean_BCHW.shape, generator=generator)
    with lowered():
        parts = [vqgan.features(part).float() for part in torch.split(noisy_BCHW, settings.batch)]
    return torch.cat(parts).flatten(0, 1)


def _batch(pixels_BCHW: Tensor, size: int, generator: torch.Generator) -> Tensor:
    picks = torch.randint(len(pixels_BCHW), (size,), generator=generator)
    return pixels_BCHW[picks].float() / 127.5 - 1


def _patches(pixels_BCHW: Tensor, side: int) -> Tensor:
    """Cut images (B, C, H, W) into patches (B, N, C · side · side)."""
    return F.unfold(pixels_BCHW, side, stride=side).transpose(1, 2)


def _optimizers(modules: nn.Module, settings: CodecSettings) -> list[torch.optim.Optimizer]:
    """Build Muon for convolutions and matrices (a third of AdamW's steps here), AdamW for the rest and the output."""
    # The last layer writes pixels; its three rows are no hidden matrix.
    hidden = [p for p in modules.parameters() if p.ndim >= 2 and p.shape[0] > _PIXEL_CHANNELS]
    rest = [p for p in modules.parameters() if p.ndim < 2 or p.shape[0] <= _PIXEL_CHANNELS]
    return [
        Muon(hidden, lr=settings.muon_lr),
        torch.optim.AdamW(rest, lr=settings.lr, betas=(0.9, 0.95), weight_decay=0.0),
    ]


def _descend(loss: Tensor, optimizers: list[torch.optim.Optimizer]) -> None:
    for optimizer in optimizers:
        optimizer.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]
    for optimizer in optimizers:
        optimizer.step()


def codec_warnings(settings: CodecSettings) -> list[str]:
    """Return a line for each of the two trainings that is too short for its warm-up."""
    lines = []
    for part, steps in (("encoder", settings.encoder_steps), ("decoder", settings.decoder_steps)):
        remedy = f"{part}_steps = {math.ceil(WARMUP_STEPS / LONG_WARMUP):,} or more"
        name = f"the warm-up of {WARMUP_STEPS} steps of the codec's {part}"
        peak = max(_scale(step, steps) for step in range(steps))
        lines.append(warmup_warning(WARMUP_STEPS, steps, peak, name=name, remedy=remedy))
    return [line for line in lines if line]


def _scale(step: int, steps: int) -> float:
    """Return the learning rate as a fraction of its peak: a warm-up, and a cosine to a twentieth."""
    return min(1.0, (step + 1) / WARMUP_STEPS) * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * step / steps)))


def _set_lr(optimizers: list[torch.optim.Optimizer], step: int, steps: int) -> None:
    scale = _scale(step, steps)
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = group.setdefault("peak_lr", group["lr"]) * scale
