"""What runs on the GPU for backends/triton: blended attention, forward and backward.

Importing this module imports triton, so it is imported when the backend is first asked for.

One program of `forward` and `pixel_gradients` owns BLOCK_Q pixels of one head of one batch
element. It reads its rows of q (and dout) once and walks the prompts of its batch element: the
scores of a row live in registers as float32, its weight over its sum goes into the second product
or its result, and all prompts add into one float32 accumulator, which is stored once. Where regions
or lengths leave prompts out, the program first makes a word of bits for each of its pixels, a bit
for each prompt that exists there, and walks the bits that are set for any of them: of other prompts
no keys and values are read, and the walk has no branch, so that its loads are pipelined. One
program of `prompt_gradients` owns one head of one prompt and walks pixels.

With a plan the pixels of a tile follow one another in its order, not in memory, and the plan has
the bits of the tile: the walk waits for no region, and regions of other prompts are not read.
`prompt_gradients` makes no use of a plan: the optimiser of weights, which has the same regions at
every step, asks for neither dk nor dv. Nor does `pixel_gradients` where tiles.py finds no registers
for one.

Programs are numbered tile first, then head, then batch element: programs that run at the same
time share keys and values, which then come from L2. `prompt_gradients` counts prompts first, since
what its programs share are pixels.

Axes that are no power of two are cut into pieces that are (77 keys: 64 + 16; head_dim 40: 32 + 16):
a matrix is a tuple of tiles, and products are issued piece by piece.

Rows of an absent prompt, keys beyond a length and pixels beyond seqlen_q never meet a product as
anything but 0 or in a row that is thrown away, so that a NaN there stays there. Where a prompt
exists at some pixels of a tile only, the others keep their accumulator by selection, not by a
product with 0.

Arguments that several kernels share:

    q, dout, out, dq    (batch, heads, seqlen_q, head_dim)  strides b, h, n
    k, v, dk, dv        (batch, prompts, heads, seqlen_k, head_dim)  strides b, p, h, l
                        RAGGED: (table, heads, seqlen_k, head_dim), b unused
    weight, region      (batch, prompts, seqlen_q) or RAGGED: (entries, seqlen_q)  strides b, p, n
    order, met          of a plan, (batch, seqlen_q) int32 and (batch, words) int64, contiguous: bit
                        i of met[b, t] is set where entry i exists at any of the 32 pixels
                        order[b, 32 t], ...; all are set where an element has more than 64 entries
    r, m, factor        (heads, entries, seqlen_q) float32, contiguous; entries = batch * prompts
                        in the dense form. r = rowsum(A * G), m = max(scale * scores) and
                        factor = weight / rowsum(exp2(scale * scores - m)), each of one row
    scale               of the scores, with log2(e) folded in, positive; NEGATIVE flips the scores
    STRIDE              a factor of the strides of all head_dim matrices, divided out by the host
    SAME                stride_vl is stride_kl: one set of registers serves the rows of both
    WIDE                offsets within the keys of one head, or a tile of pixels, need 64 bits
    D_PIECES            how head_dim is cut; K_PIECES how one tile of keys is
    TILED               keys come in tiles of sum(K_PIECES) instead of all at once
    FULL                so many of K_PIECES, from the first on, have all their keys in every tile
    FOLD                without regions and TILED, weight / rowsum goes into the factors of the
                        second product, not its result
    PRECISION           of float32 products: "ieee" or "tf32"
"""

# mypy: disable-error-code="assignment"
# A tuple of tiles grows piece by piece.

import triton
import triton.language as tl

# Arguments are grouped by what they belong to.
# fmt: off

# A kernel is compiled for its constants alone: sizes and strides change from layer to layer.
_SIZES = [
    "batch", "prompts", "heads", "entries", "seqlen_q", "seqlen_k", "size",
    "tiles", "words", "key_tiles", "splits", "blocks",
    "stride_qb", "stride_qh", "stride_qn",
    "stride_kb", "stride_kp", "stride_kh", "stride_kl",
    "stride_vb", "stride_vp", "stride_vh", "stride_vl",
    "stride_wb", "stride_wp", "stride_wn",
    "stride_rb", "stride_rp", "stride_rn",
    "stride_ob", "stride_op", "stride_oh", "stride_ol", "stride_on",
    "stride_gb", "stride_gh", "stride_gn",
    "stride_dqb", "stride_dqh", "stride_dqn",
    "stride_dks", "stride_dkb", "stride_dkp", "stride_dkh", "stride_dkl",
    "stride_dvs", "stride_dvb", "stride_dvp", "stride_dvh", "stride_dvl",
]


@triton.constexpr_function
def _start(pieces, i):
    return sum(pieces[:i])


@triton.constexpr_function
def _size(pieces, i):
    return pieces[i]


@triton.constexpr_function
def _total(pieces):
    return sum(pieces)


@triton.jit
def _pointers(
    base, first, stride,
    ROWS: tl.constexpr, D_PIECES: tl.constexpr, i: tl.constexpr, WIDE: tl.constexpr,
):
    """Piece i of head_dim of the rows from `first` on.

    The part that differs between threads depends on the shape alone, so that one set of registers
    serves all tiles of a shape; where a tile begins is a scalar.
    """
    rows = tl.arange(0, ROWS).to(tl.int64) if WIDE else tl.arange(0, ROWS)
    within = rows[:, None] * stride + tl.arange(0, _size(D_PIECES, i))[None, :]
    begin = tl.cast(first, tl.int64) if WIDE else first
    return base + begin * stride + _start(D_PIECES, i) + within


@triton.jit
def _inside(rows, HEAD_DIM: tl.constexpr, D_PIECES: tl.constexpr, i: tl.constexpr):
    """Which elements of piece i of head_dim are there, of rows that are."""
    inside = rows[:, None]
    if _start(D_PIECES, i) + _size(D_PIECES, i) > HEAD_DIM:
        columns = tl.arange(0, _size(D_PIECES, i))
        inside = inside & (columns < HEAD_DIM - _start(D_PIECES, i))[None, :]
    return inside


@triton.jit
def _tf32(x):
    """x rounded to the mantissa that tf32 products read: they would cut off the rest of it."""
    bits = x.to(tl.int32, bitcast=True)
    rounded = ((bits + 0x1000) & -0x2000).to(tl.float32, bitcast=True)
    # The carry would make a number of some NaN.
    return tl.where(x == x, rounded, x)


@triton.jit
def _factor(x, dtype: tl.constexpr, PRECISION: tl.constexpr):
    """x as a factor of a product in a dtype and precision."""
    return _tf32(x) if PRECISION == "tf32" else x.to(dtype)


@triton.jit
def _load_tile(
    base, first, stride, rows,
    HEAD_DIM: tl.constexpr, D_PIECES: tl.constexpr, i: tl.constexpr, WIDE: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Piece i of head_dim of the rows from `first` on, 0 where `rows` is False: for products."""
    pointers = _pointers(base, first, stride, rows.shape[0], D_PIECES, i, WIDE)
    tile = tl.load(pointers, mask=_inside(rows, HEAD_DIM, D_PIECES, i), other=0.0)
    return _factor(tile, tile.dtype, PRECISION)


@triton.jit
def _load_rows(
    base, first, stride, rows,
    HEAD_DIM: tl.constexpr, D_PIECES: tl.constexpr, WIDE: tl.constexpr, PRECISION: tl.constexpr,
):
    """All pieces of head_dim of the rows from `first` on, 0 where `rows` is False."""
    tiles = ()
    for i in tl.static_range(len(D_PIECES)):
        tiles += (_load_tile(base, first, stride, rows, HEAD_DIM, D_PIECES, i, WIDE, PRECISION),)
    return tiles


@triton.jit
def _store_rows(
    base, first, stride, rows, tiles, factor,
    HEAD_DIM: tl.constexpr, D_PIECES: tl.constexpr, WIDE: tl.constexpr,
):
    """Stores factor * tiles in the rows from `first` on, where `rows` is True."""
    for i in tl.static_range(len(D_PIECES)):
        pointers = _pointers(base, first, stride, rows.shape[0], D_PIECES, i, WIDE)
        values = (tiles[i] * factor).to(base.dtype.element_ty)
        tl.store(pointers, values, mask=_inside(rows, HEAD_DIM, D_PIECES, i))


@triton.jit
def _rows_of_order(base, n, stride, WIDE: tl.constexpr):
    """Where each row n begins: as a base it needs neither a first row nor a stride."""
    return (base + (n.to(tl.int64) if WIDE else n) * stride)[:, None]


@triton.jit
def _load_pixels(
    base, pixel, n, stride, inside,
    HEAD_DIM: tl.constexpr, D_PIECES: tl.constexpr, WIDE: tl.constexpr, PRECISION: tl.constexpr,
    HAS_PLAN: tl.constexpr,
):
    """The rows of a tile of pixels n, which without a plan are those from `pixel` on."""
    if HAS_PLAN:
        rows = _rows_of_order(base, n, stride, WIDE)
        tiles = _load_rows(rows, 0, 0, inside, HEAD_DIM, D_PIECES, WIDE, PRECISION)
    else:
        tiles = _load_rows(base, pixel, stride, inside, HEAD_DIM, D_PIECES, WIDE, PRECISION)
    return tiles


@triton.jit
def _store_pixels(
    base, pixel, n, stride, inside, tiles, factor,
    HEAD_DIM: tl.constexpr, D_PIECES: tl.constexpr, WIDE: tl.constexpr, HAS_PLAN: tl.constexpr,
):
    """Stores factor * tiles in the rows of a tile of pixels, as in `_load_pixels`."""
    if HAS_PLAN:
        rows = _rows_of_order(base, n, stride, WIDE)
        _store_rows(rows, 0, 0, inside, tiles, factor, HEAD_DIM, D_PIECES, WIDE)
    else:
        _store_rows(base, pixel, stride, inside, tiles, factor, HEAD_DIM, D_PIECES, WIDE)


@triton.jit
def _bits_of(met, tile, words, BLOCK_Q: tl.constexpr):
    """The plan's bits of a tile of BLOCK_Q pixels: of each entry that exists at any of them."""
    word = tile * BLOCK_Q // 32
    bits = tl.load(met + word)
    for i in tl.static_range(1, BLOCK_Q // 32):
        bits |= tl.load(met + word + i, mask=word + i < words, other=0)
    return bits


@triton.jit
def _exists(region, n, stride_rn, possible, HAS_REGION: tl.constexpr):
    """At which of the pixels n a prompt exists."""
    if HAS_REGION:
        possible = tl.load(region + n.to(tl.int64) * stride_rn, mask=possible, other=0) != 0
    return possible


@triton.jit
def _or(a, b):
    return a | b


@triton.jit
def _present(
    region, prompt_ids, key_lengths, bits, first, count, n, inside, stride_rp, stride_rn,
    RAGGED: tl.constexpr, HAS_REGION: tl.constexpr, HAS_LENGTHS: tl.constexpr,
    HAS_PLAN: tl.constexpr,
):
    """Bits of up to 32 entries from `first` on: of those to walk, and, for each pixel n, of those
    that exist there.

    bits: of all entries of the tile, as the plan has them.
    """
    count = tl.minimum(count - first, 32)
    walked = tl.where(count < 32, (1 << count) - 1, -1)
    if HAS_PLAN:
        # The plan of an element of more than 64 entries has all bits set.
        walked &= tl.where(first < 64, (bits >> first).to(tl.int32), -1)
    here = tl.zeros(n.shape, tl.int32)
    for group in range(0, count, 8):
        # Loads that do not wait for one another.
        for i in tl.static_range(8):
            bit = group + i
            exists = inside & ((walked >> bit & 1) != 0) & (bit < count)
            p = tl.cast(first + bit, tl.int64)
            if HAS_LENGTHS:
                row = tl.load(prompt_ids + p, mask=bit < count, other=0) if RAGGED else p
                exists &= tl.load(key_lengths + row, mask=bit < count, other=0) > 0
            exists = _exists(region + p * stride_rp, n, stride_rn, exists, HAS_REGION)
            here |= exists.to(tl.int32) << bit
    return walked if HAS_PLAN else tl.reduce(here, 0, _or), here


@triton.jit
def _popcount(bits):
    """How many of 32 bits are set."""
    x = bits.to(tl.uint32)
    x -= (x >> 1) & 0x55555555
    x = (x & 0x33333333) + ((x >> 2) & 0x33333333)
    x = (x + (x >> 4)) & 0x0F0F0F0F
    return ((x * 0x01010101) >> 24).to(tl.int32)


@triton.jit
def _lowest(bits):
    """Which is the lowest bit that is set."""
    alone = (bits & -bits).to(tl.uint32)
    # float32 holds a power of two exactly, and its exponent says which one it is.
    return (alone.to(tl.float32).to(tl.int32, bitcast=True) >> 23) - 127


@triton.jit
def _zeros(ROWS: tl.constexpr, D_PIECES: tl.constexpr):
    tiles = ()
    for i in tl.static_range(len(D_PIECES)):
        tiles += (tl.zeros((ROWS, _size(D_PIECES, i)), tl.float32),)
    return tiles


@triton.jit
def _keys(left, K_PIECES: tl.constexpr, FULL: tl.constexpr, j: tl.constexpr):
    """Which keys of piece j of a tile are there, of a tile with `left` keys from its first on."""
    if j < FULL:
        keys = tl.full((_size(K_PIECES, j),), 1, tl.int1)
    else:
        keys = tl.arange(0, _size(K_PIECES, j)) < left - _start(K_PIECES, j)
    return keys


@triton.jit
def _products(
    a, b, stride, first, length,
    HEAD_DIM: tl.constexpr, D_PIECES: tl.constexpr, K_PIECES: tl.constexpr, FULL: tl.constexpr,
    WIDE: tl.constexpr, PRECISION: tl.constexpr,
):
    """a @ b.T for one tile of keys, the rows of b: a product for each piece of keys.

    All keys take their turn with one piece of head_dim before the next one is needed in registers.
    """
    products = ()
    for i in tl.static_range(len(D_PIECES)):
        sums = ()
        for j in tl.static_range(len(K_PIECES)):
            key = first + _start(K_PIECES, j)
            keys = _keys(length - first, K_PIECES, FULL, j)
            b_tile = _load_tile(b, key, stride, keys, HEAD_DIM, D_PIECES, i, WIDE, PRECISION)
            if i == 0:
                sums += (tl.dot(a[i], tl.trans(b_tile), input_precision=PRECISION),)
            else:
                sums += (tl.dot(a[i], tl.trans(b_tile), products[j], input_precision=PRECISION),)
        products = sums
    return products


@triton.jit
def _add_piece(
    a, b, stride, first, length, piece,
    HEAD_DIM: tl.constexpr, D_PIECES: tl.constexpr, K_PIECES: tl.constexpr, FULL: tl.constexpr,
    WIDE: tl.constexpr, PRECISION: tl.constexpr, i: tl.constexpr,
):
    """piece + a @ b for piece i of head_dim and one tile of keys, the columns of a."""
    for j in tl.static_range(len(K_PIECES)):
        key = first + _start(K_PIECES, j)
        keys = _keys(length - first, K_PIECES, FULL, j)
        b_tile = _load_tile(b, key, stride, keys, HEAD_DIM, D_PIECES, i, WIDE, PRECISION)
        a_tile = _factor(a[j], b_tile.dtype, PRECISION)
        piece = tl.dot(a_tile, b_tile, piece, input_precision=PRECISION)
    return piece


@triton.jit
def _add_products(
    a, b, stride, first, length, total,
    HEAD_DIM: tl.constexpr, D_PIECES: tl.constexpr, K_PIECES: tl.constexpr, FULL: tl.constexpr,
    WIDE: tl.constexpr, PRECISION: tl.constexpr,
):
    """total + a @ b for one tile of keys, the columns of a."""
    sums = ()
    for i in tl.static_range(len(D_PIECES)):
        sums += (
            _add_piece(
                a, b, stride, first, length, total[i],
                HEAD_DIM, D_PIECES, K_PIECES, FULL, WIDE, PRECISION, i,
            ),
        )
    return sums


@triton.jit
def _add_weighted_products(
    a, b, stride, first, length, total, factor, exists,
    HEAD_DIM: tl.constexpr, D_PIECES: tl.constexpr, K_PIECES: tl.constexpr, FULL: tl.constexpr,
    WIDE: tl.constexpr, PRECISION: tl.constexpr,
    SELECT: tl.constexpr,
):
    """total + factor * (a @ b), a factor a row; with SELECT, only rows that exist.

    Registers hold the product of one piece of head_dim at a time.
    """
    sums = ()
    for i in tl.static_range(len(D_PIECES)):
        own = _add_piece(
            a, b, stride, first, length, tl.zeros_like(total[i]),
            HEAD_DIM, D_PIECES, K_PIECES, FULL, WIDE, PRECISION, i,
        )
        piece = total[i] + own * factor[:, None]
        sums += (tl.where(exists[:, None], piece, total[i]) if SELECT else piece,)
    return sums


@triton.jit
def _add_weighted(own, factor, total, exists, SELECT: tl.constexpr):
    """total + factor * own, a factor a row; with SELECT, only rows that exist."""
    sums = ()
    for i in tl.static_range(len(own)):
        piece = total[i] + own[i] * factor[:, None]
        sums += (tl.where(exists[:, None], piece, total[i]) if SELECT else piece,)
    return sums


@triton.jit
def _masked(scores, keys, NEGATIVE: tl.constexpr):
    if NEGATIVE:
        scores = -scores
    return tl.where(keys[None, :], scores, float("-inf"))


@triton.jit
def _scores(
    q, k,
    stride_kl,
    first, length,
    HEAD_DIM: tl.constexpr, D_PIECES: tl.constexpr, K_PIECES: tl.constexpr, FULL: tl.constexpr,
    WIDE: tl.constexpr, NEGATIVE: tl.constexpr, PRECISION: tl.constexpr,
):
    """q @ k.T for one tile of keys, -inf beyond the length."""
    products = _products(
        q, k, stride_kl, first, length, HEAD_DIM, D_PIECES, K_PIECES, FULL, WIDE, PRECISION
    )
    scores = ()
    for j in tl.static_range(len(K_PIECES)):
        keys = _keys(length - first, K_PIECES, FULL, j)
        scores += (_masked(products[j], keys, NEGATIVE),)
    return scores


@triton.constexpr_function
def _narrowest(tiles):
    return min(tile.shape[1] for tile in tiles)


@triton.jit
def _reduce(x, axis: tl.constexpr, LARGEST: tl.constexpr):
    return tl.max(x, axis) if LARGEST else tl.sum(x, axis)


@triton.jit
def _row_reduce(tiles, LARGEST: tl.constexpr):
    """The largest of each row of the tiles, or its sum.

    Tiles are first laid on one another, as wide as the narrowest is: threads exchange what they
    have once, not once a tile.
    """
    WIDTH: tl.constexpr = _narrowest(tiles)
    columns = _columns(tiles[0], WIDTH, LARGEST)
    for j in tl.static_range(1, len(tiles)):
        others = _columns(tiles[j], WIDTH, LARGEST)
        columns = tl.maximum(columns, others) if LARGEST else columns + others
    return _reduce(columns, 1, LARGEST)


@triton.jit
def _columns(tile, WIDTH: tl.constexpr, LARGEST: tl.constexpr):
    """A tile cut into tiles of WIDTH columns, which are laid on one another."""
    if tile.shape[1] > WIDTH:
        parts = tl.reshape(tile, (tile.shape[0], tile.shape[1] // WIDTH, WIDTH))
        tile = _reduce(parts, 1, LARGEST)
    return tile


@triton.jit
def _exponentials(scores, scale, m):
    """exp2(scale * scores - m)."""
    p = ()
    for j in tl.static_range(len(scores)):
        p += (tl.math.exp2(scores[j] * scale - m[:, None]),)
    return p


@triton.jit
def _exp2(scores, scale, m):
    """exp2(scale * scores - m) and its sum over a row."""
    p = _exponentials(scores, scale, m)
    return p, _row_reduce(p, False)


@triton.jit
def _per(weight, rowsum, dtype: tl.constexpr):
    """weight / rowsum, to within what a product in a dtype can tell."""
    if dtype == tl.float32:
        result = weight / rowsum
    else:
        # A row's largest number is 1, so that its sum needs none of what a division does for
        # numbers whose reciprocal is too large or too small: three instructions, not eight.
        root = tl.math.rsqrt(rowsum)
        result = weight * (root * root)
    return result


@triton.jit
def _weighted(p, factor):
    """factor * p, a factor a row."""
    weighted = ()
    for j in tl.static_range(len(p)):
        weighted += (p[j] * factor[:, None],)
    return weighted


@triton.jit
def _attend(
    q, k, v,
    stride_kl, stride_vl,
    weight, exists, total, scale, length,
    HEAD_DIM: tl.constexpr, D_PIECES: tl.constexpr, K_PIECES: tl.constexpr, FULL: tl.constexpr,
    TILED: tl.constexpr, WIDE: tl.constexpr, NEGATIVE: tl.constexpr, PRECISION: tl.constexpr,
    SELECT: tl.constexpr, FOLD: tl.constexpr,
):
    """total + weight * softmax(q @ k.T) @ v for one prompt; with SELECT, only rows that exist."""
    if TILED:
        m = tl.full(weight.shape, float("-inf"), tl.float32)
        rowsum = tl.zeros_like(m)
        own = _zeros(weight.shape[0], D_PIECES)
        for first in range(0, length, _total(K_PIECES)):
            scores = _scores(
                q, k, stride_kl, first, length,
                HEAD_DIM, D_PIECES, K_PIECES, FULL, WIDE, NEGATIVE, PRECISION,
            )
            m_before = m
            m = tl.maximum(m, _row_reduce(scores, True) * scale)
            p, tile_sum = _exp2(scores, scale, m)
            shrink = tl.math.exp2(m_before - m)
            rowsum = rowsum * shrink + tile_sum
            shrunk = ()
            for i in tl.static_range(len(D_PIECES)):
                shrunk += (own[i] * shrink[:, None],)
            own = shrunk
            own = _add_products(
                p, v, stride_vl, first, length, own,
                HEAD_DIM, D_PIECES, K_PIECES, FULL, WIDE, PRECISION,
            )
        result = _add_weighted(own, _per(weight, rowsum, k.dtype.element_ty), total, exists, SELECT)
    else:
        scores = _scores(
            q, k, stride_kl, 0, length,
            HEAD_DIM, D_PIECES, K_PIECES, FULL, WIDE, NEGATIVE, PRECISION,
        )
        p, rowsum = _exp2(scores, scale, _row_reduce(scores, True) * scale)
        factor = _per(weight, rowsum, k.dtype.element_ty)
        if FOLD and not SELECT:
            result = _add_products(
                _weighted(p, factor), v, stride_vl, 0, length, total,
                HEAD_DIM, D_PIECES, K_PIECES, FULL, WIDE, PRECISION,
            )
        else:
            result = _add_weighted_products(
                p, v, stride_vl, 0, length, total, factor, exists,
                HEAD_DIM, D_PIECES, K_PIECES, FULL, WIDE, PRECISION, SELECT,
            )
    return result


@triton.jit
def _tile_of(
    order, tiles, heads, seqlen_q, HAS_PLAN: tl.constexpr, BLOCK_Q: tl.constexpr
):
    """Of this program: its tile, head and batch element, the tile's pixels and which are there.

    Those that are not are any that are there.
    """
    program = tl.program_id(0)
    tile = program % tiles
    h = (program // tiles % heads).to(tl.int64)
    b = (program // tiles // heads).to(tl.int64)
    n = tile * BLOCK_Q + tl.arange(0, BLOCK_Q)
    inside = n < seqlen_q
    if HAS_PLAN:
        n = tl.load(order + b * seqlen_q + n, mask=inside, other=0)
    else:
        n = tl.minimum(n, seqlen_q - 1)
    return tile, h, b, n, inside


@triton.jit
def _entries_of(
    b, k, v, weight, region, prompt_ids, offsets, prompts,
    stride_kb, stride_vb, stride_wb, stride_wp, stride_rb, stride_rp,
    RAGGED: tl.constexpr,
):
    """The first entry of a batch element, how many it has, and where what they have begins."""
    if RAGGED:
        first = tl.load(offsets + b).to(tl.int64)
        count = (tl.load(offsets + b + 1) - first).to(tl.int32)
        weight += first * stride_wp
        region += first * stride_rp
        prompt_ids += first
    else:
        first = b * prompts
        count = prompts
        k += b * stride_kb
        v += b * stride_vb
        weight += b * stride_wb
        region += b * stride_rb
    return first, count, k, v, weight, region, prompt_ids


@triton.jit
def _walk_of(
    begin, count, tile, b, n, inside, region, prompt_ids, key_lengths, met, words,
    stride_rp, stride_rn,
    RAGGED: tl.constexpr, HAS_REGION: tl.constexpr, HAS_LENGTHS: tl.constexpr,
    HAS_PLAN: tl.constexpr, BLOCK_Q: tl.constexpr,
):
    """How many entries from `begin` on to walk; where some may be absent, at most 32, and their
    bits as in `_present`.
    """
    walked, bits, here = count, 0, inside
    if HAS_REGION or HAS_LENGTHS:
        planned = _bits_of(met + b * words, tile, words, BLOCK_Q) if HAS_PLAN else 0
        bits, here = _present(
            region, prompt_ids, key_lengths, planned, begin, count, n, inside, stride_rp, stride_rn,
            RAGGED, HAS_REGION, HAS_LENGTHS, HAS_PLAN,
        )
        walked = _popcount(bits)
    return walked, bits, here


@triton.jit
def _next(
    i, begin, bits, here, n, inside, weight, prompt_ids, key_lengths, seqlen_k,
    stride_wp, stride_wn, RAGGED: tl.constexpr, SKIPS: tl.constexpr, HAS_LENGTHS: tl.constexpr,
):
    """Of entry i of a walk: its number, where its keys are, how many, where it exists, its weight;
    and the bits that are left.
    """
    p, exists = tl.cast(i, tl.int64), inside
    if SKIPS:
        p = (begin + _lowest(bits)).to(tl.int64)
        exists = (here & (bits & -bits)) != 0
        bits &= bits - 1
    row = tl.load(prompt_ids + p).to(tl.int64) if RAGGED else p
    length = tl.load(key_lengths + row) if HAS_LENGTHS else seqlen_k
    # Weights of pixels where it does not exist are thrown away: none waits for the bits.
    w = tl.load(weight + p * stride_wp + n.to(tl.int64) * stride_wn)
    return p, row, length, exists, w, bits


@triton.jit(do_not_specialize=_SIZES)
def forward(
    q, k, v, weight, region, prompt_ids, offsets, key_lengths, order, met, out,
    scale, prompts, heads, seqlen_q, seqlen_k, tiles, words,
    stride_qb, stride_qh, stride_qn, stride_kb, stride_kp, stride_kh, stride_kl, stride_vb,
    stride_vp, stride_vh, stride_vl, stride_wb, stride_wp, stride_wn, stride_rb, stride_rp,
    stride_rn, stride_ob, stride_oh, stride_on,
    HEAD_DIM: tl.constexpr, D_PIECES: tl.constexpr, K_PIECES: tl.constexpr, FULL: tl.constexpr,
    TILED: tl.constexpr, RAGGED: tl.constexpr, HAS_REGION: tl.constexpr, HAS_LENGTHS: tl.constexpr,
    HAS_PLAN: tl.constexpr, NEGATIVE: tl.constexpr, STRIDE: tl.constexpr, SAME: tl.constexpr,
    WIDE: tl.constexpr, PRECISION: tl.constexpr, FOLD: tl.constexpr, BLOCK_Q: tl.constexpr,
):
    """out = sum_p weight_p * softmax(q @ k_p.T) @ v_p for BLOCK_Q pixels of one head."""
    tile, h, b, n, inside = _tile_of(order, tiles, heads, seqlen_q, HAS_PLAN, BLOCK_Q)
    _, count, k, v, weight, region, prompt_ids = _entries_of(
        b, k, v, weight, region, prompt_ids, offsets, prompts,
        stride_kb * STRIDE, stride_vb * STRIDE, stride_wb, stride_wp, stride_rb, stride_rp, RAGGED,
    )
    stride_vl = stride_kl if SAME else stride_vl
    q += (b * stride_qb + h * stride_qh) * STRIDE
    k += h * stride_kh * STRIDE
    v += h * stride_vh * STRIDE
    pixel = tl.cast(tile * BLOCK_Q, tl.int64)
    q_tiles = _load_pixels(
        q, pixel, n, stride_qn * STRIDE, inside, HEAD_DIM, D_PIECES, WIDE, PRECISION, HAS_PLAN
    )
    total = _zeros(BLOCK_Q, D_PIECES)
    SKIPS: tl.constexpr = HAS_REGION or HAS_LENGTHS
    for begin in range(0, count if SKIPS else 1, 32):
        walked, bits, here = _walk_of(
            begin, count, tile, b, n, inside, region, prompt_ids, key_lengths, met, words,
            stride_rp, stride_rn, RAGGED, HAS_REGION, HAS_LENGTHS, HAS_PLAN, BLOCK_Q,
        )
        for i in range(walked):
            _, row, length, exists, w, bits = _next(
                i, begin, bits, here, n, inside, weight, prompt_ids, key_lengths, seqlen_k,
                stride_wp, stride_wn, RAGGED, SKIPS, HAS_LENGTHS,
            )
            total = _attend(
                q_tiles, k + row * stride_kp * STRIDE, v + row * stride_vp * STRIDE,
                stride_kl * STRIDE, stride_vl * STRIDE,
                w, exists, total, scale, length,
                HEAD_DIM, D_PIECES, K_PIECES, FULL, TILED, WIDE, NEGATIVE, PRECISION, HAS_REGION,
                FOLD,
            )
    out += (b * stride_ob + h * stride_oh) * STRIDE
    _store_pixels(
        out, pixel, n, stride_on * STRIDE, inside, total, 1.0, HEAD_DIM, D_PIECES, WIDE, HAS_PLAN
    )


@triton.jit
def _row_dot(p, g):
    """rowsum(p * g)."""
    products = ()
    for j in tl.static_range(len(p)):
        products += (p[j] * g[j],)
    return _row_reduce(products, False)


@triton.jit
def _score_gradient(p, g, r):
    """dS = p * (g - r)."""
    ds = ()
    for j in tl.static_range(len(p)):
        ds += (p[j] * (g[j] - r[:, None]),)
    return ds


@triton.jit
def _differentiate(
    q, dout, k, v,
    stride_kl, stride_vl,
    weight, exists, total, scale, length,
    HEAD_DIM: tl.constexpr, D_PIECES: tl.constexpr, K_PIECES: tl.constexpr, FULL: tl.constexpr,
    TILED: tl.constexpr, WIDE: tl.constexpr, NEGATIVE: tl.constexpr, PRECISION: tl.constexpr,
    SELECT: tl.constexpr, WANT_DQ: tl.constexpr,
):
    """total + dS @ k (with SELECT, only rows that exist), r, m and factor for one prompt."""
    m = tl.full(weight.shape, float("-inf"), tl.float32)
    rowsum = tl.zeros_like(m)
    r = tl.zeros_like(m)
    if TILED:
        # r needs whole rows: one walk over the keys for the sums, one for dq.
        for first in range(0, length, _total(K_PIECES)):
            scores = _scores(
                q, k, stride_kl, first, length,
                HEAD_DIM, D_PIECES, K_PIECES, FULL, WIDE, NEGATIVE, PRECISION,
            )
            g = _products(
                dout, v, stride_vl, first, length,
                HEAD_DIM, D_PIECES, K_PIECES, FULL, WIDE, PRECISION,
            )
            m_before = m
            m = tl.maximum(m, _row_reduce(scores, True) * scale)
            p, tile_sum = _exp2(scores, scale, m)
            shrink = tl.math.exp2(m_before - m)
            rowsum = rowsum * shrink + tile_sum
            r = r * shrink + _row_dot(p, g)
        r = _per(r, rowsum, k.dtype.element_ty)
        factor = _per(weight, rowsum, k.dtype.element_ty)
        if WANT_DQ:
            # A sum over the keys of all prompts would show its rounding errors in float32.
            SEPARATE: tl.constexpr = k.dtype.element_ty == tl.float32
            own = _zeros(weight.shape[0], D_PIECES) if SEPARATE else total
            for first in range(0, length, _total(K_PIECES)):
                scores = _scores(
                    q, k, stride_kl, first, length,
                    HEAD_DIM, D_PIECES, K_PIECES, FULL, WIDE, NEGATIVE, PRECISION,
                )
                g = _products(
                    dout, v, stride_vl, first, length,
                    HEAD_DIM, D_PIECES, K_PIECES, FULL, WIDE, PRECISION,
                )
                p = _exponentials(scores, scale, m)
                if SEPARATE or not SELECT:
                    own = _add_products(
                        _score_gradient(p if SEPARATE else _weighted(p, factor), g, r),
                        k, stride_kl, first, length, own,
                        HEAD_DIM, D_PIECES, K_PIECES, FULL, WIDE, PRECISION,
                    )
                else:
                    own = _add_weighted_products(
                        _score_gradient(p, g, r),
                        k, stride_kl, first, length, own, factor, exists,
                        HEAD_DIM, D_PIECES, K_PIECES, FULL, WIDE, PRECISION, True,
                    )
            total = _add_weighted(own, factor, total, exists, SELECT) if SEPARATE else own
    else:
        scores = _scores(
            q, k, stride_kl, 0, length,
            HEAD_DIM, D_PIECES, K_PIECES, FULL, WIDE, NEGATIVE, PRECISION,
        )
        g = _products(
            dout, v, stride_vl, 0, length, HEAD_DIM, D_PIECES, K_PIECES, FULL, WIDE, PRECISION
        )
        m = _row_reduce(scores, True) * scale
        p, rowsum = _exp2(scores, scale, m)
        r = _per(_row_dot(p, g), rowsum, k.dtype.element_ty)
        factor = _per(weight, rowsum, k.dtype.element_ty)
        if WANT_DQ and SELECT:
            total = _add_weighted_products(
                _score_gradient(p, g, r), k, stride_kl, 0, length, total, factor, exists,
                HEAD_DIM, D_PIECES, K_PIECES, FULL, WIDE, PRECISION, True,
            )
        elif WANT_DQ:
            total = _add_products(
                _score_gradient(_weighted(p, factor), g, r), k, stride_kl, 0, length, total,
                HEAD_DIM, D_PIECES, K_PIECES, FULL, WIDE, PRECISION,
            )
    return total, r, m, factor


@triton.jit(do_not_specialize=_SIZES)
def pixel_gradients(
    q, k, v, weight, region, prompt_ids, offsets, key_lengths, order, met, dout, dq, r, m, factor,
    scale, dq_scale, prompts, heads, entries, seqlen_q, seqlen_k, tiles, words,
    stride_qb, stride_qh, stride_qn, stride_kb, stride_kp, stride_kh, stride_kl, stride_vb,
    stride_vp, stride_vh, stride_vl, stride_wb, stride_wp, stride_wn, stride_rb, stride_rp,
    stride_rn, stride_gb, stride_gh, stride_gn, stride_dqb, stride_dqh, stride_dqn,
    HEAD_DIM: tl.constexpr, D_PIECES: tl.constexpr, K_PIECES: tl.constexpr, FULL: tl.constexpr,
    TILED: tl.constexpr, RAGGED: tl.constexpr, HAS_REGION: tl.constexpr, HAS_LENGTHS: tl.constexpr,
    HAS_PLAN: tl.constexpr, NEGATIVE: tl.constexpr, STRIDE: tl.constexpr, SAME: tl.constexpr,
    WIDE: tl.constexpr, PRECISION: tl.constexpr, WANT_DQ: tl.constexpr, WANT_R: tl.constexpr,
    WANT_ROWS: tl.constexpr, BLOCK_Q: tl.constexpr,
):
    """dq, r, and m and factor, as far as wanted, for BLOCK_Q pixels of one head.

    dq = dq_scale * sum_p dS_p @ k_p with dS = weight * A * (G - r), G = dout @ v.T and
    r = rowsum(A * G), which is dweight before the sum over heads. m and factor of prompts that a
    tile does not meet stay as they are.
    """
    tile, h, b, n, inside = _tile_of(order, tiles, heads, seqlen_q, HAS_PLAN, BLOCK_Q)
    first, count, k, v, weight, region, prompt_ids = _entries_of(
        b, k, v, weight, region, prompt_ids, offsets, prompts,
        stride_kb * STRIDE, stride_vb * STRIDE, stride_wb, stride_wp, stride_rb, stride_rp, RAGGED,
    )
    stride_vl = stride_kl if SAME else stride_vl
    q += (b * stride_qb + h * stride_qh) * STRIDE
    dout += (b * stride_gb + h * stride_gh) * STRIDE
    k += h * stride_kh * STRIDE
    v += h * stride_vh * STRIDE
    pixel = tl.cast(tile * BLOCK_Q, tl.int64)
    q_tiles = _load_pixels(
        q, pixel, n, stride_qn * STRIDE, inside, HEAD_DIM, D_PIECES, WIDE, PRECISION, HAS_PLAN
    )
    dout_tiles = _load_pixels(
        dout, pixel, n, stride_gn * STRIDE, inside, HEAD_DIM, D_PIECES, WIDE, PRECISION, HAS_PLAN
    )
    total = _zeros(BLOCK_Q, D_PIECES)
    SKIPS: tl.constexpr = HAS_REGION or HAS_LENGTHS
    for begin in range(0, count if SKIPS else 1, 32):
        walked, bits, here = _walk_of(
            begin, count, tile, b, n, inside, region, prompt_ids, key_lengths, met, words,
            stride_rp, stride_rn, RAGGED, HAS_REGION, HAS_LENGTHS, HAS_PLAN, BLOCK_Q,
        )
        if SKIPS and WANT_R:
            for bit in range(tl.minimum(count - begin, 32)):
                if (bits >> bit & 1) == 0:
                    absent = (h * entries + first + begin + bit) * seqlen_q + n
                    tl.store(r + absent, tl.zeros((BLOCK_Q,), tl.float32), mask=inside)
        for i in range(walked):
            p, row, length, exists, w, bits = _next(
                i, begin, bits, here, n, inside, weight, prompt_ids, key_lengths, seqlen_k,
                stride_wp, stride_wn, RAGGED, SKIPS, HAS_LENGTHS,
            )
            total, r_here, m_here, factor_here = _differentiate(
                q_tiles, dout_tiles, k + row * stride_kp * STRIDE, v + row * stride_vp * STRIDE,
                stride_kl * STRIDE, stride_vl * STRIDE,
                w, exists, total, scale, length,
                HEAD_DIM, D_PIECES, K_PIECES, FULL, TILED, WIDE, NEGATIVE, PRECISION, HAS_REGION,
                WANT_DQ,
            )
            stat = (h * entries + first + p) * seqlen_q + n
            if WANT_R:
                tl.store(r + stat, tl.where(exists, r_here, 0.0), mask=inside)
            if WANT_ROWS:
                tl.store(m + stat, m_here, mask=inside)
                tl.store(factor + stat, factor_here, mask=inside)
    if WANT_DQ:
        dq += (b * stride_dqb + h * stride_dqh) * STRIDE
        _store_pixels(
            dq, pixel, n, stride_dqn * STRIDE, inside, total, dq_scale,
            HEAD_DIM, D_PIECES, WIDE, HAS_PLAN,
        )


@triton.jit
def _owner(offsets, entry, batch, BLOCK: tl.constexpr):
    """The batch element whose entries hold `entry`: how many elements end at or before it."""
    b = 0
    for start in range(0, batch, BLOCK):
        i = start + tl.arange(0, BLOCK)
        ends = tl.load(offsets + 1 + i, mask=i < batch, other=entry + 1)
        b += tl.sum((ends <= entry).to(tl.int32), 0)
    return b


@triton.jit
def _dot_rows(a, b, PRECISION: tl.constexpr):
    """a @ b.T, summed over the pieces of head_dim."""
    product = tl.dot(a[0], tl.trans(b[0]), input_precision=PRECISION)
    for i in tl.static_range(1, len(a)):
        product = tl.dot(a[i], tl.trans(b[i]), product, input_precision=PRECISION)
    return product


@triton.jit
def _add_product(a, b, total, PRECISION: tl.constexpr):
    """total + a @ b for every piece of head_dim."""
    sums = ()
    for i in tl.static_range(len(b)):
        sums += (tl.dot(a, b[i], total[i], input_precision=PRECISION),)
    return sums


@triton.jit
def _add_pixels(
    q, dout, k, v, exists, r, m, factor, dk, dv, scale, first, length,
    K_PIECES: tl.constexpr, FULL: tl.constexpr, NEGATIVE: tl.constexpr, PRECISION: tl.constexpr,
):
    """dk + dS.T @ q and dv + (weight * A).T @ dout of one tile of pixels and one of keys."""
    dk_sums, dv_sums = (), ()
    for j in tl.static_range(len(K_PIECES)):
        keys = _keys(length - first, K_PIECES, FULL, j)
        scores = _masked(_dot_rows(q, k[j], PRECISION), keys, NEGATIVE)
        g = _dot_rows(dout, v[j], PRECISION)
        p = tl.math.exp2(scores * scale - m[:, None]) * factor[:, None]
        p = tl.where(exists[:, None], p, 0.0)
        ds = p * (g - r[:, None])
        p = tl.trans(_factor(p, q[0].dtype, PRECISION))
        dv_sums += (_add_product(p, dout, dv[j], PRECISION),)
        ds = tl.trans(_factor(ds, q[0].dtype, PRECISION))
        dk_sums += (_add_product(ds, q, dk[j], PRECISION),)
    return dk_sums, dv_sums


@triton.jit
def _prompt_of(entry, prompt_ids, offsets, batch, prompts, RAGGED: tl.constexpr):
    """The batch element of an entry, the row of its keys, and the row of its region and gradients.

    Dense rows count within the batch element, ragged ones in the table and among the entries.
    """
    if RAGGED:
        b = _owner(offsets, entry, batch, 128).to(tl.int64)
        row = tl.load(prompt_ids + entry).to(tl.int64)
        p = entry.to(tl.int64)
    else:
        b = (entry // prompts).to(tl.int64)
        row = (entry % prompts).to(tl.int64)
        p = row
    return b, row, p


@triton.jit(do_not_specialize=_SIZES)
def prompt_gradients(
    q, k, v, region, prompt_ids, offsets, key_lengths, dout, r, m, factor, dk, dv,
    scale, dk_scale, batch, prompts, heads, entries, seqlen_q, seqlen_k, key_tiles, splits, tiles,
    stride_qb, stride_qh, stride_qn, stride_kb, stride_kp, stride_kh, stride_kl, stride_vb,
    stride_vp, stride_vh, stride_vl, stride_rb, stride_rp,
    stride_rn, stride_gb, stride_gh, stride_gn, stride_dks, stride_dkb, stride_dkp, stride_dkh,
    stride_dkl, stride_dvs, stride_dvb, stride_dvp, stride_dvh, stride_dvl,
    HEAD_DIM: tl.constexpr, D_PIECES: tl.constexpr, K_PIECES: tl.constexpr, FULL: tl.constexpr,
    RAGGED: tl.constexpr, HAS_REGION: tl.constexpr, HAS_LENGTHS: tl.constexpr,
    NEGATIVE: tl.constexpr, STRIDE: tl.constexpr, WIDE: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_Q: tl.constexpr,
):
    """dk and dv of one tile of keys of one entry and head, from one part of `splits` of the pixels.

    The pixels of a part are `tiles` tiles. dk, dv are the gradients themselves where there is one
    part and no table, and float32 parts (splits, entries, heads, seqlen_k, head_dim) otherwise,
    which `sum_parts` adds in a fixed order.
    """
    program = tl.program_id(0)
    entry = program % entries
    key_tile = program // entries % key_tiles
    split = program // entries // key_tiles % splits
    h = (program // entries // key_tiles // splits).to(tl.int64)
    b, row, p = _prompt_of(entry, prompt_ids, offsets, batch, prompts, RAGGED)
    if not RAGGED:
        k += b * stride_kb * STRIDE
        v += b * stride_vb * STRIDE
        region += b * stride_rb
        dk += b * stride_dkb * STRIDE
        dv += b * stride_dvb * STRIDE
    q += (b * stride_qb + h * stride_qh) * STRIDE
    dout += (b * stride_gb + h * stride_gh) * STRIDE
    k += (row * stride_kp + h * stride_kh) * STRIDE
    v += (row * stride_vp + h * stride_vh) * STRIDE
    dk += (split.to(tl.int64) * stride_dks + p * stride_dkp + h * stride_dkh) * STRIDE
    dv += (split.to(tl.int64) * stride_dvs + p * stride_dvp + h * stride_dvh) * STRIDE
    length = tl.load(key_lengths + row) if HAS_LENGTHS else seqlen_k
    first_key = key_tile * _total(K_PIECES)
    first_tile = split * tiles
    last_tile = tl.minimum(first_tile + tiles, tl.cdiv(seqlen_q, BLOCK_Q))
    if HAS_LENGTHS:
        last_tile = tl.where(first_key < length, last_tile, first_tile)

    k_tiles, v_tiles, dk_total, dv_total = (), (), (), ()
    for j in tl.static_range(len(K_PIECES)):
        key = first_key + _start(K_PIECES, j)
        keys = _keys(length - first_key, K_PIECES, FULL, j)
        k_tiles += (
            _load_rows(k, key, stride_kl * STRIDE, keys, HEAD_DIM, D_PIECES, WIDE, PRECISION),
        )
        v_tiles += (
            _load_rows(v, key, stride_vl * STRIDE, keys, HEAD_DIM, D_PIECES, WIDE, PRECISION),
        )
        dk_total += (_zeros(_size(K_PIECES, j), D_PIECES),)
        dv_total += (_zeros(_size(K_PIECES, j), D_PIECES),)
    for tile in range(first_tile, last_tile):
        n = tile * BLOCK_Q + tl.arange(0, BLOCK_Q)
        pixel = tl.cast(tile * BLOCK_Q, tl.int64)
        exists = _exists(region + p * stride_rp, n, stride_rn, n < seqlen_q, HAS_REGION)
        if tl.max(exists.to(tl.int32), 0) > 0 if HAS_REGION else True:
            stat = (h * entries + entry) * seqlen_q + n
            q_tiles = _load_rows(
                q, pixel, stride_qn * STRIDE, exists, HEAD_DIM, D_PIECES, WIDE, PRECISION
            )
            dout_tiles = _load_rows(
                dout, pixel, stride_gn * STRIDE, exists, HEAD_DIM, D_PIECES, WIDE, PRECISION
            )
            dk_total, dv_total = _add_pixels(
                q_tiles, dout_tiles, k_tiles, v_tiles, exists,
                tl.load(r + stat, mask=exists, other=0.0),
                tl.load(m + stat, mask=exists, other=0.0),
                tl.load(factor + stat, mask=exists, other=0.0),
                dk_total, dv_total, scale, first_key, length, K_PIECES, FULL, NEGATIVE, PRECISION,
            )
    for j in tl.static_range(len(K_PIECES)):
        key = first_key + _start(K_PIECES, j)
        keys = _keys(seqlen_k - first_key, K_PIECES, FULL, j)
        _store_rows(
            dk, key, stride_dkl * STRIDE, keys, dk_total[j], dk_scale, HEAD_DIM, D_PIECES, WIDE
        )
        _store_rows(dv, key, stride_dvl * STRIDE, keys, dv_total[j], 1.0, HEAD_DIM, D_PIECES, WIDE)


@triton.jit(do_not_specialize=_SIZES)
def sum_parts(
    parts, prompt_ids, out, prompts, heads, entries, splits, size, blocks,
    stride_ob, stride_op, stride_oh, stride_ol,
    HEAD_DIM: tl.constexpr, RAGGED: tl.constexpr, BLOCK: tl.constexpr,
):
    """BLOCK elements of dk or dv of one prompt and head: the parts of all entries that name it.

    parts is (splits, entries, heads, size) float32, size = seqlen_k * HEAD_DIM. Entries are added
    in their order, and the parts of each in theirs.
    """
    program = tl.program_id(0)
    element = program % blocks * BLOCK + tl.arange(0, BLOCK)
    h = (program // blocks % heads).to(tl.int64)
    row = program // blocks // heads
    inside = element < size
    total = tl.zeros((BLOCK,), tl.float32)
    for entry in range(0 if RAGGED else row, entries if RAGGED else row + 1):
        if tl.load(prompt_ids + entry) == row if RAGGED else True:
            for split in range(splits):
                index = (tl.cast(split, tl.int64) * entries + entry) * heads + h
                total += tl.load(parts + index * size + element, mask=inside, other=0.0)
    if RAGGED:
        out += row.to(tl.int64) * stride_op
    else:
        out += (row // prompts).to(tl.int64) * stride_ob + (row % prompts).to(tl.int64) * stride_op
    out += h * stride_oh
    here = out + (element // HEAD_DIM).to(tl.int64) * stride_ol + element % HEAD_DIM
    tl.store(here, total.to(out.dtype.element_ty), mask=inside)
