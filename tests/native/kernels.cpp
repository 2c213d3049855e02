// The kernels of one ISA behind C functions, for tests/test_kernels.py. Shapes are odd on purpose.
#include "attention.h"
#include "embedding.h"
#include "inputs.h"

#define EXPORT extern "C" __attribute__((visibility("default")))

// The kernels call it between phases; one worker has nobody to wait for.
void kaoken::barrier(const kaoken::Worker &) {}

using namespace kaoken;
using namespace kaoken::KAOKEN_ISA;

namespace {

const Worker alone = {0, 1, nullptr};

struct Unchanged {
  KAOKEN_INLINE Vec apply(Vec x) { return x; }
};

template <class Function>
void map(const float *x, float *y, int64_t count, Function function) {
  for (int64_t i = 0; i < count; i += kLanes) store(y + i, function(load(x + i)));
}

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
#include "kernels.inc"

#define LAYER_NORM(width)                                                                                           \
  EXPORT void layer_norm_##width(const float *x, float *y, float epsilon, const float *weight, const float *bias) { \
    layer_norm<width>(x, y, epsilon, weight, bias);                                                                 \
  }
LAYER_NORM(1)
LAYER_NORM(15)
LAYER_NORM(36)
LAYER_NORM(768)

#define LINEAR(depth, outputs)                                                                                        \
  EXPORT void linear_##depth##_##outputs(const float *x, int64_t rows, const float *w, const float *bias, float *y) { \
    constexpr int64_t width = round_up(outputs, kLanes);                                                              \
    linear<Float32, depth, width / kLanes>(alone, {x, nullptr}, rows, {w}, Store<Unchanged, width>{y, bias});         \
  }
LINEAR(1, 1)
LINEAR(33, 17)
LINEAR(100, 49)
LINEAR(768, 160)

#define ATTENTION(heads, head_dim)                                                                          \
  EXPORT void attention_##heads##_##head_dim(int64_t batch, int64_t count, int64_t past, int64_t positions, \
                                             float *qkv, float *cache, float *attended) {                   \
    Pass pass = {};                                                                                         \
    pass.batch = batch;                                                                                     \
    pass.count = count;                                                                                     \
    pass.past = past;                                                                                       \
    pass.positions = positions;                                                                             \
    pass.qkv = qkv;                                                                                         \
    pass.cache = cache;                                                                                     \
    pass.attended = attended;                                                                               \
    attention<CacheFloat32, heads, head_dim>(pass, alone, {pass, 0});                                       \
  }
ATTENTION(1, 16)
ATTENTION(3, 12)
ATTENTION(2, 64)

// The token and position embeddings of 36 values, and a whole MLP of 36 and 83, each as a block composes it.
EXPORT void embedding(const int32_t *ids, int64_t count, int64_t past, const float *tokens, const float *positions,
                      float *hidden) {
  Pass pass = {};
  pass.batch = 1;
  pass.count = count;
  pass.past = past;
  pass.ids = ids;
  pass.hidden = hidden;
  const Float32::Matrix shard = {tokens};
  embed<Float32, 36, 64>(pass, alone, positions, &shard);
}

EXPORT void mlp(const float *x, int64_t rows, const float *w_in, const float *b_in, const float *w_out,
                const float *b_out, float *inner, float *hidden) {
  linear<Float32, 36, 6>(alone, {x, nullptr}, rows, {w_in}, Store<gelu_tanh_activation, 96>{inner, b_in});
  linear<Float32, 83, 3>(alone, {inner, nullptr}, rows, {w_out}, AddResidual<48>{hidden, b_out});
}
