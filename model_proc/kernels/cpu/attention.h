// Attention over the paged KV cache, in place: nothing is gathered, and what a token gets depends neither on what
// else is in the step nor on how its prompt was cut.
//
// Within a block, keys lie as [kv_heads, dim, tokens] and values as [kv_heads, tokens, dim]: the scores of 16
// neighbouring keys are then one vector, and so are 16 neighbouring dimensions of the result.
#pragma once

#include <cmath>
#include <vector>

#include "pool.h"
#include "vectors.h"

// What does not change between steps: one layer's shapes and its part of the cache.
struct Layer {
    int64_t heads, kv_heads, dim, block_size;
    int64_t window;  // tokens that a token sees, itself included; 0: all
    float scale, eps;
    const float* q_norm;  // [dim], or null
    const float* k_norm;
    const float* rope;  // [positions, dim]: cosines, then sines; or null
    void* keys;
    void* values;
    int64_t cache_bytes;  // of one element: 2 for bfloat16, 4 for float32
};

// One step: T tokens of B sequences, side by side.
struct Step {
    int64_t num_tokens, num_sequences;
    const int64_t* positions;    // [T]
    const int64_t* cache_rows;   // [T] block * block_size + place in the block
    const int64_t* query_lens;   // [B]
    const int64_t* slots;        // [B] rows of block_tables
    const int32_t* block_tables; // [slots, table_stride]
    int64_t table_stride;
};

// Query rows that share what is read of the cache: TILE_ROWS at most, of one head of keys.
struct Tile {
    int64_t first_token, num_tokens;  // of the step
    const int32_t* blocks;
    int64_t kv_head, first_head, num_heads;
};

constexpr int TILE_ROWS = 8;

INLINE void transform_head(const float* from, float* to, const Layer& layer, const float* norm, const float* rope,
                           float scale) {
    const int64_t dim = layer.dim, half = dim / 2;
    float factor = 1.0f;
    if (norm) {
        Floats squares{};
        for (int64_t i = 0; i < dim; i += LANES) squares += load_floats(from + i) * load_floats(from + i);
        factor = 1.0f / std::sqrt(sum(squares) / static_cast<float>(dim) + layer.eps);
    }
    const auto item = [&](int64_t i) { return norm ? from[i] * factor * norm[i] : from[i]; };
    if (!rope) {
        for (int64_t i = 0; i < dim; i++) to[i] = item(i) * scale;
        return;
    }
    for (int64_t i = 0; i < half; i++) {
        const float first = item(i), second = item(i + half), cosine = rope[i], sine = rope[i + half];
        to[i] = (first * cosine - second * sine) * scale;
        to[i + half] = (second * cosine + first * sine) * scale;
    }
}

// Sixteen values, `stride` apart.
INLINE void scatter(float* to, int64_t stride, Floats items) {
    for (int lane = 0; lane < LANES; lane++) to[lane * stride] = items[lane];
}

INLINE void scatter(uint16_t* to, int64_t stride, Floats items) {
    const Shorts rounded = to_bfloats(items);
    for (int lane = 0; lane < LANES; lane++) to[lane * stride] = rounded[lane];
}

INLINE void store_floats(float* to, Floats items) { store(to, items); }

INLINE void store_floats(uint16_t* to, Floats items) { store(to, to_bfloats(items)); }

// Transforms a token's heads: queries into `queries` [heads, dim], keys and values into the cache.
template <class Item>
INLINE void take_in(const Layer& layer, const Step& step, int64_t token, const float* query, const float* key,
                    const float* value, float* queries) {
    const int64_t dim = layer.dim, size = layer.block_size;
    const float* rope = layer.rope ? layer.rope + step.positions[token] * dim : nullptr;
    for (int64_t head = 0; head < layer.heads; head++)
        transform_head(query + head * dim, queries + head * dim, layer, layer.q_norm, rope, layer.scale);
    const int64_t block = step.cache_rows[token] / size, place = step.cache_rows[token] % size;
    static thread_local std::vector<float> turned;
    turned.resize(dim);
    for (int64_t head = 0; head < layer.kv_heads; head++) {
        transform_head(key + head * dim, turned.data(), layer, layer.k_norm, rope, 1.0f);
        const int64_t start = (block * layer.kv_heads + head) * dim * size;
        Item* keys = static_cast<Item*>(layer.keys) + start + place;
        Item* values = static_cast<Item*>(layer.values) + start + place * dim;
        for (int64_t i = 0; i < dim; i += LANES) {
            scatter(keys + i * size, size, load_floats(turned.data() + i));
            store_floats(values + i, load_floats(value + head * dim + i));
        }
    }
}

// scores[r][j] of keys j = 0..16 * GROUPS of one block.
template <int ROWS, int GROUPS, class Item>
INLINE void score(const float* const (&queries)[ROWS], int64_t dim, const Item* keys, int64_t block_size,
                  Floats (&scores)[ROWS][GROUPS]) {
    UNROLL
    for (auto& row : scores)
        UNROLL
        for (auto& lanes : row) lanes = Floats{};
    for (int64_t i = 0; i < dim; i++, keys += block_size)
        UNROLL
        for (int g = 0; g < GROUPS; g++) {
            const Floats column = load_floats(keys + g * LANES);
            UNROLL
            for (int r = 0; r < ROWS; r++) scores[r][g] += queries[r][i] * column;
        }
}

template <int ROWS, int SLICES, class Item>
INLINE void weigh(const float* const (&weights)[ROWS], const Tile& tile, const Layer& layer, int64_t begin, int64_t end,
                  int64_t offset, int64_t slice, const float (&totals)[ROWS], float* const (&out)[ROWS]) {
    const int64_t dim = layer.dim, size = layer.block_size;
    Floats sums[ROWS][SLICES] = {};
    for (int64_t key = begin; key < end;) {
        const int64_t place = key % size, stop = end - key < size - place ? end : key + size - place;
        const int64_t block = tile.blocks[key / size];
        const Item* values = static_cast<const Item*>(layer.values) +
                             ((block * layer.kv_heads + tile.kv_head) * size + place) * dim + slice;
        for (; key < stop; key++, values += dim)
            UNROLL
            for (int s = 0; s < SLICES; s++) {
                const Floats lanes = load_floats(values + s * LANES);
                UNROLL
                for (int r = 0; r < ROWS; r++) sums[r][s] += weights[r][key - offset] * lanes;
            }
    }
    UNROLL
    for (int r = 0; r < ROWS; r++)
        UNROLL
        for (int s = 0; s < SLICES; s++) store(out[r] + slice + s * LANES, sums[r][s] / totals[r]);
}

// The attention of one tile of ROWS query rows. `queries` and `out` are [T, heads, dim].
template <int ROWS, class Item>
static void attend_tile(const Tile& tile, const Layer& layer, const Step& step, const float* queries, float* out) {
    constexpr int GROUPS = 1, SLICES = ROWS <= 4 ? 2 : 1;
    const int64_t dim = layer.dim, size = layer.block_size;
    const float* rows[ROWS];
    float* results[ROWS];
    int64_t limits[ROWS], starts[ROWS], begin = INT64_MAX, end = 0;
    UNROLL
    for (int r = 0; r < ROWS; r++) {
        const int64_t token = tile.first_token + r / tile.num_heads, head = tile.first_head + r % tile.num_heads;
        rows[r] = queries + (token * layer.heads + head) * dim;
        results[r] = out + (token * layer.heads + head) * dim;
        limits[r] = step.positions[token] + 1;
        starts[r] = layer.window && limits[r] > layer.window ? limits[r] - layer.window : 0;
        if (limits[r] > end) end = limits[r];
        if (starts[r] < begin) begin = starts[r];
    }
    const int64_t offset = begin / LANES * LANES, width = (end - offset + LANES - 1) / LANES * LANES;
    static thread_local std::vector<float> scratch;
    if (static_cast<int64_t>(scratch.size()) < ROWS * width) scratch.resize(ROWS * width);
    float* weights[ROWS];
    const float* finished[ROWS];
    UNROLL
    for (int r = 0; r < ROWS; r++) finished[r] = weights[r] = scratch.data() + r * width;

    Ints lanes;
    for (int lane = 0; lane < LANES; lane++) lanes[lane] = lane;
    Floats best[ROWS];
    UNROLL
    for (auto& row : best) row = splat(-INFINITY);
    for (int64_t key = offset; key < end; key += LANES) {
        const Item* keys = static_cast<const Item*>(layer.keys) +
                           (tile.blocks[key / size] * layer.kv_heads + tile.kv_head) * dim * size + key % size;
        Floats scores[ROWS][GROUPS];
        score<ROWS, GROUPS, Item>(rows, dim, keys, size, scores);
        UNROLL
        for (int r = 0; r < ROWS; r++) {
            const Ints at = lanes + static_cast<int32_t>(key);
            const Ints seen = (at < static_cast<int32_t>(limits[r])) & (at >= static_cast<int32_t>(starts[r]));
            const Floats masked = seen ? scores[r][0] : splat(-INFINITY);
            best[r] = greater(masked, best[r]);
            store(weights[r] + key - offset, masked);
        }
    }
    float totals[ROWS];
    UNROLL
    for (int r = 0; r < ROWS; r++) {
        const float highest = maximum(best[r]);
        Floats total{};
        for (int64_t at = 0; at < width; at += LANES) {
            const Floats weight = exponential(load_floats(weights[r] + at) - highest);
            store(weights[r] + at, weight);
            total += weight;
        }
        totals[r] = sum(total);
    }
    int64_t slice = 0;
    for (; slice + SLICES * LANES <= dim; slice += SLICES * LANES)
        weigh<ROWS, SLICES, Item>(finished, tile, layer, begin, end, offset, slice, totals, results);
    for (; slice < dim; slice += LANES)
        weigh<ROWS, 1, Item>(finished, tile, layer, begin, end, offset, slice, totals, results);
}

template <class Item>
static void attend_tile(const Tile& tile, const Layer& layer, const Step& step, const float* queries, float* out) {
    using Attend = void (*)(const Tile&, const Layer&, const Step&, const float*, float*);
    static constexpr Attend by_rows[TILE_ROWS] = {
        attend_tile<1, Item>, attend_tile<2, Item>, attend_tile<3, Item>, attend_tile<4, Item>,
        attend_tile<5, Item>, attend_tile<6, Item>, attend_tile<7, Item>, attend_tile<8, Item>,
    };
    by_rows[tile.num_tokens * tile.num_heads - 1](tile, layer, step, queries, out);
}

static void make_tiles(const Layer& layer, const Step& step, std::vector<Tile>& tiles) {
    tiles.clear();
    const int64_t group = layer.heads / layer.kv_heads;
    const int64_t tokens = group < TILE_ROWS ? TILE_ROWS / group : 1;
    int64_t start = 0;
    for (int64_t sequence = 0; sequence < step.num_sequences; sequence++) {
        const int64_t end = start + step.query_lens[sequence];
        const int32_t* blocks = step.block_tables + step.slots[sequence] * step.table_stride;
        for (int64_t first = start; first < end; first += tokens) {
            const int64_t count = end - first < tokens ? end - first : tokens;
            for (int64_t kv_head = 0; kv_head < layer.kv_heads; kv_head++)
                for (int64_t head = 0; head < group; head += TILE_ROWS) {
                    const int64_t num_heads = group - head < TILE_ROWS ? group - head : TILE_ROWS;
                    tiles.push_back({first, count, blocks, kv_head, kv_head * group + head, num_heads});
                }
        }
        start = end;
    }
}

template <class Item>
static void attend(Pool& pool, const Layer& layer, const Step& step, const float* query, const float* key,
                   const float* value, int64_t stride, float* queries, float* out) {
    const int64_t width = layer.heads * layer.dim;
    const auto take = [&](int64_t token) {
        take_in<Item>(layer, step, token, query + token * stride, key + token * stride, value + token * stride,
                      queries + token * width);
    };
    constexpr int64_t CHUNK = 4;
    if (step.num_tokens <= CHUNK)
        for (int64_t token = 0; token < step.num_tokens; token++) take(token);
    else
        pool.run((step.num_tokens + CHUNK - 1) / CHUNK, [&](int64_t piece) {
            for (int64_t token = piece * CHUNK; token < step.num_tokens && token < (piece + 1) * CHUNK; token++)
                take(token);
        });
    static thread_local std::vector<Tile> tiles;
    make_tiles(layer, step, tiles);
    // The last tokens of a prompt see the most: they go first, so that no long piece is left for the end.
    const std::vector<Tile>& all = tiles;
    const int64_t count = static_cast<int64_t>(all.size());
    pool.run(count, [&](int64_t piece) { attend_tile<Item>(all[count - 1 - piece], layer, step, queries, out); });
}
