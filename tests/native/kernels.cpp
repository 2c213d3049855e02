// The kernels of one ISA behind C functions, for tests/native_kernels.py. Shapes are odd on purpose.
#include "attention.h"
#include "embedding.h"
#include "inputs.h"
#include "relative.h"
#include "sampling.h"

#define EXPORT extern "C" __attribute__((visibility("default")))

// The kernels call it between phases; one worker has nobody to wait for.
void kaoken::barrier(const kaoken::Worker &) {}

using namespace kaoken;
using namespace kaoken::KAOKEN_ISA;

namespace {

const Worker alone = {0, 1, nullptr};

template <class Bias>
Bias make_bias(const float *table, int64_t stride, int64_t limit) {
  if constexpr (Bias::kNone) {
    return {};
  } else {
    return {table, stride, limit};
  }
}

struct Unchanged {
  KAOKEN_INLINE Vec apply(Vec x) { return x; }
};

template <class Function>
void map(const float *x, float *y, int64_t count, Function function) {
  for (int64_t i = 0; i < count; i += kLanes) store(y + i, function(load(x + i)));
}

// Becomes a pointer to whatever a matrix declares.
struct Pointer {
  const void *to;
  template <class T>
  operator const T *() const {
    return static_cast<const T *>(to);
  }
};

// A matrix of any kind from the arrays that codegen/layout.py packs it into.
template <class Matrix>
Matrix make_matrix(const void *const *arrays) {
  if constexpr (sizeof(Matrix) >= 2 * sizeof(void *)) {
    return {Pointer{arrays[0]}, Pointer{arrays[1]}};
  } else {
    return {Pointer{arrays[0]}};
  }
}

// One kind of matrix at one shape.
template <class Kind, int64_t Depth, int64_t Outputs>
struct Linear {
  using Input = typename Kind::Input;
  static constexpr int64_t kWidth = round_up(Outputs, kLanes);
  static constexpr int64_t kStride = Kind::row_stride(Depth);

  static void convert(const float *x, int64_t rows, Input *inputs) {
    for (int64_t row = 0; row < rows; ++row) {
      Kind::template convert<Depth>(x + row * round_up(Depth, kLanes), inputs + row * kStride);
    }
  }

  // As `workers` threads would, one after the other.
  static void multiply(int workers, const Input *inputs, int64_t rows, const void *const *arrays, const float *bias,
                       float *y) {
    for (int index = 0; index < workers; ++index) {
      linear<Kind, Depth, kWidth / kLanes>({index, workers, nullptr}, inputs, rows,
                                           make_matrix<typename Kind::Matrix>(arrays),
                                           Store<Unchanged, kWidth>{y, bias});
    }
  }
};

// Attention with one type of cache, at one shape.
template <class Type, int64_t Heads, int64_t HeadDim, Sees Which = Sees::kPast, class Added = NoBias,
          int64_t Reach = kUnlimited>
struct Attention {
  using Scheme =
      KAOKEN_ISA::Scheme<Layout<Heads, Heads, round_up(HeadDim, kLanes)>, Type, NoRotary, Added, Which, Reach>;
  static constexpr int64_t kCacheBytes = Heads * CacheOf<Scheme>::kHeadBytes;

  static void attend(int64_t batch, const Sequence *sequences, int64_t rows, float *qkv, void *cache, float *attended,
                     const Added &bias = {}) {
    Pass pass = {};
    pass.batch = {rows, batch, sequences};
    pass.qkv = qkv;
    pass.cache = {cache, kPage * kCacheBytes};
    pass.attended = attended;
    const HeadShare part = head_share<Heads>(alone);
    extend_cache<Scheme>(pass, part, CacheOf<Scheme>(pass.cache, 0), {});
    attention<Scheme>(pass, part, CacheOf<Scheme>(pass.cache, 0), {}, bias);
  }
};

// Attention with keys and queries of distances, in tables of so many buckets.
constexpr int64_t kBuckets = 272;
template <class Type, int64_t Heads, int64_t HeadDim, bool Keys, bool Queries>
struct RelativeAttention {
  using Bias = RelativeBias<Type, kBuckets, Keys, Queries>;
  using Scheme = KAOKEN_ISA::Scheme<Layout<Heads, Heads, round_up(HeadDim, kLanes)>, Type, NoRotary, Bias, Sees::kAll>;

  // As `workers` threads that share heads would, one after the other.
  static void attend(int workers, const Batch &batch, float *qkv, void *cache, float *attended, const Bias &bias) {
    Pass pass = {};
    pass.batch = batch;
    pass.qkv = qkv;
    pass.cache = {cache, kPage * Heads * CacheOf<Scheme>::kHeadBytes};
    pass.attended = attended;
    extend_cache<Scheme>(pass, {{0, Heads}, alone}, CacheOf<Scheme>(pass.cache, 0), {});
    for (int index = 0; index < workers; ++index) {
      relative_attention<Scheme>(pass, {{0, Heads}, {index, workers, nullptr}}, CacheOf<Scheme>(pass.cache, 0), bias);
    }
  }
};

// The two halves of attention to a source: what an encoder leaves in the cache, and what queries make of it.
template <class Type, int64_t Heads, int64_t HeadDim>
using Source = Scheme<SourceLayout<Heads, Heads, round_up(HeadDim, kLanes)>, Type, NoRotary, NoBias, Sees::kSource>;
template <class Type, int64_t Heads, int64_t HeadDim>
using ToSource = Scheme<QueryLayout<Heads, Heads, round_up(HeadDim, kLanes)>, Type, NoRotary, NoBias, Sees::kSource>;

template <class Traits>
Pass source_pass(int64_t batch, const Sequence *sequences, int64_t rows, const float *qkv, void *cache) {
  Pass pass = {};
  pass.batch = {rows, batch, sequences};
  pass.qkv = const_cast<float *>(qkv);
  pass.source = {cache, kPage * Traits::Layout::kGroups * CacheOf<Traits>::kHeadBytes};
  return pass;
}

// One sequence of so many rows, from row 0 on.
struct Single {
  Sequence sequence;
  Batch batch;
  Single(int64_t rows, int64_t past)
      : sequence{0, rows, past, past + rows, nullptr, 0, nullptr}, batch{rows, 1, &sequence} {}
};

}  // namespace

// y[i] = f(x[i]) for a multiple of 16 values
#define KAOKEN_FUNCTION(name)                                            \
  EXPORT void function_##name(const float *x, float *y, int64_t count) { \
    map(x, y, count, [](Vec v) { return kaoken::KAOKEN_ISA::name(v); }); \
  }
#define KAOKEN_ACTIVATION(name)                                            \
  EXPORT void activation_##name(const float *x, float *y, int64_t count) { \
    map(x, y, count, [](Vec v) { return name##_activation::apply(v); });   \
  }

// convert_*: rows of floats, padded to whole vectors, -> inputs [rows][row_bytes_*].
// linear_*: inputs and a matrix's arrays -> y [rows][outputs padded], the bias added.
#define LINEAR(kind, dtype, depth, outputs)                                                                           \
  EXPORT int64_t row_bytes_##dtype##_##depth##_##outputs() {                                                          \
    return kind::row_stride(depth) * static_cast<int64_t>(sizeof(kind::Input));                                       \
  }                                                                                                                   \
  EXPORT void convert_##dtype##_##depth##_##outputs(const float *x, int64_t rows, void *inputs) {                     \
    Linear<kind, depth, outputs>::convert(x, rows, static_cast<kind::Input *>(inputs));                               \
  }                                                                                                                   \
  EXPORT void linear_##dtype##_##depth##_##outputs(int workers, const void *inputs, int64_t rows,                     \
                                                   const void *const *arrays, const float *bias, float *y) {          \
    Linear<kind, depth, outputs>::multiply(workers, static_cast<const kind::Input *>(inputs), rows, arrays, bias, y); \
  }
#define KAOKEN_MATRIX(kind, dtype) \
  LINEAR(kind, dtype, 1, 1)        \
  LINEAR(kind, dtype, 33, 17)      \
  LINEAR(kind, dtype, 100, 49)     \
  LINEAR(kind, dtype, 129, 81)     \
  LINEAR(kind, dtype, 768, 160)

// attention_*: qkv [rows][3][heads][padded] -> attended [rows][heads][padded], with a cache of cache_bytes_* for each
// position of its pages.
#define ATTENTION(type, dtype, heads, head_dim)                                                                \
  EXPORT int64_t cache_bytes_##dtype##_##heads##_##head_dim() {                                                \
    return Attention<type, heads, head_dim>::kCacheBytes;                                                      \
  }                                                                                                            \
  EXPORT void attention_##dtype##_##heads##_##head_dim(int64_t batch, const Sequence *sequences, int64_t rows, \
                                                       float *qkv, void *cache, float *attended) {             \
    Attention<type, heads, head_dim>::attend(batch, sequences, rows, qkv, cache, attended);                    \
  }
// The same at one shape where rows see all of their sequence, with a bias by distance, table [heads][stride], and with
// a window.
#define ATTENTION_THAT(name, type, dtype, sees, bias, reach)                                                 \
  EXPORT void attention_##name##_##dtype(int64_t batch, const Sequence *sequences, int64_t rows, float *qkv, \
                                         void *cache, float *attended, const float *table, int64_t stride,   \
                                         int64_t limit) {                                                    \
    Attention<type, 3, 12, sees, bias, reach>::attend(batch, sequences, rows, qkv, cache, attended,          \
                                                      make_bias<bias>(table, stride, limit));                \
  }
// With keys and queries of distances: keys are the arrays that codegen/layout.py packs [heads * kBuckets, padded]
// into, queries [heads][kBuckets][padded], and buckets those of the distances from -limit on.
#define ATTENTION_BY_DISTANCE(name, type, dtype, with_keys, with_queries)                                          \
  EXPORT void attention_##name##_##dtype(int64_t batch, const Sequence *sequences, int64_t rows, float *qkv,       \
                                         void *cache, float *attended, int workers, const void *const *keys,       \
                                         const float *queries, const int32_t *buckets, int64_t limit) {            \
    using Relative = RelativeAttention<type, 3, 12, with_keys, with_queries>;                                      \
    const Relative::Bias bias = {{Pointer{keys[0]}, Pointer{keys[1]}, Pointer{keys[2]}}, queries, buckets, limit}; \
    Relative::attend(workers, {rows, batch, sequences}, qkv, cache, attended, bias);                               \
  }
// source_*: keys and values [rows][2][heads][padded] -> a cache; to_source_*: queries [rows][heads][padded] ->
// attended.
#define ATTENTION_TO_SOURCE(type, dtype)                                                                           \
  EXPORT void source_##dtype(int64_t batch, const Sequence *sequences, int64_t rows, const float *keys_and_values, \
                             void *cache) {                                                                        \
    using Traits = Source<type, 3, 12>;                                                                            \
    const Pass pass = source_pass<Traits>(batch, sequences, rows, keys_and_values, cache);                         \
    extend_cache<Traits>(pass, {{0, 3}, alone}, CacheOf<Traits>(pass.source, 0), {});                              \
  }                                                                                                                \
  EXPORT void to_source_##dtype(int64_t batch, const Sequence *sequences, int64_t rows, const float *queries,      \
                                void *cache, float *attended) {                                                    \
    using Traits = ToSource<type, 3, 12>;                                                                          \
    Pass pass = source_pass<Traits>(batch, sequences, rows, queries, cache);                                       \
    pass.attended = attended;                                                                                      \
    attention<Traits>(pass, {{0, 3}, alone}, CacheOf<Traits>(pass.source, 0), {}, {});                             \
  }
EXPORT int64_t relative_buckets() { return kBuckets; }
#define KAOKEN_CACHE(type, dtype)                                                 \
  ATTENTION_THAT(all, type, dtype, Sees::kAll, NoBias, kUnlimited)                \
  ATTENTION_THAT(all_biased, type, dtype, Sees::kAll, DistanceBias, kUnlimited)   \
  ATTENTION_THAT(past_biased, type, dtype, Sees::kPast, DistanceBias, kUnlimited) \
  ATTENTION_THAT(all_within_0, type, dtype, Sees::kAll, NoBias, 0)                \
  ATTENTION_THAT(all_within_64, type, dtype, Sees::kAll, NoBias, 64)              \
  ATTENTION_THAT(all_within_75_biased, type, dtype, Sees::kAll, DistanceBias, 75) \
  ATTENTION_THAT(past_within_5_biased, type, dtype, Sees::kPast, DistanceBias, 5) \
  ATTENTION_THAT(past_within_63, type, dtype, Sees::kPast, NoBias, 63)            \
  ATTENTION_THAT(past_within_130, type, dtype, Sees::kPast, NoBias, 130)          \
  ATTENTION_BY_DISTANCE(relative, type, dtype, true, true)                        \
  ATTENTION_BY_DISTANCE(relative_keys, type, dtype, true, false)                  \
  ATTENTION_BY_DISTANCE(relative_queries, type, dtype, false, true)               \
  ATTENTION_TO_SOURCE(type, dtype)                                                \
  ATTENTION(type, dtype, 1, 16)                                                   \
  ATTENTION(type, dtype, 3, 12)                                                   \
  ATTENTION(type, dtype, 2, 64)

#include "kernels.inc"

// What 8-bit inputs are stored less: 128 where the ISA multiplies signed bytes.
EXPORT int weight_zero() { return kWeightZero; }

#define LAYER_NORM(width)                                                                                           \
  EXPORT void layer_norm_##width(const float *x, float *y, float epsilon, const float *weight, const float *bias) { \
    layer_norm<width>(x, y, epsilon, weight, bias);                                                                 \
  }
LAYER_NORM(1)
LAYER_NORM(15)
LAYER_NORM(36)
LAYER_NORM(768)

// The token and position embeddings of 36 values, and a whole MLP of 36 and 83, each as a block composes it.
EXPORT void embedding(const int32_t *ids, int64_t count, int64_t past, const float *tokens, const float *positions,
                      float *hidden) {
  const Single single(count, past);
  Pass pass = {};
  pass.batch = single.batch;
  pass.ids = ids;
  pass.hidden = hidden;
  const Float32::Matrix slice = {tokens};
  embed<Float32, NoNorm, 36, 64>(pass, alone, {positions, nullptr, nullptr, nullptr}, 0.0f, &slice);
}

// x [64] turned by a position into y [64].
EXPORT void turn(const float *table, const float *x, int64_t position, float *y) {
  Rotary{table}.turn<64>(x, position, y);
}

// The head of 33 values and 17 tokens, whose logits end within a panel: every row of one sequence.
EXPORT void logits(const float *x, int64_t rows, const float *w, float *out) {
  linear<Float32, 33, 2>(alone, x, rows, {w}, StoreLogits<17>{out, 0, nullptr});
}

EXPORT void mlp(const float *x, int64_t rows, const float *w_in, const float *b_in, const float *w_out,
                const float *b_out, float *inner, float *hidden) {
  linear<Float32, 36, 6>(alone, x, rows, {w_in}, Store<gelu_tanh_activation, 96>{inner, b_in});
  linear<Float32, 83, 3>(alone, inner, rows, {w_out}, AddResidual<48>{hidden, b_out});
}

// What choosing a token does to a row, as `workers` threads would, one after the other.
EXPORT void largest_logits(int workers, const float *logits, int64_t count, int64_t blocks, float *maxima) {
  for (int index = 0; index < workers; ++index) {
    const Share part = share(blocks, {index, workers, nullptr});
    block_maxima(logits, count, part.begin, part.end, maxima);
  }
}
EXPORT void weigh_logits(int workers, float *logits, int64_t count, int64_t blocks, float largest, float scale,
                         float *sums) {
  for (int index = 0; index < workers; ++index) {
    const Share part = share(blocks, {index, workers, nullptr});
    weigh(logits, count, part.begin, part.end, largest, scale, sums);
  }
}
EXPORT int64_t count_weights(const float *weights, int64_t count, float least) {
  return count_from(weights, count, least);
}
EXPORT void keep_weights(int workers, float *weights, int64_t count, int64_t blocks, float least, float *sums) {
  for (int index = 0; index < workers; ++index) {
    const Share part = share(blocks, {index, workers, nullptr});
    keep(weights, count, part.begin, part.end, least, sums);
  }
}
