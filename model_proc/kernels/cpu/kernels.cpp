// The C interface of the CPU kernels; model_proc/kernels/cpu_library.py calls it. Pointers are to contiguous arrays.
//
// One thread calls at a time: the pool and the scratch memory belong to the library.
#include <cstdlib>
#include <memory>

#include "attention.h"
#include "matmul.h"

namespace {

std::unique_ptr<Pool> pool;

// Memory that grows with the largest step and is never given back.
template <class Item>
Item* scratch(std::vector<Item>& memory, int64_t size) {
    if (static_cast<int64_t>(memory.size()) < size) memory.resize(size);
    return memory.data();
}

std::vector<int8_t> codes;
std::vector<float> scales, sums, values, queries;
std::vector<int32_t> totals;

constexpr int64_t ROWS_A_PIECE = 4;

// The factor of a root-mean-square norm.
float norm_factor(const float* x, int64_t columns, float eps) {
    Floats squares{};
    for (int64_t i = 0; i < columns; i += LANES) squares += load_floats(x + i) * load_floats(x + i);
    return 1.0f / std::sqrt(sum(squares) / static_cast<float>(columns) + eps);
}

// One row of x, normed on the way when there is a norm, to where a product wants it.
void prepare_row(const Activations& to, int64_t row, const float* x, const float* norm, float eps) {
    const float factor = norm ? norm_factor(x, to.columns, eps) : 1.0f;
    for (int64_t block = 0; block < to.blocks(); block++) {
        float values[BLOCK];
        for (int64_t i = 0; i < BLOCK; i += LANES) {
            const int64_t column = block * BLOCK + i;
            const Floats item = load_floats(x + column);
            store(values + i, norm ? item * factor * load_floats(norm + column) : item);
        }
        const int64_t place = to.place(row, block);
        if (to.quantized)
            quantize_block(values, place, to);
        else
            std::memcpy(to.values + place * BLOCK, values, sizeof values);
    }
}

// x [rows, columns] as a product wants it; rows lie `stride` apart.
Activations prepare(const float* x, int64_t stride, int64_t rows, int64_t columns, const float* norm, float eps,
                    bool quantized) {
    const int64_t room = (rows + MAX_ROWS - 1) / MAX_ROWS * MAX_ROWS * columns;
    Activations result{columns, quantized, nullptr, nullptr, nullptr, nullptr, nullptr};
    if (quantized) {
        result.codes = scratch(codes, room);
        result.scales = scratch(scales, room / BLOCK);
        result.sums = scratch(sums, room / BLOCK);
        result.totals = scratch(totals, room / BLOCK);
    } else {
        result.values = scratch(values, room);
    }
    const auto one = [&](int64_t row) { prepare_row(result, row, x + row * stride, norm, eps); };
    if (rows <= ROWS_A_PIECE)
        for (int64_t row = 0; row < rows; row++) one(row);
    else
        pool->run((rows + ROWS_A_PIECE - 1) / ROWS_A_PIECE, [&](int64_t piece) {
            for (int64_t row = piece * ROWS_A_PIECE; row < rows && row < (piece + 1) * ROWS_A_PIECE; row++) one(row);
        });
    return result;
}

}  // namespace

extern "C" {

// Threads that the kernels use from now on, the caller's included.
void quintet_set_threads(int64_t count) { pool = std::make_unique<Pool>(static_cast<int>(count)); }

// out [rows, matrix.rows] (half as many columns when gated) = matrix . norm(x) + bias; x rows lie `stride` apart.
// With `add`, out += scale * that. Without norm, x is taken as it is.
void quintet_linear(const Matrix* matrix, const float* x, int64_t stride, int64_t rows, const float* norm, float eps,
                    int64_t quantize, const float* bias, int64_t gated, int64_t add, float scale, float* out) {
    const Activations prepared = prepare(x, stride, rows, matrix->columns, norm, eps, quantize != 0);
    const Target target{out, gated ? matrix->rows / 2 : matrix->rows, bias, add != 0, scale};
    gated ? product<true>(*pool, *matrix, prepared, rows, target) : product<false>(*pool, *matrix, prepared, rows, target);
}

// out [count, columns] = factor * the matrix's rows of these indices.
void quintet_rows(const Matrix* matrix, const int64_t* indices, int64_t count, float factor, float* out) {
    for (int64_t i = 0; i < count; i++) unpack_row(*matrix, indices[i], factor, out + i * matrix->columns);
}

// Puts weights [rows, columns] into the order of a Matrix, whose memory is zero before: floats of `bits`, or codes of
// one byte (unsigned for four bits, signed for eight) with scales and, for four bits, minima [rows, blocks] float16.
void quintet_pack(int64_t bits, int64_t rows, int64_t columns, const uint8_t* weights, const uint16_t* scales,
                  const uint16_t* minima, uint8_t* to_codes, uint16_t* to_scales, uint16_t* to_minima) {
    const Matrix shape{bits, rows, columns, nullptr, nullptr, nullptr};
    const int64_t blocks = shape.blocks(), row_bytes = columns * (bits == 4 ? 1 : bits / 8);
    pool->run(shape.tiles(), [&](int64_t tile) {
        for (int64_t row = tile * LANES; row < rows && row < (tile + 1) * LANES; row++) {
            pack_row(shape, row, weights + row * row_bytes, to_codes);
            for (int64_t block = 0; block < blocks && bits <= 8; block++) {
                const int64_t place = (tile * blocks + block) * LANES + row % LANES;
                to_scales[place] = scales[row * blocks + block];
                if (bits == 4) to_minima[place] = minima[row * blocks + block];
            }
        }
    });
}

// Stores the step's keys and values in the cache and attends: query [T, heads, dim], key and value
// [T, kv_heads, dim], rows `stride` floats apart -> out [T, heads, dim].
void quintet_attend(const Layer* layer, const Step* step, const float* query, const float* key, const float* value,
                    int64_t stride, float* out) {
    float* turned = scratch(queries, step->num_tokens * layer->heads * layer->dim);
    const auto attend_in = layer->cache_bytes == 2 ? attend<uint16_t> : attend<float>;
    attend_in(*pool, *layer, *step, query, key, value, stride, turned, out);
}

// The version of this interface.
int64_t quintet_version() { return 1; }
}
