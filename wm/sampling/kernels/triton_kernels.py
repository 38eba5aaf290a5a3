# ruff: noqa: ANN001, ANN201, ANN202, PLR0917
# A kernel takes what it needs, and Triton reads its annotations.
# mypy: disable-error-code="no-untyped-def, misc, untyped-decorator, no-untyped-call"
"""Triton kernels of :mod:`wm.sampling.kernels.triton_attention`; imported only where Triton is at hand.

Shape suffixes of :mod:`wm.sampling.kernels.attention`, and: M queries of a program, N positions of a block, S parts.
"""

import triton
import triton.language as tl


@triton.jit
def _part(
    query,
    query_stride,
    keys,
    values,
    new_key,
    new_value,
    mixed_out,
    lse_out,
    rows_M,
    heads_M,
    is_query_M,
    first,
    last,
    position,
    HEADS: tl.constexpr,
    WIDTH: tl.constexpr,
    CHUNK: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    HAS_NEW: tl.constexpr,
):
    """Attend from M queries to the positions ``first`` to ``last``: what they mix, normalised, and the log of the sum
    of exponentials. With ``HAS_NEW`` the key and value of ``position`` are those given, and are stored."""
    columns_D = tl.arange(0, WIDTH)
    query_MD = tl.load(
        query + (rows_M * query_stride + heads_M * WIDTH)[:, None] + columns_D[None, :],
        mask=is_query_M[:, None],
        other=0.0,
    )
    highest_M = tl.full([BLOCK_M], float("-inf"), tl.float32)
    total_M = tl.zeros([BLOCK_M], tl.float32)
    mixed_MD = tl.zeros([BLOCK_M, WIDTH], tl.float32)
    for start in range(0, CHUNK, BLOCK_N):
        positions_N = first + start + tl.arange(0, BLOCK_N)
        inside_N = positions_N < last
        offsets_ND = positions_N[:, None] * WIDTH + columns_D[None, :]
        key_ND = tl.load(keys + offsets_ND, mask=inside_N[:, None], other=0.0)
        value_ND = tl.load(values + offsets_ND, mask=inside_N[:, None], other=0.0)
        if HAS_NEW:
            # The cache may or may not hold the new pair already: it is taken from where it comes from.
            is_new_N1 = (positions_N == position)[:, None]
            key_ND = tl.where(is_new_N1, tl.load(new_key + columns_D)[None, :], key_ND)
            value_ND = tl.where(is_new_N1, tl.load(new_value + columns_D)[None, :], value_ND)
        scores_MN = tl.dot(query_MD, tl.trans(key_ND), input_precision="ieee")
        scores_MN = tl.where(inside_N[None, :], scores_MN, float("-inf"))
        # Online softmax: what was summed so far is scaled down when a larger score comes.
        higher_M = tl.maximum(highest_M, tl.max(scores_MN, 1))
        keep_M = tl.exp(highest_M - higher_M)
        weights_MN = tl.exp(scores_MN - higher_M[:, None])
        total_M = total_M * keep_M + tl.sum(weights_MN, 1)
        mixed_MD = mixed_MD * keep_M[:, None]
        mixed_MD += tl.dot(weights_MN.to(value_ND.dtype), value_ND, input_precision="ieee")
        highest_M = higher_M
    number_M = rows_M * HEADS + heads_M
    tl.store(
        mixed_out + number_M[:, None] * WIDTH + columns_D[None, :],
        mixed_MD / total_M[:, None],
        mask=is_query_M[:, None],
    )
    tl.store(lse_out + number_M, highest_M + tl.log(total_M), mask=is_query_M)


@triton.jit
def attend_parts(
    query,
    query_stride,
    new_keys,
    new_key_stride,
    new_values,
    new_value_stride,
    prefix_keys,
    prefix_values,
    own_keys,
    own_values,
    lengths,
    position_at,
    mixed_parts,
    lse_parts,
    num_rows,
    num_prefixes,
    each,
    prefix_capacity,
    capacity,
    prefix_parts,
    own_parts,
    row_blocks,
    GROUPS: tl.constexpr,
    SHARE: tl.constexpr,
    WIDTH: tl.constexpr,
    CHUNK: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """Attend to one chunk a program: of a prefix, for up to M queries of its candidates, or of one row's own tokens.

    The latter stores the row's new key and value if the position is in its chunk. SHARE: heads a group.
    """
    HEADS: tl.constexpr = GROUPS * SHARE
    program = tl.program_id(0)
    position = tl.load(position_at).to(tl.int32)
    members_M = tl.arange(0, BLOCK_M)
    columns_D = tl.arange(0, WIDTH)
    # Programs below this number read prefixes, the others rows' own tokens.
    prefix_programs = num_prefixes * GROUPS * row_blocks * prefix_parts
    if program < prefix_programs:
        part = program % prefix_parts
        rest = program // prefix_parts
        members_M += (rest % row_blocks) * BLOCK_M
        rest = rest // row_blocks
        group = rest % GROUPS
        prefix = rest // GROUPS
        is_query_M = members_M < each * SHARE
        rows_M = prefix * each + members_M // SHARE
        heads_M = group * SHARE + members_M % SHARE
        # The prefix may end before this chunk: padding is never read.
        first = part * CHUNK
        last = tl.minimum(first + CHUNK, tl.load(lengths + prefix).to(tl.int32))
        lse_out = lse_parts + part * num_rows * HEADS
        mixed_out = mixed_parts + part.to(tl.int64) * num_rows * HEADS * WIDTH
        if first < last:
            # 64 bits: a cache of 7B models at many rows has more than 2**31 numbers.
            offset = (prefix * GROUPS + group).to(tl.int64) * prefix_capacity * WIDTH
            _part(
                query,
                query_stride,
                prefix_keys + offset,
                prefix_values + offset,
                new_keys,
                new_values,
                mixed_out,
                lse_out,
                rows_M,
                heads_M,
                is_query_M,
                first,
                last,
                position,
                HEADS,
                WIDTH,
                CHUNK,
                BLOCK_M,
                BLOCK_N,
                False,
            )
        else:
            tl.store(lse_out + rows_M * HEADS + heads_M, tl.full([BLOCK_M], float("-inf"), tl.float32), mask=is_query_M)
    else:
        program -= prefix_programs
        part = program % own_parts
        rest = program // own_parts
        group = rest % GROUPS
        row = rest // GROUPS
        is_query_M = members_M < SHARE
        # One row's queries of a group fill a part of the tile; the rest is masked.
        rows_M = row + members_M * 0
        heads_M = group * SHARE + members_M % SHARE
        first = part * CHUNK
        last = tl.minimum(first + CHUNK, position + 1)
        lse_out = lse_parts + (prefix_parts + part) * num_rows * HEADS
        mixed_out = mixed_parts + (prefix_parts + part).to(tl.int64) * num_rows * HEADS * WIDTH
        if first < last:
            offset = (row * GROUPS + group).to(tl.int64) * capacity * WIDTH
            new_key = new_keys + row * new_key_stride + group * WIDTH
            new_value = new_values + row * new_value_stride + group * WIDTH
            _part(
                query,
                query_stride,
                own_keys + offset,
                own_values + offset,
                new_key,
                new_value,
                mixed_out,
                lse_out,
                rows_M,
                heads_M,
                is_query_M,
                first,
                last,
                position,
                HEADS,
                WIDTH,
                CHUNK,
                BLOCK_M,
                BLOCK_N,
                True,
            )
            # Only the chunk that holds the position stores the new pair, after all have read it from its source.
            if position < last:
                stored = offset + position * WIDTH
                tl.store(own_keys + stored + columns_D, tl.load(new_key + columns_D))
                tl.store(own_values + stored + columns_D, tl.load(new_value + columns_D))
        else:
            tl.store(lse_out + rows_M * HEADS + heads_M, tl.full([BLOCK_M], float("-inf"), tl.float32), mask=is_query_M)


@triton.jit
def merge_parts(
    mixed_parts,
    lse_parts,
    mixed,
    number,
    num_parts,
    WIDTH: tl.constexpr,
    PARTS: tl.constexpr,
):
    """Merge the parts of one head of a row a program, weighed by exp(lse_part - lse_all). PARTS: a power of two."""
    program = tl.program_id(0)
    parts_S = tl.arange(0, PARTS)
    columns_D = tl.arange(0, WIDTH)
    lse_S = tl.load(lse_parts + parts_S * number + program, mask=parts_S < num_parts, other=float("-inf"))
    weights_S = tl.exp(lse_S - tl.max(lse_S, 0))
    weights_S = weights_S / tl.sum(weights_S, 0)
    # A part without positions has written nothing: its memory is not read.
    part_SD = tl.load(
        mixed_parts + (parts_S.to(tl.int64) * number + program)[:, None] * WIDTH + columns_D[None, :],
        mask=(weights_S > 0)[:, None],
        other=0.0,
    )
    # Stored in the model's type only now: the sums are float32.
    mixed_D = tl.sum(part_SD * weights_S[:, None], 0)
    tl.store(mixed + program * WIDTH + columns_D, mixed_D.to(mixed.dtype.element_ty))
