// The products of low-rank updates beside a base, in bfloat16 with fp32 sums, for processors with AVX-512 BF16.
//
// One tile of a matrix product is 8 rows x 48 columns, which fill 24 of 32 registers. vdpbf16ps multiplies pairs of
// bfloat16, so operands are packed as pairs along the summed dimension, a pair to 32 bits. Factors are read in fp32 and
// rounded here as a server rounds them: A once; B once, then once more after the scale. Each number is summed by one
// thread, in one order: results do not depend on the number of threads. low_rank.py declares what is called.
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <vector>

#if defined(__AVX512BF16__) && defined(__AVX512BW__) && defined(__AVX512VL__)
#include <immintrin.h>

typedef uint16_t bf16;
typedef uint32_t pair;
typedef int64_t i64;

namespace {

const i64 ROWS = 8, WIDE = 3, PANEL = 64, BLOCK = 64;  // of a tile; in registers; columns and pairs of rows held packed
const i64 FEW = 4;  // up to so many columns are dot products along rows

struct Factor {  // 8 numbers of 64 bits, as low_rank.py lays them out
    const float* a;  // (rank, inputs)
    i64 rank;
    const float* b;  // (outputs, rank)
    i64 outputs;
    bf16* y;  // the output, or its gradient
    i64 pitch;
    float* grad_a;
    float* grad_b;
};

struct Arguments {
    i64 threads, rows, inputs, ranks;  // ranks: of all factors
    bf16* x;  // the input, or its gradient
    i64 pitch;
    bf16* h;  // (rows, ranks)
    bf16* grad_h;
    i64 count;
    Factor factors[];
};

struct Buffer {  // grows, and is kept by its thread
    void* data = nullptr;
    size_t size = 0;
    template <class T> T* of(size_t count) {
        if (count * sizeof(T) > size) {
            free(data);
            size = (count * sizeof(T) + 4095) / 4096 * 4096;
            data = aligned_alloc(64, size);
            if (data == nullptr) abort();
        }
        return static_cast<T*>(data);
    }
    ~Buffer() { free(data); }
};
thread_local Buffer packs_, pairs_, panel_, sums_;

inline i64 divided(i64 a, i64 b) { return (a + b - 1) / b; }
inline __mmask16 first(i64 count) { return count >= 16 ? 0xffff : count > 0 ? (1u << count) - 1 : 0; }
inline __mmask32 first32(i64 count) { return count >= 32 ? 0xffffffffu : count > 0 ? (1u << count) - 1 : 0; }
inline __m512 widened(__m256i v) { return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(v), 16)); }
inline __m256i rounded(__m512 v) { return (__m256i)_mm512_cvtneps_pbh(v); }
inline __m512 scaled(__m512 b, __m512 scale) { return _mm512_mul_ps(widened(rounded(b)), scale); }
inline __m512 dot(__m512 sum, __m512i a, __m512i b) { return _mm512_dpbf16_ps(sum, (__m512bh)a, (__m512bh)b); }
inline __m512i multiples(i64 step) {
    const __m512i count = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
    return _mm512_mullo_epi32(count, _mm512_set1_epi32((int)step));
}
inline __m512i pairs_of(__m512 low, __m512 high) {  // (low[i], high[i])
    return _mm512_or_si512(
        _mm512_cvtepu16_epi32(rounded(low)), _mm512_slli_epi32(_mm512_cvtepu16_epi32(rounded(high)), 16));
}
inline pair pair_at(const bf16* low, bool has_high, const bf16* high) {
    return (pair)*low | (has_high ? (pair)*high << 16 : 0);
}

// 16 rows of 16 become 16 columns, to be stored as whole lines: a scatter waits for each of 16
inline void transpose(__m512i (&v)[16]) {
    __m512i w[16];
    for (int i = 0; i < 16; i += 2) {
        w[i] = _mm512_unpacklo_epi32(v[i], v[i + 1]);
        w[i + 1] = _mm512_unpackhi_epi32(v[i], v[i + 1]);
    }
    for (int i = 0; i < 16; i += 4)
        for (int j = 0; j < 2; j++) {
            v[i + 2 * j] = _mm512_unpacklo_epi64(w[i + j], w[i + j + 2]);
            v[i + 2 * j + 1] = _mm512_unpackhi_epi64(w[i + j], w[i + j + 2]);
        }
    for (int i = 0; i < 4; i++) {  // v[4 a + i]: columns i, 4 + i, 8 + i and 12 + i of rows 4 a to 4 a + 3
        w[i] = _mm512_shuffle_i32x4(v[i], v[4 + i], 0x88);
        w[4 + i] = _mm512_shuffle_i32x4(v[8 + i], v[12 + i], 0x88);
        w[8 + i] = _mm512_shuffle_i32x4(v[i], v[4 + i], 0xdd);
        w[12 + i] = _mm512_shuffle_i32x4(v[8 + i], v[12 + i], 0xdd);
    }
    for (int i = 0; i < 4; i++) {
        v[i] = _mm512_shuffle_i32x4(w[i], w[4 + i], 0x88);
        v[4 + i] = _mm512_shuffle_i32x4(w[8 + i], w[12 + i], 0x88);
        v[8 + i] = _mm512_shuffle_i32x4(w[i], w[4 + i], 0xdd);
        v[12 + i] = _mm512_shuffle_i32x4(w[8 + i], w[12 + i], 0xdd);
    }
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

template <int Z>
inline void row_tile(const bf16* const* g, i64 next, i64 pairs, const pair* p, i64 pitch, __m512 (&sum)[ROWS][WIDE]) {
    for (int r = 0; r < ROWS; r++)
        for (int z = 0; z < Z; z++) sum[r][z] = _mm512_setzero_ps();
    for (i64 k = 0; k < pairs; k++) {
        if (k % 16 == 0)
            for (int r = 0; r < ROWS; r++) _mm_prefetch((const char*)(g[r] + next + 2 * k), _MM_HINT_T0);
        __m512i b[Z];
        for (int z = 0; z < Z; z++) b[z] = _mm512_loadu_si512(p + k * pitch + 16 * z);
        for (int r = 0; r < ROWS; r++) {
            pair one;
            memcpy(&one, g[r] + 2 * k, sizeof one);
            const __m512i a = _mm512_set1_epi32((int)one);
            for (int z = 0; z < Z; z++) sum[r][z] = dot(sum[r][z], a, b[z]);
        }
    }
}

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
        __m512 sum[ROWS][WIDE];
        const i64 left = (p_pitch - start) / 16;
        wide = left == 4 ? 2 : left < WIDE ? left : WIDE;
        if (wide == 3) row_tile<3>(row, next, pairs, p + start, p_pitch, sum);
        if (wide == 2) row_tile<2>(row, next, pairs, p + start, p_pitch, sum);
        if (wide == 1) row_tile<1>(row, next, pairs, p + start, p_pitch, sum);
        for (i64 r = 0; r < rows; r++)
            for (i64 z = 0; z < wide; z++) {
                const i64 at = start + 16 * z;
                _mm256_mask_storeu_epi16(c + r * c_pitch + at, first(columns - at), rounded(sum[r][z]));
            }
    }
}

// a mask that is known to be whole still costs what a mask costs
template <bool IS_WHOLE> inline __m256i load16(__mmask16 some, const bf16* from) {
    return IS_WHOLE ? _mm256_loadu_si256((const __m256i*)from) : _mm256_maskz_loadu_epi16(some, from);
}
template <bool IS_WHOLE> inline __m512i load32(__mmask16 some, const pair* from) {
    return IS_WHOLE ? _mm512_loadu_si512(from) : _mm512_maskz_loadu_epi32(some, from);
}

template <bool IS_WHOLE>
inline void add_tile(bf16* y, i64 pitch, i64 rows, const pair* h, i64 pairs, const pair* p, i64 columns, i64 left) {
    __m512 sum[ROWS][WIDE];
    __mmask16 some[WIDE];
    for (int z = 0; z < WIDE; z++) some[z] = IS_WHOLE ? 0xffff : first(left - 16 * z);
    for (int r = 0; r < ROWS; r++) {
        _mm_prefetch((const char*)(y + (ROWS + r) * pitch), _MM_HINT_T0);
        _mm_prefetch((const char*)(y + (ROWS + r) * pitch + 32), _MM_HINT_T0);
        for (int z = 0; z < WIDE; z++)
            sum[r][z] = widened(load16<IS_WHOLE>(some[z], y + (r < rows ? r : rows - 1) * pitch + 16 * z));
    }
    for (i64 k = 0; k < pairs; k++) {
        __m512i b[WIDE];
        for (int z = 0; z < WIDE; z++) b[z] = load32<IS_WHOLE>(some[z], p + k * columns + 16 * z);
        for (int r = 0; r < ROWS; r++) {
            const __m512i a = _mm512_set1_epi32((int)h[ROWS * k + r]);
            for (int z = 0; z < WIDE; z++) sum[r][z] = dot(sum[r][z], a, b[z]);
        }
    }
    for (int r = 0; r < ROWS; r++)
        if (r < rows)
            for (int z = 0; z < WIDE; z++)
                _mm256_mask_storeu_epi16(y + r * pitch + 16 * z, some[z], rounded(sum[r][z]));
}

// Y (rows <= 8, columns) += H P, with H's pairs [pairs][8] and P's [pairs][columns]
void add_rows(bf16* y, i64 pitch, i64 rows, const pair* h, i64 pairs, const pair* p, i64 columns) {
    i64 at = 0;
    for (; at + 16 * WIDE <= columns; at += 16 * WIDE)
        add_tile<true>(y + at, pitch, rows, h, pairs, p + at, columns, 16 * WIDE);
    if (at < columns) add_tile<false>(y + at, pitch, rows, h, pairs, p + at, columns, columns - at);
}

void pack_rows(const bf16* h, i64 pitch, i64 rows, i64 columns, pair* to) {
    if (columns % 2 == 0) {
        const i64 pairs = columns / 2;
        for (i64 at = 0; at < pairs; at += 16) {
            __m512i v[16];
            for (i64 r = 0; r < 16; r++) {
                const bool is_row = r < rows;
                v[r] = _mm512_maskz_loadu_epi32(is_row ? first(pairs - at) : 0, h + (is_row ? r : 0) * pitch + 2 * at);
            }
            transpose(v);
            for (i64 k = 0; k < 16; k++)
                if (at + k < pairs) _mm512_mask_storeu_epi32(to + ROWS * (at + k), 0xff, v[k]);
        }
        return;
    }
    for (i64 k = 0; k < divided(columns, 2); k++)
        for (i64 r = 0; r < ROWS; r++) {
            const bf16* from = h + r * pitch + 2 * k;
            to[ROWS * k + r] = r < rows ? pair_at(from, 2 * k + 1 < columns, from + 1) : 0;
        }
}

// h for times_columns: pairs of rows [rows / 2][ranks, if more than 2 a multiple of 4]
inline i64 in_fours(i64 ranks) { return ranks <= 2 ? ranks : divided(ranks, 4) * 4; }

template <int HIGH>
inline void column_tile(const pair* h, i64 ranks, const pair* g, i64 count, float* c, bool is_first) {
    __m512 sum[HIGH][4];
    for (int i = 0; i < HIGH; i++)
        for (int z = 0; z < 4; z++) sum[i][z] = is_first ? _mm512_setzero_ps() : _mm512_load_ps(c + i * PANEL + 16 * z);
    for (i64 k = 0; k < count; k++) {
        __m512i b[4];
        for (int z = 0; z < 4; z++) b[z] = _mm512_load_si512(g + PANEL * k + 16 * z);
        for (int i = 0; i < HIGH; i++) {
            const __m512i a = _mm512_set1_epi32((int)h[k * ranks + i]);
            for (int z = 0; z < 4; z++) sum[i][z] = dot(sum[i][z], a, b[z]);
        }
    }
    for (int i = 0; i < HIGH; i++)
        for (int z = 0; z < 4; z++) _mm512_store_ps(c + i * PANEL + 16 * z, sum[i][z]);
}

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

void pack_columns(const bf16* h, i64 pitch, i64 rows, i64 ranks, i64 k, pair* to) {
    const bf16* from = h + 2 * k * pitch;
    for (i64 r = 0; r < in_fours(ranks); r += 16) {
        const __mmask16 some = first(ranks - r), second = 2 * k + 1 < rows ? some : 0;
        const __m512i low = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(some, from + r));
        const __m512i high = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(second, from + pitch + r));
        const __m512i both = _mm512_or_si512(low, _mm512_slli_epi32(high, 16));
        _mm512_mask_storeu_epi32(to + k * in_fours(ranks) + r, first(in_fours(ranks) - r), both);
    }
}

}  // namespace

extern "C" int rlora_is_supported() { return 1; }

// h = x A^T of all factors; each y += h (scale B)^T
extern "C" void rlora_forward(const void* arguments, double scale_) {
    const Arguments& to = *static_cast<const Arguments*>(arguments);
    const __m512 scale = _mm512_set1_ps((float)scale_);
    const i64 half = to.inputs / 2, pitch = padded(to.ranks);
    std::vector<i64> b_at;
    i64 size = half * pitch;
    for (i64 m = 0; m < to.count; m++) {
        b_at.push_back(size);
        size += divided(to.factors[m].rank, 2) * to.factors[m].outputs;
    }
    pair* packs = packs_.of<pair>(size);
    #pragma omp parallel num_threads(to.threads)
    {
        i64 column = 0;
        for (i64 m = 0; m < to.count; m++) {
            const Factor& one = to.factors[m];
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
            pair* b = packs + b_at[m];
            if (one.rank == 1) {
                #pragma omp for schedule(static) nowait
                for (i64 o = 0; o < one.outputs; o += 16) {
                    const __mmask16 some = first(one.outputs - o);
                    const __m512 value = scaled(_mm512_maskz_loadu_ps(some, one.b + o), scale);
                    _mm512_mask_storeu_epi32(b + o, some, pairs_of(value, _mm512_setzero_ps()));
                }
            } else {
                #pragma omp for schedule(static) collapse(2) nowait
                for (i64 o = 0; o < one.outputs; o += 16)
                    for (i64 r = 0; r < one.rank; r += 32)
                        pack_across(b + r / 2 * one.outputs + o, one.outputs, one.b + o * one.rank + r, one.rank,
                                    one.outputs - o, one.rank - r, &scale);
            }
        }
        #pragma omp for schedule(static)
        for (i64 k = 0; k < half; k++)
            for (i64 r = to.ranks; r < pitch; r++) packs[k * pitch + r] = 0;
        pair* pairs = pairs_.of<pair>(ROWS * (to.ranks + 1));
        #pragma omp for schedule(static)
        for (i64 at = 0; at < to.rows; at += ROWS) {
            const i64 rows = to.rows - at < ROWS ? to.rows - at : ROWS;
            bf16* h = to.h + at * to.ranks;
            times_rows(to.x + at * to.pitch, to.pitch, rows, half, packs, to.ranks, h, to.ranks);
            for (i64 m = 0; m < to.count; h += to.factors[m].rank, m++) {
                const Factor& one = to.factors[m];
                pack_rows(h, to.ranks, rows, one.rank, pairs);
                bf16* y = one.y + at * one.pitch;
                add_rows(y, one.pitch, rows, pairs, divided(one.rank, 2), packs + b_at[m], one.outputs);
            }
        }
    }
}

// y are gradients of outputs: grad_h = y (scale B); added are the gradients of A, grad_h^T x, and of B, scale y^T h
extern "C" void rlora_backward(const void* arguments, double scale_) {
    const Arguments& to = *static_cast<const Arguments*>(arguments);
    const __m512 scale = _mm512_set1_ps((float)scale_);
    const __m512 unit = _mm512_set1_ps(1);
    const i64 half = divided(to.rows, 2);
    struct Part { i64 factor, at; };  // a panel of columns; factor -1: of x
    std::vector<Part> parts;
    std::vector<i64> b_at, h_at, column;
    i64 size = 0, ranks = 0;
    for (i64 m = 0; m < to.count; m++) {
        const Factor& one = to.factors[m];
        b_at.push_back(size);
        h_at.push_back(size += one.outputs / 2 * padded(one.rank));
        size += half * in_fours(one.rank);
        column.push_back(ranks);
        ranks += one.rank;
        for (i64 at = 0; at < one.outputs; at += PANEL) parts.push_back({m, at});
    }
    for (i64 at = 0; at < to.inputs; at += PANEL) parts.push_back({-1, at});
    pair* packs = packs_.of<pair>(size + half * in_fours(ranks));
    pair* packed_grad_h = packs + size;
    #pragma omp parallel num_threads(to.threads)
    {
        for (i64 m = 0; m < to.count; m++) {
            const Factor& one = to.factors[m];
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
                pack_columns(to.h + column[m], to.ranks, to.rows, one.rank, k, packs + h_at[m]);
        }
        #pragma omp barrier
        #pragma omp for schedule(static)
        for (i64 at = 0; at < to.rows; at += ROWS)
            for (i64 m = 0; m < to.count; m++) {
                const Factor& one = to.factors[m];
                const i64 rows = to.rows - at < ROWS ? to.rows - at : ROWS;
                bf16* grad_h = to.grad_h + at * to.ranks + column[m];
                times_rows(one.y + at * one.pitch, one.pitch, rows, one.outputs / 2, packs + b_at[m], one.rank, grad_h,
                           to.ranks);
            }
        #pragma omp for schedule(static)
        for (i64 k = 0; k < half; k++) pack_columns(to.grad_h, to.ranks, to.rows, to.ranks, k, packed_grad_h);
        pair* panel = panel_.of<pair>(PANEL * BLOCK);
        #pragma omp for schedule(dynamic, 1)
        for (i64 t = 0; t < (i64)parts.size(); t++) {
            const i64 at = parts[t].at;
            if (parts[t].factor < 0) {
                const i64 width = to.inputs - at < PANEL ? to.inputs - at : PANEL;
                float* sums = sums_.of<float>(PANEL * in_fours(to.ranks));
                for (i64 m = 0; m < to.count; m++)
                    for (i64 r = 0; r < to.factors[m].rank; r++)
                        fetch(to.factors[m].grad_a + r * to.inputs + at, width);
                times_columns(to.x + at, to.pitch, to.rows, width, packed_grad_h, in_fours(to.ranks), sums, panel);
                for (i64 m = 0; m < to.count; m++)
                    for (i64 r = 0; r < to.factors[m].rank; r++)
                        add(to.factors[m].grad_a + r * to.inputs + at, sums + (column[m] + r) * PANEL, width, unit);
                continue;
            }
            const Factor& one = to.factors[parts[t].factor];
            const pair* h = packs + h_at[parts[t].factor];
            const i64 width = one.outputs - at < PANEL ? one.outputs - at : PANEL;
            float* sums = sums_.of<float>(PANEL * in_fours(one.rank));
            fetch(one.grad_b + at * one.rank, width * one.rank);
            times_columns(one.y + at, one.pitch, to.rows, width, h, in_fours(one.rank), sums, panel);
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

// x is the input's gradient: x += grad_h A of all factors
extern "C" void rlora_add_to_input(const void* arguments, double) {
    const Arguments& to = *static_cast<const Arguments*>(arguments);
    const i64 pairs = divided(to.ranks, 2);
    pair* packs = packs_.of<pair>(pairs * to.inputs);
    std::vector<const float*> row;
    for (i64 m = 0; m < to.count; m++)
        for (i64 r = 0; r < to.factors[m].rank; r++) row.push_back(to.factors[m].a + r * to.inputs);
    #pragma omp parallel num_threads(to.threads)
    {
        #pragma omp for schedule(static)
        for (i64 i = 0; i < to.inputs; i += 16) {
            const __mmask16 some = first(to.inputs - i);
            for (i64 k = 0; k < pairs; k++) {
                const __m512 low = _mm512_maskz_loadu_ps(some, row[2 * k] + i);
                const bool has_high = 2 * k + 1 < to.ranks;
                const __m512 high = has_high ? _mm512_maskz_loadu_ps(some, row[2 * k + 1] + i) : _mm512_setzero_ps();
                _mm512_mask_storeu_epi32(packs + k * to.inputs + i, some, pairs_of(low, high));
            }
        }
        pair* h = pairs_.of<pair>(ROWS * pairs);
        #pragma omp for schedule(static)
        for (i64 at = 0; at < to.rows; at += ROWS) {
            const i64 rows = to.rows - at < ROWS ? to.rows - at : ROWS;
            pack_rows(to.grad_h + at * to.ranks, to.ranks, rows, to.ranks, h);
            add_rows(to.x + at * to.pitch, to.pitch, rows, h, pairs, packs, to.inputs);
        }
    }
}

#else

extern "C" int rlora_is_supported() { return 0; }

#endif
