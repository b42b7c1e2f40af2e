// Linear layers with low-rank updates, in bfloat16 with fp32 sums, for processors with AVX-512 BF16.
//
// One tile of a matrix product is 6 rows x 64 columns or 8 x 48, which fill 24 of 32 registers. vdpbf16ps multiplies
// pairs of bfloat16, so the right operand is packed as pairs along the summed dimension, a pair to 32 bits: 64 columns
// at a time, which stay in the cache for all rows, so that a weight is read as it lies in memory. An update is more of
// the summed dimension: y = [x, h] [W, scale B]^T. Factors are read in fp32 and rounded here as a server rounds them:
// A once; B once, then once more after the scale. Each number is summed by one thread, in one order: results depend
// neither on the number of threads nor on the other rows. low_rank.py declares what is called.
#include "tiles.h"

#ifdef RLORA_IS_SUPPORTED

namespace {

const i64 ROWS = 8, WIDE = 3;  // of a tile of h; registers of 16 columns
const i64 DEPTH = 512, TILES = 128;  // pairs held packed for a tile's columns; tiles that they are multiplied with
const i64 PANEL = 64, BLOCK = 64;  // columns and pairs of rows that are held packed for gradients of factors
const i64 FEW = 4;  // up to so many columns are dot products along rows

struct Layer {  // 10 numbers of 64 bits, as low_rank.py lays them out
    const bf16* w;  // (outputs, inputs); none: outputs and the input's gradient hold its products already
    const bf16* bias;  // (outputs), or none
    const float* a;  // (rank, inputs); rank may be 0
    i64 rank;
    const float* b;  // (outputs, rank)
    i64 outputs;
    void* y;  // the output, or its gradient
    i64 pitch;
    float* grad_a;
    float* grad_b;
};

inline const bf16* y_of(const Layer& layer) { return static_cast<const bf16*>(layer.y); }

struct Arguments {
    i64 threads, rows, inputs, ranks;  // ranks: of all layers
    i64 is_wide;  // whether outputs are fp32
    const bf16* x;
    i64 pitch;
    bf16* h;  // (rows, ranks)
    bf16* grad_h;
    bf16* grad_x;  // (rows, inputs), or none
    i64 count;
    Layer layers[];
};

thread_local Buffer packs_, even_, panel_, sums_;

inline __mmask32 first32(i64 count) { return count >= 32 ? 0xffffffffu : count > 0 ? (1u << count) - 1 : 0; }
inline __m512 scaled(__m512 b, __m512 scale) { return _mm512_mul_ps(widened(rounded(b)), scale); }
inline __m512i multiples(i64 step) {
    const __m512i count = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
    return _mm512_mullo_epi32(count, _mm512_set1_epi32((int)step));
}

// the pairs of 32 floats or what is left of them; of B's with their scale
inline __m512i pairs_in(const float* row, i64 count, const __m512* scale) {
    __m512 low = _mm512_maskz_loadu_ps(first(count), row), high = _mm512_maskz_loadu_ps(first(count - 16), row + 16);
    if (scale != nullptr) low = scaled(low, *scale), high = scaled(high, *scale);
    return (__m512i)_mm512_cvtne2ps_pbh(high, low);
}

// to[k] = pair k of a row
void pack_row(pair* to, const float* row, i64 count, const __m512* scale) {
    for (i64 at = 0; at < count; at += 32)
        _mm512_mask_storeu_epi32(to + at / 2, first(divided(count - at, 2)), pairs_in(row + at, count - at, scale));
}

// to[k * pitch + r] = pair k of row r, of 16 rows of 32 floats or what is left of them
void pack_across(pair* to, i64 pitch, const float* from, i64 from_pitch, i64 rows, i64 count, const __m512* scale) {
    __m512i v[16];
    for (i64 r = 0; r < 16; r++) {
        const float* row = from + (r < rows ? r : rows - 1) * from_pitch;
        _mm_prefetch((const char*)(row + 64), _MM_HINT_T0);
        _mm_prefetch((const char*)(row + 80), _MM_HINT_T0);
        v[r] = pairs_in(row, count, scale);
    }
    transpose(v);
    for (i64 k = 0; k < 16; k++)
        if (2 * k < count) _mm512_mask_storeu_epi32(to + k * pitch, first(rows), v[k]);
}

// A or B for times_rows: pairs [length / 2][columns padded to 16], or few columns one after the other
inline i64 padded(i64 columns) { return columns <= FEW ? columns : divided(columns, 16) * 16; }

// C (rows <= 8, columns) = G (rows, 2 pairs) P
void times_rows(const bf16* g, i64 pitch, i64 rows, i64 pairs, const pair* p, i64 columns, bf16* c, i64 c_pitch) {
    const bf16* row[ROWS];
    for (int r = 0; r < ROWS; r++) row[r] = g + (r < rows ? r : rows - 1) * pitch;
    if (columns <= FEW) {
        for (i64 column = 0; column < columns; column++) {
            __m512 sum[ROWS];
            for (int r = 0; r < ROWS; r++) sum[r] = _mm512_setzero_ps();
            for (i64 k = 0; k < pairs; k += 16) {
                const __mmask16 some = first(pairs - k);
                const __m512i b = _mm512_maskz_loadu_epi32(some, p + column * pairs + k);
                for (int r = 0; r < ROWS; r++) {
                    sum[r] = dot(sum[r], _mm512_maskz_loadu_epi32(some, row[r] + 2 * k), b);
                    if (column == 0) _mm_prefetch((const char*)(row[r] + ROWS * pitch + 2 * k), _MM_HINT_T0);
                }
            }
            for (i64 r = 0; r < rows; r++) {
                const __m512 all = _mm512_set1_ps(_mm512_reduce_add_ps(sum[r]));
                _mm256_mask_storeu_epi16(c + r * c_pitch + column, 1, rounded(all));
            }
        }
        return;
    }
    const i64 p_pitch = padded(columns), next = ROWS * pitch;  // the next rows, fetched ahead
    for (i64 start = 0, wide; start < p_pitch; start += 16 * wide) {
        __m512 sum[ROWS][WIDE] = {};
        const i64 left = (p_pitch - start) / 16;
        wide = left == 4 ? 2 : left < WIDE ? left : WIDE;
        if (wide == 3) row_tile<3, ROWS, WIDE>(row, next, pairs, p + start, p_pitch, sum);
        if (wide == 2) row_tile<2, ROWS, WIDE>(row, next, pairs, p + start, p_pitch, sum);
        if (wide == 1) row_tile<1, ROWS, WIDE>(row, next, pairs, p + start, p_pitch, sum);
        for (i64 r = 0; r < rows; r++)
            for (i64 z = 0; z < wide; z++) {
                const i64 at = start + 16 * z;
                _mm256_mask_storeu_epi16(c + r * c_pitch + at, first(columns - at), rounded(sum[r][z]));
            }
    }
}

struct Operand {  // of which each row is multiplied
    const bf16* at;
    i64 pitch, pairs;
};

struct Term {  // a product of two matrices, the right one as it lies in memory
    Operand left;
    enum Kind { ROWS_OF_WEIGHT, COLUMNS_OF_WEIGHT, ROWS_OF_B, COLUMNS_OF_A } kind;
    const void* right;  // of A: its rows
    i64 length;  // of a row, or how many rows of A
    const __m512* scale;
};

// to[k * COLUMNS + c] = pair k of column c, for columns at, ... and pairs start, ... of a term
void pack_term(const Term& term, i64 at, i64 width, i64 start, i64 pairs, pair* to) {
    const i64 length = term.length;
    if (term.kind == Term::ROWS_OF_WEIGHT) {
        const bf16* w = static_cast<const bf16*>(term.right) + at * length + 2 * start;
        pack_rows(w, length, width, pairs, to);
    } else if (term.kind == Term::COLUMNS_OF_WEIGHT) {
        const bf16* w = static_cast<const bf16*>(term.right) + 2 * start * length + at;
        pack_columns(w, length, width, 2 * pairs, to);
    } else if (term.kind == Term::ROWS_OF_B) {
        const float* b = static_cast<const float*>(term.right) + at * length + 2 * start;
        const i64 count = length - 2 * start < 2 * pairs ? length - 2 * start : 2 * pairs;
        for (i64 o = 0; o < width; o += 16)
            for (i64 k = 0; k < pairs; k += 16)
                pack_across(to + k * COLUMNS + o, COLUMNS, b + o * length + 2 * k, length, width - o, count - 2 * k,
                            term.scale);
    } else {
        const float* const* a = static_cast<const float* const*>(term.right) + 2 * start;
        for (i64 k = 0; k < pairs; k++)
            for (i64 i = 0; i < width; i += 16) {
                const __mmask16 some = first(width - i);
                const bool has_high = 2 * (start + k) + 1 < length;
                const __m512 low = _mm512_maskz_loadu_ps(some, a[2 * k] + at + i);
                const __m512 high = _mm512_maskz_loadu_ps(has_high ? some : 0, a[2 * k + has_high] + at + i);
                _mm512_storeu_si512(to + k * COLUMNS + i, pairs_of(low, high));
            }
    }
}

struct Segment {  // of a term: what is held packed at once
    const Term& term;
    i64 start, pairs;
};

struct Product {  // Y (rows, ...) = the sum of the terms, and of the bias, or of what is there
    std::vector<Term> terms;
    i64 rows;
    void* y;
    i64 pitch;
    const bf16* bias;
    bool adds, is_wide;
};

template <int Z>
void product_tile(const Product& to, const std::vector<Segment>& segments, i64 row, i64 at, i64 width,
                  const pair* panel, float* sums, bool is_first, bool is_last) {
    const i64 rows = to.rows - row < HIGH ? to.rows - row : HIGH;
    bf16* y = static_cast<bf16*>(to.y) + row * to.pitch + at;
    float* wide = static_cast<float*>(to.y) + row * to.pitch + at;
    __m512 sum[HIGH][Z];
    __mmask16 some[Z];
    for (int z = 0; z < Z; z++) some[z] = first(width - 16 * z);
    for (int r = 0; r < HIGH; r++)
        for (int z = 0; z < Z; z++) {
            if (!is_first) sum[r][z] = _mm512_loadu_ps(sums + r * COLUMNS + 16 * z);
            else if (to.adds)
                sum[r][z] = widened(_mm256_maskz_loadu_epi16(some[z], y + (r < rows ? r : 0) * to.pitch + 16 * z));
            else if (to.bias != nullptr)
                sum[r][z] = widened(_mm256_maskz_loadu_epi16(some[z], to.bias + at + 16 * z));
            else sum[r][z] = _mm512_setzero_ps();
        }
    for (const Segment& one : segments) {
        const Operand& left = one.term.left;
        const bf16* g[HIGH];
        for (int r = 0; r < HIGH; r++) g[r] = left.at + (row + (r < rows ? r : 0)) * left.pitch + 2 * one.start;
        row_tile<Z, HIGH, Z>(g, HIGH * left.pitch, one.pairs, panel, COLUMNS, sum);
        panel += one.pairs * COLUMNS;
    }
    for (int r = 0; r < HIGH; r++)
        for (int z = 0; z < Z; z++) {
            if (!is_last) _mm512_storeu_ps(sums + r * COLUMNS + 16 * z, sum[r][z]);
            else if (r < rows && to.is_wide) _mm512_mask_storeu_ps(wide + r * to.pitch + 16 * z, some[z], sum[r][z]);
            else if (r < rows) _mm256_mask_storeu_epi16(y + r * to.pitch + 16 * z, some[z], rounded(sum[r][z]));
        }
}

// columns at, ..., at most 64, and tiles from, ..., to - 1 of a product; `ahead`: how far on the columns are that may be
// asked for next, of which a weight's rows are fetched
void multiply(const Product& product, i64 at, i64 width, i64 from, i64 to, i64 ahead) {
    pair* panel = panel_.of<pair>(DEPTH * COLUMNS);
    float* sums = sums_.of<float>((to - from) * HIGH * COLUMNS);
    const Term& weight = product.terms.front();
    const bf16* after = nullptr;
    i64 lines = 0;  // for each tile
    if (weight.kind == Term::ROWS_OF_WEIGHT) {
        after = static_cast<const bf16*>(weight.right) + (at + ahead) * weight.length;
        lines = divided(COLUMNS * weight.length, 32 * (to - from));
    }
    std::vector<Segment> segments;
    size_t term = 0;
    i64 start = 0;
    for (bool is_first = true; term < product.terms.size(); is_first = false) {
        segments.clear();
        for (i64 filled = 0; term < product.terms.size() && filled < DEPTH;) {
            const Term& one = product.terms[term];
            const i64 pairs = one.left.pairs - start < DEPTH - filled ? one.left.pairs - start : DEPTH - filled;
            pack_term(one, at, width, start, pairs, panel + filled * COLUMNS);
            segments.push_back({one, start, pairs});
            filled += pairs;
            start += pairs;
            if (start == one.left.pairs) term++, start = 0;
        }
        const bool is_last = term == product.terms.size();
        for (i64 tile = from; tile < to; tile++) {
            float* c = sums + (tile - from) * HIGH * COLUMNS;
            for (i64 line = (tile - from) * lines; is_first && line < (tile - from + 1) * lines; line++)
                _mm_prefetch((const char*)(after + 32 * line), _MM_HINT_T1);
            const auto run = width > 48 ? product_tile<4> : width > 32 ? product_tile<3> : width > 16 ? product_tile<2>
                                                                                                      : product_tile<1>;
            run(product, segments, tile * HIGH, at, width, panel, c, is_first, is_last);
        }
    }
}

// into how many ranges the tiles are divided, so that there are enough parts for all threads to end together
i64 ranges(i64 tiles, i64 parts, i64 threads) {
    const i64 many = divided(tiles, TILES), enough = divided(8 * threads, parts), most = divided(tiles, 32);
    return many > enough || many > most ? many : enough < most ? enough : most;
}

// rows of an odd number of columns have no pairs: they are copied, with a zero after each odd part
inline i64 even(i64 count) { return divided(count, 2) * 2; }
void copy_even(const bf16* from, i64 rows, const std::vector<i64>& parts, bf16* to) {
    for (i64 r = 0; r < rows; r++)
        for (const i64 part : parts) {
            memcpy(to, from, part * sizeof(bf16));
            if (part % 2 == 1) to[part] = 0;
            from += part;
            to += even(part);
        }
}

// h for times_columns: pairs of rows [rows / 2][ranks, if more than 2 a multiple of 4]
inline i64 in_fours(i64 ranks) { return ranks <= 2 ? ranks : divided(ranks, 4) * 4; }

// C (ranks, 64) = H^T G for a panel of at most 64 columns of G (rows, width)
void times_columns(const bf16* g, i64 pitch, i64 rows, i64 width, const pair* h, i64 ranks, float* c, pair* panel) {
    alignas(64) uint16_t turn[64];  // interleaves two rows of 32
    for (int i = 0; i < 32; i++) {
        turn[i] = (uint16_t)(i / 2 + (i & 1) * 32);
        turn[32 + i] = (uint16_t)(16 + i / 2 + (i & 1) * 32);
    }
    const __m512i low = _mm512_load_si512(turn), high = _mm512_load_si512(turn + 32), none = _mm512_setzero_si512();
    const __mmask32 left = first32(width), right = first32(width - 32);
    for (i64 start = 0; start < divided(rows, 2); start += BLOCK) {
        const i64 count = divided(rows, 2) - start < BLOCK ? divided(rows, 2) - start : BLOCK;
        for (i64 k = 0; k < count; k++) {
            const bf16* one = g + 2 * (start + k) * pitch;
            const bool has_two = 2 * (start + k) + 1 < rows;
            for (i64 line = 0; line < 2; line++) {  // of the next block
                _mm_prefetch((const char*)(one + 2 * BLOCK * pitch + 32 * line), _MM_HINT_T1);
                _mm_prefetch((const char*)(one + (2 * BLOCK + 1) * pitch + 32 * line), _MM_HINT_T1);
            }
            const __m512i a = _mm512_maskz_loadu_epi16(left, one), b = _mm512_maskz_loadu_epi16(right, one + 32);
            const __m512i c = has_two ? _mm512_maskz_loadu_epi16(left, one + pitch) : none;
            const __m512i d = has_two ? _mm512_maskz_loadu_epi16(right, one + pitch + 32) : none;
            _mm512_store_si512(panel + PANEL * k, _mm512_permutex2var_epi16(a, low, c));
            _mm512_store_si512(panel + PANEL * k + 16, _mm512_permutex2var_epi16(a, high, c));
            _mm512_store_si512(panel + PANEL * k + 32, _mm512_permutex2var_epi16(b, low, d));
            _mm512_store_si512(panel + PANEL * k + 48, _mm512_permutex2var_epi16(b, high, d));
        }
        const pair* from = h + start * ranks;
        if (ranks == 1) column_tile<1>(from, ranks, panel, count, c, start == 0);
        if (ranks == 2) column_tile<2>(from, ranks, panel, count, c, start == 0);
        for (i64 r = 0; ranks > 2 && r < ranks; r += 4)
            column_tile<4>(from + r, ranks, panel, count, c + r * PANEL, start == 0);
    }
}

inline void add(float* to, __m512 from, __mmask16 some, __m512 scale) {  // to += scale x from
    _mm512_mask_storeu_ps(to, some, _mm512_fmadd_ps(from, scale, _mm512_maskz_loadu_ps(some, to)));
}
inline void add(float* to, const float* from, i64 count, __m512 scale) {
    for (i64 at = 0; at < count; at += 16) add(to + at, _mm512_load_ps(from + at), first(count - at), scale);
}
inline void fetch(const float* from, i64 count) {
    for (i64 at = 0; at < count; at += 16) _mm_prefetch((const char*)(from + at), _MM_HINT_T1);
}

void pack_columns_of_h(const bf16* h, i64 pitch, i64 rows, i64 ranks, i64 k, pair* to) {
    const bf16* from = h + 2 * k * pitch;
    for (i64 r = 0; r < in_fours(ranks); r += 16) {
        const __mmask16 some = first(ranks - r), second = 2 * k + 1 < rows ? some : 0;
        const __m512i low = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(some, from + r));
        const __m512i high = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(second, from + pitch + r));
        const __m512i both = _mm512_or_si512(low, _mm512_slli_epi32(high, 16));
        _mm512_mask_storeu_epi32(to + k * in_fours(ranks) + r, first(in_fours(ranks) - r), both);
    }
}

// h = x A^T of all layers; each y = x W^T + bias + h (scale B)^T
void run_forward(const void* arguments, double scale_) {
    const Arguments& to = *static_cast<const Arguments*>(arguments);
    const __m512 scale = _mm512_set1_ps((float)scale_);
    const i64 half = to.inputs / 2, pitch = padded(to.ranks), tiles = divided(to.rows, HIGH);
    std::vector<i64> ranks;
    i64 even_pitch = 0, panels = 0;
    for (i64 m = 0; m < to.count; m++) {
        ranks.push_back(to.layers[m].rank);
        even_pitch += even(to.layers[m].rank);
        panels += divided(to.layers[m].outputs, COLUMNS);
    }
    const bool is_even = even_pitch == to.ranks;
    pair* packs = packs_.of<pair>(half * pitch);
    bf16* even_h = is_even ? to.h : even_.of<bf16>(to.rows * even_pitch);
    std::vector<Product> products;
    i64 column = 0;
    for (i64 m = 0; m < to.count; m++) {
        const Layer& one = to.layers[m];
        std::vector<Term> terms;
        if (one.w != nullptr)
            terms.push_back({{to.x, to.pitch, half}, Term::ROWS_OF_WEIGHT, one.w, to.inputs, nullptr});
        if (one.rank > 0)
            terms.push_back({{even_h + column, even_pitch, divided(one.rank, 2)}, Term::ROWS_OF_B, one.b, one.rank,
                             &scale});
        products.push_back({terms, to.rows, one.y, one.pitch, one.bias, one.w == nullptr, to.is_wide != 0});
        column += even(one.rank);
    }
    struct Part { i64 layer, at; };
    std::vector<Part> parts;
    for (i64 m = 0; m < to.count; m++)
        for (i64 at = 0; at < to.layers[m].outputs; at += COLUMNS) parts.push_back({m, at});
    const i64 count = ranges(tiles, panels, to.threads);
    #pragma omp parallel num_threads(to.threads)
    {
        i64 column = 0;
        for (i64 m = 0; m < to.count; m++) {
            const Layer& one = to.layers[m];
            if (to.ranks <= FEW) {
                #pragma omp for schedule(static) nowait
                for (i64 r = 0; r < one.rank; r++)
                    pack_row(packs + (column + r) * half, one.a + r * to.inputs, to.inputs, nullptr);
            } else {
                #pragma omp for schedule(static) collapse(2) nowait
                for (i64 r = 0; r < one.rank; r += 16)
                    for (i64 i = 0; i < to.inputs; i += 32)
                        pack_across(packs + i / 2 * pitch + column + r, pitch, one.a + r * to.inputs + i, to.inputs,
                                    one.rank - r, to.inputs - i, nullptr);
            }
            column += one.rank;
        }
        if (to.ranks > 0) {
            #pragma omp for schedule(static)
            for (i64 k = 0; k < half; k++)
                for (i64 r = to.ranks; r < pitch; r++) packs[k * pitch + r] = 0;
            #pragma omp for schedule(static)
            for (i64 at = 0; at < to.rows; at += ROWS) {
                const i64 rows = to.rows - at < ROWS ? to.rows - at : ROWS;
                bf16* h = to.h + at * to.ranks;
                times_rows(to.x + at * to.pitch, to.pitch, rows, half, packs, to.ranks, h, to.ranks);
                if (!is_even) copy_even(h, rows, ranks, even_h + at * even_pitch);
            }
        }
        #pragma omp for schedule(dynamic, 1)
        for (i64 t = 0; t < count * panels; t++) {
            const i64 range = t / panels;
            const Part& part = parts[t % panels];
            const i64 left = to.layers[part.layer].outputs - part.at;
            multiply(products[part.layer], part.at, left < COLUMNS ? left : COLUMNS, tiles * range / count,
                     tiles * (range + 1) / count, to.threads * COLUMNS);
        }
    }
}

// y are gradients of outputs: grad_h = y (scale B); grad_x = y W of all layers + grad_h A; added are the gradients of
// A, grad_h^T x, and of B, scale y^T h
void run_backward(const void* arguments, double scale_) {
    const Arguments& to = *static_cast<const Arguments*>(arguments);
    const __m512 scale = _mm512_set1_ps((float)scale_);
    const __m512 unit = _mm512_set1_ps(1);
    const i64 half = divided(to.rows, 2);
    const i64 tiles = divided(to.rows, HIGH), panels = divided(to.inputs, COLUMNS);
    struct Part { enum { GRAD_X, GRAD_A, GRAD_B } of; i64 layer, at, range; };  // a panel of columns
    std::vector<Part> parts, short_parts;
    i64 length = 0, short_length = 0;  // of one part, and of all that are short
    std::vector<i64> b_at, h_at, column;
    std::vector<const float*> rows_of_a;
    i64 size = 0, ranks = 0;
    for (i64 m = 0; m < to.count; m++) {
        const Layer& one = to.layers[m];
        b_at.push_back(size);
        h_at.push_back(size += one.outputs / 2 * padded(one.rank));
        size += half * in_fours(one.rank);
        column.push_back(ranks);
        ranks += one.rank;
        for (i64 r = 0; r < one.rank; r++) rows_of_a.push_back(one.a + r * to.inputs);
        for (i64 at = 0; one.rank > 0 && at < one.outputs; at += PANEL)
            short_parts.push_back({Part::GRAD_B, m, at, 0});
        length += one.outputs;
        short_length += divided(one.outputs, PANEL) * one.rank;
    }
    for (i64 at = 0; ranks > 0 && at < to.inputs; at += PANEL) short_parts.push_back({Part::GRAD_A, 0, at, 0});
    short_length += divided(to.inputs, PANEL) * ranks;
    // what a thread would wait for the last long part may be filled by short ones
    const i64 waits = 2 * short_length < (to.threads - 1) * length ? to.threads : 0;
    const i64 count = to.grad_x == nullptr ? 0 : ranges(tiles, panels, waits);
    for (i64 range = 0; range < count; range++)
        for (i64 at = 0; at < to.inputs; at += COLUMNS) parts.push_back({Part::GRAD_X, 0, at, range});
    parts.insert(parts.end(), short_parts.begin(), short_parts.end());
    pair* packs = packs_.of<pair>(size + half * in_fours(ranks));
    pair* packed_grad_h = packs + size;
    const bool is_even = ranks % 2 == 0;
    bf16* even_grad_h = is_even ? to.grad_h : even_.of<bf16>(to.rows * even(ranks));
    Product product = {{}, to.rows, to.grad_x, to.inputs, nullptr, false, false};
    for (i64 m = 0; m < to.count; m++) {
        const Layer& one = to.layers[m];
        const Operand grad_y = {y_of(one), one.pitch, one.outputs / 2};
        if (one.w == nullptr) product.adds = true;
        else product.terms.push_back({grad_y, Term::COLUMNS_OF_WEIGHT, one.w, to.inputs, nullptr});
    }
    if (ranks > 0)
        product.terms.push_back({{even_grad_h, even(ranks), even(ranks) / 2}, Term::COLUMNS_OF_A, rows_of_a.data(),
                                 ranks, nullptr});
    #pragma omp parallel num_threads(to.threads)
    {
        if (ranks > 0) {
            for (i64 m = 0; m < to.count; m++) {
                const Layer& one = to.layers[m];
                pair* b = packs + b_at[m];
                const i64 pitch = padded(one.rank), pairs = one.outputs / 2;
                if (one.rank == 1) {
                    #pragma omp for schedule(static) nowait
                    for (i64 k = 0; k < pairs; k += 16)
                        pack_row(b + k, one.b + 2 * k, one.outputs - 2 * k < 32 ? one.outputs - 2 * k : 32, &scale);
                } else if (one.rank <= FEW) {
                    #pragma omp for schedule(static) nowait
                    for (i64 k = 0; k < pairs; k++) {
                        const float* row = one.b + 2 * k * one.rank;
                        const __mmask16 some = first(one.rank);
                        const __m512 low = scaled(_mm512_maskz_loadu_ps(some, row), scale);
                        const __m512 high = scaled(_mm512_maskz_loadu_ps(some, row + one.rank), scale);
                        _mm512_mask_i32scatter_epi32(b + k, some, multiples(pairs), pairs_of(low, high), 4);
                    }
                } else {
                    #pragma omp for schedule(static) nowait
                    for (i64 k = 0; k < pairs; k++)
                        for (i64 r = 0; r < pitch; r += 16) {
                            const float* row = one.b + 2 * k * one.rank + r;
                            const __mmask16 some = first(one.rank - r);
                            const __m512 low = scaled(_mm512_maskz_loadu_ps(some, row), scale);
                            const __m512 high = scaled(_mm512_maskz_loadu_ps(some, row + one.rank), scale);
                            _mm512_storeu_si512(b + k * pitch + r, pairs_of(low, high));
                        }
                }
                #pragma omp for schedule(static) nowait
                for (i64 k = 0; k < half; k++)
                    pack_columns_of_h(to.h + column[m], to.ranks, to.rows, one.rank, k, packs + h_at[m]);
            }
            #pragma omp barrier
            #pragma omp for schedule(static)
            for (i64 at = 0; at < to.rows; at += ROWS) {
                const i64 rows = to.rows - at < ROWS ? to.rows - at : ROWS;
                for (i64 m = 0; m < to.count; m++) {
                    const Layer& one = to.layers[m];
                    bf16* grad_h = to.grad_h + at * to.ranks + column[m];
                    times_rows(y_of(one) + at * one.pitch, one.pitch, rows, one.outputs / 2, packs + b_at[m], one.rank,
                               grad_h, to.ranks);
                }
                if (!is_even) copy_even(to.grad_h + at * ranks, rows, {ranks}, even_grad_h + at * even(ranks));
            }
            #pragma omp for schedule(static)
            for (i64 k = 0; k < half; k++) pack_columns_of_h(to.grad_h, to.ranks, to.rows, to.ranks, k, packed_grad_h);
        }
        #pragma omp for schedule(dynamic, 1)
        for (i64 t = 0; t < (i64)parts.size(); t++) {
            const i64 at = parts[t].at;
            if (parts[t].of == Part::GRAD_X) {
                const i64 range = parts[t].range, width = to.inputs - at < COLUMNS ? to.inputs - at : COLUMNS;
                multiply(product, at, width, tiles * range / count, tiles * (range + 1) / count, 0);
                continue;
            }
            pair* panel = panel_.of<pair>(PANEL * BLOCK);
            if (parts[t].of == Part::GRAD_A) {
                const i64 width = to.inputs - at < PANEL ? to.inputs - at : PANEL;
                float* sums = sums_.of<float>(PANEL * in_fours(to.ranks));
                for (i64 m = 0; m < to.count; m++)
                    for (i64 r = 0; r < to.layers[m].rank; r++)
                        fetch(to.layers[m].grad_a + r * to.inputs + at, width);
                times_columns(to.x + at, to.pitch, to.rows, width, packed_grad_h, in_fours(to.ranks), sums, panel);
                for (i64 m = 0; m < to.count; m++)
                    for (i64 r = 0; r < to.layers[m].rank; r++)
                        add(to.layers[m].grad_a + r * to.inputs + at, sums + (column[m] + r) * PANEL, width, unit);
                continue;
            }
            const Layer& one = to.layers[parts[t].layer];
            const pair* h = packs + h_at[parts[t].layer];
            const i64 width = one.outputs - at < PANEL ? one.outputs - at : PANEL;
            float* sums = sums_.of<float>(PANEL * in_fours(one.rank));
            fetch(one.grad_b + at * one.rank, width * one.rank);
            times_columns(y_of(one) + at, one.pitch, to.rows, width, h, in_fours(one.rank), sums, panel);
            float* grad_b = one.grad_b + at * one.rank;
            if (one.rank == 1) {
                add(grad_b, sums, width, scale);
                continue;
            }
            for (i64 o = 0; o < width; o += 16)
                for (i64 r = 0; r < one.rank; r += 16) {
                    __m512i v[16];
                    for (i64 i = 0; i < 16; i++)
                        v[i] = _mm512_load_si512(sums + (r + i < one.rank ? r + i : r) * PANEL + o);
                    transpose(v);
                    for (i64 i = 0; i < 16 && o + i < width; i++)
                        add(grad_b + (o + i) * one.rank + r, (__m512)v[i], first(one.rank - r), scale);
                }
        }
    }
}

}  // namespace

extern "C" int rlora_is_supported() { return 1; }
extern "C" int rlora_forward(const void* arguments, double scale) {
    return had_memory([&] { run_forward(arguments, scale); });
}
extern "C" int rlora_backward(const void* arguments, double scale) {
    return had_memory([&] { run_backward(arguments, scale); });
}

#else

extern "C" int rlora_is_supported() { return 0; }

#endif
