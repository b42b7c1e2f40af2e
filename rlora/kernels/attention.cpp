// Attention in which a position sees two ranges of positions: some from the beginning (the prompt of its row) and the
// last ones up to itself. In bfloat16 with fp32 sums, for processors with AVX-512 BF16.
//
// Queries are taken in blocks and keys in panels of 64; panels that no query of a block sees are left out. The scores of
// 6 queries stay in the cache from the first product to the last, so that none are kept, and the backward pass computes
// them again. Each number is summed by one thread, in one order, whatever the number of threads. attention.py declares
// what is called.
#include "tiles.h"

#ifdef RLORA_IS_SUPPORTED
#include <cmath>

namespace {

const i64 QUERIES = 60;  // of a block: ten tiles
const float LOG2E = 1.4426950408889634f, HIDDEN = -1e30f;

struct Heads {  // (rows, heads, length, size), of which the last dimension has no gaps
    bf16* at;
    i64 row, head, position;
    const bf16* of(i64 b, i64 h, i64 t) const { return at + b * row + h * head + t * position; }
};

struct Arguments {  // numbers of 64 bits, as attention.py lays them out
    i64 threads, rows, heads, key_heads, length, size;
    const int32_t* seen;  // (rows, length, 2): t sees positions before the first number, and from the second up to t
    Heads q, k, v, out;  // out: or its gradient
    float* normalizer;  // (rows, heads, length): log2 of the sums of 2 to the power of scores
    bf16* grad_q;  // (rows, heads, length, size)
    bf16* grad_k;  // (rows, key_heads, length, size)
    bf16* grad_v;
};

thread_local Buffer packs_, scores_, weights_, grads_, low_, pairs_, panel_, sums_;

inline i64 smaller(i64 a, i64 b) { return a < b ? a : b; }
inline i64 larger(i64 a, i64 b) { return a > b ? a : b; }

// 2 to the power of x, which is at most a little above 0, to 2e-7 of it
inline __m512 exp2_of(__m512 x) {
    const __m512 whole = _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    const __m512 rest = _mm512_sub_ps(x, whole);  // in [-0.5, 0.5]; coefficients are ln(2)^i / i!
    __m512 sum = _mm512_set1_ps(1.5403530e-4f);
    sum = _mm512_fmadd_ps(sum, rest, _mm512_set1_ps(1.3333558e-3f));
    sum = _mm512_fmadd_ps(sum, rest, _mm512_set1_ps(9.6181291e-3f));
    sum = _mm512_fmadd_ps(sum, rest, _mm512_set1_ps(5.5504109e-2f));
    sum = _mm512_fmadd_ps(sum, rest, _mm512_set1_ps(2.4022651e-1f));
    sum = _mm512_fmadd_ps(sum, rest, _mm512_set1_ps(6.9314718e-1f));
    sum = _mm512_fmadd_ps(sum, rest, _mm512_set1_ps(1));
    return _mm512_scalef_ps(sum, whole);
}

struct Shape {  // of what is packed for a key head
    i64 panels, pairs, chunks;  // panels of 64 keys; pairs of a head's size; chunks of 64 columns of it
    explicit Shape(const Arguments& to)
        : panels(divided(to.length, COLUMNS)), pairs(to.size / 2), chunks(divided(to.size, COLUMNS)) {}
    i64 across() const { return panels * pairs * COLUMNS; }  // keys are columns
    i64 down() const { return chunks * panels * COLUMNS / 2 * COLUMNS; }  // keys are summed over
    pair* across(pair* packs, i64 panel) const { return packs + panel * pairs * COLUMNS; }
    pair* down(pair* packs, i64 chunk, i64 panel) const {
        return packs + (chunk * panels + panel) * COLUMNS / 2 * COLUMNS;
    }
};

void pack_across(const Arguments& to, const Heads& from, i64 b, i64 g, pair* packs) {
    const Shape shape(to);
    for (i64 panel = 0; panel < shape.panels; panel++) {
        const i64 keys = smaller(to.length - panel * COLUMNS, COLUMNS);
        pack_rows(from.of(b, g, panel * COLUMNS), from.position, keys, shape.pairs, shape.across(packs, panel));
    }
}

void pack_down(const Arguments& to, const Heads& from, i64 b, i64 g, pair* packs) {
    const Shape shape(to);
    for (i64 chunk = 0; chunk < shape.chunks; chunk++)
        for (i64 panel = 0; panel < shape.panels; panel++) {
            const i64 keys = smaller(to.length - panel * COLUMNS, COLUMNS);
            pair* pack = shape.down(packs, chunk, panel);
            pack_columns(from.of(b, g, panel * COLUMNS) + chunk * COLUMNS, from.position,
                         smaller(to.size - chunk * COLUMNS, COLUMNS), keys, pack);
            for (i64 k = divided(keys, 2); k < COLUMNS / 2; k++) memset(pack + k * COLUMNS, 0, COLUMNS * sizeof(pair));
        }
}

struct Block {  // of queries, and the panels of which they see something
    i64 b, start, end;
    struct Panel { i64 index, width; };  // registers of 16 keys
    std::vector<Panel> panels;
    Block(const Arguments& to, i64 b, i64 start) : b(b), start(start), end(smaller(start + QUERIES, to.length)) {
        i64 before = 0, from = end;
        for (i64 t = start; t < end; t++) {
            const int32_t* seen = to.seen + 2 * (b * to.length + t);
            before = larger(before, seen[0]);
            from = smaller(from, seen[1]);
        }
        for (i64 index = 0; index * COLUMNS < end; index++) {
            const i64 first_key = index * COLUMNS, after = smaller(end, first_key + COLUMNS);
            if (first_key < before || after > from) panels.push_back({index, divided(after - first_key, 16)});
        }
    }
    i64 pitch() const { return (i64)panels.size() * COLUMNS; }
};

// which of 16 keys a query sees
inline __mmask16 is_seen(const int32_t* seen, i64 query, i64 key) {
    return first(seen[0] - key) | (first(query + 1 - key) & (__mmask16)~first(seen[1] - key));
}

// c (6, 16 width) = rows P, where rows hold pairs one after the other
template <int Z>
inline void tile(const bf16* const* rows, i64 pairs, const pair* p, float* c, i64 pitch) {
    __m512 sum[HIGH][Z] = {};
    row_tile<Z, HIGH, Z>(rows, 0, pairs, p, COLUMNS, sum);
    for (int r = 0; r < HIGH; r++)
        for (int z = 0; z < Z; z++) _mm512_storeu_ps(c + r * pitch + 16 * z, sum[r][z]);
}

inline void tile(i64 width, const bf16* const* rows, i64 pairs, const pair* p, float* c, i64 pitch) {
    const auto run = width == 4 ? tile<4> : width == 3 ? tile<3> : width == 2 ? tile<2> : tile<1>;
    run(rows, pairs, p, c, pitch);
}

// the rows of 6 queries, the first again for those that there are not
inline void rows_of(const Heads& heads, i64 b, i64 h, i64 t, i64 count, const bf16* (&rows)[HIGH]) {
    for (int r = 0; r < HIGH; r++) rows[r] = heads.of(b, h, t + (r < count ? r : 0));
}

// C (6, size) = the sum over all keys of a block's panels of weights (6, pitch) with what is packed
template <int Z>
inline void sum_of_keys(const Shape& shape, const Block& block, const bf16* weights, pair* packs, i64 chunk,
                        __m512 (&sum)[HIGH][Z]) {
    const i64 pitch = block.pitch();
    for (size_t j = 0; j < block.panels.size(); j++) {
        const bf16* rows[HIGH];
        for (int r = 0; r < HIGH; r++) rows[r] = weights + r * pitch + j * COLUMNS;
        row_tile<Z, HIGH, Z>(rows, 0, 8 * block.panels[j].width, shape.down(packs, chunk, block.panels[j].index),
                             COLUMNS, sum);
    }
}

// of 6 queries: weights' sums over keys, each times a factor, to rows of a tensor
template <int Z>
void weighted(const Shape& shape, const Block& block, const bf16* weights, pair* packs, i64 chunk, i64 columns,
              const float* factor, i64 count, bf16* to, i64 pitch) {
    __m512 sum[HIGH][Z] = {};
    sum_of_keys<Z>(shape, block, weights, packs, chunk, sum);
    for (i64 r = 0; r < count; r++)
        for (int z = 0; z < Z; z++)
            _mm256_mask_storeu_epi16(to + r * pitch + 16 * z, first(columns - 16 * z),
                                     rounded(_mm512_mul_ps(sum[r][z], _mm512_set1_ps(factor[r]))));
}

void weighted(const Arguments& to, const Block& block, const bf16* weights, pair* packs, const float* factor, i64 count,
              bf16* at, i64 pitch) {
    const Shape shape(to);
    for (i64 chunk = 0; chunk < shape.chunks; chunk++) {
        const i64 columns = smaller(to.size - chunk * COLUMNS, COLUMNS);
        const auto run = columns > 48   ? weighted<4>
                         : columns > 32 ? weighted<3>
                         : columns > 16 ? weighted<2>
                                        : weighted<1>;
        run(shape, block, weights, packs, chunk, columns, factor, count, at + chunk * COLUMNS, pitch);
    }
}

void attend_block(const Arguments& to, const Block& block, i64 h, pair* k_across, pair* v_down, float scale) {
    const Shape shape(to);
    const i64 pitch = block.pitch(), b = block.b;
    float* scores = scores_.of<float>(HIGH * pitch);
    bf16* weights = low_.of<bf16>(HIGH * pitch);
    const __m512 factor = _mm512_set1_ps(scale * LOG2E), hidden = _mm512_set1_ps(HIDDEN);
    for (i64 t = block.start; t < block.end; t += HIGH) {
        const i64 count = smaller(block.end - t, HIGH);
        const bf16* q[HIGH];
        rows_of(to.q, b, h, t, count, q);
        __m512 largest[HIGH];
        for (int r = 0; r < HIGH; r++) largest[r] = hidden;
        for (size_t j = 0; j < block.panels.size(); j++) {
            const Block::Panel& panel = block.panels[j];
            tile(panel.width, q, shape.pairs, shape.across(k_across, panel.index), scores + j * COLUMNS, pitch);
            for (i64 r = 0; r < HIGH; r++) {
                const i64 query = t + (r < count ? r : 0);
                const int32_t* seen = to.seen + 2 * (b * to.length + query);
                for (i64 z = 0; z < panel.width; z++) {
                    float* score = scores + r * pitch + j * COLUMNS + 16 * z;
                    const __mmask16 some = is_seen(seen, query, panel.index * COLUMNS + 16 * z);
                    const __m512 one = _mm512_mask_mul_ps(hidden, some, _mm512_loadu_ps(score), factor);
                    _mm512_storeu_ps(score, one);
                    largest[r] = _mm512_max_ps(largest[r], one);
                }
            }
        }
        float inverse[HIGH];
        for (i64 r = 0; r < HIGH; r++) {
            const float top = _mm512_reduce_max_ps(largest[r]);
            const __m512 tops = _mm512_set1_ps(top);
            __m512 sum = _mm512_setzero_ps();
            for (size_t j = 0; j < block.panels.size(); j++)
                for (i64 at = j * COLUMNS, end = at + 16 * block.panels[j].width; at < end; at += 16) {
                    const __m512 one = exp2_of(_mm512_sub_ps(_mm512_loadu_ps(scores + r * pitch + at), tops));
                    sum = _mm512_add_ps(sum, one);
                    _mm256_storeu_si256((__m256i*)(weights + r * pitch + at), rounded(one));
                }
            const float all = _mm512_reduce_add_ps(sum);
            inverse[r] = 1 / all;
            if (r < count) to.normalizer[(b * to.heads + h) * to.length + t + r] = top + std::log2(all);
        }
        weighted(to, block, weights, v_down, inverse, count, const_cast<bf16*>(to.out.of(b, h, t)), to.out.position);
    }
}

// sums += what the queries of a block add to the gradients of keys and values, [chunk][length in panels][64] each
void differentiate_block(const Arguments& to, const Block& block, i64 h, pair* k_across, pair* k_down, pair* v_across,
                         float scale, float* grad_k, float* grad_v) {
    const Shape shape(to);
    const i64 pitch = block.pitch(), b = block.b, count_of_pairs = divided(block.end - block.start, HIGH) * HIGH / 2;
    float* weights = weights_.of<float>(HIGH * pitch);
    float* grads = grads_.of<float>(HIGH * pitch);
    bf16* low = low_.of<bf16>(HIGH * pitch);
    pair* weight_pairs = pairs_.of<pair>(QUERIES * pitch);  // of queries, then of the scores' gradients
    pair* grad_pairs = weight_pairs + QUERIES / 2 * pitch;
    const __m512 factor = _mm512_set1_ps(scale * LOG2E), scales = _mm512_set1_ps(scale);
    const float ones[HIGH] = {1, 1, 1, 1, 1, 1};
    for (i64 t = block.start; t < block.end; t += HIGH) {
        const i64 count = smaller(block.end - t, HIGH);
        const bf16 *q[HIGH], *grad_out[HIGH];
        rows_of(to.q, b, h, t, count, q);
        rows_of(to.out, b, h, t, count, grad_out);
        __m512 along[HIGH], normalizer[HIGH];
        for (i64 r = 0; r < HIGH; r++) {
            along[r] = _mm512_setzero_ps();
            normalizer[r] = _mm512_set1_ps(to.normalizer[(b * to.heads + h) * to.length + t + (r < count ? r : 0)]);
        }
        for (size_t j = 0; j < block.panels.size(); j++) {
            const Block::Panel& panel = block.panels[j];
            tile(panel.width, q, shape.pairs, shape.across(k_across, panel.index), weights + j * COLUMNS, pitch);
            tile(panel.width, grad_out, shape.pairs, shape.across(v_across, panel.index), grads + j * COLUMNS, pitch);
            for (i64 r = 0; r < HIGH; r++) {
                const int32_t* seen = to.seen + 2 * (b * to.length + t + (r < count ? r : 0));
                for (i64 z = 0; z < panel.width; z++) {
                    float* weight = weights + r * pitch + j * COLUMNS + 16 * z;
                    const __mmask16 some = r < count ? is_seen(seen, t + r, panel.index * COLUMNS + 16 * z) : 0;
                    const __m512 power = _mm512_fmsub_ps(_mm512_loadu_ps(weight), factor, normalizer[r]);
                    const __m512 one = _mm512_maskz_mov_ps(some, exp2_of(power));
                    _mm512_storeu_ps(weight, one);
                    const __m512 grad = _mm512_loadu_ps(grads + r * pitch + j * COLUMNS + 16 * z);
                    along[r] = _mm512_fmadd_ps(one, grad, along[r]);
                }
            }
        }
        for (int r = 0; r < HIGH; r++) along[r] = _mm512_set1_ps(_mm512_reduce_add_ps(along[r]));
        const i64 first_pair = (t - block.start) / 2 * pitch;
        for (size_t j = 0; j < block.panels.size(); j++)
            for (i64 at = j * COLUMNS, end = at + 16 * block.panels[j].width; at < end; at += 16)
                for (int r = 0; r < HIGH; r += 2) {
                    __m512 weight[2], grad[2];
                    for (int i = 0; i < 2; i++) {
                        weight[i] = _mm512_loadu_ps(weights + (r + i) * pitch + at);
                        const __m512 above = _mm512_sub_ps(_mm512_loadu_ps(grads + (r + i) * pitch + at), along[r + i]);
                        grad[i] = _mm512_mul_ps(_mm512_mul_ps(weight[i], above), scales);
                        _mm256_storeu_si256((__m256i*)(low + (r + i) * pitch + at), rounded(grad[i]));
                    }
                    const i64 place = first_pair + r / 2 * pitch + at;
                    _mm512_storeu_si512(weight_pairs + place, pairs_of(weight[0], weight[1]));
                    _mm512_storeu_si512(grad_pairs + place, pairs_of(grad[0], grad[1]));
                }
        bf16* grad_q = to.grad_q + ((b * to.heads + h) * to.length + t) * to.size;
        weighted(to, block, low, k_down, ones, count, grad_q, to.size);
    }
    pair* panel = panel_.of<pair>(QUERIES / 2 * COLUMNS);
    for (i64 chunk = 0; chunk < shape.chunks; chunk++)
        for (int of = 0; of < 2; of++) {
            const Heads& from = of == 0 ? to.out : to.q;
            const pair* left = of == 0 ? weight_pairs : grad_pairs;
            float* sums = (of == 0 ? grad_v : grad_k) + chunk * shape.panels * COLUMNS * COLUMNS;
            const i64 queries = block.end - block.start, columns = smaller(to.size - chunk * COLUMNS, COLUMNS);
            memset(panel, 0, QUERIES / 2 * COLUMNS * sizeof(pair));
            pack_columns(from.of(b, h, block.start) + chunk * COLUMNS, from.position, columns, queries, panel);
            for (size_t j = 0; j < block.panels.size(); j++)
                for (i64 key = 0; key < 16 * block.panels[j].width; key += 4)
                    column_tile<4>(left + j * COLUMNS + key, pitch, panel, count_of_pairs,
                                   sums + (block.panels[j].index * COLUMNS + key) * COLUMNS, false);
        }
}

// `to` (length, size) = the sum of parts [chunk][length in panels][64]
void add_up(const Arguments& to, const float* parts, i64 count, i64 pitch, bf16* sum) {
    const Shape shape(to);
    for (i64 chunk = 0; chunk < shape.chunks; chunk++)
        for (i64 t = 0; t < to.length; t++)
            for (i64 at = chunk * COLUMNS, i = 0; i < COLUMNS; at += 16, i += 16) {
                const float* from = parts + (chunk * shape.panels * COLUMNS + t) * COLUMNS + i;
                __m512 all = _mm512_loadu_ps(from);
                for (i64 part = 1; part < count; part++) all = _mm512_add_ps(all, _mm512_loadu_ps(from + part * pitch));
                _mm256_mask_storeu_epi16(sum + t * to.size + at, first(to.size - at), rounded(all));
            }
}

// out = softmax(scale q k^T) v over the keys that are seen, and the normalizers
void run_attend(const void* arguments, double scale) {
    const Arguments& to = *static_cast<const Arguments*>(arguments);
    const Shape shape(to);
    const i64 blocks = divided(to.length, QUERIES), shared = to.heads / to.key_heads;
    const i64 size = shape.across() + shape.down();
    pair* packs = packs_.of<pair>(to.rows * to.key_heads * size);
    #pragma omp parallel num_threads(to.threads)
    {
        #pragma omp for schedule(static)
        for (i64 i = 0; i < to.rows * to.key_heads; i++) {
            pack_across(to, to.k, i / to.key_heads, i % to.key_heads, packs + i * size);
            pack_down(to, to.v, i / to.key_heads, i % to.key_heads, packs + i * size + shape.across());
        }
        #pragma omp for schedule(dynamic, 1)
        for (i64 i = 0; i < to.rows * blocks; i++) {
            const Block block(to, i / blocks, (blocks - 1 - i % blocks) * QUERIES);  // later queries see more
            for (i64 h = 0; h < to.heads; h++) {
                pair* pack = packs + (block.b * to.key_heads + h / shared) * size;
                attend_block(to, block, h, pack, pack + shape.across(), (float)scale);
            }
        }
    }
}

// gradients of q, k and v for that of the output
void run_attend_backward(const void* arguments, double scale) {
    const Arguments& to = *static_cast<const Arguments*>(arguments);
    const Shape shape(to);
    const i64 key_heads = to.rows * to.key_heads, shared = to.heads / to.key_heads;
    const i64 size = 2 * shape.across() + shape.down(), length = shape.chunks * shape.panels * COLUMNS * COLUMNS;
    pair* packs = packs_.of<pair>(key_heads * size);
    float* sums = sums_.of<float>(2 * to.rows * to.heads * length);  // of each head, then added up
    std::vector<Block> blocks;
    for (i64 b = 0; b < to.rows; b++)
        for (i64 start = 0; start < to.length; start += QUERIES) blocks.emplace_back(to, b, start);
    const i64 blocks_of_row = divided(to.length, QUERIES);
    #pragma omp parallel num_threads(to.threads)
    {
        #pragma omp for schedule(static)
        for (i64 i = 0; i < key_heads; i++) {
            pair* pack = packs + i * size;
            pack_across(to, to.k, i / to.key_heads, i % to.key_heads, pack);
            pack_across(to, to.v, i / to.key_heads, i % to.key_heads, pack + shape.across());
            pack_down(to, to.k, i / to.key_heads, i % to.key_heads, pack + 2 * shape.across());
        }
        #pragma omp for schedule(dynamic, 1)
        for (i64 i = 0; i < to.rows * to.heads; i++) {
            const i64 b = i / to.heads;
            pair* pack = packs + i / shared * size;
            float* grad_k = sums + 2 * i * length;
            memset(grad_k, 0, 2 * length * sizeof(float));
            for (i64 n = b * blocks_of_row; n < (b + 1) * blocks_of_row; n++)
                differentiate_block(to, blocks[n], i % to.heads, pack, pack + 2 * shape.across(),
                                    pack + shape.across(), (float)scale, grad_k, grad_k + length);
        }
        #pragma omp for schedule(static)
        for (i64 i = 0; i < 2 * key_heads; i++) {
            const float* from = sums + (i / 2 * shared * 2 + i % 2) * length;
            bf16* grad = (i % 2 == 0 ? to.grad_k : to.grad_v) + i / 2 * to.length * to.size;
            add_up(to, from, shared, 2 * length, grad);
        }
    }
}

}  // namespace

extern "C" int rlora_attend(const void* arguments, double scale) {
    return had_memory([&] { run_attend(arguments, scale); });
}
extern "C" int rlora_attend_backward(const void* arguments, double scale) {
    return had_memory([&] { run_attend_backward(arguments, scale); });
}

#endif
