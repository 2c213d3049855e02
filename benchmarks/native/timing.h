// What the timed loops share: random numbers to multiply, and a team that runs passes between clock readings.
#pragma once

#include <chrono>
#include <cstring>
#include <memory>
#include <new>
#include <vector>

#include "inputs.h"
#include "team.h"

#define EXPORT extern "C" __attribute__((visibility("default")))

namespace kaoken::KAOKEN_ISA {

// Numbers of one array, on whole cache lines.
template <class T>
struct Buffer {
  explicit Buffer(int64_t count) : count(count), data(static_cast<T *>(::operator new(bytes(), std::align_val_t(64)))) {
    std::memset(static_cast<void *>(data), 0, bytes());
  }
  ~Buffer() { ::operator delete(data, std::align_val_t(64)); }
  Buffer(const Buffer &) = delete;
  Buffer &operator=(const Buffer &) = delete;
  size_t bytes() const { return static_cast<size_t>(round_up(count * static_cast<int64_t>(sizeof(T)), 64)); }

  int64_t count;
  T *data;
};

// A few bits at a time are plenty: no kernel's time depends on values, unless they are denormal.
struct Random {
  uint32_t state = 12345;
  uint32_t next() {
    state ^= state << 13;
    state ^= state >> 17;
    return state ^= state << 5;
  }
  void fill(const Buffer<float> &to) {
    for (int64_t i = 0; i < to.count; ++i) to.data[i] = static_cast<float>(next() & 0xffff) / 65536.0f - 0.5f;
  }
  void fill(const Buffer<uint16_t> &to) {  // from 1 to 2 as float16, small as bfloat16
    for (int64_t i = 0; i < to.count; ++i) to.data[i] = static_cast<uint16_t>(0x3c00 | (next() & 0x3ff));
  }
  void fill(const Buffer<int32_t> &to) {
    for (int64_t i = 0; i < to.count; ++i) to.data[i] = static_cast<int32_t>(next() & 0xff);
  }
  template <class Byte>
  void fill(const Buffer<Byte> &to) {
    static_assert(sizeof(Byte) == 1);
    for (int64_t i = 0; i < to.count; ++i) to.data[i] = static_cast<Byte>(next());
  }
};

// Runs work(pass, worker) on every worker `passes` times, meeting at a barrier behind each; seconds[pass] is what each
// took. `work` must leave its workers without waiting for each other, or together.
template <class Work>
void time_passes(int64_t threads, int64_t passes, double *seconds, const Work &work) {
  struct Context {
    int64_t passes;
    double *seconds;
    const Work &work;
  } context = {passes, seconds, work};
  Team(static_cast<int>(threads))
      .run(
          [](void *pointer, const Worker &worker) {
            const Context &all = *static_cast<Context *>(pointer);
            barrier(worker);
            auto begin = std::chrono::steady_clock::now();
            for (int64_t pass = 0; pass < all.passes; ++pass) {
              all.work(pass, worker);
              barrier(worker);
              const auto end = std::chrono::steady_clock::now();
              if (worker.index == 0) all.seconds[pass] = std::chrono::duration<double>(end - begin).count();
              begin = end;
            }
          },
          &context);
}

// `count` new positions behind `past` ones in each of `batch` sequences, and the pages of their cache.
struct Sequences {
  std::vector<int32_t> pages;
  std::vector<Sequence> each;
  Batch batch;

  Sequences(int64_t count, int64_t past, int64_t sequences = 1) {
    const int64_t per_sequence = round_up(past + count, kPage) / kPage;
    for (int64_t page = 0; page < per_sequence * sequences; ++page) pages.push_back(static_cast<int32_t>(page));
    for (int64_t i = 0; i < sequences; ++i) {
      each.push_back({i * count, count, past, past + count, pages.data() + i * per_sequence, 0, nullptr});
    }
    batch = {count * sequences, sequences, each.data()};
  }
  Sequences(const Sequences &) = delete;
};

struct Unchanged {
  KAOKEN_INLINE Vec apply(Vec x) { return x; }
};

}  // namespace kaoken::KAOKEN_ISA
