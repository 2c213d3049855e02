// __builtin_cpu_supports knows too few names in Clang, and says no to all of them where its constructor did not run,
// as in programs of `zig c++`. So the processor is asked here.
#include "cpu.h"

#include <stdint.h>

#if defined(__x86_64__)
#include <cpuid.h>
#elif defined(__aarch64__) && defined(__linux__)
#include <asm/hwcap.h>
#include <sys/auxv.h>
#endif

namespace kaoken {

#if defined(__x86_64__)
namespace {

struct Registers {
  uint32_t eax, ebx, ecx, edx;
};

struct Feature {
  const char *name;
  uint32_t leaf, subleaf;
  uint32_t Registers::*word;
  uint32_t bit;
  uint32_t state;  // the registers that the system must keep, as bits of XCR0
};

constexpr uint32_t kAvx = 0x06;     // xmm, ymm
constexpr uint32_t kAvx512 = 0xe6;  // xmm, ymm, k, zmm

constexpr Feature kFeatures[] = {
    {"fma", 1, 0, &Registers::ecx, bit_FMA, kAvx},
    {"f16c", 1, 0, &Registers::ecx, bit_F16C, kAvx},
    {"avx2", 7, 0, &Registers::ebx, bit_AVX2, kAvx},
    {"avxvnni", 7, 1, &Registers::eax, bit_AVXVNNI, kAvx},
    {"avx512f", 7, 0, &Registers::ebx, bit_AVX512F, kAvx512},
    {"avx512bw", 7, 0, &Registers::ebx, bit_AVX512BW, kAvx512},
    {"avx512dq", 7, 0, &Registers::ebx, bit_AVX512DQ, kAvx512},
    {"avx512vl", 7, 0, &Registers::ebx, bit_AVX512VL, kAvx512},
    {"avx512vnni", 7, 0, &Registers::ecx, bit_AVX512VNNI, kAvx512},
    {"avx512bf16", 7, 1, &Registers::eax, bit_AVX512BF16, kAvx512},
};
constexpr int kFeatureCount = sizeof kFeatures / sizeof *kFeatures;

// Zeros for a leaf that the processor does not have.
Registers cpuid(uint32_t leaf, uint32_t subleaf) {
  Registers words = {};
  __get_cpuid_count(leaf, subleaf, &words.eax, &words.ebx, &words.ecx, &words.edx);
  return words;
}

// XCR0; 0 where the system has not enabled the instruction that reads it.
uint32_t kept_registers() {
  if (!(cpuid(1, 0).ecx & bit_OSXSAVE)) return 0;
  uint32_t low, high;
  __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return low;
}

// A bit for each of kFeatures.
uint32_t read_features() {
  const uint32_t kept = kept_registers(), last_subleaf = cpuid(7, 0).eax;
  uint32_t found = 0;
  for (int i = 0; i < kFeatureCount; ++i) {
    const Feature &feature = kFeatures[i];
    if (feature.leaf == 7 && feature.subleaf > last_subleaf) continue;
    const bool present = cpuid(feature.leaf, feature.subleaf).*feature.word & feature.bit;
    if (present && (kept & feature.state) == feature.state) found |= 1u << i;
  }
  return found;
}

}  // namespace

bool cpu_has(const std::string &feature) {
  static const uint32_t found = read_features();  // once: a hypervisor may take long to answer
  for (int i = 0; i < kFeatureCount; ++i) {
    if (feature == kFeatures[i].name) return found >> i & 1;
  }
  return false;
}

#elif defined(__aarch64__) && defined(__linux__)

bool cpu_has(const std::string &feature) {
  if (feature == "asimddp") return getauxval(AT_HWCAP) & HWCAP_ASIMDDP;
  if (feature == "i8mm") return getauxval(AT_HWCAP2) & HWCAP2_I8MM;
  return false;
}

#else

bool cpu_has(const std::string &feature) { return feature == "asimddp"; }  // every Mac with an Arm processor has it

#endif

}  // namespace kaoken
