"""Which requests should be decoded together? Those that ask the same experts, if they cannot all be.

One batch reads an expert once for everyone, so splitting a batch never helps an engine that could run it whole. What
helps is where there are several engines anyway (data-parallel ranks): place by profile. A profile [E] is how likely a
request asks each expert in its next step.
"""

import torch
from torch import Tensor


def profile(asked: Tensor, experts: int) -> Tensor:
    """A request's profile from the experts it asked in its last steps: [steps, k] -> [E]."""
    return torch.bincount(asked.flatten(), minlength=experts).float() / len(asked)


def reads(profiles: Tensor) -> float:
    """Expected distinct experts of one step of a batch: profiles [R, E]."""
    return (1 - (1 - profiles.clamp(max=1)).prod(0)).sum().item()


def place(profiles: Tensor, ranks: int) -> list[list[int]]:
    """Requests for each rank, equally many (the first ranks take what is over), so that all together read little.

    Greedy: each rank is founded by the request least like those already taken, then filled by what adds least.
    """
    left = list(range(len(profiles)))
    placed = []
    for rank in range(ranks):
        size = len(profiles) // ranks + (rank < len(profiles) % ranks)
        mine: list[int] = []
        unread = torch.ones(profiles.shape[1])  # the chance that no one here asks the expert
        for _ in range(size):
            added = (profiles[left] * unread).sum(1)
            best = left.pop(int(added.argmax() if not mine else added.argmin()))
            mine.append(best)
            unread *= 1 - profiles[best].clamp(max=1)
        placed.append(mine)
    return placed


def worth_splitting(profiles: Tensor, groups: list[list[int]]) -> bool:
    """Whether running groups one after the other reads fewer experts than running all in one pass."""
    return sum(reads(profiles[group]) for group in groups) < reads(profiles)
