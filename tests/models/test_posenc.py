from __future__ import annotations

import math

import pytest
import torch

from codetr_cli.models.posenc import encode_boxes, encode_cells, encode_unpadded_cells


def test_cells_are_counted_inside_the_padding_rows_first():
    """The second row of three and the first column of two, whatever padding follows."""
    mask = torch.zeros(1, 4, 5, dtype=torch.bool)
    mask[:, 3:], mask[:, :, 2:] = True, True
    found = encode_cells([mask], dim=8, temperature=20.0, dtype=torch.float64).view(4, 5, 8)[1, 0]
    y, x = 2 / 3 * 2 * math.pi, 1 / 2 * 2 * math.pi
    frequency = 20 ** (2 / 4)
    expected = [function(angle / by) for angle in (y, x) for by in (1, frequency) for function in (math.sin, math.cos)]
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64), rtol=0, atol=1e-5)


@pytest.mark.parametrize("offset", [0.0, -0.5])
def test_without_padding_rows_and_columns_suffice(offset: float):
    mask = torch.zeros(1, 3, 7, dtype=torch.bool)
    whole = encode_cells([mask], dim=8, temperature=10000.0, offset=offset).view(3, 7, 8)
    rows, columns = encode_unpadded_cells(
        3, 7, dim=8, temperature=10000.0, offset=offset, dtype=torch.float32, device=torch.device("cpu")
    )
    assert torch.equal(whole[..., :4], rows[:, None].expand(3, 7, 4))
    assert torch.equal(whole[..., 4:], columns[None].expand(3, 7, 4))


def test_boxes_are_encoded_in_the_order_of_their_family():
    boxes = torch.tensor([[0.1, 0.2, 0.3, 0.4]], dtype=torch.float64)
    plain, dino = (encode_boxes(boxes, dim=4, order=order).view(4, 4) for order in ("xywh", "yxwh"))
    assert torch.equal(dino, plain[[1, 0, 2, 3]])
    angle = 0.1 * 2 * math.pi
    expected = [math.sin(angle), math.cos(angle), math.sin(angle / 100), math.cos(angle / 100)]
    torch.testing.assert_close(plain[0], torch.tensor(expected, dtype=torch.float64))
