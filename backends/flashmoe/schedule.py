"""Which requests should share a data-parallel rank? Those whose tokens are routed to the same experts.

A batch reads an expert's weights once for all its tokens, so splitting a batch that one engine could run never helps.
Where requests are spread over several ranks anyway, they are placed by profile: [E], for each expert the probability
that the request's next token is routed to it.
"""

import torch
from torch import Tensor


def profile(asked: Tensor, experts: int) -> Tensor:
    """A request's profile from the experts of its last tokens: [steps, k] -> [E]."""
    return torch.bincount(asked.flatten(), minlength=experts).float() / len(asked)


def reads(profiles: Tensor) -> float:
    """Expected number of distinct experts in a decode step of a batch of R requests: profiles [R, E]."""
    return (1 - (1 - profiles.clamp(max=1)).prod(0)).sum().item()


def place(profiles: Tensor, ranks: int) -> list[list[int]]:
    """Indices of the requests for each rank, so that the ranks read few experts in sum; sizes differ by one at most.

    Greedy: a rank starts with the request that would read most experts, then takes the one that adds fewest.
    """
    left = list(range(len(profiles)))
    placed = []
    for rank in range(ranks):
        size = len(profiles) // ranks + (rank < len(profiles) % ranks)
        mine: list[int] = []
        unread = torch.ones(profiles.shape[1])  # the probability that no request of this rank reads the expert
        for _ in range(size):
            added = (profiles[left] * unread).sum(1)
            best = left.pop(int(added.argmax() if not mine else added.argmin()))
            mine.append(best)
            unread *= 1 - profiles[best].clamp(max=1)
        placed.append(mine)
    return placed


def worth_splitting(profiles: Tensor, groups: list[list[int]]) -> bool:
    """Whether decoding the groups one after the other reads fewer experts than decoding all in one batch."""
    return sum(reads(profiles[group]) for group in groups) < reads(profiles)
