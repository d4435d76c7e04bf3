"""The semantic adapter's own mathematics: positions told apart, and a projection that needs no saving."""

from __future__ import annotations

import torch

from sktune.methods.semantic.adapter import fixed_projection, tell_apart


def alike(*sizes: int) -> torch.Tensor:
    """Vectors that have most in common, as the positions of a text do."""
    noise = torch.Generator().manual_seed(0)
    return 3 * torch.randn(sizes[-1], generator=noise) + torch.randn(*sizes, generator=noise)


def test_positions_are_told_apart() -> None:
    texts = alike(4, 7, 64)
    told = tell_apart(texts)
    cosines = torch.nn.functional.normalize(texts, dim=-1)
    assert (cosines @ cosines.mT).min() > 0.8
    torch.testing.assert_close(told @ told.mT, torch.eye(7).expand(4, 7, 7), atol=0.2, rtol=0)
    # Each is told from those before it, whatever comes after.
    torch.testing.assert_close(tell_apart(texts[:, :3]), told[:, :3])
    torch.testing.assert_close(tell_apart(texts[:, :1]), cosines[:, :1], atol=0.01, rtol=0)


def test_what_was_said_before_counts_little() -> None:
    text = alike(3, 64)
    said_again = torch.cat((text, text[:1] * 2))
    assert tell_apart(said_again).norm(dim=-1)[-1] < 0.2


def test_rounding_to_16_bits_changes_little() -> None:
    text = alike(9, 64)
    torch.testing.assert_close(tell_apart(text.bfloat16().float()), tell_apart(text), atol=0.02, rtol=0)


def test_a_text_of_nothing_is_nothing() -> None:
    assert tell_apart(torch.zeros(3, 8)).eq(0).all()


def test_the_projection_is_the_same_everywhere_and_for_each_rank() -> None:
    torch.testing.assert_close(fixed_projection(3, 1)[:, 0], torch.tensor([1.7640524, 0.4001572, 0.9787380]))
    torch.testing.assert_close(fixed_projection(64, 8)[:, :5], fixed_projection(64, 5), atol=0, rtol=0)
