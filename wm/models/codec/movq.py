"""MoVQGAN (arXiv 2209.09002): a VQGAN whose decoder is conditioned on the codes at every norm.

The encoder and the quantiser are taming-transformers'. In the decoder each group norm is multiplied by and added to
1 x 1 convolutions of the codes, enlarged to the norm's size (spatial norm). The parameter names are those of
``movqgan_67M.ckpt``, ``movqgan_102M.ckpt`` and ``movqgan_270M.ckpt`` (ai-forever/MoVQGAN), so that they load
unchanged. Norm and residual block are transformers' of Emu3, whose VQ model is a MoVQ too. Shape suffixes of
:mod:`wm.models.codec.vqgan`.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import ChameleonVQVAEConfig
from transformers.models.emu3.modeling_emu3 import Emu3VQVAEResnetBlock, Emu3VQVAESpatialNorm

from wm.models.codec.vqgan import VQGAN, Upsample


class Attention(nn.Module):
    """Attention of one head over all positions, after a spatial norm."""

    def __init__(self, channels: int, code_width: int) -> None:
        super().__init__()
        self.norm = Emu3VQVAESpatialNorm(code_width, channels)
        self.q, self.k, self.v, self.proj_out = (nn.Conv2d(channels, channels, 1) for _ in range(4))

    def forward(self, hidden_BCHW: Tensor, codes_BDHW: Tensor) -> Tensor:
        """Keep the shape.

        Args:
            hidden_BCHW: Hidden states.
            codes_BDHW: Code vectors, of the latent's size.
        """
        normed_BCHW = self.norm(hidden_BCHW, codes_BDHW)
        query, key, value = (layer(normed_BCHW).flatten(2).transpose(1, 2) for layer in (self.q, self.k, self.v))
        attended_BNC = F.scaled_dot_product_attention(query, key, value)
        # One head over all positions: its width is that of the channels.
        return hidden_BCHW + self.proj_out(attended_BNC.transpose(1, 2).reshape(hidden_BCHW.shape))  # type: ignore[no-any-return]


class Level(nn.Module):
    """One resolution of the decoder: residual blocks, attention if any, the way up unless last."""

    def __init__(self, block_in: int, block_out: int, num_blocks: int, code_width: int, attend: bool) -> None:
        super().__init__()
        # The first block changes the width, the others keep it.
        widths = (block_in, *[block_out] * (num_blocks - 1))
        self.block = nn.ModuleList(Emu3VQVAEResnetBlock(width, block_out, code_width) for width in widths)
        self.attn = nn.ModuleList(Attention(block_out, code_width) for _ in widths if attend)
        self.upsample: Upsample | None = None

    def forward(self, hidden_BCHW: Tensor, codes_BDHW: Tensor) -> Tensor:
        """Map (B, in, H, W) to (B, out, H, W), or to twice the side.

        Args:
            hidden_BCHW: Hidden states.
            codes_BDHW: Code vectors, of the latent's size.
        """
        for index, block in enumerate(self.block):
            hidden_BCHW = block(hidden_BCHW, codes_BDHW)
            if len(self.attn) > 0:
                hidden_BCHW = self.attn[index](hidden_BCHW, codes_BDHW)
        return hidden_BCHW if self.upsample is None else self.upsample(hidden_BCHW)


class Middle(nn.Module):
    """The two blocks at the lowest resolution, attention between them."""

    def __init__(self, channels: int, code_width: int) -> None:
        super().__init__()
        self.block_1 = Emu3VQVAEResnetBlock(channels, channels, code_width)
        self.attn_1 = Attention(channels, code_width)
        self.block_2 = Emu3VQVAEResnetBlock(channels, channels, code_width)

    def forward(self, hidden_BCHW: Tensor, codes_BDHW: Tensor) -> Tensor:
        """Keep the shape.

        Args:
            hidden_BCHW: Hidden states.
            codes_BDHW: Code vectors, of the latent's size.
        """
        attended = self.attn_1(self.block_1(hidden_BCHW, codes_BDHW), codes_BDHW)
        return self.block_2(attended, codes_BDHW)  # type: ignore[no-any-return]


class MoVQDecoder(nn.Module):
    """Latent (B, latent_channels, h, w) and codes (B, D, h, w) to pixels (B, 3, h·f, w·f), f = 2^(levels - 1)."""

    def __init__(self, config: ChameleonVQVAEConfig) -> None:
        super().__init__()
        multipliers, code_width = tuple(config.channel_multiplier), config.embed_dim
        channels = config.base_channels * multipliers[-1]
        attended = set(config.attn_resolutions or ())
        self.conv_in = nn.Conv2d(config.latent_channels, channels, kernel_size=3, padding=1)
        self.mid = Middle(channels, code_width)
        levels: list[Level] = []
        # The released names count the levels from the largest image, which is made last.
        for level in reversed(range(len(multipliers))):
            out, attend = config.base_channels * multipliers[level], config.resolution >> level in attended
            levels.insert(0, Level(channels, out, config.num_res_blocks + 1, code_width, attend))
            if level > 0:
                levels[0].upsample = Upsample(out)
            channels = out
        self.up = nn.ModuleList(levels)
        self.norm_out = Emu3VQVAESpatialNorm(code_width, channels)
        self.conv_out = nn.Conv2d(channels, config.in_channels, kernel_size=3, padding=1)

    def forward(self, latent_BCHW: Tensor, codes_BDHW: Tensor) -> Tensor:
        """Map latents to pixels.

        Args:
            latent_BCHW: Latents.
            codes_BDHW: Code vectors, of the same size.
        """
        hidden_BCHW = self.mid(self.conv_in(latent_BCHW), codes_BDHW)
        # From the smallest image to the largest.
        for index in reversed(range(len(self.up))):
            hidden_BCHW = self.up[index](hidden_BCHW, codes_BDHW)
        return self.conv_out(F.silu(self.norm_out(hidden_BCHW, codes_BDHW)))  # type: ignore[no-any-return]


class MoVQ(VQGAN):
    """taming-transformers' encoder and quantiser, MoVQGAN's decoder."""

    def __init__(self, config: ChameleonVQVAEConfig) -> None:
        super().__init__(config)
        # In place of taming-transformers' decoder; built without memory, so that nothing is lost.
        self.decoder = MoVQDecoder(config)

    def decode_features(self, quantised_BND: Tensor) -> Tensor:
        """Return pixels (B, C, H, W) of code vectors (B, N, D)."""
        side = self.side_tokens
        # Contiguous, as another memory layout would choose another convolution kernel.
        codes_BDHW = quantised_BND.transpose(1, 2).reshape(len(quantised_BND), -1, side, side).contiguous()
        return self.decoder(self.post_quant_conv(codes_BDHW), codes_BDHW)  # type: ignore[no-any-return]


class IBQ(VQGAN):
    """Index back-propagation quantisation (arXiv 2412.02692): a VQGAN that chooses codes by inner product."""

    def nearest(self, features_BND: Tensor) -> Tensor:
        """Return the codebook ids (B, N) of the largest inner product; of equal ones the lower."""
        # A codebook of 131,072 codes: an image at a time bounds the memory.
        codebook_CD = self.quantize.embedding.weight
        return torch.stack([(image_ND @ codebook_CD.T).argmax(dim=-1) for image_ND in features_BND])
