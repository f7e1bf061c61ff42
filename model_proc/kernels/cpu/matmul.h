// Products with matrices whose weights are floats, or codes in blocks: 32 weights of a row share a scale (and a
// minimum), as in GGUF's Q4_1 and Q8_0. The activations are quantized in the same blocks, or stay float32.
#pragma once

#include <cmath>
#include <cstring>

#include "pool.h"
#include "vectors.h"

constexpr int BLOCK = 32;
constexpr int MAX_ROWS = 8;  // rows of activations that a kernel holds in registers

// [rows, columns], in tiles of 16 rows; rows behind the last one are zero.
//
// Weights of 32 and 16 bits are float32 and bfloat16, column after column of a tile. Those of 8 and 4 bits are codes:
// a 64-byte vector holds 4 columns of a tile, column within row; with four bits, 4 more columns in the upper halves of
// the bytes. Weight = scale * code + minimum; codes of eight bits are signed, stored plus 128, and have no minimum.
struct Matrix {
    int64_t bits, rows, columns;
    const uint8_t* codes;    // [tiles, blocks, 4 * bits * 16]
    const uint16_t* scales;  // [tiles, blocks, 16] float16; of codes
    const uint16_t* minima;  // as scales; of four bits only

    int64_t tiles() const { return (rows + LANES - 1) / LANES; }
    int64_t blocks() const { return columns / BLOCK; }
    int64_t block_bytes() const { return BLOCK * LANES * bits / 8; }
};

// Rows of activations, as floats or quantized, in the order in which kernels read them: rows in groups of MAX_ROWS, and
// of a group block after block, row after row.
struct Activations {
    int64_t columns;
    bool quantized;
    float* values;    // [groups, blocks, MAX_ROWS, BLOCK]; of quantized ones:
    int8_t* codes;    // as values
    float* scales;    // [groups, blocks, MAX_ROWS]
    float* sums;      // as scales: of a block's values
    int32_t* totals;  // as scales: of a block's codes

    int64_t blocks() const { return columns / BLOCK; }
    // Where a block of a row is, in units of blocks.
    int64_t place(int64_t row, int64_t block) const {
        return (row / MAX_ROWS * blocks() + block) * MAX_ROWS + row % MAX_ROWS;
    }
};

// A block in 8 bits: value = scale * code, codes from -127 to 127. What is not finite makes the scale so.
INLINE void quantize_block(const float* values, int64_t place, const Activations& x) {
    const Floats first = load_floats(values), second = load_floats(values + LANES);
    const float largest = maximum(greater(greater(first, -first), greater(second, -second)));
    const float inverse = largest > 0 ? 127.0f / largest : 0.0f;
    const Ints low = __builtin_convertvector(nearest(first * inverse), Ints);
    const Ints high = __builtin_convertvector(nearest(second * inverse), Ints);
    typedef int8_t Codes __attribute__((vector_size(16)));
    store(x.codes + place * BLOCK, __builtin_convertvector(low, Codes));
    store(x.codes + place * BLOCK + LANES, __builtin_convertvector(high, Codes));
    const int32_t total = sum(low + high);
    const float faulty = sum((first + second) * 0.0f);  // 0, or not a number
    const float scale = largest / 127.0f + faulty;
    x.scales[place] = scale;
    x.sums[place] = scale * static_cast<float>(total);
    x.totals[place] = total;
}

template <int BITS, int ROWS, int TILES>
INLINE void multiply_quantized(const Matrix& matrix, int64_t tile, const Activations& x, int64_t row,
                               Floats (&sums)[TILES][ROWS]) {
    constexpr int BYTES = BLOCK * LANES * BITS / 8;
    const int64_t blocks = matrix.blocks();
    for (int64_t block = 0; block < blocks; block++) {
        const int64_t at = x.place(row, block);
        UNROLL
        for (int t = 0; t < TILES; t++) {
            const int64_t place = (tile + t) * blocks + block;
            const uint8_t* codes = matrix.codes + place * BYTES;
            Ints products[ROWS];
            UNROLL
            for (int r = 0; r < ROWS; r++)
                products[r] = BITS == 8 ? -BYTE_OFFSET * x.totals[at + r] - Ints{} : Ints{};
            UNROLL
            for (int step = 0; step < BLOCK / (BITS == 4 ? 8 : 4); step++) {
                const Bytes raw = load<Bytes>(codes + step * 64);
                UNROLL
                for (int r = 0; r < ROWS; r++) {
                    const int8_t* from = x.codes + (at + r) * BLOCK + step * (BITS == 4 ? 8 : 4);
                    if constexpr (BITS == 4) {
                        products[r] = dot_nibbles(products[r], raw & 15, from);
                        products[r] = dot_nibbles(products[r], (Bytes)((Words)raw >> 4) & 15, from + 4);
                    } else {
                        products[r] = dot_bytes(products[r], raw, from);
                    }
                }
            }
            const Floats scale = load_halves(matrix.scales + place * LANES);
            UNROLL
            for (int r = 0; r < ROWS; r++)
                sums[t][r] += __builtin_convertvector(products[r], Floats) * x.scales[at + r] * scale;
            if constexpr (BITS == 4) {
                const Floats minimum = load_halves(matrix.minima + place * LANES);
                UNROLL
                for (int r = 0; r < ROWS; r++) sums[t][r] += minimum * x.sums[at + r];
            }
        }
    }
}

// Column `column` of a block, as floats.
template <int BITS>
INLINE Floats weights_of(const uint8_t* block, int column) {
    if constexpr (BITS == 32) return load_floats(reinterpret_cast<const float*>(block) + column * LANES);
    if constexpr (BITS == 16) return load_floats(reinterpret_cast<const uint16_t*>(block) + column * LANES);
    const int shift = 8 * (column % 4) + (BITS == 4 && column % 8 >= 4 ? 4 : 0);
    const Words raw = load<Words>(block + column / (BITS == 4 ? 8 : 4) * 64) >> shift;
    return __builtin_convertvector(BITS == 4 ? (Ints)(raw & 15) : (Ints)(raw & 255) - 128, Floats);
}

template <int BITS, int ROWS, int TILES>
INLINE void multiply_floats(const Matrix& matrix, int64_t tile, const Activations& x, int64_t row,
                            Floats (&sums)[TILES][ROWS]) {
    constexpr int BYTES = BLOCK * LANES * BITS / 8;
    const int64_t blocks = matrix.blocks();
    for (int64_t block = 0; block < blocks; block++) {
        const float* values = x.values + x.place(row, block) * BLOCK;
        UNROLL
        for (int t = 0; t < TILES; t++) {
            const int64_t place = (tile + t) * blocks + block;
            const Floats scale = BITS <= 8 ? load_halves(matrix.scales + place * LANES) : Floats{};
            const Floats minimum = BITS == 4 ? load_halves(matrix.minima + place * LANES) : Floats{};
            for (int column = 0; column < BLOCK; column++) {
                Floats weights = weights_of<BITS>(matrix.codes + place * BYTES, column);
                if constexpr (BITS <= 8) weights = weights * scale + minimum;
                UNROLL
                for (int r = 0; r < ROWS; r++) sums[t][r] += weights * values[r * BLOCK + column];
            }
        }
    }
}

// What a row of a tile becomes: out = product + bias, or out += scale * (product + bias).
struct Target {
    float* out;
    int64_t stride;
    const float* bias;  // or null
    bool add;
    float scale;
};

INLINE Floats partial_load(const float* from, int count) {
    Floats values{};
    __builtin_memcpy(&values, from, sizeof(float) * count);
    return values;
}

INLINE void finish(const Target& target, const Matrix& matrix, int64_t tile, int64_t row, Floats product) {
    const int64_t column = tile * LANES;
    const int count = matrix.rows - column < LANES ? static_cast<int>(matrix.rows - column) : LANES;
    float* out = target.out + row * target.stride + column;
    if (target.bias) product += partial_load(target.bias + column, count);
    if (target.add) product = partial_load(out, count) + target.scale * product;
    if (count == LANES)
        store(out, product);
    else
        __builtin_memcpy(out, &product, sizeof(float) * count);
}

template <int BITS, int ROWS, int TILES>
INLINE void multiply(const Matrix& matrix, int64_t tile, const Activations& x, int64_t row,
                     Floats (&sums)[TILES][ROWS]) {
    UNROLL
    for (auto& tile_sums : sums)
        UNROLL
        for (auto& lanes : tile_sums) lanes = Floats{};
    if constexpr (BITS <= 8)
        if (x.quantized) return multiply_quantized<BITS, ROWS, TILES>(matrix, tile, x, row, sums);
    multiply_floats<BITS, ROWS, TILES>(matrix, tile, x, row, sums);
}

template <int BITS, int ROWS, int TILES>
static void plain_kernel(const Matrix& matrix, int64_t tile, const Activations& x, int64_t row, const Target& target) {
    Floats sums[TILES][ROWS];
    multiply<BITS, ROWS, TILES>(matrix, tile, x, row, sums);
    UNROLL
    for (int t = 0; t < TILES; t++)
        UNROLL
        for (int r = 0; r < ROWS; r++) finish(target, matrix, tile + t, row + r, sums[t][r]);
}

// The upper half of the matrix's rows are gates, the lower half ups: out = silu(gate) * up.
template <int BITS, int ROWS, int TILES>
static void gate_kernel(const Matrix& matrix, int64_t tile, const Activations& x, int64_t row, const Target& target) {
    const int64_t half = matrix.tiles() / 2;
    Floats gates[TILES][ROWS], ups[TILES][ROWS];
    multiply<BITS, ROWS, TILES>(matrix, tile, x, row, gates);
    multiply<BITS, ROWS, TILES>(matrix, tile + half, x, row, ups);
    UNROLL
    for (int t = 0; t < TILES; t++)
        UNROLL
        for (int r = 0; r < ROWS; r++) {
            const int64_t column = (tile + t) * LANES;
            Floats gate = gates[t][r], up = ups[t][r];
            if (target.bias) {
                gate += load_floats(target.bias + column);
                up += load_floats(target.bias + half * LANES + column);
            }
            store(target.out + (row + r) * target.stride + column, gate / (1.0f + exponential(-gate)) * up);
        }
}

using Kernel = void (*)(const Matrix&, int64_t tile, const Activations&, int64_t row, const Target&);

template <int BITS, int TILES, bool GATED>
static Kernel kernel_for(int64_t rows) {
    static constexpr Kernel kernels[MAX_ROWS] = {
        GATED ? gate_kernel<BITS, 1, TILES> : plain_kernel<BITS, 1, TILES>,
        GATED ? gate_kernel<BITS, 2, TILES> : plain_kernel<BITS, 2, TILES>,
        GATED ? gate_kernel<BITS, 3, TILES> : plain_kernel<BITS, 3, TILES>,
        GATED ? gate_kernel<BITS, 4, TILES> : plain_kernel<BITS, 4, TILES>,
        GATED ? gate_kernel<BITS, 5, TILES> : plain_kernel<BITS, 5, TILES>,
        GATED ? gate_kernel<BITS, 6, TILES> : plain_kernel<BITS, 6, TILES>,
        GATED ? gate_kernel<BITS, 7, TILES> : plain_kernel<BITS, 7, TILES>,
        GATED ? gate_kernel<BITS, 8, TILES> : plain_kernel<BITS, 8, TILES>,
    };
    return kernels[rows - 1];
}

template <int BITS, bool GATED>
static void product(Pool& pool, const Matrix& matrix, const Activations& x, int64_t rows, const Target& target) {
    // A single row leaves registers for several tiles, whose chains of additions then run side by side.
    const int64_t tiles = GATED ? matrix.tiles() / 2 : matrix.tiles();
    const int64_t group = rows == 1 ? 4 : 1;
    pool.run((tiles + group - 1) / group, [&](int64_t piece) {
        const int64_t first = piece * group, end = first + group < tiles ? first + group : tiles;
        for (int64_t row = 0; row < rows; row += MAX_ROWS) {
            const int64_t height = rows - row < MAX_ROWS ? rows - row : MAX_ROWS;
            if (rows == 1 && end - first == 4) {
                (GATED ? gate_kernel<BITS, 1, 4> : plain_kernel<BITS, 1, 4>)(matrix, first, x, row, target);
            } else {
                const Kernel kernel = kernel_for<BITS, 1, GATED>(height);
                for (int64_t tile = first; tile < end; tile++) kernel(matrix, tile, x, row, target);
            }
        }
    });
}

template <bool GATED>
static void product(Pool& pool, const Matrix& matrix, const Activations& x, int64_t rows, const Target& target) {
    switch (matrix.bits) {
        case 4: return product<4, GATED>(pool, matrix, x, rows, target);
        case 8: return product<8, GATED>(pool, matrix, x, rows, target);
        case 16: return product<16, GATED>(pool, matrix, x, rows, target);
        default: return product<32, GATED>(pool, matrix, x, rows, target);
    }
}

// Row `index` of the matrix as floats, times `factor`.
template <int BITS>
static void unpack_row(const Matrix& matrix, int64_t index, float factor, float* out) {
    const int64_t tile = index / LANES, lane = index % LANES;
    for (int64_t block = 0; block < matrix.blocks(); block++) {
        const int64_t place = tile * matrix.blocks() + block;
        const float scale = BITS <= 8 ? load_halves(matrix.scales + place * LANES)[lane] : 1.0f;
        const float minimum = BITS == 4 ? load_halves(matrix.minima + place * LANES)[lane] : 0.0f;
        for (int column = 0; column < BLOCK; column++)
            *out++ = (scale * weights_of<BITS>(matrix.codes + place * matrix.block_bytes(), column)[lane] + minimum) *
                     factor;
    }
}

static void unpack_row(const Matrix& matrix, int64_t index, float factor, float* out) {
    switch (matrix.bits) {
        case 4: return unpack_row<4>(matrix, index, factor, out);
        case 8: return unpack_row<8>(matrix, index, factor, out);
        case 16: return unpack_row<16>(matrix, index, factor, out);
        default: return unpack_row<32>(matrix, index, factor, out);
    }
}

// Puts row `row` of a matrix, given as it lies in a checkpoint, in its place; codes are one byte each.
static void pack_row(const Matrix& shape, int64_t row, const uint8_t* from, uint8_t* to) {
    const int64_t lane = row % LANES, bytes = shape.bits == 4 ? 1 : shape.bits / 8;
    for (int64_t block = 0; block < shape.blocks(); block++) {
        uint8_t* start = to + (row / LANES * shape.blocks() + block) * shape.block_bytes();
        for (int column = 0; column < BLOCK; column++, from += bytes)
            if (shape.bits == 4)
                start[column / 8 * 64 + lane * 4 + column % 4] |= *from << (column % 8 >= 4 ? 4 : 0);
            else if (shape.bits == 8)
                start[column / 4 * 64 + lane * 4 + column % 4] = *from ^ 128;
            else
                std::memcpy(start + (column * LANES + lane) * bytes, from, bytes);
    }
}
