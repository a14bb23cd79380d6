/* Multi-scale deformable attention on a CPU: forward and backward, float and double; no Python and no torch in here.
 *
 * The operator of Deformable DETR (arXiv 2010.04159, Eq. 2 and 3). For every query and head, `levels * points` samples
 * are taken bilinearly from the maps, with zeros outside, and summed by weight.
 *
 * What makes it fast:
 * - Queries that are the tokens of the maps (the encoder) are visited in small square tiles: the rows that a tile
 *   samples lie close together and stay in the first caches while all of its queries and heads use them.
 * - Positions, softmax, corners and weights of all samples of a query are computed side by side in vectors, then the
 *   rows are summed with the channels of a head in vectors. Corners outside are clamped into the map with weight zero:
 *   there is no branch per sample. (So a row that holds an infinity can spread NaN to samples just outside of the map.)
 * - Forward work is shared out by tile and backward work by head, so that no two threads ever write to one place: no
 *   atomic operations, and the same bits at any number of threads.
 *
 * compile_kernel.py compiles this file once per instruction set, with VARIANT naming the entry points, and once with
 * SOURCE for the part that tells which of them this machine can run. The file includes itself for each number type.
 * Tensors are contiguous; their shapes have been checked by the caller.
 */
#ifdef SOURCE

/* The fastest instruction set that was compiled and that this machine has: the suffix of the entry points. */
const char *codetr_instruction_set(void) {
#if defined(HAVE_AVX512)
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))
        return "avx512";
#endif
#if defined(HAVE_AVX2)
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return "avx2";
#endif
    return "base";
}

/* Digest of the source that this library was made from. */
const char *codetr_source(void) { return SOURCE; }

#elif !defined(REAL)

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#if defined(__AVX512F__)
#define VECTOR_BYTES 64
#elif defined(__AVX__)
#define VECTOR_BYTES 32
#else
#define VECTOR_BYTES 16
#endif

#define TILE 8                /* side of a square tile of queries */
#define TILE_QUERIES (TILE * TILE)
#define MAX_SAMPLES 128       /* most of levels * points that the caller may ask for */
#define INLINE static inline __attribute__((always_inline))
#define ALIGNED __attribute__((aligned(64)))
#define UNROLL _Pragma("GCC unroll 8")
#define CONCATENATE_(a, b) a##_##b
#define CONCATENATE(a, b) CONCATENATE_(a, b)

#if defined(__has_builtin)
#if __has_builtin(__builtin_shufflevector)
#define SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#endif
#endif
#ifndef SHUFFLE /* GCC before 12 */
#define SHUFFLE(a, b, ...) __builtin_shuffle(a, b, (VECTOR_INT){__VA_ARGS__})
#endif

/* One call. Shapes with B batch, S tokens, N heads, D channels of a head, Q queries, L levels, P points. */
typedef struct {
    const void *value;          /* (B, S, N, D) */
    const void *reference;      /* (B, Q, L, reference_size), or NULL when reference_size is 0 */
    const void *sampling;       /* (B, Q, N, L, P, 2) locations in [0, 1] without references, else raw offsets */
    const void *scores;         /* (B, Q, N, L, P) weights without references, else logits */
    const void *grad_output;    /* (B, Q, N, D); backward only, like all that follow up to shapes */
    void *output;               /* (B, Q, N, D); forward only */
    void *grad_value;           /* (B, S, N, D), zeros at the start */
    void *grad_sampling;        /* as sampling */
    void *grad_scores;          /* as scores */
    void *grad_pixels;          /* as sampling, by the position in pixels; or NULL when nobody asks for it */
    const int64_t *shapes;      /* (L, 2) heights and widths */
    int64_t batch, tokens, heads, channels, queries, levels, points;
    int64_t reference_size;     /* 0: locations and weights are given; 2: points; 4: boxes cxcywh */
    int64_t heads_at_once;      /* of one task of the backward pass; divides heads */
    int64_t next_task;          /* shared by the threads that work on this call */
} Problem;

/* A rectangle of queries: `rows` runs of `columns` queries, `stride` apart. */
typedef struct {
    int64_t first, stride;
    int rows, columns;
} Tile;

INLINE int64_t minimum(int64_t a, int64_t b) { return a < b ? a : b; }

/* Whether the queries are the tokens themselves, in the same order. It decides the order of work, never the result. */
INLINE int queries_are_tokens(const Problem *p) { return p->queries == p->tokens; }

static int64_t count_tiles(const Problem *p) {
    if (!queries_are_tokens(p)) return p->queries;
    int64_t tiles = 0;
    for (int64_t level = 0; level < p->levels; level++)
        tiles += ((p->shapes[2 * level] + TILE - 1) / TILE) * ((p->shapes[2 * level + 1] + TILE - 1) / TILE);
    return tiles;
}

static Tile find_tile(const Problem *p, int64_t index) {
    Tile tile = {0, 0, 1, 0};
    if (!queries_are_tokens(p)) {
        tile.first = index; /* queries anywhere share nothing, but the heads of one share the pages of its samples */
        tile.columns = 1;
        return tile;
    }
    for (int64_t level = 0; level < p->levels; level++) {
        const int64_t height = p->shapes[2 * level], width = p->shapes[2 * level + 1];
        const int64_t across = (width + TILE - 1) / TILE, tiles = ((height + TILE - 1) / TILE) * across;
        if (index < tiles) {
            const int64_t row = index / across * TILE, column = index % across * TILE;
            tile.first += row * width + column;
            tile.stride = width;
            tile.rows = (int)minimum(TILE, height - row);
            tile.columns = (int)minimum(TILE, width - column);
            return tile;
        }
        index -= tiles;
        tile.first += height * width;
    }
    return tile;
}

INLINE int64_t take_task(Problem *p) { return __atomic_fetch_add(&p->next_task, 1, __ATOMIC_RELAXED); }

#define REAL float
#define REAL_BYTES 4
#define INTEGER int32_t
#define NAME(name) CONCATENATE(CONCATENATE(name, float), VARIANT)
#include "deform_attn.c"
#undef REAL
#undef REAL_BYTES
#undef INTEGER
#undef NAME

#define REAL double
#define REAL_BYTES 8
#define INTEGER int64_t
#define NAME(name) CONCATENATE(CONCATENATE(name, double), VARIANT)
#include "deform_attn.c"

#else /* ------------------------------------------------------------------------------ once for each number type */

#define VECTOR NAME(vector)
#define VECTOR_INT NAME(vector_int)
#define ANYWHERE NAME(anywhere)
#define QUARTER NAME(quarter)
#define QUARTER_ANYWHERE NAME(quarter_anywhere)
#define LANES (VECTOR_BYTES / REAL_BYTES)
#define BLOCK (128 / VECTOR_BYTES) /* vectors of 128 bytes: the channels of a usual head in float */

typedef REAL VECTOR __attribute__((vector_size(VECTOR_BYTES)));
typedef INTEGER VECTOR_INT __attribute__((vector_size(VECTOR_BYTES)));
typedef REAL ANYWHERE __attribute__((vector_size(VECTOR_BYTES), aligned(REAL_BYTES), may_alias));
typedef REAL QUARTER __attribute__((vector_size(16)));
typedef REAL QUARTER_ANYWHERE __attribute__((vector_size(16), aligned(REAL_BYTES), may_alias));

#define LOAD(address) (*(const ANYWHERE *)(address))
#define STORE(address, x) (*(ANYWHERE *)(address) = (x))
/* a where the mask is set, else b */
#define CHOOSE(mask, a, b) ((VECTOR)(((mask) & (VECTOR_INT)(a)) | (~(mask) & (VECTOR_INT)(b))))

/* x where the mask is set, else zero */
#define KEEP(mask, x) ((VECTOR)((mask) & (VECTOR_INT)(x)))

/* What is the same for all queries, one entry a sample, padded to whole vectors. */
typedef struct {
    int samples, padded;
    REAL width[MAX_SAMPLES] ALIGNED, height[MAX_SAMPLES] ALIGNED;
    INTEGER columns[MAX_SAMPLES] ALIGNED, rows[MAX_SAMPLES] ALIGNED, start[MAX_SAMPLES] ALIGNED;
} NAME(Levels);

/* Position in pixels = base + scale * sampling, for one query. */
typedef struct {
    REAL base_x[MAX_SAMPLES] ALIGNED, base_y[MAX_SAMPLES] ALIGNED;
    REAL scale_x[MAX_SAMPLES] ALIGNED, scale_y[MAX_SAMPLES] ALIGNED;
} NAME(Placement);

/* All samples of one query and head. Corners: upper left, upper right, lower left, lower right. */
typedef struct {
    INTEGER row[4][MAX_SAMPLES] ALIGNED;   /* where the value's row starts; clamped into the map */
    REAL weight[4][MAX_SAMPLES] ALIGNED;   /* bilinear share times attention, zero outside */
    REAL attention[MAX_SAMPLES] ALIGNED;
    REAL share_x[MAX_SAMPLES] ALIGNED, share_y[MAX_SAMPLES] ALIGNED; /* of the right and lower corners */
    REAL inside[4][MAX_SAMPLES] ALIGNED;   /* 1 or 0; backward only, like what follows */
    REAL dot[4][MAX_SAMPLES] ALIGNED;      /* grad_output . value of each corner */
    REAL by_x[MAX_SAMPLES] ALIGNED, by_y[MAX_SAMPLES] ALIGNED, by_score[MAX_SAMPLES] ALIGNED;
} NAME(Samples);

typedef struct {
    NAME(Levels) levels;
    NAME(Samples) samples;
    NAME(Placement) placements[TILE_QUERIES];
} NAME(Scratch);

static void NAME(describe_levels)(const Problem *p, NAME(Levels) *levels) {
    const int points = (int)p->points;
    levels->samples = (int)(p->levels * points);
    levels->padded = (levels->samples + LANES - 1) / LANES * LANES;
    int64_t start = 0;
    for (int level = 0; level < p->levels; level++) {
        const int64_t height = p->shapes[2 * level], width = p->shapes[2 * level + 1];
        for (int i = level * points; i < (level + 1) * points; i++) {
            levels->width[i] = (REAL)width, levels->height[i] = (REAL)height;
            levels->columns[i] = (INTEGER)width, levels->rows[i] = (INTEGER)height;
            levels->start[i] = (INTEGER)start;
        }
        start += height * width;
    }
    for (int i = levels->samples; i < levels->padded; i++) { /* on the first token, with weight zero */
        levels->width[i] = levels->height[i] = 1;
        levels->columns[i] = levels->rows[i] = 1;
        levels->start[i] = 0;
    }
}

/* The same number for all points of a level. */
INLINE void NAME(repeat)(REAL *out, REAL x, int points) {
    if (points == 4) out[0] = out[1] = out[2] = out[3] = x; /* one store of a vector */
    else for (int i = 0; i < points; i++) out[i] = x;
}

/* Where the samples of one query lie. What is the same for all queries is set once: see place_all. */
INLINE void NAME(place)(const Problem *p, const NAME(Levels) *levels, int64_t query, NAME(Placement) *out) {
    const REAL half = (REAL)0.5, share = half / (REAL)p->points;
    const int points = (int)p->points, size = (int)p->reference_size;
    const REAL *point = (const REAL *)p->reference + query * p->levels * size;
    for (int level = 0, i = 0; level < p->levels; level++, i += points, point += size) {
        const REAL width = levels->width[i], height = levels->height[i];
        NAME(repeat)(out->base_x + i, point[0] * width - half, points);
        NAME(repeat)(out->base_y + i, point[1] * height - half, points);
        if (size != 4) continue;
        NAME(repeat)(out->scale_x + i, point[2] * share * width, points);
        NAME(repeat)(out->scale_y + i, point[3] * share * height, points);
    }
}

/* Placement of all queries without references, and what the others start from. */
static void NAME(place_all)(const Problem *p, const NAME(Levels) *levels, NAME(Placement) *out) {
    for (int i = 0; i < levels->padded; i++) {
        out->base_x[i] = out->base_y[i] = (REAL)-0.5;
        out->scale_x[i] = p->reference_size ? 1 : levels->width[i];
        out->scale_y[i] = p->reference_size ? 1 : levels->height[i];
    }
}

/* Every lane becomes the sum, or the largest, of all: log2(LANES) steps instead of LANES. */
#if LANES == 16
#define FOLD(x, JOIN)                                                                                                 \
    x = JOIN(x, SHUFFLE(x, x, 8, 9, 10, 11, 12, 13, 14, 15, 0, 1, 2, 3, 4, 5, 6, 7));                                 \
    x = JOIN(x, SHUFFLE(x, x, 4, 5, 6, 7, 0, 1, 2, 3, 12, 13, 14, 15, 8, 9, 10, 11));                                 \
    x = JOIN(x, SHUFFLE(x, x, 2, 3, 0, 1, 6, 7, 4, 5, 10, 11, 8, 9, 14, 15, 12, 13));                                 \
    x = JOIN(x, SHUFFLE(x, x, 1, 0, 3, 2, 5, 4, 7, 6, 9, 8, 11, 10, 13, 12, 15, 14));
#elif LANES == 8
#define FOLD(x, JOIN)                                                                                                 \
    x = JOIN(x, SHUFFLE(x, x, 4, 5, 6, 7, 0, 1, 2, 3));                                                               \
    x = JOIN(x, SHUFFLE(x, x, 2, 3, 0, 1, 6, 7, 4, 5));                                                               \
    x = JOIN(x, SHUFFLE(x, x, 1, 0, 3, 2, 5, 4, 7, 6));
#elif LANES == 4
#define FOLD(x, JOIN)                                                                                                 \
    x = JOIN(x, SHUFFLE(x, x, 2, 3, 0, 1));                                                                           \
    x = JOIN(x, SHUFFLE(x, x, 1, 0, 3, 2));
#else
#define FOLD(x, JOIN) x = JOIN(x, SHUFFLE(x, x, 1, 0));
#endif
#define PLUS(a, b) ((a) + (b))

INLINE VECTOR NAME(larger)(VECTOR a, VECTOR b) { return CHOOSE(a > b, a, b); }

/* exp of numbers that are not positive. In float, numbers below -87 give 1e-38. */
INLINE VECTOR NAME(exponential)(VECTOR x) {
#if REAL_BYTES == 8
    for (int i = 0; i < LANES; i++) x[i] = exp(x[i]);
    return x;
#else
    const VECTOR lowest = (VECTOR){0} - 87;
    x = CHOOSE(x < lowest, lowest, x);
    const VECTOR power = (x * 1.44269504f + 12582912.0f) - 12582912.0f; /* adding 1.5 * 2^23 rounds */
    const VECTOR r = (x - power * 0.693359375f) + power * 2.12194440e-4f; /* ln 2 in two parts */
    VECTOR series = r * (1.0f / 5040) + 1.0f / 720;
    series = series * r + 1.0f / 120;
    series = series * r + 1.0f / 24;
    series = series * r + 1.0f / 6;
    series = series * r + 0.5f;
    series = series * r + 1;
    series = series * r + 1;
    return series * (VECTOR)((__builtin_convertvector(power, VECTOR_INT) + 127) << 23);
#endif
}

/* Softmax over the samples, in place; the padding becomes zero. */
INLINE void NAME(softmax)(REAL *scores, int samples, int padded) {
    for (int i = samples; i < padded; i++) scores[i] = scores[0];
    VECTOR highest = LOAD(scores), total = {0};
    for (int i = LANES; i < padded; i += LANES) highest = NAME(larger)(highest, LOAD(scores + i));
    FOLD(highest, NAME(larger))
    for (int i = 0; i < padded; i += LANES) STORE(scores + i, NAME(exponential)(LOAD(scores + i) - highest));
    for (int i = samples; i < padded; i++) scores[i] = 0;
    for (int i = 0; i < padded; i += LANES) total += LOAD(scores + i);
    FOLD(total, PLUS)
    for (int i = 0; i < padded; i += LANES) STORE(scores + i, LOAD(scores + i) / total);
}

/* Splits a position into its cell, clamped to just outside of the map, and the share of the next cell. */
#define SPLIT(position, size, cell, share)                                                                            \
    do {                                                                                                              \
        const VECTOR low_ = (VECTOR){0} - 2, high_ = (size) + 1;                                                      \
        VECTOR p_ = CHOOSE((position) > low_, (position), low_); /* NaN becomes -2: outside */                        \
        p_ = CHOOSE(p_ < high_, p_, high_);                                                                           \
        cell = __builtin_convertvector(p_, VECTOR_INT); /* towards zero */                                            \
        cell += __builtin_convertvector(cell, VECTOR) > p_; /* true is -1 */                                          \
        share = p_ - __builtin_convertvector(cell, VECTOR);                                                           \
    } while (0)

/* index clamped into 0..count - 1 */
#define CLAMP(index, count)                                                                                           \
    ({                                                                                                                \
        const VECTOR_INT above_ = (index) & ~((index) < 0), last_ = (count) - 1;                                      \
        const VECTOR_INT fits_ = above_ < last_;                                                                      \
        (above_ & fits_) | (last_ & ~fits_);                                                                          \
    })

/* Corners, shares and weights of all samples of one query and head. */
INLINE void NAME(prepare)(
    const Problem *p, const NAME(Levels) *levels, const NAME(Placement) *at, const REAL *sampling, const REAL *scores,
    NAME(Samples) *s, const INTEGER stride, const int backward) {
    const int samples = levels->samples, padded = levels->padded;
    REAL at_x[MAX_SAMPLES] ALIGNED, at_y[MAX_SAMPLES] ALIGNED;
    for (int i = 0; i < samples; i++) at_x[i] = sampling[2 * i], at_y[i] = sampling[2 * i + 1];
    memcpy(s->attention, scores, (size_t)samples * sizeof(REAL));
    for (int i = samples; i < padded; i++) at_x[i] = at_y[i] = s->attention[i] = 0;
    if (p->reference_size) NAME(softmax)(s->attention, samples, padded);
    for (int i = 0; i < padded; i += LANES) {
        const VECTOR x = LOAD(at->base_x + i) + LOAD(at->scale_x + i) * LOAD(at_x + i);
        const VECTOR y = LOAD(at->base_y + i) + LOAD(at->scale_y + i) * LOAD(at_y + i);
        const VECTOR_INT columns = *(const VECTOR_INT *)(levels->columns + i);
        const VECTOR_INT rows = *(const VECTOR_INT *)(levels->rows + i);
        const VECTOR_INT start = *(const VECTOR_INT *)(levels->start + i);
        VECTOR_INT left, upper;
        VECTOR share_x, share_y;
        SPLIT(x, LOAD(levels->width + i), left, share_x);
        SPLIT(y, LOAD(levels->height + i), upper, share_y);
        const VECTOR_INT right = left + 1, lower = upper + 1;
        const VECTOR_INT in_left = (left >= 0) & (left < columns), in_right = (right >= 0) & (right < columns);
        const VECTOR_INT in_upper = (upper >= 0) & (upper < rows), in_lower = (lower >= 0) & (lower < rows);
        const VECTOR_INT from_upper = start + CLAMP(upper, rows) * columns;
        const VECTOR_INT from_lower = start + CLAMP(lower, rows) * columns;
        const VECTOR_INT column_left = CLAMP(left, columns), column_right = CLAMP(right, columns);
        *(VECTOR_INT *)(s->row[0] + i) = (from_upper + column_left) * stride;
        *(VECTOR_INT *)(s->row[1] + i) = (from_upper + column_right) * stride;
        *(VECTOR_INT *)(s->row[2] + i) = (from_lower + column_left) * stride;
        *(VECTOR_INT *)(s->row[3] + i) = (from_lower + column_right) * stride;
        const VECTOR attention = LOAD(s->attention + i);
        const VECTOR part_upper = (1 - share_y) * attention, part_lower = share_y * attention;
        /* A position that is not a number must not vanish as one outside of the map does: hence the zeros. */
        STORE(s->weight[0] + i, KEEP(in_upper & in_left, part_upper * (1 - share_x)) + (x * 0 + y * 0));
        STORE(s->weight[1] + i, KEEP(in_upper & in_right, part_upper * share_x));
        STORE(s->weight[2] + i, KEEP(in_lower & in_left, part_lower * (1 - share_x)));
        STORE(s->weight[3] + i, KEEP(in_lower & in_right, part_lower * share_x));
        if (backward) {
            const VECTOR one = (VECTOR){0} + 1;
            STORE(s->share_x + i, share_x);
            STORE(s->share_y + i, share_y);
            STORE(s->inside[0] + i, KEEP(in_upper & in_left, one));
            STORE(s->inside[1] + i, KEEP(in_upper & in_right, one));
            STORE(s->inside[2] + i, KEEP(in_lower & in_left, one));
            STORE(s->inside[3] + i, KEEP(in_lower & in_right, one));
        }
    }
}

/* out = sum of weighted rows, for as many channels from `c` on as fill `COUNT` vectors. */
#define SUM_ROWS(TYPE, TYPE_ANYWHERE, COUNT)                                                                          \
    for (const int step = COUNT * (int)(sizeof(TYPE) / sizeof(REAL)); c + step <= channels; c += step) {              \
        TYPE upper[COUNT] = {{0}}, lower[COUNT] = {{0}}; /* two chains of additions hide their latency */             \
        for (int j = 0; j < samples; j++) {                                                                           \
            const TYPE_ANYWHERE *r0 = (const void *)(value + s->row[0][j] + c);                            \
            const TYPE_ANYWHERE *r1 = (const void *)(value + s->row[1][j] + c);                            \
            const TYPE_ANYWHERE *r2 = (const void *)(value + s->row[2][j] + c);                            \
            const TYPE_ANYWHERE *r3 = (const void *)(value + s->row[3][j] + c);                            \
            const REAL w0 = s->weight[0][j], w1 = s->weight[1][j], w2 = s->weight[2][j], w3 = s->weight[3][j];        \
            UNROLL for (int k = 0; k < COUNT; k++) {                                                                  \
                upper[k] += w0 * r0[k];                                                                               \
                lower[k] += w2 * r2[k];                                                                               \
                upper[k] += w1 * r1[k];                                                                               \
                lower[k] += w3 * r3[k];                                                                               \
            }                                                                                                         \
        }                                                                                                             \
        UNROLL for (int k = 0; k < COUNT; k++)((TYPE_ANYWHERE *)(out + c))[k] = upper[k] + lower[k];                  \
    }

INLINE void NAME(sum_rows)(
    const NAME(Samples) *s, int samples, const REAL *value, int channels, REAL *restrict out) {
    int c = 0;
    SUM_ROWS(VECTOR, ANYWHERE, BLOCK)
    SUM_ROWS(VECTOR, ANYWHERE, 1)
    SUM_ROWS(QUARTER, QUARTER_ANYWHERE, 1)
    for (; c < channels; c++) {
        REAL total = 0;
        for (int j = 0; j < samples; j++)
            for (int corner = 0; corner < 4; corner++)
                total += s->weight[corner][j] * value[s->row[corner][j] + c];
        out[c] = total;
    }
}

/* Sums of four vectors at once. */
INLINE void NAME(sum_four)(VECTOR a, VECTOR b, VECTOR c, VECTOR d, REAL *sums) {
#if LANES == 16
    const VECTOR ab = SHUFFLE(a, b, 0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23) +
                      SHUFFLE(a, b, 8, 9, 10, 11, 12, 13, 14, 15, 24, 25, 26, 27, 28, 29, 30, 31);
    const VECTOR cd = SHUFFLE(c, d, 0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23) +
                      SHUFFLE(c, d, 8, 9, 10, 11, 12, 13, 14, 15, 24, 25, 26, 27, 28, 29, 30, 31);
    VECTOR x = SHUFFLE(ab, cd, 0, 1, 2, 3, 8, 9, 10, 11, 16, 17, 18, 19, 24, 25, 26, 27) +
               SHUFFLE(ab, cd, 4, 5, 6, 7, 12, 13, 14, 15, 20, 21, 22, 23, 28, 29, 30, 31);
    x += SHUFFLE(x, x, 2, 3, 0, 1, 6, 7, 4, 5, 10, 11, 8, 9, 14, 15, 12, 13);
    x += SHUFFLE(x, x, 1, 0, 3, 2, 5, 4, 7, 6, 9, 8, 11, 10, 13, 12, 15, 14);
    for (int k = 0; k < 4; k++) sums[k] = x[4 * k];
#elif LANES == 8
    const VECTOR ab = SHUFFLE(a, b, 0, 1, 2, 3, 8, 9, 10, 11) + SHUFFLE(a, b, 4, 5, 6, 7, 12, 13, 14, 15);
    const VECTOR cd = SHUFFLE(c, d, 0, 1, 2, 3, 8, 9, 10, 11) + SHUFFLE(c, d, 4, 5, 6, 7, 12, 13, 14, 15);
    VECTOR x = SHUFFLE(ab, cd, 0, 1, 4, 5, 8, 9, 12, 13) + SHUFFLE(ab, cd, 2, 3, 6, 7, 10, 11, 14, 15);
    x += SHUFFLE(x, x, 1, 0, 3, 2, 5, 4, 7, 6);
    for (int k = 0; k < 4; k++) sums[k] = x[2 * k];
#elif LANES == 4
    const VECTOR ab = SHUFFLE(a, b, 0, 1, 4, 5) + SHUFFLE(a, b, 2, 3, 6, 7);
    const VECTOR cd = SHUFFLE(c, d, 0, 1, 4, 5) + SHUFFLE(c, d, 2, 3, 6, 7);
    const VECTOR x = SHUFFLE(ab, cd, 0, 2, 4, 6) + SHUFFLE(ab, cd, 1, 3, 5, 7);
    for (int k = 0; k < 4; k++) sums[k] = x[k];
#else
    sums[0] = a[0] + a[1], sums[1] = b[0] + b[1], sums[2] = c[0] + c[1], sums[3] = d[0] + d[1];
#endif
}

/* Products of the gradient with the four corner rows of every sample, and the gradient added to those rows. */
#define SPREAD_ROWS(COUNT)                                                                                            \
    for (; c + COUNT * LANES <= channels; c += COUNT * LANES) {                                                       \
        VECTOR g[COUNT];                                                                                              \
        UNROLL for (int k = 0; k < COUNT; k++) g[k] = LOAD(grad + c + k * LANES);                                     \
        for (int j = 0; j < samples; j++) {                                                                           \
            VECTOR dot[4];                                                                                            \
            UNROLL for (int corner = 0; corner < 4; corner++) {                                                       \
                const int64_t row = s->row[corner][j] + c;                                                            \
                const REAL w = s->weight[corner][j];                                                                  \
                VECTOR total = {0};                                                                                   \
                UNROLL for (int k = 0; k < COUNT; k++) {                                                              \
                    total += g[k] * LOAD(value + row + k * LANES);                                                    \
                    STORE(grad_value + row + k * LANES, LOAD(grad_value + row + k * LANES) + w * g[k]);               \
                }                                                                                                     \
                dot[corner] = total;                                                                                  \
            }                                                                                                         \
            REAL sums[4];                                                                                             \
            NAME(sum_four)(dot[0], dot[1], dot[2], dot[3], sums);                                                     \
            UNROLL for (int corner = 0; corner < 4; corner++) s->dot[corner][j] += sums[corner];                      \
        }                                                                                                             \
    }

INLINE void NAME(spread_rows)(
    NAME(Samples) *s, int samples, const REAL *value, int channels, const REAL *grad, REAL *grad_value) {
    memset(s->dot, 0, sizeof(s->dot));
    int c = 0;
    SPREAD_ROWS(BLOCK)
    SPREAD_ROWS(1)
    for (int j = 0; j < samples && c < channels; j++)
        for (int corner = 0; corner < 4; corner++) {
            const int64_t row = s->row[corner][j];
            for (int k = c; k < channels; k++) {
                s->dot[corner][j] += grad[k] * value[row + k];
                grad_value[row + k] += s->weight[corner][j] * grad[k];
            }
        }
}

/* From the corners' products to the gradients by position and score of every sample. */
INLINE void NAME(differentiate)(
    const Problem *p, const NAME(Levels) *levels, const NAME(Placement) *at, NAME(Samples) *s, REAL *grad_sampling,
    REAL *grad_scores, REAL *grad_pixels) {
    const int samples = levels->samples, padded = levels->padded;
    VECTOR expected = {0};
    for (int i = 0; i < padded; i += LANES) {
        const VECTOR d0 = LOAD(s->dot[0] + i) * LOAD(s->inside[0] + i);
        const VECTOR d1 = LOAD(s->dot[1] + i) * LOAD(s->inside[1] + i);
        const VECTOR d2 = LOAD(s->dot[2] + i) * LOAD(s->inside[2] + i);
        const VECTOR d3 = LOAD(s->dot[3] + i) * LOAD(s->inside[3] + i);
        const VECTOR share_x = LOAD(s->share_x + i), share_y = LOAD(s->share_y + i), attention = LOAD(s->attention + i);
        const VECTOR by_x_upper = d1 - d0, by_x_lower = d3 - d2;
        const VECTOR upper = d0 + share_x * by_x_upper, lower = d2 + share_x * by_x_lower;
        const VECTOR by_score = upper + share_y * (lower - upper);
        STORE(s->by_x + i, attention * (by_x_upper + share_y * (by_x_lower - by_x_upper)));
        STORE(s->by_y + i, attention * (lower - upper));
        STORE(s->by_score + i, by_score);
        expected += attention * by_score;
    }
    if (p->reference_size) { /* through the softmax */
        FOLD(expected, PLUS)
        for (int i = 0; i < padded; i += LANES)
            STORE(s->by_score + i, LOAD(s->attention + i) * (LOAD(s->by_score + i) - expected));
    }
    memcpy(grad_scores, s->by_score, (size_t)samples * sizeof(REAL));
    if (grad_pixels)
        for (int i = 0; i < samples; i++) grad_pixels[2 * i] = s->by_x[i], grad_pixels[2 * i + 1] = s->by_y[i];
    for (int i = 0; i < samples; i++) {
        grad_sampling[2 * i] = s->by_x[i] * at->scale_x[i];
        grad_sampling[2 * i + 1] = s->by_y[i] * at->scale_y[i];
    }
}

/* Has the second cache fetch memory that is needed soon: the heads are visited one after the other, in steps that the
 * processor does not foresee. */
#define ANNOUNCE(start, count, for_writing)                                                                           \
    do {                                                                                                              \
        const char *at_ = (const char *)(start), *end_ = at_ + (count) * (int64_t)sizeof(REAL);                       \
        for (; at_ < end_; at_ += 64) __builtin_prefetch(at_, for_writing, 2);                                        \
    } while (0)

/* Everything of one tile and a range of heads. `backward` and `channels` are constants wherever this is inlined. */
INLINE void NAME(visit)(
    const Problem *p, NAME(Scratch) *scratch, int64_t image, Tile tile, int64_t first_head, int64_t last_head,
    const int channels, const int backward) {
    const int64_t heads = p->heads, samples = scratch->levels.samples;
    const int64_t stride = heads * channels;
    const int64_t first_query = image * p->queries + tile.first;
    const int shared = p->reference_size == 0; /* without references all queries are placed alike */
    for (int row = 0, n = 0; row < tile.rows && !shared; row++)
        for (int column = 0; column < tile.columns; column++, n++)
            NAME(place)(p, &scratch->levels, first_query + row * tile.stride + column, &scratch->placements[n]);
    for (int row = 0; row < tile.rows; row++) {
        const int64_t at = (first_query + row * tile.stride) * heads + first_head;
        const int64_t count = (tile.columns - 1) * heads + last_head - first_head;
        ANNOUNCE((const REAL *)p->sampling + 2 * at * samples, 2 * count * samples, 0);
        ANNOUNCE((const REAL *)p->scores + at * samples, count * samples, 0);
        if (backward) ANNOUNCE((const REAL *)p->grad_output + at * channels, count * channels, 0);
        else ANNOUNCE((REAL *)p->output + at * channels, count * channels, 1);
    }
    for (int64_t head = first_head; head < last_head; head++) {
        const int64_t map = (image * p->tokens * heads + head) * channels;
        const REAL *value = (const REAL *)p->value + map;
        REAL *grad_value = (REAL *)p->grad_value + map;
        for (int row = 0, n = 0; row < tile.rows; row++)
            for (int column = 0; column < tile.columns; column++, n++) {
                const int64_t at = (first_query + row * tile.stride + column) * heads + head;
                const NAME(Placement) *placement = &scratch->placements[shared ? 0 : n];
                NAME(prepare)(
                    p, &scratch->levels, placement, (const REAL *)p->sampling + 2 * at * samples,
                    (const REAL *)p->scores + at * samples, &scratch->samples, (INTEGER)stride, backward);
                if (!backward) {
                    NAME(sum_rows)(
                        &scratch->samples, (int)samples, value, channels, (REAL *)p->output + at * channels);
                    continue;
                }
                NAME(spread_rows)(
                    &scratch->samples, (int)samples, value, channels, (const REAL *)p->grad_output + at * channels,
                    grad_value);
                NAME(differentiate)(
                    p, &scratch->levels, placement, &scratch->samples, (REAL *)p->grad_sampling + 2 * at * samples,
                    (REAL *)p->grad_scores + at * samples,
                    p->grad_pixels ? (REAL *)p->grad_pixels + 2 * at * samples : NULL);
            }
    }
}

INLINE void NAME(forward_tasks)(Problem *p, NAME(Scratch) *scratch, const int channels) {
    const int64_t tiles = count_tiles(p);
    for (int64_t task; (task = take_task(p)) < p->batch * tiles;)
        NAME(visit)(p, scratch, task / tiles, find_tile(p, task % tiles), 0, p->heads, channels, 0);
}

INLINE void NAME(backward_tasks)(Problem *p, NAME(Scratch) *scratch, const int channels) {
    const int64_t tiles = count_tiles(p), groups = p->heads / p->heads_at_once;
    for (int64_t task; (task = take_task(p)) < p->batch * groups;) {
        const int64_t first_head = task % groups * p->heads_at_once;
        for (int64_t tile = 0; tile < tiles; tile++)
            NAME(visit)(
                p, scratch, task / groups, find_tile(p, tile), first_head, first_head + p->heads_at_once, channels, 1);
    }
}

/* Works on the call's tasks until none is left; called by every thread with the same problem. The result is 0, or 1
 * when there is no memory. In float, the numbers of an image are counted in 32 bits: the caller sees to that. */
#define WORK(tasks)                                                                                                   \
    NAME(Scratch) *scratch = aligned_alloc(64, (sizeof(*scratch) + 63) / 64 * 64);                                    \
    if (!scratch) return 1;                                                                                           \
    NAME(describe_levels)(p, &scratch->levels);                                                                       \
    for (int n = 0; n < TILE_QUERIES; n++) NAME(place_all)(p, &scratch->levels, &scratch->placements[n]);             \
    if (p->channels == 32) tasks(p, scratch, 32);                                                                     \
    else tasks(p, scratch, (int)p->channels);                                                                         \
    free(scratch);                                                                                                    \
    return 0;

int NAME(codetr_forward)(Problem *p) { WORK(NAME(forward_tasks)) }

int NAME(codetr_backward)(Problem *p) { WORK(NAME(backward_tasks)) }

#undef VECTOR
#undef VECTOR_INT
#undef ANYWHERE
#undef QUARTER
#undef QUARTER_ANYWHERE
#undef LANES
#undef BLOCK
#undef LOAD
#undef STORE
#undef CHOOSE
#undef KEEP
#undef WORK
#undef ANNOUNCE
#undef FOLD
#undef PLUS
#undef SPLIT
#undef CLAMP
#undef SUM_ROWS
#undef SPREAD_ROWS
#endif
