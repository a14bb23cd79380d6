"""Triton kernels of multi-scale deformable attention: forward, backward, and the ordered sum of value gradients.

Imported only by `deform_attn_triton` and only when a kernel is about to run, because importing Triton is slow and may
be impossible. One program serves one head of one image and a block of queries; all points of one level are gathered
together as a tile of (queries, points, channels), so that a corner's channels are read as whole cache sectors.

Shape letters: B batch, S tokens over all levels, Q queries, N heads, D channels of a head, L levels, P points. In the
kernels capitals are compile-time constants; the ones ending in `_PAD` are the next power of two. `ACC` is the type of
all arithmetic, `INDEX` that of offsets inside one image, `REFERENCE` the numbers of a reference point: 0 (classic
mode: `sampling` holds locations and `scores` weights), 2 or 4 (fused mode: offsets and logits).
`levels` is an int32 table (L, 4) of height, width, first token and first base cell.
"""

# ruff: noqa: N803 - capitals mark compile-time constants, as everywhere in Triton.
# mypy: disallow-untyped-decorators=False
# Of the annotations Triton reads only `tl.constexpr`.
from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _softmax_terms(
    scores: tl.tensor,
    rows: tl.tensor,
    live: tl.tensor,
    TERMS: tl.constexpr,
    TERMS_PAD: tl.constexpr,
    ACC: tl.constexpr,
) -> tl.tensor:
    """Largest of the TERMS logits at each of `rows` (BLOCK_Q,), and one over the sum of their exponentials."""
    terms = tl.arange(0, TERMS_PAD)
    present = terms[None, :] < TERMS
    logits = tl.load(scores + rows[:, None] + terms[None, :], mask=live[:, None] & present, other=0.0).to(ACC)
    logits = tl.where(present, logits, float("-inf"))
    peak = tl.max(logits, axis=1)
    return peak, 1.0 / tl.sum(tl.exp(logits - peak[:, None]), axis=1)


@triton.jit
def _weights(
    scores: tl.tensor,
    places: tl.tensor,
    live: tl.tensor,
    peak: tl.tensor,
    scale: tl.tensor,
    REFERENCE: tl.constexpr,
    ACC: tl.constexpr,
) -> tl.tensor:
    """Attention weights (BLOCK_Q, POINTS_PAD) of one level, zero where not `live`."""
    weight = tl.load(scores + places, mask=live, other=0.0).to(ACC)
    if REFERENCE != 0:
        weight = tl.exp(weight - peak[:, None]) * scale[:, None]
    return tl.where(live, weight, 0.0)


@triton.jit
def _pixel(
    sampling: tl.tensor,
    places: tl.tensor,
    live: tl.tensor,
    reference: tl.tensor,
    reference_rows: tl.tensor,
    in_block: tl.tensor,
    cells: tl.tensor,
    AXIS: tl.constexpr,
    POINTS: tl.constexpr,
    REFERENCE: tl.constexpr,
    ACC: tl.constexpr,
) -> tl.tensor:
    """Sampled pixel coordinate along one axis (0 = x), its raw input, the side of the 4-d reference (or 1), and a zero.

    The coordinate is held within two cells of the map: beyond one cell all corners lie outside, and an integer could
    not hold it. That hides one that is not a number, so the zero is NaN then, for the caller to add to the weight.
    """
    raw = tl.load(sampling + places * 2 + AXIS, mask=live, other=0.0).to(ACC)
    side = raw * 0.0 + 1.0
    if REFERENCE == 0:
        pixel = raw * cells - 0.5
    else:
        centre = tl.load(reference + reference_rows + AXIS, mask=in_block, other=0.0).to(ACC)[:, None]
        if REFERENCE == 2:
            pixel = centre * cells + raw - 0.5
        else:
            side = tl.load(reference + reference_rows + 2 + AXIS, mask=in_block, other=0.0).to(ACC)[:, None]
            pixel = (centre + raw * side / (2 * POINTS)) * cells - 0.5
    return tl.minimum(tl.maximum(pixel, -2.0), cells + 1.0), raw, side, pixel * 0.0


@triton.jit
def _corner(
    value: tl.tensor,
    x: tl.tensor,
    y: tl.tensor,
    start: tl.tensor,
    height: tl.tensor,
    width: tl.tensor,
    live: tl.tensor,
    token_stride: tl.tensor,
    CHANNELS: tl.constexpr,
    CHANNELS_PAD: tl.constexpr,
    INDEX: tl.constexpr,
) -> tl.tensor:
    """Pointers (BLOCK_Q, POINTS_PAD, CHANNELS_PAD) to the cells (x, y) of one level and the mask of what exists."""
    channels = tl.arange(0, CHANNELS_PAD)
    inside = live & (x >= 0) & (x < width) & (y >= 0) & (y < height)
    rows = (start + y * width + x).to(INDEX) * token_stride
    mask = inside[:, :, None]
    if CHANNELS != CHANNELS_PAD:
        mask = mask & (channels < CHANNELS)[None, None, :]
    return value + (rows[:, :, None] + channels[None, None, :]), mask


@triton.jit(do_not_specialize=["queries", "query_class"])
def forward_kernel(
    value: tl.tensor,
    levels: tl.tensor,
    reference: tl.tensor,
    sampling: tl.tensor,
    scores: tl.tensor,
    output: tl.tensor,
    queries: tl.tensor,
    query_class: tl.tensor,
    value_batch_stride: tl.tensor,
    value_token_stride: tl.tensor,
    value_head_stride: tl.tensor,
    reference_batch_stride: tl.tensor,
    reference_query_stride: tl.tensor,
    sampling_batch_stride: tl.tensor,
    sampling_query_stride: tl.tensor,
    scores_batch_stride: tl.tensor,
    scores_query_stride: tl.tensor,
    HEADS: tl.constexpr,
    CHANNELS: tl.constexpr,
    LEVELS: tl.constexpr,
    POINTS: tl.constexpr,
    CHANNELS_PAD: tl.constexpr,
    POINTS_PAD: tl.constexpr,
    TERMS_PAD: tl.constexpr,
    REFERENCE: tl.constexpr,
    ACC: tl.constexpr,
    INDEX: tl.constexpr,
    BLOCK_Q: tl.constexpr,
) -> None:
    """Writes output (B, Q, N, D), contiguous. Grid: (blocks of queries, heads, images)."""
    head = tl.program_id(1)
    image = tl.program_id(2).to(tl.int64)
    query = tl.program_id(0) * BLOCK_Q + tl.arange(0, BLOCK_Q)
    point = tl.arange(0, POINTS_PAD)
    in_block = query < queries
    live = in_block[:, None] & (point < POINTS)[None, :]
    value += image * value_batch_stride + head.to(INDEX) * value_head_stride
    sampling += image * sampling_batch_stride
    scores += image * scores_batch_stride
    reference += image * reference_batch_stride
    sampling_rows = query.to(INDEX) * sampling_query_stride + head * (LEVELS * POINTS * 2)
    scores_rows = query.to(INDEX) * scores_query_stride + head * (LEVELS * POINTS)
    reference_rows = query.to(INDEX) * reference_query_stride
    peak = tl.zeros((BLOCK_Q,), dtype=ACC)
    scale = peak
    if REFERENCE != 0:
        peak, scale = _softmax_terms(scores, scores_rows, in_block, LEVELS * POINTS, TERMS_PAD, ACC)

    sums = tl.zeros((BLOCK_Q, POINTS_PAD, CHANNELS_PAD), dtype=ACC)
    for level in range(LEVELS):
        height = tl.load(levels + level * 4)
        width = tl.load(levels + level * 4 + 1)
        start = tl.load(levels + level * 4 + 2)
        places = level * POINTS + point[None, :]
        weight = _weights(scores, scores_rows[:, None] + places, live, peak, scale, REFERENCE, ACC)
        x, _raw, _side, zero_x = _pixel(
            sampling + sampling_rows[:, None],
            places,
            live,
            reference,
            reference_rows + level * REFERENCE,
            in_block,
            width.to(ACC),
            0,
            POINTS,
            REFERENCE,
            ACC,
        )
        y, _raw, _side, zero_y = _pixel(
            sampling + sampling_rows[:, None],
            places,
            live,
            reference,
            reference_rows + level * REFERENCE,
            in_block,
            height.to(ACC),
            1,
            POINTS,
            REFERENCE,
            ACC,
        )
        weight += zero_x + zero_y
        left = tl.floor(x)
        top = tl.floor(y)
        share_x = x - left
        share_y = y - top
        column = left.to(tl.int32)
        row = top.to(tl.int32)
        for corner in tl.static_range(4):
            across = corner % 2
            down = corner // 2
            share = (share_x if across == 1 else 1.0 - share_x) * (share_y if down == 1 else 1.0 - share_y)
            cell, exists = _corner(
                value,
                column + across,
                row + down,
                start,
                height,
                width,
                live,
                value_token_stride,
                CHANNELS,
                CHANNELS_PAD,
                INDEX,
            )
            sums += tl.load(cell, mask=exists, other=0.0).to(ACC) * (share * weight)[:, :, None]

    channel = tl.arange(0, CHANNELS_PAD)
    rows = (image * queries + query) * (HEADS * CHANNELS) + head * CHANNELS
    tl.store(
        output + rows[:, None] + channel[None, :],
        tl.sum(sums, axis=1).to(output.dtype.element_ty),
        mask=in_block[:, None] & (channel < CHANNELS)[None, :],
    )


@triton.jit(do_not_specialize=["tokens", "queries", "query_class", "num_base_cells", "num_samples"])
def backward_kernel(
    grad_output: tl.tensor,
    value: tl.tensor,
    levels: tl.tensor,
    reference: tl.tensor,
    sampling: tl.tensor,
    scores: tl.tensor,
    grad_value: tl.tensor,
    grad_reference: tl.tensor,
    grad_sampling: tl.tensor,
    grad_scores: tl.tensor,
    base_cells: tl.tensor,
    shares: tl.tensor,
    tokens: tl.tensor,
    queries: tl.tensor,
    query_class: tl.tensor,
    num_base_cells: tl.tensor,
    num_samples: tl.tensor,
    output_batch_stride: tl.tensor,
    output_query_stride: tl.tensor,
    value_batch_stride: tl.tensor,
    value_token_stride: tl.tensor,
    value_head_stride: tl.tensor,
    reference_batch_stride: tl.tensor,
    reference_query_stride: tl.tensor,
    sampling_batch_stride: tl.tensor,
    sampling_query_stride: tl.tensor,
    scores_batch_stride: tl.tensor,
    scores_query_stride: tl.tensor,
    HEADS: tl.constexpr,
    CHANNELS: tl.constexpr,
    LEVELS: tl.constexpr,
    POINTS: tl.constexpr,
    CHANNELS_PAD: tl.constexpr,
    LEVELS_PAD: tl.constexpr,
    POINTS_PAD: tl.constexpr,
    TERMS_PAD: tl.constexpr,
    REFERENCE: tl.constexpr,
    ACC: tl.constexpr,
    INDEX: tl.constexpr,
    NEEDS_REFERENCE: tl.constexpr,
    ORDERED: tl.constexpr,
    BLOCK_Q: tl.constexpr,
) -> None:
    """Gradients of sampling (B, Q, N, L, P, 2) and scores (B, Q, N, L, P), contiguous. Grid as for the forward kernel.

    grad_reference: (N, B, Q, L, REFERENCE), one part per head for the caller to sum, when NEEDS_REFERENCE.
    grad_value: (B, S, N, D) of type ACC and zero at the start; atomic additions, unless ORDERED: then each sample's
    base cell goes to `base_cells` (num_samples,) and its weight and two shares to `shares` (3, num_samples), from which
    `ordered_value_kernel` makes the sums (one image at a time).
    """
    head = tl.program_id(1)
    image = tl.program_id(2).to(tl.int64)
    query = tl.program_id(0) * BLOCK_Q + tl.arange(0, BLOCK_Q)
    point = tl.arange(0, POINTS_PAD)
    channel = tl.arange(0, CHANNELS_PAD)
    in_block = query < queries
    live = in_block[:, None] & (point < POINTS)[None, :]
    value += image * value_batch_stride + head.to(INDEX) * value_head_stride
    sampling += image * sampling_batch_stride
    scores += image * scores_batch_stride
    reference += image * reference_batch_stride
    grad_value += image * tokens * (HEADS * CHANNELS) + head * CHANNELS
    sampling_rows = query.to(INDEX) * sampling_query_stride + head * (LEVELS * POINTS * 2)
    scores_rows = query.to(INDEX) * scores_query_stride + head * (LEVELS * POINTS)
    reference_rows = query.to(INDEX) * reference_query_stride
    # First sample of each query in the contiguous outputs (B, Q, N, L, P).
    samples = ((image * queries + query) * HEADS + head) * (LEVELS * POINTS)
    grad_rows = image * output_batch_stride + query.to(tl.int64) * output_query_stride + head * CHANNELS
    grad = tl.load(
        grad_output + grad_rows[:, None, None] + channel[None, None, :],
        mask=in_block[:, None, None] & (channel < CHANNELS)[None, None, :],
        other=0.0,
    ).to(ACC)  # (BLOCK_Q, 1, CHANNELS_PAD)
    peak = tl.zeros((BLOCK_Q,), dtype=ACC)
    scale = peak
    if REFERENCE != 0:
        peak, scale = _softmax_terms(scores, scores_rows, in_block, LEVELS * POINTS, TERMS_PAD, ACC)

    level_index = tl.arange(0, LEVELS_PAD)[None, :, None]
    grad_weights = tl.zeros((BLOCK_Q, LEVELS_PAD, POINTS_PAD), dtype=ACC)
    for level in range(LEVELS):
        height = tl.load(levels + level * 4)
        width = tl.load(levels + level * 4 + 1)
        start = tl.load(levels + level * 4 + 2)
        places = level * POINTS + point[None, :]
        weight = _weights(scores, scores_rows[:, None] + places, live, peak, scale, REFERENCE, ACC)
        x, raw_x, side_x, zero_x = _pixel(
            sampling + sampling_rows[:, None],
            places,
            live,
            reference,
            reference_rows + level * REFERENCE,
            in_block,
            width.to(ACC),
            0,
            POINTS,
            REFERENCE,
            ACC,
        )
        y, raw_y, side_y, zero_y = _pixel(
            sampling + sampling_rows[:, None],
            places,
            live,
            reference,
            reference_rows + level * REFERENCE,
            in_block,
            height.to(ACC),
            1,
            POINTS,
            REFERENCE,
            ACC,
        )
        weight += zero_x + zero_y
        left = tl.floor(x)
        top = tl.floor(y)
        share_x = x - left
        share_y = y - top
        column = left.to(tl.int32)
        row = top.to(tl.int32)
        if ORDERED:
            base = tl.load(levels + level * 4 + 3)
            near = live & (column >= -1) & (column < width) & (row >= -1) & (row < height)
            cell_number = head * num_base_cells + base + (row + 1) * (width + 1) + column + 1
            slots = samples[:, None] + places
            tl.store(base_cells + slots, tl.where(near, cell_number, HEADS * num_base_cells), mask=live)
            tl.store(shares + slots, weight, mask=live)
            tl.store(shares + num_samples + slots, share_x, mask=live)
            tl.store(shares + num_samples + num_samples + slots, share_y, mask=live)

        grad_weight = tl.zeros((BLOCK_Q, POINTS_PAD), dtype=ACC)
        grad_x = grad_weight
        grad_y = grad_weight
        for corner in tl.static_range(4):
            across = corner % 2
            down = corner // 2
            along_x = share_x if across == 1 else 1.0 - share_x
            along_y = share_y if down == 1 else 1.0 - share_y
            cell, exists = _corner(
                value,
                column + across,
                row + down,
                start,
                height,
                width,
                live,
                value_token_stride,
                CHANNELS,
                CHANNELS_PAD,
                INDEX,
            )
            match = tl.sum(tl.load(cell, mask=exists, other=0.0).to(ACC) * grad, axis=2)  # (BLOCK_Q, POINTS_PAD)
            grad_weight += match * along_x * along_y
            grad_x += (match if across == 1 else -match) * along_y
            grad_y += (match if down == 1 else -match) * along_x
            if not ORDERED:
                target, exists = _corner(
                    grad_value,
                    column + across,
                    row + down,
                    start,
                    height,
                    width,
                    live,
                    HEADS * CHANNELS,
                    CHANNELS,
                    CHANNELS_PAD,
                    INDEX,
                )
                part = grad * (along_x * along_y * weight)[:, :, None]
                tl.atomic_add(target, part, mask=exists, sem="relaxed")

        # From pixels to the inputs: the map's size scales locations and reference points, not raw 2-d offsets.
        grad_x *= weight
        grad_y *= weight
        if REFERENCE == 0:
            grad_x *= width.to(ACC)
            grad_y *= height.to(ACC)
        else:
            at_x = grad_x * width.to(ACC)
            at_y = grad_y * height.to(ACC)
            if REFERENCE == 4:
                grad_x = at_x * side_x / (2 * POINTS)
                grad_y = at_y * side_y / (2 * POINTS)
            if NEEDS_REFERENCE:
                images = tl.num_programs(2).to(tl.int64)
                parts = ((head * images + image) * queries + query) * (LEVELS * REFERENCE) + level * REFERENCE
                tl.store(grad_reference + parts, tl.sum(at_x, axis=1), mask=in_block)
                tl.store(grad_reference + parts + 1, tl.sum(at_y, axis=1), mask=in_block)
                if REFERENCE == 4:
                    tl.store(grad_reference + parts + 2, tl.sum(at_x * raw_x, axis=1) / (2 * POINTS), mask=in_block)
                    tl.store(grad_reference + parts + 3, tl.sum(at_y * raw_y, axis=1) / (2 * POINTS), mask=in_block)
        slots = samples[:, None] + places
        element = grad_sampling.dtype.element_ty
        pair = tl.arange(0, 2)[None, None, :]
        tl.store(
            grad_sampling + slots[:, :, None] * 2 + pair,
            tl.join(grad_x, grad_y).to(element),
            mask=live[:, :, None] & (pair < 2),
        )
        if REFERENCE == 0:
            tl.store(grad_scores + slots, grad_weight.to(grad_scores.dtype.element_ty), mask=live)
        else:
            grad_weights = tl.where(level_index == level, grad_weight[:, None, :], grad_weights)

    if REFERENCE != 0:
        # Softmax: every logit moves all weights, so its gradient waits for all levels.
        places = level_index * POINTS + point[None, None, :]
        exists = in_block[:, None, None] & (level_index < LEVELS) & (point < POINTS)[None, None, :]
        logits = tl.load(scores + scores_rows[:, None, None] + places, mask=exists, other=0.0).to(ACC)
        weights = tl.where(exists, tl.exp(logits - peak[:, None, None]) * scale[:, None, None], 0.0)
        mean = tl.sum(tl.sum(weights * grad_weights, axis=2), axis=1)
        grad_logits = weights * (grad_weights - mean[:, None, None])
        slots = samples[:, None, None] + places
        tl.store(grad_scores + slots, grad_logits.to(grad_scores.dtype.element_ty), mask=exists)


@triton.jit(do_not_specialize=["num_base_cells", "num_samples"])
def ordered_value_kernel(
    grad_output: tl.tensor,
    levels: tl.tensor,
    bounds: tl.tensor,
    order: tl.tensor,
    shares: tl.tensor,
    grad_value: tl.tensor,
    num_base_cells: tl.tensor,
    num_samples: tl.tensor,
    output_query_stride: tl.tensor,
    HEADS: tl.constexpr,
    CHANNELS: tl.constexpr,
    LEVELS: tl.constexpr,
    POINTS: tl.constexpr,
    CHANNELS_PAD: tl.constexpr,
    ACC: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """Writes grad_value (S, N, D) of one image, each cell summed by one program in a fixed order. Grid: (S, N).

    A sample's base cell is the upper left one of the four it reads, (-1, -1) at the least. `order` lists the samples by
    base cell, `bounds` where each base cell's begin; a cell collects from the base cells up to one row and one column
    before it. Two neighbouring base cells of a row are one stretch of `order`.
    """
    token = tl.program_id(0)
    head = tl.program_id(1)
    channel = tl.arange(0, CHANNELS_PAD)
    has_channel = channel < CHANNELS
    width = tl.load(levels + 1)
    start = tl.load(levels + 2)
    base = tl.load(levels + 3)
    for level in range(1, LEVELS):
        begins = tl.load(levels + level * 4 + 2)
        here = token >= begins
        width = tl.where(here, tl.load(levels + level * 4 + 1), width)
        base = tl.where(here, tl.load(levels + level * 4 + 3), base)
        start = tl.where(here, begins, start)
    row = (token - start) // width
    column = (token - start) % width
    sums = tl.zeros((CHANNELS_PAD,), dtype=ACC)
    for down in tl.static_range(2):
        cell = head * num_base_cells + base + (row + down) * (width + 1) + column
        first = tl.load(bounds + cell)
        middle = tl.load(bounds + cell + 1)
        end = tl.load(bounds + cell + 2)
        begin = first
        while begin < end:
            slot = begin + tl.arange(0, BLOCK)
            present = slot < end
            sample = tl.load(order + slot, mask=present, other=0)
            weight = tl.load(shares + sample, mask=present, other=0.0)
            share_x = tl.load(shares + num_samples + sample, mask=present, other=0.0)
            share_y = tl.load(shares + num_samples + num_samples + sample, mask=present, other=0.0)
            # The row above and the column before have this cell as their lower and right corner.
            weight *= tl.where(slot < middle, share_x, 1.0 - share_x)
            weight *= share_y if down == 0 else 1.0 - share_y
            query = sample // (HEADS * LEVELS * POINTS)
            grad = tl.load(
                grad_output + query[:, None] * output_query_stride + head * CHANNELS + channel[None, :],
                mask=present[:, None] & has_channel[None, :],
                other=0.0,
            ).to(ACC)
            sums += tl.sum(grad * weight[:, None], axis=0)
            begin += BLOCK
    rows = (token.to(tl.int64) * HEADS + head) * CHANNELS
    tl.store(grad_value + rows + channel, sums.to(grad_value.dtype.element_ty), mask=has_channel)
