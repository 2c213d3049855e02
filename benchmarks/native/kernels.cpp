// Every type of matrix and of KV cache in kernels.inc at GPT-2's shapes, over so many copies that no cache holds them.
#include "attention.h"
#include "timing.h"

using namespace kaoken;
using namespace kaoken::KAOKEN_ISA;

namespace {

// The arrays of one matrix of a type. `bytes` is all of what a pass over it reads.
template <class Kind>
struct Weights;

template <>
struct Weights<Float32> {
  Buffer<float> values;
  Weights(int64_t depth, int64_t panels) : values(panels * kLanes * depth) { Random().fill(values); }
  Float32::Matrix matrix() const { return {values.data}; }
  int64_t bytes() const { return values.bytes(); }
};

template <>
struct Weights<BFloat16> {
  Buffer<uint16_t> values;
  Weights(int64_t depth, int64_t panels) : values(panels * kLanes * 2 * BFloat16::steps(depth)) {
    Random().fill(values);
  }
  BFloat16::Matrix matrix() const { return {values.data}; }
  int64_t bytes() const { return values.bytes(); }
};

template <>
struct Weights<Int8> {
  Buffer<uint8_t> values;
  Buffer<float> scales;
  Weights(int64_t depth, int64_t panels) : values(panels * Int8::panel_bytes(depth)), scales(panels * kLanes) {
    Random random;
    random.fill(values);
    random.fill(scales);
  }
  Int8::Matrix matrix() const { return {values.data, scales.data}; }
  int64_t bytes() const { return values.bytes() + scales.bytes(); }
};

// Of a kind with scales of groups.
template <class Kind>
struct GroupedWeights {
  Buffer<uint8_t> values;
  Buffer<uint16_t> scales;
  GroupedWeights(int64_t depth, int64_t panels)
      : values(panels * Kind::panel_bytes(depth)), scales(panels * Kind::Scales::stride(depth)) {
    Random random;
    random.fill(values);
    random.fill(scales);
  }
  typename Kind::Matrix matrix() const { return {values.data, scales.data}; }
  int64_t bytes() const { return values.bytes() + scales.bytes(); }
};
template <>
struct Weights<Int8Groups> : GroupedWeights<Int8Groups> {
  using GroupedWeights::GroupedWeights;
};
template <>
struct Weights<Int4> : GroupedWeights<Int4> {
  using GroupedWeights::GroupedWeights;
};
template <>
struct Weights<Int4Min> : GroupedWeights<Int4Min> {
  using GroupedWeights::GroupedWeights;
};

// y = x W^T for each of `copies` matrices in turn; each pass is over all of them. Returns the bytes of one.
template <class Kind, int64_t Depth, int64_t Outputs>
int64_t time_linear(int64_t threads, int64_t rows, int64_t copies, int64_t passes, double *seconds) {
  constexpr int64_t width = round_up(Outputs, kLanes), panels = width / kLanes;
  constexpr int64_t stride = Kind::row_stride(Depth);
  auto *weights = static_cast<Weights<Kind> *>(::operator new(sizeof(Weights<Kind>) * static_cast<size_t>(copies)));
  for (int64_t i = 0; i < copies; ++i) new (weights + i) Weights<Kind>(Depth, panels);

  Buffer<float> x(rows * round_up(Depth, kLanes)), out(rows * width), bias(width);
  Buffer<typename Kind::Input> inputs(rows * stride);
  Random().fill(x);
  for (int64_t row = 0; row < rows; ++row) {
    Kind::template convert<Depth>(x.data + row * round_up(Depth, kLanes), inputs.data + row * stride);
  }
  const Store<Unchanged, width> epilogue = {out.data, bias.data};
  time_passes(threads, passes, seconds, [&](int64_t, const Worker &worker) {
    for (int64_t i = 0; i < copies; ++i) {
      linear<Kind, Depth, panels>(worker, inputs.data, rows, weights[i].matrix(), epilogue);
      barrier(worker);
    }
  });

  const int64_t bytes = weights[0].bytes();
  for (int64_t i = 0; i < copies; ++i) weights[i].~Weights<Kind>();
  ::operator delete(weights);
  return bytes;
}

// Attention of GPT-2's 12 heads of 64 in `copies` blocks, `count` new positions behind `past` ones in each of `batch`
// sequences. Returns the bytes that one block's cache has for all positions up to the last.
template <class Type>
int64_t time_attention(int64_t threads, int64_t batch, int64_t count, int64_t past, int64_t copies, int64_t passes,
                       double *seconds) {
  using Attention = Scheme<Layout<12, 12, 64>, Type, NoRotary, NoBias, Sees::kPast>;
  using Cache = CacheOf<Attention>;
  constexpr int64_t heads = Attention::Layout::kGroups, width = Attention::Layout::kKeys;
  const Sequences sequences(count, past, batch);
  Buffer<float> qkv(batch * count * 3 * width), attended(batch * count * width);
  Random().fill(qkv);

  Pass pass = {};
  pass.batch = sequences.batch;
  pass.cache.page_bytes = heads * Cache::kHeadBytes * kPage * copies;
  Buffer<uint8_t> cache(static_cast<int64_t>(sequences.pages.size()) * pass.cache.page_bytes);
  pass.qkv = qkv.data;
  pass.attended = attended.data;
  pass.cache.memory = cache.data;
  time_passes(threads, passes, seconds, [&](int64_t, const Worker &worker) {
    for (int64_t i = 0; i < copies; ++i) {
      const Cache cache(pass.cache, i * heads * Cache::kHeadBytes);
      const HeadShare part = head_share<heads>(worker);
      extend_cache<Attention>(pass, part, cache, {});
      wait_for_cache<Attention>(pass, part);
      attention<Attention>(pass, part, cache, {}, {});
      barrier(worker);
    }
  });
  return heads * Cache::kHeadBytes * (past + count) * batch;
}

}  // namespace

#define LINEAR(kind, dtype, depth, outputs)                                                                          \
  EXPORT int64_t linear_##dtype##_##depth##_##outputs(int64_t threads, int64_t rows, int64_t copies, int64_t passes, \
                                                      double *seconds) {                                             \
    return time_linear<kind, depth, outputs>(threads, rows, copies, passes, seconds);                                \
  }
#define KAOKEN_MATRIX(kind, dtype) \
  LINEAR(kind, dtype, 768, 2304)   \
  LINEAR(kind, dtype, 768, 768)    \
  LINEAR(kind, dtype, 768, 3072)   \
  LINEAR(kind, dtype, 3072, 768)   \
  LINEAR(kind, dtype, 768, 50257)
#define KAOKEN_CACHE(type, dtype)                                                                               \
  EXPORT int64_t attention_##dtype(int64_t threads, int64_t batch, int64_t count, int64_t past, int64_t copies, \
                                   int64_t passes, double *seconds) {                                           \
    return time_attention<type>(threads, batch, count, past, copies, passes, seconds);                          \
  }
#include "kernels.inc"
