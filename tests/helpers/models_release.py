"""Tiny checkpoints in the layout of Meta's release, and its transformer written out: nothing of ``wm`` is used for it.

The writer follows ``chameleon/download_data.py`` (files), ``chameleon/inference/transformer.py`` (names, shapes,
fusing, the split under model parallelism) and ``vqgan.yaml``; the transformer computes logits from those very
tensors, in float64, one position at a time.
"""

import copy
import hashlib
import json
from dataclasses import dataclass, field

import torch
import yaml
from torch.nn import functional as F

from wm.models.release.convert import finish_folder, plan_conversion, write_weight_files

NUM_CODES = 16
WORDS = ("blue", "cup", "left", "move", "put", "red", "right", "take", "the", "to")
DDCONFIG = {
    "double_z": False,
    "z_channels": 64,
    "resolution": 16,
    "in_channels": 3,
    "out_ch": 3,
    "ch": 32,
    "ch_mult": [1, 1, 2],
    "num_res_blocks": 1,
    "attn_resolutions": [],
    "dropout": 0.0,
}


@dataclass(frozen=True)
class Sizes:
    dim: int = 32
    layers: int = 2
    heads: int = 4
    kv_heads: int = 4
    mlp: int = 48
    theta: float = 10_000.0
    swin: bool = False


@dataclass
class OriginalModel:
    """An unsplit model in the original's names and row order; the norms of queries and keys are one a part."""

    sizes: Sizes
    parts: int
    tensors: dict = field(default_factory=dict)


def vocabulary():
    names = ["<s>", "<pad>", "</s>", "<unk>"]
    names += ["IMGIMG" + "".join("ABCDEFGHIJ"[int(digit)] for digit in str(code)) + "Z" for code in range(NUM_CODES)]
    names += ["<eoss>", "<racm3:break>", "<reserved08706>", "<reserved08707>", *WORDS]
    names += [f"<reserved{index:05d}>" for index in range(40 - len(names))]
    return {name: row for row, name in enumerate(names)}


def tokenizer_json():
    words = vocabulary()
    special = [name for name in words if name.startswith("<")]
    added = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": words[name], "content": name, **added} for name in special],
        "normalizer": {"type": "Lowercase"},
        "pre_tokenizer": {"type": "WhitespaceSplit"},
        "post_processor": None,
        "decoder": None,
        "model": {"type": "WordLevel", "vocab": words, "unk_token": "<unk>"},
    }


def random_model(sizes=None, parts=1, seed=0, dtype=torch.float32):
    sizes = sizes or Sizes()
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape, scale=0.3, mean=0.0):
        return (torch.randn(shape, generator=generator) * scale + mean).to(dtype)

    head, rows = sizes.dim // sizes.heads, len(vocabulary())
    tensors = {
        "tok_embeddings.weight": draw(rows, sizes.dim),
        "norm.weight": draw(sizes.dim, mean=1.0),
        "output.weight": draw(rows, sizes.dim),
    }
    for layer in range(sizes.layers):
        base = f"layers.{layer}."
        tensors |= {
            f"{base}attention.wq.weight": draw(sizes.dim, sizes.dim),
            f"{base}attention.wk.weight": draw(sizes.kv_heads * head, sizes.dim),
            f"{base}attention.wv.weight": draw(sizes.kv_heads * head, sizes.dim),
            f"{base}attention.wo.weight": draw(sizes.dim, sizes.dim),
            f"{base}feed_forward.w1.weight": draw(sizes.mlp, sizes.dim),
            f"{base}feed_forward.w3.weight": draw(sizes.mlp, sizes.dim),
            f"{base}feed_forward.w2.weight": draw(sizes.dim, sizes.mlp),
            f"{base}attention_norm.weight": draw(sizes.dim, mean=1.0),
            f"{base}ffn_norm.weight": draw(sizes.dim, mean=1.0),
        }
        for side in "qk":
            tensors[f"{base}attention.{side}_normalization.weight"] = draw(parts, head, mean=1.0)
            tensors[f"{base}attention.{side}_normalization.bias"] = draw(parts, head)
    return OriginalModel(sizes, parts, tensors)


def part_of(source, rank, fused=False):
    """The file of one model-parallel rank."""
    parts, file = source.parts, {}
    rows = ("wq.", "wk.", "wv.", "w1.", "w3.", "output.")
    columns = ("wo.", "w2.", "tok_embeddings.")
    for name, tensor in source.tensors.items():
        short = name.split(".", 3)[-1] if name.startswith("layers") else name
        if "normalization" in name:
            file[name] = tensor[rank].clone()
        elif short.startswith(rows):
            step = tensor.shape[0] // parts
            file[name] = tensor[rank * step : (rank + 1) * step].clone()
        elif short.startswith(columns):
            step = tensor.shape[1] // parts
            file[name] = tensor[:, rank * step : (rank + 1) * step].clone()
        else:
            file[name] = tensor.clone()
    if fused:
        for layer in range(source.sizes.layers):
            attention, gates = f"layers.{layer}.attention.", f"layers.{layer}.feed_forward."
            file[f"{attention}wqkv.weight"] = torch.cat([file.pop(f"{attention}w{side}.weight") for side in "qkv"])
            file[f"{gates}w13.weight"] = torch.cat([file.pop(f"{gates}{gate}.weight") for gate in ("w1", "w3")])
    head = source.sizes.dim // source.sizes.heads
    file["rope.freqs"] = 1.0 / source.sizes.theta ** (torch.arange(0, head, 2) / head)
    return file


def params_json(source, **changes):
    sizes = source.sizes
    model = {
        "dim": sizes.dim,
        "n_layers": sizes.layers,
        "n_heads": sizes.heads,
        "vocab_size": len(vocabulary()),
        "ffn_dim_multiplier": 0.5,
        "multiple_of": sizes.mlp,
        "norm_eps": 1e-5,
        "rope_theta": sizes.theta,
        "qk_normalization": True,
        "swin_norm": sizes.swin,
    }
    if sizes.kv_heads != sizes.heads:
        model["n_kv_heads"] = sizes.kv_heads
    return {"seed": 7, "model_parallel_size": 8, "model": model | changes}


def random_vqgan(seed=0):
    """Tensors of ``vqgan.ckpt`` under their names, written out from the architecture."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {}

    def conv(name, out, into, size):
        scale = 1.0 / (into * size * size) ** 0.5
        tensors[f"{name}.weight"] = torch.randn(out, into, size, size, generator=generator) * scale
        tensors[f"{name}.bias"] = torch.randn(out, generator=generator) * 0.1

    def norm(name, channels):
        tensors[f"{name}.weight"] = torch.randn(channels, generator=generator) * 0.2 + 1
        tensors[f"{name}.bias"] = torch.randn(channels, generator=generator) * 0.2

    def block(name, into, out):
        norm(f"{name}.norm1", into)
        conv(f"{name}.conv1", out, into, 3)
        norm(f"{name}.norm2", out)
        conv(f"{name}.conv2", out, out, 3)
        if into != out:
            conv(f"{name}.nin_shortcut", out, into, 1)

    def middle(name, channels):
        block(f"{name}.block_1", channels, channels)
        norm(f"{name}.attn_1.norm", channels)
        for part in ("q", "k", "v", "proj_out"):
            conv(f"{name}.attn_1.{part}", channels, channels, 1)
        block(f"{name}.block_2", channels, channels)

    conv("encoder.conv_in", 32, 3, 3)
    for level, (into, out) in enumerate(((32, 32), (32, 32), (32, 64))):
        block(f"encoder.down.{level}.block.0", into, out)
        if level < 2:
            conv(f"encoder.down.{level}.downsample.conv", out, out, 3)
    middle("encoder.mid", 64)
    norm("encoder.norm_out", 64)
    conv("encoder.conv_out", 64, 64, 3)
    conv("decoder.conv_in", 64, 64, 3)
    middle("decoder.mid", 64)
    for level, (into, out) in ((2, (64, 64)), (1, (64, 32)), (0, (32, 32))):
        block(f"decoder.up.{level}.block.0", into, out)
        block(f"decoder.up.{level}.block.1", out, out)
        if level:
            conv(f"decoder.up.{level}.upsample.conv", out, out, 3)
    norm("decoder.norm_out", 32)
    conv("decoder.conv_out", 3, 32, 3)
    tensors["quantize.embedding.weight"] = torch.randn(NUM_CODES, 8, generator=generator) * 0.5
    conv("quant_conv", 8, 64, 1)
    conv("post_quant_conv", 64, 8, 1)
    return tensors


def vqgan_yaml(**changes):
    params = {"embed_dim": 8, "n_embed": NUM_CODES, "ddconfig": copy.deepcopy(DDCONFIG) | changes}
    loss = {"target": "taming.modules.losses.vqperceptual.VQLPIPSWithDiscriminator", "params": {"disc_start": 1}}
    return {"model": {"target": "taming.models.vqgan.VQModel", "params": {**params, "lossconfig": loss}}}


def write_release(root, source, *, fused=False, flat=False, single=None, vqgan=None, size="7b"):
    """The files as they are downloaded; ``single``: one ``consolidated.pth`` (the default for one part)."""
    model = root if flat else root / "models" / size
    tokenizer = root if flat else root / "tokenizer"
    for folder in (model, tokenizer):
        folder.mkdir(parents=True, exist_ok=True)
    single = source.parts == 1 if single is None else single
    for rank in range(source.parts):
        name = "consolidated.pth" if single else f"consolidated.{rank:02d}.pth"
        torch.save(part_of(source, rank, fused), model / name)
    (model / "params.json").write_text(json.dumps(params_json(source)))
    (model / "consolidate_params.json").write_text(json.dumps({"model_parallel_size": source.parts}))
    (tokenizer / "text_tokenizer.json").write_text(json.dumps(tokenizer_json()))
    state = random_vqgan() if vqgan is None else vqgan
    extra = {"loss.perceptual_loss.lin0.model.1.weight": torch.zeros(1, 4, 1, 1), "loss.logvar": torch.zeros(())}
    torch.save({"state_dict": state | extra, "epoch": 3, "global_step": 12}, tokenizer / "vqgan.ckpt")
    (tokenizer / "vqgan.yaml").write_text(yaml.safe_dump(vqgan_yaml()))
    for folder in {model, tokenizer}:
        sums = [
            f"{hashlib.md5(file.read_bytes()).hexdigest()}  {file.name}\n"
            for file in folder.iterdir()
            if file.is_file()
        ]
        (folder / "checklist.chk").write_text("".join(sums))
    return root


def original_logits(source, ids):
    """float64 logits (T, V): each rank computes its heads and its share of the gates, and the ranks are summed."""
    sizes, parts = source.sizes, source.parts
    files = [{name: tensor.double() for name, tensor in part_of(source, rank).items()} for rank in range(parts)]
    head = sizes.dim // sizes.heads

    def rms(x, weight):
        return x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt() * weight

    def rotate(x, position):
        """Neighbouring pairs are turned as complex numbers."""
        turned = torch.empty_like(x)
        for pair in range(head // 2):
            angle = torch.tensor(position * sizes.theta ** (-2 * pair / head), dtype=torch.float64)
            a, b = x[2 * pair], x[2 * pair + 1]
            turned[2 * pair] = a * angle.cos() - b * angle.sin()
            turned[2 * pair + 1] = a * angle.sin() + b * angle.cos()
        return turned

    def attention(file, base, x_TD):
        heads, kv_heads = sizes.heads // parts, sizes.kv_heads // parts
        out = torch.zeros(len(x_TD), heads * head, dtype=torch.float64)

        def project(side, index, position):
            vector = file[f"{base}w{side}.weight"][index * head : (index + 1) * head] @ x_TD[position]
            if side == "v":
                return vector
            scale = file[f"{base}{side}_normalization.weight"]
            normed = F.layer_norm(vector, (head,), scale, file[f"{base}{side}_normalization.bias"], 1e-5)
            return rotate(normed, position)

        for index in range(heads):
            group = index // (heads // kv_heads)
            keys = torch.stack([project("k", group, position) for position in range(len(x_TD))])
            values = torch.stack([project("v", group, position) for position in range(len(x_TD))])
            for position in range(len(x_TD)):
                query = project("q", index, position)
                weights = torch.softmax(keys[: position + 1] @ query / head**0.5, 0)
                out[position, index * head : (index + 1) * head] = weights @ values[: position + 1]
        return out @ file[f"{base}wo.weight"].T

    def feed_forward(file, base, x_TD):
        gate = x_TD @ file[f"{base}w1.weight"].T
        return (gate * torch.sigmoid(gate) * (x_TD @ file[f"{base}w3.weight"].T)) @ file[f"{base}w2.weight"].T

    hidden = torch.cat([file["tok_embeddings.weight"][ids] for file in files], -1)
    for layer in range(sizes.layers):
        base = f"layers.{layer}."
        for norm, module, function in (
            ("attention_norm", "attention.", attention),
            ("ffn_norm", "feed_forward.", feed_forward),
        ):
            scale = files[0][f"{base}{norm}.weight"]
            inside = hidden if sizes.swin else rms(hidden, scale)
            total = sum(function(file, base + module, inside) for file in files)
            hidden = hidden + (rms(total, scale) if sizes.swin else total)
    normed = rms(hidden, files[0]["norm.weight"])
    return torch.cat([normed @ file["output.weight"].T for file in files], -1)


def transformers_names(source):
    """The same model under transformers' names, every row moved by hand."""
    sizes, head = source.sizes, source.sizes.dim // source.sizes.heads
    order = [*range(0, head, 2), *range(1, head, 2)]
    tensors = {
        "model.embed_tokens.weight": source.tensors["tok_embeddings.weight"],
        "model.norm.weight": source.tensors["norm.weight"],
        "lm_head.weight": source.tensors["output.weight"],
    }
    plain = {"self_attn.v_proj": "attention.wv", "self_attn.o_proj": "attention.wo", "mlp.gate_proj": "feed_forward.w1"}
    plain |= {"mlp.up_proj": "feed_forward.w3", "mlp.down_proj": "feed_forward.w2"}
    plain |= {"input_layernorm": "attention_norm", "post_attention_layernorm": "ffn_norm"}
    for layer in range(sizes.layers):
        ours, base = f"model.layers.{layer}.", f"layers.{layer}."
        tensors |= {f"{ours}{new}.weight": source.tensors[f"{base}{old}.weight"] for new, old in plain.items()}
        for side, heads in (("q", sizes.heads), ("k", sizes.kv_heads)):
            rows = [index * head + row for index in range(heads) for row in order]
            tensors[f"{ours}self_attn.{side}_proj.weight"] = source.tensors[f"{base}attention.w{side}.weight"][rows]
            for kind in ("weight", "bias"):
                norm = source.tensors[f"{base}attention.{side}_normalization.{kind}"]
                part = [index * source.parts // heads for index in range(heads)]
                tensors[f"{ours}self_attn.{side}_norm.{kind}"] = torch.stack([norm[rank][order] for rank in part])
    return {name: tensor.contiguous() for name, tensor in tensors.items()}


class PlainVqgan:
    """The image tokenizer written out by tensor names, in float64."""

    def __init__(self, tensors):
        self.tensors = {name: tensor.double() for name, tensor in tensors.items()}

    def features(self, pixels_BHWC):
        """(B, N, D) of uint8 pixels, row-major."""
        x = torch.as_tensor(pixels_BHWC).double().permute(0, 3, 1, 2) / 255 * 2 - 1
        h = self._conv("encoder.conv_in", x)
        for level in range(3):
            h = self._block(f"encoder.down.{level}.block.0", h)
            if level < 2:
                name = f"encoder.down.{level}.downsample.conv"
                padded = F.pad(h, (0, 1, 0, 1))  # below and to the right only
                h = F.conv2d(padded, self.tensors[f"{name}.weight"], self.tensors[f"{name}.bias"], stride=2)
        h = self._conv("encoder.conv_out", self._swish_norm("encoder.norm_out", self._middle("encoder.mid", h)))
        return self._conv("quant_conv", h, 0).flatten(2).transpose(1, 2)

    def codes(self, features_BND):
        book_VD = self.tensors["quantize.embedding.weight"]
        return (features_BND[:, :, None] - book_VD).square().sum(-1).argmin(-1)

    def pixels(self, codes_BN):
        """float64 (B, 3, H, W), not clamped."""
        side = int(codes_BN.shape[1] ** 0.5)
        latent = self.tensors["quantize.embedding.weight"][codes_BN].transpose(1, 2).unflatten(2, (side, side))
        h = self._middle("decoder.mid", self._conv("decoder.conv_in", self._conv("post_quant_conv", latent, 0)))
        for level in (2, 1, 0):
            for block in (0, 1):
                h = self._block(f"decoder.up.{level}.block.{block}", h)
            if level:
                h = h.repeat_interleave(2, 2).repeat_interleave(2, 3)
                h = self._conv(f"decoder.up.{level}.upsample.conv", h)
        return self._conv("decoder.conv_out", self._swish_norm("decoder.norm_out", h))

    def _conv(self, name, x, padding=1):
        return F.conv2d(x, self.tensors[f"{name}.weight"], self.tensors[f"{name}.bias"], padding=padding)

    def _norm(self, name, x):
        return F.group_norm(x, 32, self.tensors[f"{name}.weight"], self.tensors[f"{name}.bias"], 1e-6)

    def _swish_norm(self, name, x):
        normed = self._norm(name, x)
        return normed * torch.sigmoid(normed)

    def _block(self, name, x):
        h = self._conv(f"{name}.conv1", self._swish_norm(f"{name}.norm1", x))
        h = self._conv(f"{name}.conv2", self._swish_norm(f"{name}.norm2", h))
        shortcut = f"{name}.nin_shortcut"
        return (self._conv(shortcut, x, 0) if f"{shortcut}.weight" in self.tensors else x) + h

    def _middle(self, name, x):
        h = self._block(f"{name}.block_1", x)
        normed = self._norm(f"{name}.attn_1.norm", h)
        q, k, v = (self._conv(f"{name}.attn_1.{part}", normed, 0).flatten(2) for part in "qkv")
        weights = torch.softmax(torch.einsum("bci,bcj->bij", q, k) / h.shape[1] ** 0.5, -1)
        mixed = torch.einsum("bij,bcj->bci", weights, v).view_as(h)
        return self._block(f"{name}.block_2", h + self._conv(f"{name}.attn_1.proj_out", mixed, 0))


def convert(release, out):
    """Convert a release as ``jobs.convert`` does, without its run."""
    conversion = plan_conversion(release)
    out.mkdir(parents=True)
    for _ in write_weight_files(conversion, out):
        pass
    finish_folder(conversion, out)
    return out


IDS = [0, 21, 4, 5, 6, 19, 20, 24, 25, 9]


def logits(vlm, ids=IDS):
    with torch.no_grad():
        return vlm.head(vlm.body(torch.tensor([ids])))[0]
