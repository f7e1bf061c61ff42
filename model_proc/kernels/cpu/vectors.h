// Sixteen float or integer lanes, written with the compiler's vector types: one AVX-512 register, or two of AVX2.
#pragma once

#include <immintrin.h>

#include <cstdint>

constexpr int LANES = 16;

typedef float Floats __attribute__((vector_size(64)));
typedef int32_t Ints __attribute__((vector_size(64)));
typedef uint32_t Words __attribute__((vector_size(64)));
typedef uint8_t Bytes __attribute__((vector_size(64)));
typedef uint16_t Shorts __attribute__((vector_size(32)));

#define INLINE static inline __attribute__((always_inline))
// Loops over rows and tiles: only when they are unrolled do their sums stay in registers.
#define UNROLL _Pragma("GCC unroll 8")

INLINE Floats splat(float value) { return value - Floats{}; }

template <class Vector, class Item>
INLINE Vector load(const Item* from) {
    Vector vector;
    __builtin_memcpy(&vector, from, sizeof vector);
    return vector;
}

template <class Vector, class Item>
INLINE void store(Item* to, const Vector& vector) {
    __builtin_memcpy(to, &vector, sizeof vector);
}

INLINE Floats load_floats(const float* from) { return load<Floats>(from); }

INLINE Floats load_floats(const uint16_t* bfloats) {
    return (Floats)(__builtin_convertvector(load<Shorts>(bfloats), Words) << 16);
}

INLINE Floats load_halves(const uint16_t* halves) {
#ifdef __AVX512F__
    return (Floats)_mm512_cvtph_ps(load<__m256i>(halves));
#else
    union {
        Floats whole;
        __m256 part[2];
    } lanes;
    lanes.part[0] = _mm256_cvtph_ps(load<__m128i>(halves));
    lanes.part[1] = _mm256_cvtph_ps(load<__m128i>(halves + 8));
    return lanes.whole;
#endif
}

// bfloat16, rounded to nearest even; what is not a number stays so.
INLINE Shorts to_bfloats(Floats values) {
    const Words bits = (Words)values;
    const Words rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    const Words numbers = (Words)(values == values);
    return __builtin_convertvector((rounded & numbers) | (~numbers & 0x7fc0), Shorts);
}

INLINE float sum(Floats values) {
    float total[LANES];
    store(total, values);
    for (int width = LANES / 2; width; width /= 2)
        for (int lane = 0; lane < width; lane++) total[lane] += total[lane + width];
    return total[0];
}

INLINE int32_t sum(Ints values) {
    int32_t total[LANES];
    store(total, values);
    for (int width = LANES / 2; width; width /= 2)
        for (int lane = 0; lane < width; lane++) total[lane] += total[lane + width];
    return total[0];
}

INLINE Floats greater(Floats a, Floats b) { return a > b ? a : b; }

INLINE float maximum(Floats values) {
    float best[LANES];
    store(best, values);
    for (int width = LANES / 2; width; width /= 2)
        for (int lane = 0; lane < width; lane++)
            best[lane] = best[lane] > best[lane + width] ? best[lane] : best[lane + width];
    return best[0];
}

INLINE Floats nearest(Floats values) {  // for |values| < 2^22
    const float magic = 12582912.0f;    // 1.5 * 2^23: what is behind the point has no room beside it
    return (values + magic) - magic;
}

// exp with a relative error of about 2e-7; 0 below -87. Polynomial of the Cephes library (S. Moshier), expf.
INLINE Floats exponential(Floats x) {
    const Floats low = splat(-87.0f), high = splat(88.0f);
    const Ints vanishes = x < low;
    x = x < low ? low : x;
    x = x > high ? high : x;
    const Floats power = nearest(x * 1.44269504088896341f);
    x -= power * 0.693359375f;
    x -= power * -2.12194440e-4f;
    Floats y = splat(1.9875691500e-4f);
    y = y * x + 1.3981999507e-3f;
    y = y * x + 8.3334519073e-3f;
    y = y * x + 4.1665795894e-2f;
    y = y * x + 1.6666665459e-1f;
    y = y * x + 5.0000001201e-1f;
    y = y * x * x + x + 1.0f;
    const Ints exponent = (__builtin_convertvector(power, Ints) + 127) << 23;
    return (Floats)((Ints)(y * (Floats)exponent) & ~vanishes);
}

INLINE int32_t four(const int8_t* codes) {
    int32_t together;
    __builtin_memcpy(&together, codes, 4);
    return together;
}

// Integer products of weights (unsigned bytes) and activations (four signed bytes, the same for every lane):
// lane i gains the sum over j of weights[4 i + j] * activations[j].
#if defined(__AVX512VNNI__)
constexpr int BYTE_OFFSET = 128;  // weights of eight bits are signed; this makes them unsigned

INLINE Ints dot_nibbles(Ints sums, Bytes weights, const int8_t* activations) {
    return (Ints)_mm512_dpbusd_epi32((__m512i)sums, (__m512i)weights, _mm512_set1_epi32(four(activations)));
}

INLINE Ints dot_bytes(Ints sums, Bytes weights, const int8_t* activations) {
    return dot_nibbles(sums, weights, activations);
}
#else
constexpr int BYTE_OFFSET = 0;

union Halves {
    Ints ints;
    Bytes bytes;
    __m256i part[2];
};

INLINE Ints dot_nibbles(Ints sums, Bytes weights, const int8_t* activations) {
    Halves total{.ints = sums}, factors{.bytes = weights};
    const __m256i activation = _mm256_set1_epi32(four(activations)), ones = _mm256_set1_epi16(1);
    for (int half = 0; half < 2; half++) {
        const __m256i pairs = _mm256_maddubs_epi16(factors.part[half], activation);
        total.part[half] = _mm256_add_epi32(total.part[half], _mm256_madd_epi16(pairs, ones));
    }
    return total.ints;
}

// maddubs saturates at 16 bits, so the weights' magnitude (at most 128) is multiplied by the activations with its sign.
INLINE Ints dot_bytes(Ints sums, Bytes weights, const int8_t* activations) {
    Halves total{.ints = sums}, factors{.bytes = weights ^ 128};
    const __m256i activation = _mm256_set1_epi32(four(activations)), ones = _mm256_set1_epi16(1);
    for (int half = 0; half < 2; half++) {
        const __m256i weight = factors.part[half];
        const __m256i pairs =
            _mm256_maddubs_epi16(_mm256_abs_epi8(weight), _mm256_sign_epi8(activation, weight));
        total.part[half] = _mm256_add_epi32(total.part[half], _mm256_madd_epi16(pairs, ones));
    }
    return total.ints;
}
#endif
