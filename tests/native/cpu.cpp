// cpu FEATURE...: prints those that the runtime finds in the processor, a line each.
#include "cpu.h"

#include <cstdio>

int main(int argc, char **argv) {
  for (int i = 1; i < argc; ++i) {
    if (kaoken::cpu_has(argv[i])) std::puts(argv[i]);
  }
  return 0;
}
