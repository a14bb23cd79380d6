"""Triton kernels of multi-scale deformable attention: forward and backward.

Imported only by `deform_attn_triton` and only when a kernel is about to run, because importing Triton is slow and may
be impossible. One program serves one head of one image and a block of queries; a tile of samples is gathered together
as (queries, samples, channels), so that a corner's channels are read as whole cache sectors.

Three switches make the forms that tuning compares (`deform_attn_triton_tuning`):

* TILE_ROWS: the block is a rectangle of that many rows of the grid of queries, which share more cells than a line of
  as many; 1: consecutive queries. Only where queries are the tokens of the same levels, in the same order;
* CLAMPED: a corner outside the map reads the nearest cell and counts nothing, instead of a masked load. A number in
  `value` that is not finite then reaches samples outside too;
* TOGETHER: the samples of all levels are one tile of TERMS_PAD; else the tile is one level's POINTS_PAD, in a loop.

Shape letters: B batch, S tokens over all levels, Q queries, N heads, D channels of a head, L levels, P points. In the
kernels capitals are compile-time constants; the ones ending in `_PAD` are the next power of two. `ACC` is the type of
all arithmetic, `INDEX` that of offsets inside one image, `REFERENCE` the numbers of a reference point: 0 (classic
mode: `sampling` holds locations and `scores` weights), 2 or 4 (fused mode: offsets and logits).
`levels` is an int32 table (L, 4) of height, width, first token and first base cell.
"""

# ruff: noqa: N803 - capitals mark compile-time constants, as everywhere in Triton.
# mypy: disallow-untyped-decorators=False
# Of the annotations Triton reads only `tl.constexpr`; Triton 3.1's interpreter does not know it as a text, so no
# `from __future__ import annotations`.
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
    """Largest of the TERMS logits at each of `rows`, and one over the sum of their exponentials: (BLOCK_Q, 1) all."""
    terms = tl.arange(0, TERMS_PAD)[None, :]
    present = terms < TERMS
    logits = tl.load(scores + rows + terms, mask=live & present, other=0.0).to(ACC)
    logits = tl.where(present, logits, float("-inf"))
    peak = tl.max(logits, axis=1)[:, None]
    return peak, 1.0 / tl.sum(tl.exp(logits - peak), axis=1)[:, None]


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
    """Attention weights (BLOCK_Q, samples) at `places`, zero where not `live`."""
    weight = tl.load(scores + places, mask=live, other=0.0).to(ACC)
    if REFERENCE != 0:
        weight = tl.exp(weight - peak) * scale
    return tl.where(live, weight, 0.0)


@triton.jit
def _block_queries(
    levels: tl.tensor, queries: tl.tensor, LEVELS: tl.constexpr, BLOCK_Q: tl.constexpr, TILE_ROWS: tl.constexpr
) -> tl.tensor:
    """Queries (BLOCK_Q,) of this program, and which of them exist."""
    lane = tl.arange(0, BLOCK_Q)
    query = tl.program_id(0) * BLOCK_Q + lane
    exists = query < queries
    if TILE_ROWS != 1:
        # Tiles are numbered level by level, in row-major order.
        TILE_COLUMNS: tl.constexpr = BLOCK_Q // TILE_ROWS
        tile = tl.program_id(0)
        height = tl.load(levels)
        width = tl.load(levels + 1)
        start = tl.load(levels + 2)
        tiles = tl.cdiv(height, TILE_ROWS) * tl.cdiv(width, TILE_COLUMNS)
        first = tiles * 0
        for level in tl.static_range(1, LEVELS):
            here = tl.program_id(0) >= tiles
            first = tl.where(here, tiles, first)
            height = tl.where(here, tl.load(levels + level * 4), height)
            width = tl.where(here, tl.load(levels + level * 4 + 1), width)
            start = tl.where(here, tl.load(levels + level * 4 + 2), start)
            of_level = tl.cdiv(tl.load(levels + level * 4), TILE_ROWS)
            tiles += of_level * tl.cdiv(tl.load(levels + level * 4 + 1), TILE_COLUMNS)
        tile = tl.program_id(0) - first
        across = tl.cdiv(width, TILE_COLUMNS)
        row = tile // across * TILE_ROWS + lane // TILE_COLUMNS
        column = tile % across * TILE_COLUMNS + lane % TILE_COLUMNS
        exists = (row < height) & (column < width)
        query = tl.where(exists, start + row * width + column, 0)
    return query, exists


@triton.jit
def _samples(
    levels: tl.tensor,
    step: tl.tensor,
    LEVELS: tl.constexpr,
    POINTS: tl.constexpr,
    POINTS_PAD: tl.constexpr,
    TERMS_PAD: tl.constexpr,
    TOGETHER: tl.constexpr,
) -> tl.tensor:
    """One step's samples of a head (1, samples), which of them exist, and their level with its row of the table."""
    if TOGETHER:
        sample = tl.arange(0, TERMS_PAD)[None, :]
        exists = sample < LEVELS * POINTS
        level = tl.minimum(sample // POINTS, LEVELS - 1)
    else:
        point = tl.arange(0, POINTS_PAD)[None, :]
        exists = point < POINTS
        sample = step * POINTS + point
        level = step
    row = levels + level * 4
    return sample, exists, level, tl.load(row), tl.load(row + 1), tl.load(row + 2), tl.load(row + 3)


@triton.jit
def _pixel(
    sampling: tl.tensor,
    live: tl.tensor,
    reference: tl.tensor,
    in_block: tl.tensor,
    cells: tl.tensor,
    AXIS: tl.constexpr,
    POINTS: tl.constexpr,
    REFERENCE: tl.constexpr,
    ACC: tl.constexpr,
) -> tl.tensor:
    """Sampled pixel coordinate along one axis (0 = x), its raw input, the side of the 4-d reference (or 1), and a zero.

    `sampling` points to the samples and `reference` to their reference points, broadcastable to (BLOCK_Q, samples).
    The coordinate is held within two cells of the map: beyond one cell all corners lie outside, and an integer could
    not hold it. That hides one that is not a number, so the zero is NaN then, for the caller to add to the weight.
    """
    raw = tl.load(sampling + AXIS, mask=live, other=0.0).to(ACC)
    side = raw * 0.0 + 1.0
    if REFERENCE == 0:
        pixel = raw * cells - 0.5
    else:
        centre = tl.load(reference + AXIS, mask=in_block, other=0.0).to(ACC)
        if REFERENCE == 2:
            pixel = centre * cells + raw - 0.5
        else:
            side = tl.load(reference + 2 + AXIS, mask=in_block, other=0.0).to(ACC)
            pixel = (centre + raw * side / (2 * POINTS)) * cells - 0.5
    return tl.minimum(tl.maximum(pixel, -2.0), cells + 1.0), raw, side, pixel * 0.0


@triton.jit
def _corner(
    x: tl.tensor,
    y: tl.tensor,
    start: tl.tensor,
    height: tl.tensor,
    width: tl.tensor,
    live: tl.tensor,
    CLAMPED: tl.constexpr,
) -> tl.tensor:
    """Token of the cell (x, y) of each sample's level, and whether the cell exists; CLAMPED: the nearest that does."""
    inside = live & (x >= 0) & (x < width) & (y >= 0) & (y < height)
    if CLAMPED:
        x = tl.minimum(tl.maximum(x, 0), width - 1)
        y = tl.minimum(tl.maximum(y, 0), height - 1)
    return start + y * width + x, inside


@triton.jit
def _cells(
    base: tl.tensor,
    token: tl.tensor,
    token_stride: tl.tensor,
    CHANNELS_PAD: tl.constexpr,
    INDEX: tl.constexpr,
) -> tl.tensor:
    """Pointers (BLOCK_Q, samples, CHANNELS_PAD) to the channels of tokens."""
    rows = token.to(INDEX) * token_stride
    # The channels first: their pointers are the same for all samples.
    return (base + tl.arange(0, CHANNELS_PAD)[None, None, :]) + rows[:, :, None]


@triton.jit
def _present(inside: tl.tensor, CHANNELS: tl.constexpr, CHANNELS_PAD: tl.constexpr) -> tl.tensor:
    """Mask (BLOCK_Q, samples, CHANNELS_PAD or 1) of the channels that exist."""
    mask = inside[:, :, None]
    if CHANNELS != CHANNELS_PAD:
        mask = mask & (tl.arange(0, CHANNELS_PAD) < CHANNELS)[None, None, :]
    return mask


@triton.jit
def _read(
    value: tl.tensor,
    token: tl.tensor,
    inside: tl.tensor,
    token_stride: tl.tensor,
    CHANNELS: tl.constexpr,
    CHANNELS_PAD: tl.constexpr,
    CLAMPED: tl.constexpr,
    ACC: tl.constexpr,
    INDEX: tl.constexpr,
) -> tl.tensor:
    """Channels (BLOCK_Q, samples, CHANNELS_PAD) of tokens; where not `inside` zeros, CLAMPED: whatever is there."""
    cells = _cells(value, token, token_stride, CHANNELS_PAD, INDEX)
    if CLAMPED:
        if CHANNELS == CHANNELS_PAD:
            read = tl.load(cells)
        else:
            read = tl.load(cells, mask=(tl.arange(0, CHANNELS_PAD) < CHANNELS)[None, None, :], other=0.0)
    else:
        read = tl.load(cells, mask=_present(inside, CHANNELS, CHANNELS_PAD), other=0.0)
    return read.to(ACC)


@triton.jit(do_not_specialize=["queries"])
def forward_kernel(
    value: tl.tensor,
    levels: tl.tensor,
    reference: tl.tensor,
    sampling: tl.tensor,
    scores: tl.tensor,
    output: tl.tensor,
    queries: tl.tensor,
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
    TILE_ROWS: tl.constexpr,
    CLAMPED: tl.constexpr,
    TOGETHER: tl.constexpr,
) -> None:
    """Writes output (B, Q, N, D), contiguous. Grid: (blocks of queries, heads, images)."""
    SAMPLES: tl.constexpr = TERMS_PAD if TOGETHER else POINTS_PAD
    STEPS: tl.constexpr = 1 if TOGETHER else LEVELS
    head = tl.program_id(1)
    image = tl.program_id(2).to(tl.int64)
    query, exists = _block_queries(levels, queries, LEVELS, BLOCK_Q, TILE_ROWS)
    in_block = exists[:, None]
    value += image * value_batch_stride + head.to(INDEX) * value_head_stride
    sampling += image * sampling_batch_stride + head * (LEVELS * POINTS * 2)
    scores += image * scores_batch_stride + head * (LEVELS * POINTS)
    reference += image * reference_batch_stride
    sampling_rows = query.to(INDEX)[:, None] * sampling_query_stride
    scores_rows = query.to(INDEX)[:, None] * scores_query_stride
    reference_rows = query.to(INDEX)[:, None] * reference_query_stride
    peak = tl.zeros((BLOCK_Q, 1), dtype=ACC)
    scale = peak
    if REFERENCE != 0:
        peak, scale = _softmax_terms(scores, scores_rows, in_block, LEVELS * POINTS, TERMS_PAD, ACC)

    sums = tl.zeros((BLOCK_Q, SAMPLES, CHANNELS_PAD), dtype=ACC)
    for step in range(STEPS):
        sample, present, level, height, width, start, _base = _samples(
            levels, step, LEVELS, POINTS, POINTS_PAD, TERMS_PAD, TOGETHER
        )
        live = in_block & present
        weight = _weights(scores, scores_rows + sample, live, peak, scale, REFERENCE, ACC)
        places = sampling + sampling_rows + sample * 2
        points = reference + reference_rows + level * REFERENCE
        x, _raw, _side, zero_x = _pixel(places, live, points, in_block, width.to(ACC), 0, POINTS, REFERENCE, ACC)
        y, _raw, _side, zero_y = _pixel(places, live, points, in_block, height.to(ACC), 1, POINTS, REFERENCE, ACC)
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
            token, inside = _corner(column + across, row + down, start, height, width, live, CLAMPED)
            if CLAMPED:
                share = tl.where(inside, share, 0.0)
            read = _read(value, token, inside, value_token_stride, CHANNELS, CHANNELS_PAD, CLAMPED, ACC, INDEX)
            sums += read * (share * weight)[:, :, None]

    channel = tl.arange(0, CHANNELS_PAD)[None, :]
    rows = (image * queries + query)[:, None] * (HEADS * CHANNELS) + head * CHANNELS
    tl.store(
        output + rows + channel,
        tl.sum(sums, axis=1).to(output.dtype.element_ty),
        mask=in_block & (channel < CHANNELS),
    )


@triton.jit(do_not_specialize=["tokens", "queries", "num_base_cells", "num_samples"])
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
    TILE_ROWS: tl.constexpr,
    CLAMPED: tl.constexpr,
    TOGETHER: tl.constexpr,
) -> None:
    """Gradients of sampling (B, Q, N, L, P, 2) and scores (B, Q, N, L, P), contiguous. Grid as for the forward kernel.

    grad_reference: (N, B, Q, L, REFERENCE), one part per head for the caller to sum, when NEEDS_REFERENCE.
    grad_value: (B, S, N, D) of type ACC and zero at the start; atomic additions, unless ORDERED: then each sample's
    base cell goes to `base_cells` (num_samples,) and its weight and two shares to `shares` (3, num_samples), from which
    `ordered_value_kernel` makes the sums (one image at a time).
    """
    SAMPLES: tl.constexpr = TERMS_PAD if TOGETHER else POINTS_PAD
    STEPS: tl.constexpr = 1 if TOGETHER else LEVELS
    head = tl.program_id(1)
    image = tl.program_id(2).to(tl.int64)
    query, exists = _block_queries(levels, queries, LEVELS, BLOCK_Q, TILE_ROWS)
    in_block = exists[:, None]
    channel = tl.arange(0, CHANNELS_PAD)[None, None, :]
    value += image * value_batch_stride + head.to(INDEX) * value_head_stride
    sampling += image * sampling_batch_stride + head * (LEVELS * POINTS * 2)
    scores += image * scores_batch_stride + head * (LEVELS * POINTS)
    reference += image * reference_batch_stride
    grad_value += image * tokens * (HEADS * CHANNELS) + head * CHANNELS
    sampling_rows = query.to(INDEX)[:, None] * sampling_query_stride
    scores_rows = query.to(INDEX)[:, None] * scores_query_stride
    reference_rows = query.to(INDEX)[:, None] * reference_query_stride
    # First sample of each query in the contiguous outputs (B, Q, N, L, P).
    samples = ((image * queries + query) * HEADS + head)[:, None] * (LEVELS * POINTS)
    grad_rows = image * output_batch_stride + query.to(tl.int64) * output_query_stride + head * CHANNELS
    grad_mask = in_block[:, :, None] & (channel < CHANNELS)
    grad = tl.load(grad_output + grad_rows[:, None, None] + channel, mask=grad_mask, other=0.0)
    grad = grad.to(ACC)  # (BLOCK_Q, 1, CHANNELS_PAD)
    peak = tl.zeros((BLOCK_Q, 1), dtype=ACC)
    scale = peak
    if REFERENCE != 0:
        peak, scale = _softmax_terms(scores, scores_rows, in_block, LEVELS * POINTS, TERMS_PAD, ACC)

    if not TOGETHER:
        level_index = tl.arange(0, LEVELS_PAD)[None, :, None]
        grad_weights = tl.zeros((BLOCK_Q, LEVELS_PAD, POINTS_PAD), dtype=ACC)
    for step in range(STEPS):
        sample, present, level, height, width, start, base = _samples(
            levels, step, LEVELS, POINTS, POINTS_PAD, TERMS_PAD, TOGETHER
        )
        live = in_block & present
        attention = _weights(scores, scores_rows + sample, live, peak, scale, REFERENCE, ACC)
        places = sampling + sampling_rows + sample * 2
        points = reference + reference_rows + level * REFERENCE
        x, raw_x, side_x, zero_x = _pixel(places, live, points, in_block, width.to(ACC), 0, POINTS, REFERENCE, ACC)
        y, raw_y, side_y, zero_y = _pixel(places, live, points, in_block, height.to(ACC), 1, POINTS, REFERENCE, ACC)
        weight = attention + zero_x + zero_y
        left = tl.floor(x)
        top = tl.floor(y)
        share_x = x - left
        share_y = y - top
        column = left.to(tl.int32)
        row = top.to(tl.int32)
        slots = samples + sample
        if ORDERED:
            near = live & (column >= -1) & (column < width) & (row >= -1) & (row < height)
            cell_number = head * num_base_cells + base + (row + 1) * (width + 1) + column + 1
            tl.store(base_cells + slots, tl.where(near, cell_number, HEADS * num_base_cells), mask=live)
            tl.store(shares + slots, weight, mask=live)
            tl.store(shares + num_samples + slots, share_x, mask=live)
            tl.store(shares + num_samples + num_samples + slots, share_y, mask=live)

        grad_weight = tl.zeros((BLOCK_Q, SAMPLES), dtype=ACC)
        grad_x = grad_weight
        grad_y = grad_weight
        for corner in tl.static_range(4):
            across = corner % 2
            down = corner // 2
            along_x = share_x if across == 1 else 1.0 - share_x
            along_y = share_y if down == 1 else 1.0 - share_y
            token, inside = _corner(column + across, row + down, start, height, width, live, CLAMPED)
            read = _read(value, token, inside, value_token_stride, CHANNELS, CHANNELS_PAD, CLAMPED, ACC, INDEX)
            match = tl.sum(read * grad, axis=2)  # (BLOCK_Q, samples)
            if CLAMPED:
                match = tl.where(inside, match, 0.0)
            grad_weight += match * along_x * along_y
            grad_x += (match if across == 1 else -match) * along_y
            grad_y += (match if down == 1 else -match) * along_x
            if not ORDERED:  # masked in all forms: adding zeros would queue at the cells of the border
                target = _cells(grad_value, token, HEADS * CHANNELS, CHANNELS_PAD, INDEX)
                part = grad * (along_x * along_y * weight)[:, :, None]
                tl.atomic_add(target, part, mask=_present(inside, CHANNELS, CHANNELS_PAD), sem="relaxed")

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
                parts = ((head * images + image) * queries + query) * (LEVELS * REFERENCE)
                # A tile has the samples of one level, or of each.
                for index in tl.static_range(LEVELS if TOGETHER else 1):
                    of_level = index if TOGETHER else step
                    here = live & (level == of_level)
                    target = grad_reference + parts + of_level * REFERENCE
                    tl.store(target, tl.sum(tl.where(here, at_x, 0.0), axis=1), mask=exists)
                    tl.store(target + 1, tl.sum(tl.where(here, at_y, 0.0), axis=1), mask=exists)
                    if REFERENCE == 4:
                        of_width = tl.sum(tl.where(here, at_x * raw_x, 0.0), axis=1) / (2 * POINTS)
                        of_height = tl.sum(tl.where(here, at_y * raw_y, 0.0), axis=1) / (2 * POINTS)
                        tl.store(target + 2, of_width, mask=exists)
                        tl.store(target + 3, of_height, mask=exists)
        pair = tl.arange(0, 2)[None, None, :]
        tl.store(
            grad_sampling + slots[:, :, None] * 2 + pair,
            tl.join(grad_x, grad_y).to(grad_sampling.dtype.element_ty),
            mask=live[:, :, None] & (pair < 2),
        )
        # Softmax: every logit moves all weights, so its gradient waits for all levels.
        if TOGETHER and REFERENCE != 0:
            grad_weight = attention * (grad_weight - tl.sum(attention * grad_weight, axis=1)[:, None])
        if TOGETHER or REFERENCE == 0:
            tl.store(grad_scores + slots, grad_weight.to(grad_scores.dtype.element_ty), mask=live)
        else:
            grad_weights = tl.where(level_index == level, grad_weight[:, None, :], grad_weights)

    if REFERENCE != 0 and not TOGETHER:
        point = tl.arange(0, POINTS_PAD)[None, None, :]
        terms = level_index * POINTS + point
        live = in_block[:, :, None] & (level_index < LEVELS) & (point < POINTS)
        logits = tl.load(scores + scores_rows[:, :, None] + terms, mask=live, other=0.0).to(ACC)
        weights = tl.where(live, tl.exp(logits - peak[:, :, None]) * scale[:, :, None], 0.0)
        mean = tl.sum(tl.sum(weights * grad_weights, axis=2), axis=1)
        grad_logits = weights * (grad_weights - mean[:, None, None])
        tl.store(grad_scores + samples[:, :, None] + terms, grad_logits.to(grad_scores.dtype.element_ty), mask=live)
