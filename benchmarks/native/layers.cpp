// The layers of GPT-2 in float32, as a baked model runs them: within one pass of a team, with a barrier where it has
// one. seconds[pass] is that of `repeats` in a row, so that a clock reading costs nothing.
#include "sublayers/mlp.h"
#include "sublayers/self_attention.h"
#include "timing.h"

using namespace kaoken;
using namespace kaoken::KAOKEN_ISA;

namespace {

constexpr int64_t kWidth = 768, kInner = 3072, kHeads = 12, kHeadDim = 64, kVocabulary = 50257;

struct Matrix {
  Buffer<float> weights, bias;
  Matrix(int64_t depth, int64_t outputs, float scale = 0.04f)
      : weights(round_up(outputs, kLanes) * depth), bias(round_up(outputs, kLanes)) {
    Random random;
    random.fill(weights);
    random.fill(bias);
    for (int64_t i = 0; i < weights.count; ++i) weights.data[i] *= scale;
    for (int64_t i = 0; i < bias.count; ++i) bias.data[i] *= scale;
  }
  Float32::Matrix matrix() const { return {weights.data}; }
};

struct Attention {
  static constexpr int64_t kWidth = ::kWidth;
  using Norm = NoNorm;
  static constexpr float kEpsilon = 0;
  static constexpr bool kReplaces = false, kLast = false;
  using Scheme = KAOKEN_ISA::Scheme<Layout<kHeads, kHeads, kHeadDim>, CacheFloat32, NoRotary, NoBias, Sees::kPast>;
  using Qkv = Float32;
  using Out = Float32;
};

struct Mlp {
  static constexpr int64_t kWidth = ::kWidth, kInner = ::kInner;
  using Norm = NoNorm;
  static constexpr float kEpsilon = 0;
  static constexpr bool kReplaces = false, kGated = false;
  using Activation = gelu_tanh_activation;
  using Up = Float32;
  using Down = Float32;
};

// layer(worker) `repeats` times a pass, a barrier behind each unless it has its own or one row is each worker's own.
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
    linear<Float32, kWidth, width / kLanes>(worker, x.data, rows, head.matrix(),
                                            Store<Unchanged, width>{y.data, head.bias.data});
  });
}

// The sublayers that a model is made of, without a norm; what they add to `x` is small beside it, so that it stays as
// it is. Attention is of one sequence of `rows` positions from an empty cache.
EXPORT void layer_attention(int64_t threads, int64_t rows, int64_t repeats, int64_t passes, double *seconds) {
  const Matrix qkv(kWidth, 3 * kWidth), out(kWidth, kWidth, 1e-9f);
  Buffer<float> x(rows * kWidth), split(rows * 3 * kWidth), attended(rows * kWidth);
  Random().fill(x);
  const Sequences sequence(rows, 0);
  Pass pass = {};
  pass.batch = sequence.batch;
  pass.cache.page_bytes = kPage * kHeads * CacheOf<Attention::Scheme>::kHeadBytes;
  Buffer<uint8_t> cache(static_cast<int64_t>(sequence.pages.size()) * pass.cache.page_bytes);
  pass.cache.memory = cache.data;
  pass.hidden = x.data;
  pass.qkv = split.data;
  pass.attended = attended.data;
  time_layer(threads, repeats, passes, seconds, true, [&](const Worker &worker) {
    self_attention<Attention>(pass, worker, 0, {}, {qkv.matrix(), qkv.bias.data}, {out.matrix(), out.bias.data}, {},
                              {});
  });
}

EXPORT void layer_mlp(int64_t threads, int64_t rows, int64_t repeats, int64_t passes, double *seconds) {
  const Matrix up(kWidth, kInner), down(kInner, kWidth, 1e-9f);
  Buffer<float> x(rows * kWidth), inner(rows * kInner);
  Random().fill(x);
  const Sequences sequence(rows, 0);
  Pass pass = {};
  pass.batch = sequence.batch;
  pass.hidden = x.data;
  pass.inner = inner.data;
  time_layer(threads, repeats, passes, seconds, true, [&](const Worker &worker) {
    mlp<Mlp>(pass, worker, {}, {up.matrix(), up.bias.data}, {down.matrix(), down.bias.data});
  });
}
