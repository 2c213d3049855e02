// KAOKEN_EMBED(symbol, "file"): a file's bytes, 64-byte aligned, and `const void *const symbol` pointing to them.
//
// The file is found on the include path, so no path of the building machine enters the source. The bytes go into a
// large section where the format has one, and code reaches them only through the pointer: a library may pass 2 GB,
// which 32-bit relative addresses cannot span. A zero byte follows the file, so that text ends as C expects.
#pragma once

#if defined(__APPLE__)
#define KAOKEN_EMBED_SECTION "__TEXT,__const"
#define KAOKEN_EMBED_POINTERS "__DATA,__const"
#define KAOKEN_EMBED_SYMBOL(symbol) "_" #symbol
#define KAOKEN_EMBED_HIDE(symbol) ".private_extern _" #symbol "\n"
#elif defined(__ELF__)
#if defined(__x86_64__) && defined(__clang__)
// Clang's assembler knows no "l" before version 17, but the same number: SHF_X86_64_LARGE and SHF_ALLOC.
#define KAOKEN_EMBED_SECTION ".lrodata,\"0x10000002\",%progbits"
#elif defined(__x86_64__)
#define KAOKEN_EMBED_SECTION ".lrodata,\"al\",%progbits"
#else
#define KAOKEN_EMBED_SECTION ".rodata.kaoken,\"a\",%progbits"
#endif
#define KAOKEN_EMBED_POINTERS ".data.rel.ro,\"aw\",%progbits"
#define KAOKEN_EMBED_SYMBOL(symbol) #symbol
#define KAOKEN_EMBED_HIDE(symbol) ".hidden " #symbol "\n.type " #symbol ", %object\n.size " #symbol ", 8\n"
#else
#error "Kaoken embeds weights into ELF and Mach-O objects; this compiler makes neither"
#endif

#define KAOKEN_EMBED(symbol, file) \
  __asm__(".pushsection " KAOKEN_EMBED_SECTION                       \
          "\n"                                                       \
          ".balign 64\n"                                             \
          "7:\n"                                                     \
          ".incbin \"" file                                          \
          "\"\n"                                                     \
          ".byte 0\n"                                                \
          ".popsection\n"                                            \
          ".pushsection " KAOKEN_EMBED_POINTERS                      \
          "\n"                                                       \
          ".balign 8\n"                                              \
          ".globl " KAOKEN_EMBED_SYMBOL(symbol) "\n" KAOKEN_EMBED_HIDE(symbol) KAOKEN_EMBED_SYMBOL(symbol) ":\n" \
          ".quad 7b\n"                                               \
          ".popsection\n");
