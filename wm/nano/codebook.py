"""Learn the vectors of a codebook: k-means, then exponential moving averages (van den Oord et al., arXiv 1711.00937).

Shape suffixes: M features, D code width, K codes.
"""

import torch
from torch import Tensor


class Codebook:
    """The K code vectors, moved by exponential averages of what is assigned to them; unused ones are reset."""

    decay = 0.95
    dead_below = 0.02

    def __init__(self, vectors_KD: Tensor, generator: torch.Generator) -> None:
        self.vectors_KD = vectors_KD
        self.generator = generator
        self.counts_K = torch.ones(len(vectors_KD))
        self.sums_KD = vectors_KD.clone()

    def start(self, features_MD: Tensor, keep: bool = False, rounds: int = 15) -> None:
        """Set the codes by Lloyd's algorithm on a sample.

        Args:
            features_MD: Sample of what will be quantised.
            keep: Start from the present codes instead of k-means++ seeds.
            rounds: Of Lloyd's algorithm.
        """
        if not keep:
            self.vectors_KD.copy_(spread_seeds(features_MD, len(self.vectors_KD), self.generator))
        for _ in range(rounds):
            owner_M = torch.cdist(features_MD, self.vectors_KD).argmin(1)
            counts_K = torch.bincount(owner_M, minlength=len(self.vectors_KD)).float()
            sums_KD = torch.zeros_like(self.vectors_KD).index_add_(0, owner_M, features_MD)
            # An unused centre stays where it is.
            used_K = counts_K > 0
            self.vectors_KD[used_K] = sums_KD[used_K] / counts_K[used_K, None]
        # The averages start from these counts.
        self.counts_K = counts_K.clamp(min=1) / counts_K.mean()
        self.sums_KD = self.vectors_KD * self.counts_K[:, None]

    def follow(self, features_MD: Tensor, codes_M: Tensor) -> None:
        """Move the averages by one batch.

        Args:
            features_MD: Of a batch.
            codes_M: The nearest code of each.
        """
        counts_K = torch.bincount(codes_M, minlength=len(self.vectors_KD)).float()
        # Relative to an even use, so that a threshold holds for any number of codes.
        share_K = counts_K * len(self.vectors_KD) / max(1, len(codes_M))
        scale = len(self.vectors_KD) / max(1, len(codes_M))
        sums_KD = torch.zeros_like(self.vectors_KD).index_add_(0, codes_M, features_MD) * scale
        self.counts_K = self.decay * self.counts_K + (1 - self.decay) * share_K
        self.sums_KD = self.decay * self.sums_KD + (1 - self.decay) * sums_KD
        # A code that nothing is assigned to would never move again.
        dead_K = self.counts_K < self.dead_below
        if dead_K.any():
            picks = torch.randint(len(features_MD), (int(dead_K.sum()),), generator=self.generator)
            self.sums_KD[dead_K] = features_MD[picks]
            self.counts_K[dead_K] = 1.0
        self.vectors_KD.copy_(self.sums_KD / self.counts_K[:, None])


def spread_seeds(features_MD: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Sample k-means++ seeds (Arthur and Vassilvitskii 2007), each by its squared distance to those so far.

    Args:
        features_MD: To choose from.
        count: Number of seeds.
        generator: Samples them.

    Returns:
        Seeds (count, D).
    """
    seeds = [features_MD[torch.randint(len(features_MD), (1,), generator=generator)]]
    nearest_M = (features_MD - seeds[0]).square().sum(1)
    for _ in range(count - 1):
        seed = features_MD[torch.multinomial(nearest_M + 1e-12, 1, generator=generator)]
        seeds.append(seed)
        # Squared distance to the nearest seed: far features are likelier to be the next.
        nearest_M = torch.minimum(nearest_M, (features_MD - seed).square().sum(1))
    return torch.cat(seeds)
