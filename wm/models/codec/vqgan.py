"""The VQGAN of Chameleon with both halves: transformers' encoder and quantiser, and the decoder that it leaves
out.

The decoder is that of Esser et al., "Taming Transformers for High-Resolution Image Synthesis" (arXiv
2012.09841), with the parameter names of the released weights, so that they load unchanged. Shape suffixes: B
images, C channels, H and W pixels or latent cells, N = H x W cells, D code width.
"""

from types import SimpleNamespace

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import ChameleonVQVAEConfig, PreTrainedModel
from transformers.models.chameleon.modeling_chameleon import (
    ChameleonVQVAEEncoder,
    ChameleonVQVAEEncoderAttnBlock,
    ChameleonVQVAEEncoderResnetBlock,
    ChameleonVQVAEVectorQuantizer,
)


class Upsample(nn.Module):
    """Twice the side by nearest neighbour, then a 3 x 3 convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, kernel_size=3, padding=1)

    def forward(self, hidden_BCHW: Tensor) -> Tensor:
        """Map (B, C, H, W) to (B, C, 2H, 2W)."""
        enlarged: Tensor = F.interpolate(hidden_BCHW, scale_factor=2.0, mode="nearest")
        return self.conv(enlarged)  # type: ignore[no-any-return]


class UpLevel(nn.Module):
    """One resolution of the decoder: residual blocks, attention if any, the way up unless last."""

    def __init__(self, config: ChameleonVQVAEConfig, block_in: int, block_out: int, attend: bool, grow: bool) -> None:
        super().__init__()
        self.block = nn.ModuleList()
        self.attn = nn.ModuleList()
        for _ in range(config.num_res_blocks + 1):
            self.block.append(ChameleonVQVAEEncoderResnetBlock(config, block_in, block_out))
            if attend:
                self.attn.append(ChameleonVQVAEEncoderAttnBlock(block_out))
            block_in = block_out
        if grow:
            self.upsample = Upsample(block_out)
        self.grow = grow

    def forward(self, hidden_BCHW: Tensor) -> Tensor:
        """Map (B, in, H, W) to (B, out, H, W), or to twice the side."""
        for index, block in enumerate(self.block):
            hidden_BCHW = block(hidden_BCHW)
            if len(self.attn) > 0:
                hidden_BCHW = self.attn[index](hidden_BCHW)
        return self.upsample(hidden_BCHW) if self.grow else hidden_BCHW


class Middle(nn.Module):
    """The two blocks at the lowest resolution, attention between them."""

    def __init__(self, config: ChameleonVQVAEConfig, channels: int) -> None:
        super().__init__()
        self.block_1 = ChameleonVQVAEEncoderResnetBlock(config, channels, channels)
        vanilla = config.attn_type == "vanilla"
        self.attn_1 = ChameleonVQVAEEncoderAttnBlock(channels) if vanilla else nn.Identity()
        self.block_2 = ChameleonVQVAEEncoderResnetBlock(config, channels, channels)

    def forward(self, hidden_BCHW: Tensor) -> Tensor:
        """Keep the shape."""
        return self.block_2(self.attn_1(self.block_1(hidden_BCHW)))  # type: ignore[no-any-return]


class Decoder(nn.Module):
    """Latent (B, latent_channels, h, w) to pixels (B, 3, h·f, w·f) in [-1, 1], f = 2^(levels - 1)."""

    def __init__(self, config: ChameleonVQVAEConfig) -> None:
        super().__init__()
        multipliers = tuple(config.channel_multiplier)
        # The decoder begins where the encoder ends.
        channels = config.base_channels * multipliers[-1]
        side = config.resolution // 2 ** (len(multipliers) - 1)
        attended = set(config.attn_resolutions or ()) if config.attn_type == "vanilla" else set()
        self.conv_in = nn.Conv2d(config.latent_channels, channels, kernel_size=3, padding=1)
        self.mid = Middle(config, channels)
        levels: list[UpLevel] = []
        # The released names count the levels from the largest image, which is made last.
        for level in reversed(range(len(multipliers))):
            out = config.base_channels * multipliers[level]
            levels.insert(0, UpLevel(config, channels, out, side in attended, grow=level > 0))
            channels, side = out, side * 2
        self.up = nn.ModuleList(levels)
        self.norm_out = nn.GroupNorm(num_groups=32, num_channels=channels, eps=1e-6)
        self.conv_out = nn.Conv2d(channels, config.in_channels, kernel_size=3, padding=1)

    def forward(self, latent_BCHW: Tensor) -> Tensor:
        """Map latents to pixels."""
        hidden_BCHW = self.mid(self.conv_in(latent_BCHW))
        # From the smallest image to the largest.
        for index in reversed(range(len(self.up))):
            hidden_BCHW = self.up[index](hidden_BCHW)
        return self.conv_out(F.silu(self.norm_out(hidden_BCHW)))  # type: ignore[no-any-return]


class ChannelNorm(nn.Module):
    """Normalisation over the channels of each position alone, with the parameters (and names) of a group norm.

    Group norm takes its statistics over all positions, so in a small image a change in one corner changes the codes of
    all others. With this one instead, a code depends on the pixels near it only.
    """

    def __init__(self, channels: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.eps = eps

    def forward(self, hidden_BCHW: Tensor) -> Tensor:
        """Keep the shape."""
        hidden_BHWC = hidden_BCHW.permute(0, 2, 3, 1)
        shape = (hidden_BHWC.shape[-1],)
        return F.layer_norm(hidden_BHWC, shape, self.weight, self.bias, self.eps).permute(0, 3, 1, 2)


def _norm_over_channels(module: nn.Module) -> None:
    for name, child in module.named_children():
        if isinstance(child, nn.GroupNorm):
            setattr(module, name, ChannelNorm(child.num_channels, child.eps))
        else:
            _norm_over_channels(child)


class VQModel(nn.Module):
    """A VQ model of any family, as :class:`~wm.models.codec.codec.ImageCodec` uses it.

    A family's own class takes the parts of transformers' class over, under its tensor names, and says how it uses them.
    """

    config: ChameleonVQVAEConfig | SimpleNamespace
    side_tokens: int
    """Image tokens along a side."""
    encoder: nn.Module
    decoder: nn.Module
    quantize: ChameleonVQVAEVectorQuantizer
    """Or another class with the codebook as ``embedding``."""
    quant_conv: nn.Module
    post_quant_conv: nn.Module

    def take_parts(self, vq: PreTrainedModel, side_tokens: int, side_px: int, num_codes: int) -> None:
        """Take the parts and the configuration of transformers' model over.

        Args:
            vq: Encoder, decoder, quantiser and the convolutions around it.
            side_tokens: Image tokens along a side.
            side_px: Pixels along a side.
            num_codes: Codes of the codebook.
        """
        self.encoder, self.decoder, self.quantize = vq.encoder, vq.decoder, vq.quantize
        self.quant_conv, self.post_quant_conv = vq.quant_conv, vq.post_quant_conv
        self.side_tokens = side_tokens
        # A plain copy, in which side and number of codes have one name for all families.
        values = {name: getattr(vq.config, name, None) for name in vq.config.to_dict()}
        self.config = SimpleNamespace(**values | {"resolution": side_px, "num_embeddings": num_codes})

    def features(self, pixels_BCHW: Tensor) -> Tensor:
        """Return pre-quantised features (B, N, D), row-major, of scaled pixels."""
        raise NotImplementedError

    def nearest(self, features_BND: Tensor) -> Tensor:
        """Return the codebook ids (B, N) of features."""
        raise NotImplementedError

    def decode_features(self, quantised_BND: Tensor) -> Tensor:
        """Return pixels (B, 3, H, W) in [-1, 1] of code vectors (B, N, D)."""
        raise NotImplementedError


class VQGAN(VQModel):
    """Encoder, quantiser and decoder; no opinion on pixels' scale (see :mod:`wm.models.codec.codec`).

    ``config.norm_over = "channels"`` (an addition to transformers' configuration, for small images)
    replaces group norm by :class:`ChannelNorm`; without it the released architecture is built.
    """

    def __init__(self, config: ChameleonVQVAEConfig) -> None:
        super().__init__()
        self.config = config
        self.side_tokens = config.resolution // 2 ** (len(config.channel_multiplier) - 1)
        self.encoder = ChameleonVQVAEEncoder(config)
        self.quantize = ChameleonVQVAEVectorQuantizer(config)
        self.quant_conv = nn.Conv2d(config.latent_channels, config.embed_dim, 1)
        self.post_quant_conv = nn.Conv2d(config.embed_dim, config.latent_channels, 1)
        self.decoder = Decoder(config)
        # After all parts are built, since encoder and decoder have such norms alike.
        if getattr(config, "norm_over", "groups") == "channels":
            _norm_over_channels(self)

    def features(self, pixels_BCHW: Tensor) -> Tensor:
        """Return pre-quantised features ``quant_conv(encoder(x))`` as (B, N, D), row-major."""
        features_BDHW: Tensor = self.quant_conv(self.encoder(pixels_BCHW))
        return features_BDHW.flatten(2).transpose(1, 2)

    def nearest(self, features_BND: Tensor) -> Tensor:
        """Return the codebook ids (B, N) nearest in squared L2 distance; of equal ones the lower."""
        codebook = self.quantize.embedding.weight
        # The features' own square is the same for all codes, and left out.
        flat = features_BND.reshape(-1, features_BND.shape[-1])
        distance = torch.addmm(codebook.square().sum(1), flat, codebook.T, alpha=-2)
        return distance.argmin(dim=1).view(features_BND.shape[:-1])

    def decode_features(self, quantised_BND: Tensor) -> Tensor:
        """Return pixels (B, C, H, W) of code vectors (B, N, D)."""
        side = self.side_tokens
        latent = quantised_BND.transpose(1, 2).reshape(len(quantised_BND), -1, side, side)
        return self.decoder(self.post_quant_conv(latent))  # type: ignore[no-any-return]
