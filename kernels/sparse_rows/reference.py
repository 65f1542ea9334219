"""Plain-torch oracle of sparse rows: one row after another."""

import torch


def pack_rows_reference(source: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """Row n of the result is row ``rows[n]`` of `source`.

    Args:
        source: [T, E].
        rows: int64 [N].
    """
    packed = torch.full((rows.shape[0], source.shape[1]), float("nan"), dtype=source.dtype)
    for index, row in enumerate(rows.tolist()):
        packed[index] = source[row]
    return packed


def unpack_rows_reference(packed: torch.Tensor, rows: torch.Tensor, num_rows: int) -> torch.Tensor:
    """Row ``rows[n]`` of the result is row n of `packed`; rows not named are zero.

    Args:
        packed: [N, E].
        rows: int64 [N].
        num_rows: T.
    """
    places = {row: index for index, row in enumerate(rows.tolist())}
    result = torch.full((num_rows, packed.shape[1]), float("nan"), dtype=packed.dtype)
    for row in range(num_rows):
        result[row] = packed[places[row]] if row in places else 0.0
    return result
