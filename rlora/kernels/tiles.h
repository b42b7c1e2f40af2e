// Tiles of products of bfloat16 with fp32 sums, for processors with AVX-512 BF16: what low_rank.cpp and attention.cpp
// share.
//
// A tile is 6 rows x 64 columns (of h 8 x 48), which fill 24 of 32 registers. vdpbf16ps multiplies pairs of bfloat16, so
// the right operand is packed as pairs along the summed dimension, a pair to 32 bits.
#pragma once
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <new>
#include <vector>

#if defined(__AVX512BF16__) && defined(__AVX512BW__) && defined(__AVX512VL__)
#define RLORA_IS_SUPPORTED
#include <immintrin.h>
#ifdef RLORA_GUARDED
#include <sys/mman.h>
#endif

typedef uint16_t bf16;
typedef uint32_t pair;
typedef int64_t i64;

namespace {

const i64 HIGH = 6, COLUMNS = 64;  // of a tile of an output, whose rows are whole lines

struct Buffer {  // grows, and is kept by its thread
    void* data = nullptr;
    size_t size = 0;
#ifdef RLORA_GUARDED  // for a test: made anew each time, of numbers that are none, to the end of a page before one that
                      // can be neither read nor written
    template <class T> T* of(size_t count) {
        if (data != nullptr) munmap(data, size);
        const size_t bytes = (count * sizeof(T) + 63) / 64 * 64, pages = (bytes + 4095) / 4096 * 4096;
        size = pages + 4096;
        data = mmap(nullptr, size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (data == MAP_FAILED || mprotect(data, pages, PROT_READ | PROT_WRITE) != 0) abort();
        memset(data, 0xff, pages);
        return reinterpret_cast<T*>(static_cast<char*>(data) + pages - bytes);
    }
#else
    template <class T> T* of(size_t count) {
        if (count * sizeof(T) > size) {
            free(data);
            size = 0;
            data = aligned_alloc(64, (count * sizeof(T) + 4095) / 4096 * 4096);
            if (data == nullptr) throw std::bad_alloc();
            size = (count * sizeof(T) + 4095) / 4096 * 4096;
        }
        return static_cast<T*>(data);
    }
    ~Buffer() { free(data); }
#endif
};

// whether `run` had the memory that it needed; what is asked for within a parallel region is little, and ends the process
template <class Run>
inline int had_memory(Run run) {
    try {
        run();
        return 1;
    } catch (const std::bad_alloc&) {
        return 0;
    }
}

inline i64 divided(i64 a, i64 b) { return (a + b - 1) / b; }
inline __mmask16 first(i64 count) { return count >= 16 ? 0xffff : count > 0 ? (1u << count) - 1 : 0; }
inline __m512 widened(__m256i v) { return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(v), 16)); }
inline __m256i rounded(__m512 v) { return (__m256i)_mm512_cvtneps_pbh(v); }
inline __m512 dot(__m512 sum, __m512i a, __m512i b) { return _mm512_dpbf16_ps(sum, (__m512bh)a, (__m512bh)b); }
inline __m512i pairs_of(__m512 low, __m512 high) {  // (low[i], high[i])
    return _mm512_or_si512(
        _mm512_cvtepu16_epi32(rounded(low)), _mm512_slli_epi32(_mm512_cvtepu16_epi32(rounded(high)), 16));
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

// to[k * COLUMNS + c] = pair k of row c of at most 64
inline void pack_rows(const bf16* from, i64 pitch, i64 rows, i64 pairs, pair* to) {
    for (i64 k = 0; k < pairs; k += 16)
        for (i64 o = 0; o < rows; o += 16) {
            __m512i v[16];
            const __mmask16 some = first(pairs - k);
            for (i64 r = 0; r < 16; r++)
                v[r] = _mm512_maskz_loadu_epi32(some, from + (o + r < rows ? o + r : rows - 1) * pitch + 2 * k);
            transpose(v);
            for (i64 i = 0; i < 16; i++)
                if (k + i < pairs) _mm512_storeu_si512(to + (k + i) * COLUMNS + o, v[i]);
        }
}

// to[k * COLUMNS + c] = column c of rows 2 k and 2 k + 1, of at most 64 columns; zero where there is no such row
inline void pack_columns(const bf16* from, i64 pitch, i64 columns, i64 rows, pair* to) {
    for (i64 k = 0; 2 * k < rows; k++, from += 2 * pitch)
        for (i64 i = 0; i < columns; i += 16) {
            const __mmask16 some = first(columns - i), second = 2 * k + 1 < rows ? some : 0;
            const __m512i low = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(some, from + i));
            const __m512i high = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(second, from + pitch + i));
            _mm512_storeu_si512(to + k * COLUMNS + i, _mm512_or_si512(low, _mm512_slli_epi32(high, 16)));
        }
}

// sum += G P for rows of pairs and 16 Z columns; `next`: how far the rows are that come after
template <int Z, i64 R, i64 W>
inline void row_tile(const bf16* const* g, i64 next, i64 pairs, const pair* p, i64 pitch, __m512 (&sum)[R][W]) {
    for (i64 k = 0; k < pairs; k++) {
        if (k % 16 == 0)
            for (int r = 0; r < R; r++) _mm_prefetch((const char*)(g[r] + next + 2 * k), _MM_HINT_T0);
        __m512i b[Z];
        for (int z = 0; z < Z; z++) b[z] = _mm512_loadu_si512(p + k * pitch + 16 * z);
        for (int r = 0; r < R; r++) {
            pair one;
            memcpy(&one, g[r] + 2 * k, sizeof one);
            const __m512i a = _mm512_set1_epi32((int)one);
            for (int z = 0; z < Z; z++) sum[r][z] = dot(sum[r][z], a, b[z]);
        }
    }
}

// C (HEIGHT, 64) = or += H^T G for pairs of rows of H [pairs][pitch] and of G [pairs][64]
template <int HEIGHT>
inline void column_tile(const pair* h, i64 pitch, const pair* g, i64 count, float* c, bool is_first) {
    __m512 sum[HEIGHT][4];
    for (int i = 0; i < HEIGHT; i++)
        for (int z = 0; z < 4; z++) sum[i][z] = is_first ? _mm512_setzero_ps() : _mm512_load_ps(c + i * COLUMNS + 16 * z);
    for (i64 k = 0; k < count; k++) {
        __m512i b[4];
        for (int z = 0; z < 4; z++) b[z] = _mm512_load_si512(g + COLUMNS * k + 16 * z);
        for (int i = 0; i < HEIGHT; i++) {
            const __m512i a = _mm512_set1_epi32((int)h[k * pitch + i]);
            for (int z = 0; z < 4; z++) sum[i][z] = dot(sum[i][z], a, b[z]);
        }
    }
    for (int i = 0; i < HEIGHT; i++)
        for (int z = 0; z < 4; z++) _mm512_store_ps(c + i * COLUMNS + 16 * z, sum[i][z]);
}

}  // namespace

#endif
