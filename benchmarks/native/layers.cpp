// The layers of GPT-2 in float32, as a baked model runs them: within one pass of a team, with a barrier where it has
// one. seconds[pass] is that of `repeats` in a row, so that a clock reading costs nothing.
#include "attention.h"
#include "timing.h"

using namespace kaoken;
using namespace kaoken::KAOKEN_ISA;

namespace {

constexpr int64_t kWidth = 768, kInner = 3072, kHeads = 12, kHeadDim = 64, kVocabulary = 50257;

struct Matrix {
  Buffer<float> weights, bias;
  Matrix(int64_t depth, int64_t outputs) : weights(round_up(outputs, kLanes) * depth), bias(round_up(outputs, kLanes)) {
    Random random;
    random.fill(weights);
    random.fill(bias);
    for (int64_t i = 0; i < weights.count; ++i) weights.data[i] *= 0.04f;  // so that chained layers stay in range
  }
  Float32::Matrix matrix() const { return {weights.data}; }
};

struct Attention {
  using Cache = CacheFloat32;
  using Layout = KAOKEN_ISA::Layout<kHeads, kHeads, kHeadDim>;
  using Rotary = NoRotary;
  using Bias = NoBias;
  static constexpr Sees kSees = Sees::kPast;
};

// layer(worker) `repeats` times a pass, a barrier behind each unless one row is each worker's own.
template <class Layer>
void time_layer(int64_t threads, int64_t repeats, int64_t passes, double *seconds, bool alone, const Layer &layer) {
  time_passes(threads, passes, seconds, [&](int64_t, const Worker &worker) {
    for (int64_t i = 0; i < repeats; ++i) {
      layer(worker);
      if (!alone) barrier(worker);
    }
  });
}

// Keeps the compiler from moving one repeat's stores out of the loop.
void written(const void *p) { __asm__ volatile("" : : "r"(p) : "memory"); }

}  // namespace

EXPORT void layer_norm(int64_t threads, int64_t rows, int64_t repeats, int64_t passes, double *seconds) {
  Buffer<float> x(rows * kWidth), y(rows * kWidth * threads), weight(kWidth), bias(kWidth);
  Random().fill(x);
  time_layer(threads, repeats, passes, seconds, rows == 1, [&](const Worker &worker) {
    const Share part = rows == 1 ? Share{0, 1} : share(rows, worker);
    float *out = y.data + (rows == 1 ? worker.index * kWidth : 0);
    for (int64_t row = part.begin; row < part.end; ++row) {
      KAOKEN_ISA::layer_norm<kWidth>(x.data + row * kWidth, out + row * kWidth, 1e-5f, weight.data, bias.data);
    }
    written(out);
  });
}

EXPORT void layer_gelu(int64_t threads, int64_t rows, int64_t repeats, int64_t passes, double *seconds) {
  Buffer<float> x(rows * kWidth), y(rows * kWidth * threads);
  Random().fill(x);
  time_layer(threads, repeats, passes, seconds, rows == 1, [&](const Worker &worker) {
    const Share part = rows == 1 ? Share{0, 1} : share(rows, worker);
    float *out = y.data + (rows == 1 ? worker.index * kWidth : 0);
    for (int64_t i = part.begin * kWidth; i < part.end * kWidth; i += kLanes) {
      store(out + i, gelu_tanh_activation::apply(load(x.data + i)));
    }
    written(out);
  });
}

EXPORT void layer_linear(int64_t threads, int64_t rows, int64_t repeats, int64_t passes, double *seconds) {
  constexpr int64_t width = round_up(kVocabulary, kLanes);
  const Matrix head(kWidth, kVocabulary);
  Buffer<float> x(rows * kWidth), y(rows * width);
  Random().fill(x);
  time_layer(threads, repeats, passes, seconds, false, [&](const Worker &worker) {
    linear<Float32, kWidth, width / kLanes>(worker, {x.data, nullptr}, rows, head.matrix(),
                                            Store<Unchanged, width>{y.data, head.bias.data});
  });
}

// One sequence of `rows` positions from an empty cache: the fused projections, attention, the output projection.
EXPORT void layer_attention(int64_t threads, int64_t rows, int64_t repeats, int64_t passes, double *seconds) {
  const Matrix qkv(kWidth, 3 * kWidth), projection(kWidth, kWidth);
  Buffer<float> x(rows * kWidth), y(rows * kWidth), split(rows * 3 * kWidth), attended(rows * kWidth);
  Random().fill(x);
  using Cache = CacheOf<Attention>;
  const Sequences sequence(rows, 0);
  Pass pass = {};
  pass.batch = sequence.batch;
  pass.cache.page_bytes = kPage * kHeads * Cache::kHeadBytes;
  Buffer<uint8_t> cache(static_cast<int64_t>(sequence.pages.size()) * pass.cache.page_bytes);
  pass.cache.memory = cache.data;
  pass.qkv = split.data;
  pass.attended = attended.data;
  time_layer(threads, repeats, passes, seconds, false, [&](const Worker &worker) {
    const Float32::Inputs inputs = {x.data, nullptr};
    using Heads = Attention::Layout;
    const StoreQueryKeyValue<Heads, Heads::kKeys> store_qkv = {split.data, qkv.bias.data};
    const HeadPart part = head_part<kHeads>(worker);
    project_keys_and_values<Heads, Float32, kWidth>(worker, inputs, rows, qkv.matrix(), store_qkv);
    project_queries<Heads, Float32, kWidth>(worker, inputs, rows, qkv.matrix(), store_qkv, nullptr);
    barrier(part.worker);
    extend_cache<Attention>(pass, part, Cache(pass.cache, 0), {});
    attention<Attention>(pass, part, Cache(pass.cache, 0), {}, {});
    barrier(worker);
    linear<Float32, kWidth, kWidth / kLanes>(worker, {attended.data, nullptr}, rows, projection.matrix(),
                                             Store<Unchanged, kWidth>{y.data, projection.bias.data});
  });
}

EXPORT void layer_mlp(int64_t threads, int64_t rows, int64_t repeats, int64_t passes, double *seconds) {
  const Matrix in(kWidth, kInner), out(kInner, kWidth);
  Buffer<float> x(rows * kWidth), y(rows * kWidth), inner(rows * kInner);
  Random().fill(x);
  time_layer(threads, repeats, passes, seconds, false, [&](const Worker &worker) {
    linear<Float32, kWidth, kInner / kLanes>(worker, {x.data, nullptr}, rows, in.matrix(),
                                             Store<gelu_tanh_activation, kInner>{inner.data, in.bias.data});
    barrier(worker);
    linear<Float32, kInner, kWidth / kLanes>(worker, {inner.data, nullptr}, rows, out.matrix(),
                                             Store<Unchanged, kWidth>{y.data, out.bias.data});
  });
}
