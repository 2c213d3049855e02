// Rounding and denormal modes: the caller's may be anything, ours are part of a result's bits.
#pragma once

#include <stdint.h>

#if defined(__x86_64__) || defined(__i386__)
#include <xmmintrin.h>
#endif

namespace kaoken {

// While it lives, this thread rounds to nearest and flushes denormals to zero.
class FloatMode {
 public:
  FloatMode() : saved_(read()) { write(kOurs); }
  ~FloatMode() { write(saved_); }
  FloatMode(const FloatMode &) = delete;
  FloatMode &operator=(const FloatMode &) = delete;

 private:
#if defined(__x86_64__) || defined(__i386__)
  using Control = uint32_t;
  static constexpr Control kOurs = 0x1f80 | 0x8000 | 0x0040;  // no traps, flush to zero, denormals are zero
  static Control read() { return _mm_getcsr(); }
  static void write(Control control) { _mm_setcsr(control); }
#elif defined(__aarch64__)
  using Control = uint64_t;
  static constexpr Control kOurs = 1u << 24;  // flush to zero
  static Control read() {
    Control control;
    __asm__ volatile("mrs %0, fpcr" : "=r"(control));
    return control;
  }
  static void write(Control control) { __asm__ volatile("msr fpcr, %0" : : "r"(control)); }
#else
  using Control = int;
  static constexpr Control kOurs = 0;
  static Control read() { return 0; }
  static void write(Control) {}
#endif

  Control saved_;
};

}  // namespace kaoken
