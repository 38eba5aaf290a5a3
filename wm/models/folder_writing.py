"""Write the Hugging Face folder of any family: a new folder in place of the old one, weights, tokenizer, codec."""

import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

from wm.models.codec.codec import ImageCodec, PixelScale
from wm.models.vlm import UnifiedVLM
from wm.models.weights import CODEC_PREFIX
from wm.runs import write_json


@contextmanager
def replace_folder(out: Path) -> Iterator[Path]:
    """Make a temporary folder beside ``out`` that takes its name at the end, and vanishes if anything goes wrong.

    Args:
        out: The folder to make or to replace.

    Yields:
        The temporary folder, empty: a process that is killed leaves nothing under the name ``out``.
    """
    # On the same disk, or the last step would be a copy and no renaming.
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    try:
        yield temporary
        temporary.chmod(0o755)
        # A folder cannot be replaced in one step: the old one is moved away first, and removed last.
        if out.exists():
            retired = temporary.with_name(temporary.name + ".old")
            out.rename(retired)
            temporary.rename(out)
            shutil.rmtree(retired)
        else:
            temporary.rename(out)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def write_weights(vlm: UnifiedVLM, tensors: Mapping[str, Tensor], folder: Path) -> None:
    """Write ``config.json``, ``model.safetensors`` and the tokenizer's files.

    Args:
        vlm: The model, whose configuration and tokenizer are written.
        tensors: Its weights by name, of the codec too where the family keeps them together.
        folder: An existing folder.
    """
    # A copy: the caller's dictionary may be the module's own.
    own_tensors = dict(tensors)
    if getattr(vlm.inner.config, "tie_word_embeddings", False):
        own_tensors.pop("lm_head.weight", None)
    write_tensors(own_tensors, folder)
    write_config(vlm, folder)


def write_config(vlm: UnifiedVLM, folder: Path) -> None:
    """Write ``config.json`` and the tokenizer's files.

    Args:
        vlm: The model, whose configuration and tokenizer are written.
        folder: An existing folder.
    """
    config = vlm.inner.config
    # transformers' auto classes choose by it.
    config.architectures = [type(vlm.inner).__name__]
    config.save_pretrained(folder)
    vlm.tokenizer.save_pretrained(folder)


def write_tensors(tensors: Mapping[str, Tensor], folder: Path) -> None:
    """Write ``model.safetensors``.

    Args:
        tensors: By name, on any device.
        folder: An existing folder.
    """
    # safetensors stores no views and no strides.
    on_cpu = {name: tensor.detach().to("cpu").contiguous() for name, tensor in tensors.items()}
    save_file(on_cpu, folder / "model.safetensors", metadata={"format": "pt"})


def codec_tensors(codec: ImageCodec) -> dict[str, Tensor]:
    """Return a codec's tensors under their names in a model folder."""
    return {CODEC_PREFIX + name: tensor for name, tensor in codec.vqgan.state_dict().items()}


def write_codec_folder(codec: ImageCodec, folder: Path) -> None:
    """Write a VQGAN of Chameleon's architecture to a new folder, which :func:`~wm.models.codec.files.read_codec`
    reads.

    Args:
        codec: A VQGAN of Chameleon's architecture.
        folder: It must not exist yet.
    """
    folder.mkdir()
    write_tensors(codec_tensors(codec), folder)
    write_json(folder / "config.json", {"vq_config": codec.vqgan.config.to_dict()})
    write_image_processor(codec.scale, folder)


def write_image_processor(scale: PixelScale, folder: Path, **facts: object) -> None:
    """Write ``preprocessor_config.json``, of which :meth:`~wm.models.codec.codec.PixelScale.read` reads the scale.

    Args:
        scale: How pixels become the codec's input.
        folder: An existing folder.
        facts: What transformers' own processor of the family needs beside.
    """
    values = {"rescale_factor": scale.rescale, "image_mean": [scale.mean] * 3, "image_std": [scale.std] * 3}
    write_json(folder / "preprocessor_config.json", facts | values)
